"""Several captures of one design are read as one, or refused in one line."""

import pickle
from pathlib import Path

import capture_child as child
import numpy as np
import pytest
from synthetic import effect_store, shifted_index

from posprobe import decompose
from posprobe.captures import capture_stimulus
from posprobe.errors import StoreError
from posprobe.probes import features
from posprobe.store import ActivationStore, JoinedStore, open_stores, opened

GRID = np.linspace(1.0, 0.0, 5)
ALONE = {"position0_alone"}  # first tokens run many in a pass, which changes the last bits


@pytest.fixture(scope="module")
def model():
    return child.model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """Five items in one file; the first three and the other two in files of their own."""
    folder = tmp_path_factory.mktemp("joined")
    for design in ("shifted", "natural"):
        for name, options in {
            "whole": {"n": 5},
            "a": {"n": 3},
            "b": {"n": 2, "first_item": 3},
        }.items():
            stimulus = child.stimulus(design, bos="none", **options)
            path = folder / f"{design}_{name}.h5"
            # One sequence in each pass, since another number of rows changes the last bits.
            capture_stimulus(model, stimulus, path, batch_tokens=1, progress=False).close()
    return folder


def by_item(store, quantity):
    """Values in the order of items and prefixes."""
    order = np.lexsort((store.prefix_length, store.item))
    layers = store.header.layers(quantity)
    return np.stack([store.read(quantity, layer)[order] for layer in layers])


@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_two_files_are_the_whole_capture_bit_for_bit(design, folder):
    whole = ActivationStore(folder / f"{design}_whole.h5")
    joined = JoinedStore([folder / f"{design}_b.h5", folder / f"{design}_a.h5"])
    assert (joined.n_items, joined.n_sequences) == (5, whole.n_sequences)
    assert np.array_equal(np.unique(joined.item), np.arange(5))
    for quantity in set(whole.header.quantities) - ALONE:
        assert by_item(joined, quantity).tobytes() == by_item(whole, quantity).tobytes(), quantity
    np.testing.assert_allclose(
        by_item(joined, "position0_alone"), by_item(whole, "position0_alone"), atol=1e-4
    )


def test_statistics_are_those_of_the_whole_capture(folder):
    whole = decompose(ActivationStore(folder / "shifted_whole.h5"), n_resamples=100)
    joined = JoinedStore([folder / "shifted_a.h5", folder / "shifted_b.h5"])
    assert decompose(joined, n_resamples=100).by_head.equals(whole.by_head)


def test_a_joined_store_reads_as_any_other(folder):
    joined = JoinedStore([folder / "natural_a.h5", folder / "natural_b.h5"])
    one, other = (ActivationStore(folder / f"natural_{name}.h5") for name in "ab")
    assert joined.path.name == "natural_a.h5 + natural_b.h5"
    assert joined.read("residual").shape == joined.header.shape("residual")
    np.testing.assert_array_equal(joined.read("residual")[:, 3:], other.read("residual"))
    np.testing.assert_array_equal(joined.read("residual", 1, [4, 0])[0], other.residual(1)[1])
    np.testing.assert_array_equal(
        joined.read("residual", sequences=slice(2, 4))[:, 0], one.read("residual")[:, 2]
    )
    parts = list(joined.blocks("normalizer", 1, 2))
    assert [part for part, _ in parts] == [slice(0, 2), slice(2, 3), slice(3, 5)]
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in parts]), joined.normalizer(1)
    )
    assert joined.verify() == joined.n_digests == one.n_digests + other.n_digests
    same = pickle.loads(pickle.dumps(joined))
    for quantity in (*joined.header.index, *joined.header.quantities):
        np.testing.assert_array_equal(same.read(quantity), joined.read(quantity))
    with pytest.raises(StoreError, match="'digest' belongs to one file"):
        joined.read("digest")
    with pytest.raises(StoreError, match="'offset' is not in"):
        joined.read("offset")
    assert joined.summary()["bytes"] == one.summary()["bytes"] + other.summary()["bytes"]
    assert joined.header.stimulus["n_items"] == 5
    joined.close()
    with pytest.raises(StoreError, match="is closed"):
        joined.normalizer(0)


@pytest.mark.parametrize(
    "sequences", [slice(4, 0, -2), [4, 0, 3, 0], np.arange(5) > 2, [], 3, [[0, 4], [2, 1]]], ids=str
)
@pytest.mark.parametrize(
    ("quantity", "layer"), [("residual", 1), ("residual", None), ("item", None)]
)
def test_sequences_of_both_files_are_those_of_the_whole(folder, quantity, layer, sequences):
    joined = JoinedStore([folder / "natural_a.h5", folder / "natural_b.h5"])
    whole = joined.read(quantity, layer)
    by_layer = quantity == "residual" and layer is None
    expected = whole[:, sequences] if by_layer else whole[sequences]
    np.testing.assert_array_equal(joined.read(quantity, layer, sequences), expected)


