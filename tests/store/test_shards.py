"""Shards: whole batches, complete or absent, and together the very bytes of one file."""

import dataclasses
import itertools
import os

import h5py
import numpy as np
import pytest
import store_child as child
from hypothesis import given
from hypothesis import strategies as st

from posprobe.errors import StoreError
from posprobe.store import ShardFolder, StoreWriter, missing_parts, write_shard

HEADER, INDEX = child.HEADER, child.index(child.HEADER)
PARTS = [slice(0, 4), slice(4, 10), slice(10, 11)]


def part_of(index, sequences):
    return {name: values[sequences] for name, values in index.items()}


def make_shard(folder, sequences, header=HEADER):
    part = header.with_sequences(sequences.stop - sequences.start)
    index = part_of(child.index(header), sequences)
    with write_shard(folder.path(sequences), part, index) as writer:
        for start in range(sequences.start, sequences.stop, child.BATCH):
            writer.write(child.batch(header, start, min(start + child.BATCH, sequences.stop)))


def merge_all(path, parts, begin=StoreWriter.create):
    folder = ShardFolder(path)
    with begin(path, HEADER, INDEX) as writer:
        for part in parts:
            folder.merge(writer, part, part_of(INDEX, part))
        writer.finish()
    folder.remove()


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Syncing takes its time, and no machine crashes here."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


@pytest.fixture
def folder(tmp_path):
    folder = ShardFolder(tmp_path / "a.h5")
    assert folder.open(resume=False, overwrite=False) == []
    return folder


def test_merged_shards_are_the_bytes_of_one_capture(folder, tmp_path):
    child.capture(tmp_path / "whole.h5")
    for part in reversed(PARTS):
        make_shard(folder, part)
    merge_all(tmp_path / "a.h5", PARTS)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "whole.h5"]


def test_interrupted_merge_resumes_from_the_shards_that_are_left(folder, tmp_path):
    child.capture(tmp_path / "whole.h5")
    for part in PARTS:
        make_shard(folder, part)
    with StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer:
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))
    assert folder.open(resume=True, overwrite=False) == PARTS[1:]
    merge_all(tmp_path / "a.h5", PARTS[1:], StoreWriter.resume)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_shard_is_removed_only_when_the_journal_holds_it(folder, tmp_path, monkeypatch):
    make_shard(folder, PARTS[0])
    monkeypatch.setattr(StoreWriter, "sync", lambda self: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer,
    ):
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))
    assert folder.path(PARTS[0]).exists()


def test_failed_shard_leaves_nothing(folder, monkeypatch):
    write, calls = os.pwrite, iter([True] * 9)
    monkeypatch.setattr(os, "pwrite", lambda *args: write(*args) if next(calls) else 0)
    with pytest.raises(StopIteration):
        make_shard(folder, PARTS[1])
    assert list(folder.folder.iterdir()) == []


def test_incomplete_shard_is_no_shard(folder):
    part = HEADER.with_sequences(2)
    with (
        pytest.raises(StoreError, match="1 sequences of 2"),
        write_shard(folder.path(slice(0, 2)), part, part_of(INDEX, slice(0, 2))) as writer,
    ):
        writer.write(child.batch(HEADER, 0, 1))
    assert list(folder.folder.iterdir()) == []


def test_two_workers_may_write_the_same_shard(folder, tmp_path):
    part, index = HEADER.with_sequences(2), part_of(INDEX, slice(0, 2))
    path = folder.path(slice(0, 2))
    with write_shard(path, part, index) as late, write_shard(path, part, index) as soon:
        for writer in (late, soon):
            writer.write(child.batch(HEADER, 0, 2))
    assert folder.open(resume=True, overwrite=False) == [slice(0, 2)]
    assert len(list(folder.folder.iterdir())) == 1


def test_what_killed_workers_left_is_removed_with_the_folder(folder):
    for name in ("00000000-00000002.ab12.h5.partial", "00000000-00000002.ab12.h5.lock"):
        (folder.folder / name).touch()
    assert folder.open(resume=False, overwrite=False) == []
    folder.remove()
    assert not folder.folder.exists()


