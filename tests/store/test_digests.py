"""Whatever differs from what was written is found, and named; files of format 1 have no digests."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import store_child as child
from store_files import HEADER, INDEX, edit, forge

from posprobe.errors import StoreError
from posprobe.store import ActivationStore, StoreWriter, hdf5

FORMAT_1 = Path(__file__).parent / "data" / "format-1.h5"
PARTS = HEADER.parts()


def flip(path, name, layer, bit):
    """Turn one bit of one part of a file."""
    with h5py.File(path) as file:
        part = file[name] if layer is None else file[name][HEADER.row(name, layer)]
        start = file[name].id.get_offset()
        start += 0 if layer is None else HEADER.row(name, layer) * part.nbytes
        position = start + bit % (8 * part.nbytes) // 8
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit % 8
    path.write_bytes(content)


def refuse(path, message):
    for find in (lambda: ActivationStore(path).verify(), lambda: read_all(path)):
        with pytest.raises(StoreError, match=message) as caught:
            find()
        assert "\n" not in str(caught.value)


def read_all(path):
    with ActivationStore(path) as store:
        return {name: store.read(name) for name in store.header.datasets()}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_single_bit_of_any_part_is_found_and_named(part, copy):
    name, layer = part
    flip(copy, name, layer, int(np.random.default_rng(PARTS.index(part)).integers(2**31)))
    where = rf"copy\.h5: data set '/{name}'" + ("" if layer is None else f", layer {layer},")
    refuse(copy, f"{where} is not what was written .*: copy the file again, or capture again")


def test_layers_that_are_whole_stay_readable(copy):
    flip(copy, "normalizer", 1, 77)
    store = ActivationStore(copy)
    np.testing.assert_array_equal(store.normalizer(0), child.values(HEADER, "normalizer", 0, 11)[0])
    with pytest.raises(StoreError, match="'/normalizer', layer 1"):
        store.normalizer(1)
    with pytest.raises(StoreError, match="'/normalizer', layer 1"):
        next(store.blocks("normalizer", 1, 4))
    with pytest.raises(StoreError, match="'/normalizer', layer 1"):
        store.read("normalizer", None, slice(0, 1))


def swap(file):
    one, other = file["normalizer"][...], file["sink_score"][...]
    file["normalizer"][...], file["sink_score"][...] = other, one


def rename(file):
    for old, new in (("normalizer", "n"), ("sink_score", "normalizer"), ("n", "sink_score")):
        file.move(old, new)


def swap_layers(file):
    file["residual"][...] = file["residual"][...][::-1]
    rows = [i for i, part in enumerate(PARTS, 1) if part[0] == "residual"]
    file["digest"][rows] = file["digest"][rows][::-1]


def set_values(name, where, value):
    return lambda file: file[name].__setitem__(where, value)


DAMAGE = {
    "two data sets swapped": (swap, "'/normalizer', layer 0"),
    "two data sets renamed": (rename, "'/normalizer', layer 0"),
    "two layers swapped, digests too": (swap_layers, "'/residual', layer 0"),
    "items permuted": (
        lambda file: set_values("item", ..., file["item"][...][::-1])(file),
        "'/item'",
    ),
    "a part of zeros": (set_values("position0", (slice(None), slice(3, 6)), 0), "'/position0'"),
    "one value of 1e38": (set_values("sink_value", (1, 2, 0), 1e38), "'/sink_value', layer 1"),
    "a digest of zeros": (set_values("digest", 7, 0), "is not what was written"),
    "a header's digest": (set_values("digest", 0, 0), "attributes are not those that were"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(kind, copy):
    change, message = DAMAGE[kind]
    edit(copy, change)
    refuse(copy, message)


def test_a_file_that_is_called_older_than_it_is_does_not_escape_its_digests(copy):
    edit(copy, lambda file: file.attrs.__setitem__("version", 1))
    refuse(copy, "says format version 1, which has no digests, and has some")


def test_a_whole_file_is_verified(copy):
    assert ActivationStore(copy).verify() == ActivationStore(copy).n_digests == 1 + len(PARTS)


def test_who_does_not_want_to_verify_reads_on(copy):
    flip(copy, "residual", 2, 5)
    assert ActivationStore(copy, verify=False).residual(2).shape == (11, 5, 8)


# Numbers that no statistic can use


UNUSABLE = {
    "normalizer": ((1, 4, 2, 1), np.nan, "layer 1, head 1, sequence 4, query 2 is nan"),
    "sink_score": ((0, 4, 2, 1), np.inf, "layer 0, head 1, sequence 4, query 2 is inf"),
    "offset_score": ((0, 8, 0, 2, 1), np.nan, "layer 0, head 2, sequence 8, query 0, offset 4 is"),
    "remasked_body": ((0, 3, 2, 4, 0), np.nan, "head 0, sequence 3, prefix 9, row 4 is nan"),
    "sink_value": ((1, 3, 0), np.nan, "layer 1, head 0, sequence 3 is nan"),
    "residual": ((1, 6, 2, 7), -np.inf, "layer 2, sequence 6, query 2, coordinate 7 is -inf"),
    "position0": ((2, 10, 3), np.nan, "layer 2, sequence 10, coordinate 3 is nan"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_not_finite_is_named_when_it_is_read(name, copy):
    where, value, message = UNUSABLE[name]
    forge(copy, set_values(name, where, value))
    refuse(copy, rf"copy\.h5: '{name}' at .*{message}.*: check the model's weights")


def test_nan_stands_where_a_quantity_does_not_exist(copy):
    before = INDEX["query_start"][:, None] + np.arange(5) < 4  # offset 4 has no key

    def change(file):
        scores = file["offset_score"][...]
        scores[:, before, :, 1] = np.nan
        file["offset_score"][...] = scores
        file["sink_value"][0] = np.nan

    forge(copy, change)
    assert ActivationStore(copy).verify() > 0


@pytest.mark.parametrize(
    ("where", "allowed"), [((1, 0, 0), False), ((2, 4, 1), True), ((1,), True), ((), True)]
)
def test_nan_stands_beyond_the_own_prefix_or_in_whole_prefixes(where, allowed, tmp_path):
    header = child.header(prefixes=(1, 3, 11))
    index = child.index(header)
    index["tokens"][0, 8:] = -1  # 8 tokens, of which the window has 5
    batch = child.batch(header, 0, header.n_sequences)
    batch["remasked_normalizer"][0, 0, *where] = np.nan
    with StoreWriter.create(tmp_path / "a.h5", header, index) as writer:
        writer.write(batch)
        store = ActivationStore(writer.finish())
    if allowed:
        assert np.isnan(store.read("remasked_normalizer", 0)[0, *where]).all()
    else:
        with pytest.raises(StoreError, match="head 0, sequence 0, prefix 3, row 0 is nan"):
            store.read("remasked_normalizer", 0)


# Files that change while they are read


def test_a_file_that_shrinks_is_refused_at_the_next_read(copy):
    store = ActivationStore(copy)
    os.truncate(copy, 5000)
    for read in (store.read, lambda name: next(store.blocks(name, 1, 3))):
        with pytest.raises(StoreError, match=r"copy\.h5 shrank while it was read: copy it again"):
            read("position0")


def test_a_file_that_shrinks_while_it_is_opened_is_refused(copy, monkeypatch):
    def locate(path, header):
        places = hdf5.locate(path, header)
        os.truncate(path, 5000)
        return places

    monkeypatch.setattr("posprobe.store.reader.locate", locate)
    with pytest.raises(StoreError, match=r"copy\.h5 shrank while it was read"):
        ActivationStore(copy)


def test_blocks_that_end_early_are_refused(copy):
    blocks = ActivationStore(copy).blocks("position0_alone", 2, 1)
    next(blocks)
    os.truncate(copy, 5000)
    with pytest.raises(StoreError, match=r"copy\.h5 shrank while it was read"):
        list(blocks)


def test_blocks_of_another_file_are_refused(copy):
    store = ActivationStore(copy)
    shutil.copy(copy, copy.with_name("other.h5"))
    copy.with_name("other.h5").replace(copy)
    with pytest.raises(StoreError, match=r"copy\.h5 was replaced while it was read: open it again"):
        next(store.blocks("residual", 0, 3))


# Format 1


def test_a_file_of_format_1_is_read_and_has_no_digests():
    store = ActivationStore(FORMAT_1)
    assert store.header.version == 1
    assert store.n_digests == store.verify() == store.summary()["digests"] == 0
    for name, expected in (INDEX | child.batch(HEADER, 0, HEADER.n_sequences)).items():
        np.testing.assert_array_equal(store.read(name), expected)


def test_a_file_of_format_1_may_lack_attributes_that_came_later(tmp_path):
    path = Path(shutil.copy(FORMAT_1, tmp_path / "a.h5"))
    edit(
        path,
        lambda file: [file.attrs.__delitem__(n) for n in ("residual_queries", "trained_length")],
    )
    header = ActivationStore(path).header
    assert (header.residual_queries, header.trained_length) == ((), 0)


def test_a_capture_of_format_1_is_not_resumed(tmp_path):
    shutil.copy(FORMAT_1, tmp_path / "a.h5.partial")
    with pytest.raises(StoreError, match="attribute 'version' is 1 in the file, 2 now"):
        StoreWriter.resume(tmp_path / "a.h5", HEADER, INDEX)


# Journals


@pytest.fixture
def unfinished(tmp_path, unsynced):
    path = tmp_path / "a.h5"
    with StoreWriter.create(path, HEADER, INDEX) as writer:
        writer.write(child.batch(HEADER, 0, 6))
    return path


@pytest.mark.parametrize("done", [4, 7, 11])
def test_a_journal_that_counts_other_sequences_is_refused(done, unfinished):
    journal = unfinished.with_name("a.h5.journal")
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"done": done}))
    with pytest.raises(StoreError, match=rf"the {done} sequences in the file are not those it cou"):
        StoreWriter.resume(unfinished, HEADER, INDEX)


def test_sequences_that_changed_are_not_built_upon(unfinished):
    edit(unfinished.with_name("a.h5.partial"), set_values("residual", (1, 5, 2, 3), 0.5))
    with pytest.raises(StoreError, match="the 6 sequences in the file are not those it counts"):
        StoreWriter.resume(unfinished, HEADER, INDEX)


def test_a_partial_file_that_says_it_is_complete_is_not_believed(unfinished, complete):
    edit(unfinished.with_name("a.h5.partial"), set_values("complete", (), 1))
    with StoreWriter.resume(unfinished, HEADER, INDEX) as writer:
        assert writer.done == 6
    child.capture(unfinished)
    assert unfinished.read_bytes() == complete.read_bytes()


def test_a_batch_that_was_put_twice_counts_once(tmp_path, complete):
    path = tmp_path / "a.h5"
    with StoreWriter.create(path, HEADER, INDEX) as writer:
        writer.put("normalizer", np.zeros((2, 11, 5, 3), "f4"))
        writer.write(child.batch(HEADER, 0, 11))
        writer.finish()
    assert path.read_bytes() == complete.read_bytes()