def test_files_of_one_capture_are_found_among_others(folder):
    names = ["natural_a", "shifted_b", "natural_b", "shifted_a"]
    stores = open_stores(folder / f"{name}.h5" for name in names)
    found = [store.path.name for store in stores]
    assert found == ["natural_a.h5 + natural_b.h5", "shifted_a.h5 + shifted_b.h5"]


def test_the_largest_rounding_and_all_special_tokens_are_those_of_all_files(folder):
    parts = [ActivationStore(folder / f"shifted_{name}.h5") for name in "ab"]
    joined = JoinedStore([store.path for store in parts])
    for layer in range(3):
        sizes = [store.rounding("normalizer", layer) for store in parts]
        assert joined.rounding("normalizer", layer) == max(sizes)


def synthetic(path, items, first_item=0, tokens=None, **fields):
    index = shifted_index(items, [1, 2, 3, 4, 5], 4, first_item)
    if tokens is not None:
        index["tokens"] = tokens
    effects = GRID * np.random.default_rng(first_item).uniform(0.5, 1.5, (items, 1))
    fields = {"index": index, **fields}
    return effect_store(path, effects, effects, prefixes=(1, 2, 3, 4, 5), fields=fields).path


def test_captures_with_other_batches_and_devices_are_read_as_one(tmp_path):
    other = {"batch_tokens": 64, "options": {"model": {"device": "cuda"}}}
    paths = [synthetic(tmp_path / "a.h5", 4), synthetic(tmp_path / "b.h5", 4, 4, **other)]
    assert JoinedStore(paths).n_items == 8


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "other"}, "attribute 'model' is 'synthetic' in a.h5, 'other' in b.h5"),
        ({"seed": 1}, "attribute 'seed' is 0 in a.h5, 1 in b.h5"),
        ({"weights_digest": "f"}, "attribute 'weights_digest'"),
        ({"position0_treatment": "zero"}, "attribute 'position0_treatment'"),
        ({"stimulus": {"bos_token": 1, "corpus": "x"}}, "attribute 'stimulus.corpus'"),
    ],
)
def test_captures_that_differ_in_more_than_their_items_are_refused(fields, why, tmp_path):
    paths = [synthetic(tmp_path / "a.h5", 4), synthetic(tmp_path / "b.h5", 4, 4, **fields)]
    with pytest.raises(StoreError, match=rf"a\.h5 and b\.h5 cannot be read as one capture: {why}"):
        JoinedStore(paths)
    assert len(open_stores(paths)) == 2


def test_what_does_not_change_a_number_may_differ(tmp_path):
    fields = {"batch_tokens": 7, "versions": {"torch": "x"}, "options": {"model": {"device": "x"}}}
    paths = [synthetic(tmp_path / "a.h5", 4), synthetic(tmp_path / "b.h5", 4, 4, **fields)]
    assert JoinedStore(paths).n_items == 8


def test_items_in_common_and_repeats_are_refused(tmp_path):
    a, b = synthetic(tmp_path / "a.h5", 4), synthetic(tmp_path / "b.h5", 4, 3)
    with pytest.raises(StoreError, match=r"a\.h5 and b\.h5 both hold item 3: capture others with"):
        open_stores([a, b])
    with pytest.raises(StoreError, match=r"a\.h5 and a\.h5 both hold item 0"):
        open_stores([a, a])
    tokens = shifted_index(4, [1, 2, 3, 4, 5], 4, 3)["tokens"]
    c = synthetic(tmp_path / "c.h5", 4, 4, tokens)
    with pytest.raises(StoreError, match=r"1 of 8 items repeats another .*\(3 = 4\), in another"):
        JoinedStore([a, c])


def test_one_file_and_content_at_position_0_are_refused(tmp_path):
    content = {"position0_treatment": "content"}
    a = synthetic(tmp_path / "a.h5", 4, **content)
    b = synthetic(tmp_path / "b.h5", 4, 4, **content)
    with pytest.raises(StoreError, match="'content' draws from the text of all items of a file"):
        JoinedStore([a, b])
    with pytest.raises(StoreError, match="there are 1 files to join"):
        JoinedStore([a])


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_a_list_of_one(kind, folder):
    path = folder / "shifted_a.h5"
    assert [store.path for store in open_stores(kind(path))] == [path]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_opened_for_those_who_read_a_store_and_closed_behind_them(kind, folder):
    path = folder / "shifted_a.h5"
    with opened(kind(path)) as store:
        assert store.n_items == 3
    with pytest.raises(StoreError, match="is closed"):
        store.read("normalizer", 0)
    own = ActivationStore(path)
    with opened(own) as store:
        assert store is own
    own.read("normalizer", 0)  # it stays open


def test_estimates_take_the_name_of_a_file(folder):
    path = folder / "shifted_whole.h5"
    store = ActivationStore(path)
    assert decompose(path, n_resamples=100).by_head.equals(
        decompose(store, n_resamples=100).by_head
    )
    for one, other in zip(features(path, 0), features(store, 0), strict=True):
        np.testing.assert_equal(one, other)