def test_removing_the_folder_spares_what_is_not_ours(folder):
    (folder.folder / "notes.txt").touch()
    folder.remove()
    assert [p.name for p in folder.folder.iterdir()] == ["notes.txt"]


def test_shards_of_an_earlier_run_are_kept_or_removed_only_when_asked(folder):
    make_shard(folder, PARTS[0])
    with pytest.raises(StoreError, match=r"a\.h5\.shards holds 1 shards.*--resume.*overwrite"):
        folder.open(resume=False, overwrite=False)
    assert folder.open(resume=True, overwrite=False) == PARTS[:1]
    assert folder.open(resume=False, overwrite=True) == []
    assert list(folder.folder.iterdir()) == []


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write the shards"):
        ShardFolder(tmp_path / "file" / "a.h5").open(resume=False, overwrite=False)


def test_missing_shard_names_the_shared_file_system(folder, tmp_path):
    with (
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer,
        pytest.raises(StoreError, match=r"00000000-00000004\.h5.*all workers share"),
    ):
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))


@pytest.mark.parametrize("change", [{"seed": 9}, {"weights_digest": "sha256:01"}])
def test_shard_of_another_capture_is_refused(folder, tmp_path, change):
    make_shard(folder, PARTS[0], dataclasses.replace(HEADER, **change))
    with (
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer,
        pytest.raises(StoreError, match=f"attribute '{next(iter(change))}' is"),
    ):
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))


def test_shard_of_other_sequences_is_refused(folder, tmp_path):
    make_shard(folder, slice(4, 8))
    folder.path(slice(4, 8)).rename(folder.path(slice(0, 4)))
    with (
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer,
        pytest.raises(StoreError, match="data set '/tokens' differs at sequence 0"),
    ):
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))


def covered(parts):
    return [s for part in parts for s in range(part.start, part.stop)]


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    first=st.integers(0, 20),
    size=st.integers(1, 5),
    data=st.data(),
)
def test_kept_and_missing_parts_hold_every_sequence_once(sizes, first, size, data):
    edges = (first + np.r_[0, np.cumsum(sizes)]).tolist()
    batches = [slice(*pair) for pair in itertools.pairwise(edges)]
    ends = st.tuples(st.integers(0, edges[-1]), st.integers(1, edges[-1] + 2))
    finished = [slice(a, b) for a, b in sorted(data.draw(st.lists(ends, max_size=6))) if a < b]
    kept, missing = missing_parts(batches, finished, size)
    assert sorted(covered([*kept, *missing])) == list(range(edges[0], edges[-1]))
    assert all(part in finished for part in kept)
    assert all({p.start, p.stop} <= set(edges) for p in [*kept, *missing])
    assert all(edges.index(p.stop) - edges.index(p.start) <= size for p in missing)


def test_all_finished_shards_of_one_plan_are_kept():
    batches = [slice(s, s + 2) for s in range(0, 20, 2)]
    _, parts = missing_parts(batches, [], 3)
    assert [p.stop for p in parts] == [6, 12, 18, 20]
    assert missing_parts(batches, parts[1:3], 1)[0] == parts[1:3]


def test_of_shards_that_overlap_one_is_kept():
    batches = [slice(s, s + 2) for s in range(0, 8, 2)]
    kept, missing = missing_parts(batches, [slice(0, 4), slice(2, 6)], 9)
    assert (kept, missing) == ([slice(0, 4)], [slice(4, 8)])


def test_damaged_shard_is_named_with_what_to_do(folder, tmp_path):
    make_shard(folder, PARTS[0])
    with h5py.File(folder.path(PARTS[0]), "r+") as file:
        file["residual"][1, 2, 3] = 0
    with (
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer,
        pytest.raises(
            StoreError, match=r"04\.h5: data set '/residual', .*: delete this shard, then"
        ),
    ):
        folder.merge(writer, PARTS[0], part_of(INDEX, PARTS[0]))
