"""What is gathered while a capture runs is what the stored file gives, to the last bit."""

import pickle

import capture_child as child
import numpy as np
import pytest

from posprobe.captures import QUANTITIES, capture_stimulus
from posprobe.channels import channel_effects, decompose
from posprobe.channels.reading import REQUIRED
from posprobe.errors import DesignError, StoreError
from posprobe.probes import ClusterGram, feature_blocks, features
from posprobe.probes.accumulation import NEEDED, GramAccumulator
from posprobe.probes.feature_matrix import FEATURES
from posprobe.store import HeldStore


@pytest.fixture(scope="module")
def model():
    return child.model("mistral")


def take(model, path, stimulus, **options):
    options = dict(batch_tokens=50, progress=False) | options
    return capture_stimulus(model, stimulus, path, **options)


def from_file(store, layer, which, shift, n_groups=None, size=2):
    """The Gram of a stored file, from the batches of the capture."""
    blocks = []
    for start in range(0, store.n_sequences, size):
        X, y, groups, _ = features(store, layer, which, sequences=slice(start, start + size))
        blocks.append((X, y, groups if n_groups is None else groups % n_groups))
    return ClusterGram.from_blocks(blocks, shift=shift)


@pytest.mark.parametrize("which", FEATURES)
@pytest.mark.parametrize("n_groups", [None, 2])
def test_grams_are_those_of_the_file(which, n_groups, model, tmp_path):
    stimulus = child.stimulus("natural")  # 24 tokens, two sequences to a batch
    whole = take(model, tmp_path / "a.h5", stimulus)
    grams = GramAccumulator(which, n_groups=n_groups)
    options = dict(quantities=(), consumers=[grams])
    assert take(model, tmp_path / "b.h5", stimulus, **options).header.quantities == ()
    assert sorted(grams.grams) == [0, 1, 2]
    for layer, found in grams.grams.items():
        expected = from_file(whole, layer, which, found.shift, n_groups)
        assert np.array_equal(found.groups, expected.groups)
        assert found.grams.tobytes() == expected.grams.tobytes()
        X, y, *_ = features(whole, layer, which)
        Z = np.column_stack([X - found.shift[:-1], np.ones(len(X)), y - found.shift[-1]])
        np.testing.assert_allclose(found.sum(), Z.T @ Z, rtol=1e-9, atol=1e-6)


def test_grams_of_some_layers_and_positions(model, tmp_path):
    stimulus = child.stimulus("natural")
    chosen = dict(residual_layers=(0, 2, 3), residual_positions=(3, 9, 20))
    whole = take(model, tmp_path / "a.h5", stimulus, **chosen)
    grams = GramAccumulator("joint", layers=[2])
    take(model, tmp_path / "b.h5", stimulus, quantities=(), consumers=[grams], **chosen)
    (found,) = grams.grams.values()
    assert found.n_rows.tolist() == [3] * 5
    expected = from_file(whole, 2, "joint", found.shift)
    assert found.grams.tobytes() == expected.grams.tobytes()


def test_items_of_the_shifted_design_are_summed_over_prefixes(model, tmp_path):
    grams = GramAccumulator("normalizer")
    take(model, tmp_path / "a.h5", child.stimulus(), consumers=[grams])
    assert grams.grams[1].n_rows.tolist() == [20] * 5  # 4 prefixes of 5 rows


def test_accumulators_can_be_used_again(model, tmp_path):
    grams = GramAccumulator("normalizer")
    for name in ("a.h5", "b.h5"):
        take(model, tmp_path / name, child.stimulus(), quantities=(), consumers=[grams])
        assert grams.grams[0].n_rows.sum() == 100


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(which="logits"), "features 'logits' are unknown; use one of normalizer"),
        (dict(n_groups=0), "n_groups is 0: give 1 or more"),
    ],
)
def test_accumulators_that_cannot_be_are_refused(options, reason):
    with pytest.raises(DesignError, match=reason):
        GramAccumulator(**options)


def test_every_feature_says_what_it_needs():
    assert NEEDED.keys() == FEATURES.keys()


# --- held in memory ---


def test_a_held_store_reads_like_the_file(model, tmp_path):
    held = HeldStore(QUANTITIES)
    store = take(model, tmp_path / "a.h5", child.stimulus(), consumers=[held])
    assert held.header == store.header
    for name in store.header.datasets():
        if name not in ("complete", "digest"):
            assert held.read(name).tobytes() == store.read(name).tobytes()
    assert np.array_equal(held.read("normalizer", 1, slice(3, 7)), store.normalizer(1)[3:7])
    assert np.array_equal(held.read("tokens", None, [2, 5]), store.tokens[[2, 5]])
    assert np.array_equal(held.read("sink_score", None, [2]), store.read("sink_score")[:, [2]])
    assert np.array_equal(held["blocks.1.hook_resid_post"], store.residual(2))
    assert np.array_equal(held.residual_positions, store.residual_positions)
    blocks = zip(held.blocks("residual", 1, 7), store.blocks("residual", 1, 7), strict=True)
    for (one, mine), (other, stored) in blocks:
        assert one == other
        assert np.array_equal(mine, stored)
    again = pickle.loads(pickle.dumps(held))
    assert np.array_equal(again.normalizer(0), store.normalizer(0))
    with pytest.raises(ValueError, match="read-only"):
        held.normalizer(0)[0] = 0


def test_position_effects_need_no_file(model, tmp_path):
    store = take(model, tmp_path / "a.h5", child.stimulus())
    held = HeldStore(REQUIRED)
    take(model, tmp_path / "b.h5", child.stimulus(), quantities=(), consumers=[held])
    for layer in range(3):
        one, other = channel_effects(held, layer), channel_effects(store, layer)
        for name in ("total", "mask", "residual", "sink"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    expected = decompose(store, n_resamples=100).overall
    assert decompose(held, n_resamples=100).overall.equals(expected)


def test_what_is_not_held_cannot_be_read(model, tmp_path):
    held = HeldStore(("normalizer",))
    take(model, tmp_path / "a.h5", child.stimulus(), consumers=[held])
    with pytest.raises(StoreError, match="'residual' is not held in memory: read one of tokens"):
        held.residual(0)
    with pytest.raises(StoreError, match="layer 3 of 'normalizer' is not in the file"):
        held.normalizer(3)
    with pytest.raises(StoreError, match="'item' has no layers"):
        held.read("item", 0)


def test_a_gram_comes_straight_from_a_file(model, tmp_path):
    whole = take(model, tmp_path / "a.h5", child.stimulus("natural"))
    streamed = ClusterGram.from_blocks(feature_blocks(whole, 1, n_sequences=2))
    X, y, groups, _ = features(whole, 1)
    held = ClusterGram.from_arrays(X, y, groups, shift=streamed.shift)
    assert np.array_equal(streamed.groups, held.groups)
    np.testing.assert_allclose(streamed.grams, held.grams, rtol=1e-9, atol=1e-9)
