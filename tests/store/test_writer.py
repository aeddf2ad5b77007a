"""Writers: what may be written, by whom, and what a kill costs."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import store_child as child
from store_files import HEADER, INDEX, datasets, digest, write_all

from posprobe.errors import StoreError
from posprobe.store import ActivationStore, ShardFolder, StoreWriter
from posprobe.store.layout import DATA_SETS


def test_a_kill_at_every_operation_resumes_to_the_same_bytes(tmp_path, unsynced):
    complete = tmp_path / "complete.h5"
    child.capture(complete, child.SHORT)
    subprocess.run([sys.executable, child.__file__, tmp_path, "every"], check=True)
    n_operations = len({path.name.split(".")[0] for path in tmp_path.iterdir()}) - 2
    assert n_operations > 60
    for count in range(n_operations):
        path = tmp_path / f"{count}.h5"
        check_killed(path, complete)
        child.capture(path, child.SHORT)
        assert digest(path) == digest(complete)
        assert not list(tmp_path.glob(f"{count}.h5.*"))


def check_killed(path, complete):
    """A killed capture is complete, or refused with a journal that claims no more than is there."""
    if path.exists():
        assert datasets(path) == datasets(complete)
        return
    with pytest.raises(StoreError, match=r"incomplete .*--resume|is not a file"):
        ActivationStore(path)
    journal, partial = (path.with_name(path.name + end) for end in (".journal", ".partial"))
    if journal.exists():
        done = json.loads(journal.read_text())["done"]
        with h5py.File(partial) as file:
            for name, expected in child.batch(child.SHORT, 0, done).items() if done else ():
                np.testing.assert_array_equal(file[name][:, :done], expected)


def test_kill_9_at_random_moments(complete, tmp_path):
    path = tmp_path / "a.h5"
    moments = random.Random(3)
    for lines in (0, 1, 2, 1):
        process = subprocess.Popen(
            [sys.executable, child.__file__, path], stdout=subprocess.PIPE, text=True
        )
        for _ in range(lines):
            process.stdout.readline()
        try:
            process.wait(moments.uniform(0, 0.003) if lines else moments.uniform(0.2, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
    child.capture(path)
    assert datasets(path) == datasets(complete)
    assert digest(path) == digest(complete)


def test_an_exception_saves_progress(complete, tmp_path):
    path = tmp_path / "a.h5"
    writer = StoreWriter.create(path, HEADER, INDEX, sync_seconds=1e9)
    writer.write(child.batch(HEADER, 0, 4))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    with StoreWriter.resume(path, HEADER, INDEX) as writer:
        assert (writer.done, writer.complete) == (4, False)
    child.capture(path)
    assert digest(path) == digest(complete)


def test_a_system_that_writes_a_few_bytes_at_a_time_loses_none(complete, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:50], offset))
    child.capture(tmp_path / "a.h5")
    assert digest(tmp_path / "a.h5") == digest(complete)


def test_data_are_on_disk_before_anything_claims_them(tmp_path, monkeypatch):
    calls = []
    with StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer:
        writer.write(child.batch(HEADER, 0, HEADER.n_sequences))
        for name in ("pwrite", "fsync", "fdatasync", "replace"):
            function = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *a, n=name, f=function: (calls.append(n), f(*a))[1]
            )
        writer.finish()
    # data; the journal and its name; digests and flag, the file's name, and the folder's entry
    journal, flag = ["fsync", "replace"], ["pwrite", "pwrite", "fsync", "replace", "fsync"]
    assert calls == ["fdatasync", *journal, *flag]


def test_resume_refuses_an_unfinished_file_under_the_final_name(tmp_path):
    StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX).close()
    (tmp_path / "a.h5.partial").rename(tmp_path / "a.h5")
    with pytest.raises(StoreError, match=r"a\.h5 is incomplete"):
        StoreWriter.resume(tmp_path / "a.h5", HEADER, INDEX)


def test_progress_is_synced_no_more_often_than_asked(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with StoreWriter.create(path, HEADER, INDEX, sync_seconds=1e9) as writer:
        writer.write(child.batch(HEADER, 0, 4))
        assert not path.with_name("a.h5.journal").exists()
        writer.sync_seconds = 0
        writer.write(child.batch(HEADER, 4, 6))
        assert json.loads(path.with_name("a.h5.journal").read_text())["done"] == 6


def test_resume_of_a_complete_file_says_so(copy):
    before = digest(copy)
    with StoreWriter.resume(copy, HEADER, INDEX) as writer:
        assert (writer.done, writer.complete) == (HEADER.n_sequences, True)
        assert writer.finish() == copy
        with pytest.raises(StoreError, match=r"copy\.h5 is complete: there is nothing to write"):
            writer.put("normalizer", np.zeros((2, 1, 5, 3), "f4"))
    assert digest(copy) == before


CHANGES = {
    "seed": (1, r"attribute 'seed' is 0 in the file, 1 now"),
    "config": ({"rope": {"theta": 5e5}, "name": "tïny"}, r"'config.rope.theta' is 10000.0 .* 5000"),
    "versions": ({"torch": "2"}, r"attribute 'versions.transformers' is '5' in the file, None now"),
    "n_heads": (4, r"attribute 'n_heads' is 3 in the file, 4 now"),
    "residual_layers": ((1, 2), r"attribute 'residual_layers' is \[0, 2\] in the file, \[1, 2\]"),
    "dtype": ("float16", r"attribute 'dtype' is 'float32' in the file, 'float16' now"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_resume_refuses_another_capture(copy, name, finished):
    if not finished:
        copy = copy.rename(copy.with_name("copy.h5.partial")).with_name("copy.h5")
    value, message = CHANGES[name]
    before = digest(next(copy.parent.iterdir()))
    with pytest.raises(StoreError, match="resume: .*" + message):
        StoreWriter.resume(copy, replace(HEADER, **{name: value}), INDEX)
    (remains,) = copy.parent.iterdir()
    assert digest(remains) == before


def test_resume_refuses_other_tokens(copy):
    index = INDEX | {"tokens": INDEX["tokens"] + (np.arange(11) == 6)[:, np.newaxis]}
    with pytest.raises(StoreError, match="resume: data set '/tokens' differs at sequence 6"):
        StoreWriter.resume(copy, HEADER, index)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": 12}', '{"done": "1"}'])
def test_a_damaged_journal_is_refused(tmp_path, content):
    path = tmp_path / "a.h5"
    StoreWriter.create(path, HEADER, INDEX).close()
    (tmp_path / "a.h5.journal").write_text(content)
    with pytest.raises(StoreError, match=r"a\.h5\.journal is not a journal .* delete it"):
        StoreWriter.resume(path, HEADER, INDEX)


def test_a_stale_journal_is_not_believed(tmp_path):
    (tmp_path / "a.h5.journal").write_text('{"done": 4}')
    StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX).close()
    with StoreWriter.resume(tmp_path / "a.h5", HEADER, INDEX) as writer:
        assert writer.done == 0


# Who may write


def test_an_existing_file_is_kept_unless_told_otherwise(copy):
    before = digest(copy)
    with pytest.raises(StoreError, match=r"copy\.h5 exists: choose another name, .*--resume"):
        StoreWriter.create(copy, HEADER, INDEX)
    other = replace(HEADER, seed=5)
    StoreWriter.create(copy, other, INDEX, overwrite=True).close()
    assert digest(copy) == before
    write_all(copy, other, overwrite=True)
    assert ActivationStore(copy).header.seed == 5
    assert [path.name for path in copy.parent.iterdir()] == ["copy.h5"]


def test_an_unfinished_file_is_kept_unless_told_otherwise(tmp_path):
    with StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer:
        writer.write(child.batch(HEADER, 0, 4))
    with pytest.raises(StoreError, match=r"a\.h5\.partial exists: choose .*--resume"):
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX)
    with StoreWriter.resume(tmp_path / "a.h5", HEADER, INDEX) as writer:
        assert writer.done == 4
    with StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX, overwrite=True) as writer:
        assert writer.done == 0


def test_two_writers_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with StoreWriter.create(path, HEADER, INDEX) as writer:
        for second in (StoreWriter.create, StoreWriter.resume):
            with pytest.raises(StoreError, match=r"a\.h5 is being written by another process"):
                second(path, HEADER, INDEX)
        writer.write(child.batch(HEADER, 0, 3))
    with StoreWriter.resume(path, HEADER, INDEX) as writer:
        assert writer.done == 3


def test_a_lock_left_behind_by_a_kill_does_not_bind(tmp_path):
    (tmp_path / "a.h5.lock").touch()
    assert write_all(tmp_path / "a.h5").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(
    ("folder", "reason"), [("file/a.h5", "Not a directory"), ("none/a.h5", "No such file")]
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, folder, reason):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"a.h5: cannot write the file .*{reason}") as caught:
        write_all(tmp_path / folder)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_too_small_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"needs [\d,]+ bytes and its disk has 1,000: keep fewer"):
        write_all(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_resumes(complete, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    writer = StoreWriter.create(path, HEADER, INDEX)
    writer.write(child.batch(HEADER, 0, 2))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, writer:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match=r"No space left.*free some space.*--resume") as caught:
            writer.write(child.batch(HEADER, 2, 4))
    assert caught.value.__cause__.errno == errno.ENOSPC
    child.capture(path)
    assert digest(path) == digest(complete)


# What may be written


def put(tmp_path, quantity, array, header=HEADER, **keywords):
    with StoreWriter.create(tmp_path / "a.h5", header, child.index(header)) as writer:
        writer.write(child.batch(header, 0, 2))
        writer.put(quantity, array, **keywords)


@pytest.mark.parametrize("quantity", child.ACTIVATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, quantity, value):
    array = child.values(HEADER, quantity, 2, 5)
    array[1, 2, ..., -1] = value
    if DATA_SETS[quantity].nan and np.isnan(value):
        put(tmp_path, quantity, array)
        return
    layer = HEADER.layers(quantity)[1]
    message = f"'{quantity}' at layer {layer}, sequence 4 is {value}"
    with pytest.raises(StoreError, match=re.escape(message)):
        put(tmp_path, quantity, array)


def test_nan_may_stand_where_a_quantity_does_not_exist():
    names = ["offset_score", "remasked_normalizer", "remasked_body"]
    names += ["band_offset_score", "band_normalizer", "sink_value"]
    assert [name for name, quantity in DATA_SETS.items() if quantity.nan] == names


@pytest.mark.parametrize("value", [65520.0, -7e4, 1e30])
def test_float16_refuses_to_overflow(tmp_path, value):
    header = child.header(dtype="float16")
    array = child.values(header, "residual", 2, 5)
    array[1, 1, 3, 2] = value
    message = rf"'residual' at layer 2, sequence 3 is {value:g}, beyond float16".replace("+", r"\+")
    with pytest.raises(StoreError, match=message):
        put(tmp_path, "residual", array, header)


def test_float16_keeps_what_it_can_hold(tmp_path):
    header = child.header(dtype="float16")
    path = write_all(tmp_path / "a.h5", header)
    store, expected = ActivationStore(path), child.values(header, "residual", 0, 11)
    assert store.residual(2).dtype == np.float16
    assert store.read("position0").dtype == np.float32
    np.testing.assert_allclose(store.residual(2), expected[1], rtol=2**-11, atol=1e-7)
    (_, block), *_ = store.blocks("residual", 2, 20)
    assert block.dtype == np.float32


def test_float16_keeps_its_largest_value(tmp_path):
    put(tmp_path, "residual", np.full((2, 1, 5, 8), 65504, "f4"), child.header(dtype="float16"))


def test_large_but_finite_float32_is_kept(tmp_path):
    array = np.full((2, 3, 5, 3), 3e38, "f4")
    put(tmp_path, "normalizer", array)


@pytest.mark.parametrize(
    ("array", "layer", "message"),
    [
        (np.zeros((2, 3, 5, 4), "f4"), None, r"\(2, 3, 5, 4\), expected \(2, 1 to 9, 5, 3\)"),
        (np.zeros((3, 3, 5, 3), "f4"), None, r"\(3, 3, 5, 3\), expected \(2, 1 to 9, 5, 3\)"),
        (np.zeros((2, 10, 5, 3), "f4"), None, r"\(2, 10, 5, 3\), expected \(2, 1 to 9, 5, 3\)"),
        (np.zeros((2, 0, 5, 3), "f4"), None, r"\(2, 0, 5, 3\), expected"),
        (np.zeros((2, 3, 5, 3), "f4"), 1, r"\(1, 2, 3, 5, 3\), expected \(1, 1 to 9, 5, 3\)"),
        (np.zeros((3, 5, 3), "f4"), 2, "layer 2 of 'normalizer' is not .* layers 0-1"),
        (np.zeros((2, 3, 5, 3), "i4"), None, "'normalizer' has type int32: pass floating point"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, array, layer, message):
    with pytest.raises(StoreError, match=message):
        put(tmp_path, "normalizer", array, layer=layer)


def test_a_quantity_that_is_not_kept_is_refused(tmp_path):
    header = child.header(quantities=("normalizer",))
    with pytest.raises(StoreError, match=r"'residual' is not in the header .* keeps normalizer"):
        put(tmp_path, "residual", np.zeros((2, 3, 5, 8), "f4"), header)


def test_a_batch_must_hold_everything(tmp_path):
    with StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX) as writer:
        batch = child.batch(HEADER, 0, 2)
        batch.pop("position0")
        with pytest.raises(StoreError, match="layer 0 of 'position0' has 0 sequences of 2"):
            writer.write(batch)
        writer.put("position0", child.values(HEADER, "position0", 0, 2)[1], layer=1)
        with pytest.raises(StoreError, match="layer 0 of 'position0' has 0 sequences of 2"):
            writer.advance(2)
        batch["position0"] = child.values(HEADER, "position0", 0, 3)
        with pytest.raises(StoreError, match="batch: its arrays differ in number of sequences"):
            writer.write(batch)
        with pytest.raises(StoreError, match="has 0 sequences of 11: write the others"):
            writer.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.arange(4)}, r"index 'item' has shape \(4,\), expected \(11,\)"),
        ({"item": np.arange(11) + 0.5}, "index 'item' holds values beyond int32: pass integers"),
        ({"item": np.arange(11) + 2**40}, "index 'item' holds values beyond int32"),
        ({"extra": 0}, "index has extra, item, .* expected tokens, item"),
        (
            {"query_start": np.full(11, 12)},
            "sequence 0 has 16 tokens, its stored queries end at 17",
        ),
        ({"query_start": np.full(11, -1)}, "sequence 0 has 16 tokens"),
        ({"tokens": np.where(np.eye(11, 16), -1, 1)}, "sequence 0 are not padded on the right"),
        ({"tokens": np.full((11, 16), -2)}, "tokens of sequence 0 are not padded on the right"),
        ({"prefix_length": np.zeros(11)}, "sequence 0 is 0, none of the prefixes 1, 3, 9"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX | change)
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
import store_child as child
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    child.capture(sys.argv[1])
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("limit", [0, 1000, 5000, 20_000])
def test_a_limit_on_the_size_of_files_is_one_line(limit, tmp_path):
    """HDF5 would print pages of its own, and may crash as it closes the file."""
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "a.h5", str(limit)],
        cwd=Path(child.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    said = (
        r".*a\.h5: cannot write the file \(File too large\): allow larger files \(ulimit -f\).*\n"
    )
    assert re.fullmatch(said, found.stderr)
    assert list(tmp_path.iterdir()) == []


def test_shards_go_with_whoever_completes_the_file(tmp_path, unsynced):
    folder = ShardFolder(tmp_path / "a.h5").folder
    for begin in (child.capture, child.capture):  # completes it, and finds it complete
        folder.mkdir()
        (folder / "00000000-00000002.h5").touch()
        begin(tmp_path / "a.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
