import errno
import hashlib
import json
import os
import pickle
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
from hypothesis import given, settings
from hypothesis import strategies as st

from posprobe.errors import StoreError
from posprobe.store import ActivationStore, Header, StoreWriter
from posprobe.store.layout import ATTRIBUTES, QUANTITIES

HEADER = child.header()
INDEX = child.index(HEADER)
FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


def write_all(path, header=HEADER, index=None, **keywords):
    index = child.index(header) if index is None else index
    with StoreWriter.create(path, header, index, **keywords) as writer:
        writer.write(child.batch(header, 0, header.n_sequences))
        return writer.finish()


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def datasets(path):
    with h5py.File(path) as file:
        return {name: file[name][...].tobytes() for name in file}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    child.capture(folder / "a.h5")
    return folder / "a.h5"


@pytest.fixture
def copy(complete, tmp_path):
    return Path(shutil.copy(complete, tmp_path / "copy.h5"))


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


# What was written is what is read


def test_every_data_set_reads_back(complete):
    with ActivationStore(complete) as store:
        for name, expected in INDEX.items():
            np.testing.assert_array_equal(store.read(name), expected)
        for name, expected in child.batch(HEADER, 0, HEADER.n_sequences).items():
            np.testing.assert_array_equal(store.read(name), expected)
            for row, layer in enumerate(HEADER.layers(name)):
                np.testing.assert_array_equal(store.read(name, layer), expected[row])
                np.testing.assert_array_equal(
                    store.read(name, layer, [3, 1]), expected[row, [3, 1]]
                )
            np.testing.assert_array_equal(store.read(name, None, slice(2, 5)), expected[:, 2:5])


def test_h5py_reads_the_same_without_posprobe(complete):
    with h5py.File(complete) as file, ActivationStore(complete) as store:
        assert set(file) == set(HEADER.datasets())
        assert set(file.attrs) == set(ATTRIBUTES)
        for name in file:
            np.testing.assert_array_equal(file[name][...], store.read(name))


def test_arrays_are_mapped_read_only_aligned_and_outlive_the_store(complete):
    with ActivationStore(complete) as store:
        array = store.residual(2)
        assert all(store.read(name).flags.aligned for name in HEADER.datasets())
    expected = child.values(HEADER, "residual", 0, HEADER.n_sequences)[1]
    np.testing.assert_array_equal(array, expected)
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    with pytest.raises(StoreError, match=r"a\.h5 is closed: open it again"):
        store.read("residual")


def test_attributes_describe_the_capture(complete):
    store = ActivationStore(complete)
    assert store.header == replace(HEADER, interventions=store.header.interventions)
    assert (store.model, store.design, store.n_layers, store.n_heads) == ("tiny", "shifted", 2, 3)
    assert (store.n_sequences, store.length, store.window) == (11, 16, 4)
    assert (store.offsets, store.prefixes, store.layer_window) == ((1, 4), (0, 3, 9), (0, 4))
    np.testing.assert_array_equal(store.positions[4], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(store.item, INDEX["item"])
    assert store.header.config["name"] == "tïny"


def test_hook_names_are_aliases(complete):
    store = ActivationStore(complete)
    np.testing.assert_array_equal(store["blocks.0.hook_resid_pre"], store.residual(0))
    np.testing.assert_array_equal(store["blocks.1.hook_resid_post"], store.residual(2))
    np.testing.assert_array_equal(store["normalizer"], store.read("normalizer"))
    with pytest.raises(StoreError, match=r"layer 1 of 'residual' is not in .* has layers 0, 2"):
        store["blocks.1.hook_resid_pre"]
    with pytest.raises(StoreError, match=r"'blocks.0.attn.hook_attn_scores' is not .* normalizer"):
        store["blocks.0.attn.hook_attn_scores"]


@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_blocks_stream_a_layer(complete, size):
    store = ActivationStore(complete)
    blocks = list(store.blocks("normalizer", 1, size))
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), store.normalizer(1))
    for sequences, block in blocks:
        np.testing.assert_array_equal(block, store.normalizer(1)[sequences])
        assert len(block) <= size
        assert block.flags.writeable


def test_blocks_refuse_what_they_cannot_stream(complete):
    store = ActivationStore(complete)
    with pytest.raises(StoreError, match="n_sequences is 0: it must be at least 1"):
        next(store.blocks("normalizer", 1, 0))
    with pytest.raises(StoreError, match="'item' has no layers"):
        next(store.blocks("item", 1, 2))


def test_store_pickles_by_path(complete):
    store = pickle.loads(pickle.dumps(ActivationStore(complete)))
    np.testing.assert_array_equal(store.residual(0), ActivationStore(complete).residual(0))


def test_summary_adds_up(complete):
    summary = ActivationStore(complete).summary()
    assert [row["name"] for row in summary["rows"]] == list(HEADER.datasets())
    assert summary["bytes"] == complete.stat().st_size
    assert 0 < summary["bytes"] - sum(row["bytes"] for row in summary["rows"]) < 20_000
    assert summary["attributes"]["model"] == "tiny"
    for row in summary["rows"]:
        assert len(row["shape"]) == len(row["axes"].split(", ")) or row["name"] == "complete"


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip_of_any_header(tmp_path_factory, data):
    small = st.integers(1, 4)
    n_layers, n_sequences = data.draw(small), data.draw(st.integers(1, 7))
    header = Header(
        model=data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
        design="natural",
        n_layers=n_layers,
        n_heads=data.draw(small),
        width=data.draw(small),
        n_sequences=n_sequences,
        length=6,
        n_queries=data.draw(st.integers(1, 6)),
        quantities=data.draw(st.lists(st.sampled_from(child.ACTIVATIONS), unique=True)),
        layer_window=(0,) * n_layers,
        offsets=range(data.draw(small)),
        prefixes=range(data.draw(small)),
        window=data.draw(small),
        residual_layers=sorted(data.draw(st.sets(st.integers(0, n_layers), min_size=1))),
        residual_queries=(0,) if data.draw(st.booleans()) else (),
        dtype=data.draw(st.sampled_from(["float32", "float16"])),
    )
    index = child.index(header) | {"query_start": np.zeros(n_sequences)}
    path = tmp_path_factory.mktemp("any") / "a.h5"
    with StoreWriter.create(path, header, index) as writer:
        while writer.done < n_sequences:
            stop = data.draw(st.integers(writer.done + 1, n_sequences))
            for quantity, array in child.batch(header, writer.done, stop).items():
                for row, layer in reversed(list(enumerate(header.layers(quantity)))):
                    writer.put(quantity, array[row], layer)
            writer.advance(stop - writer.done)
        writer.finish()
    with ActivationStore(path) as store:
        assert store.header.attributes() == header.attributes()
        for quantity, expected in child.batch(header, 0, n_sequences).items():
            stored = expected.astype(header.stored_dtype(quantity))
            np.testing.assert_array_equal(store.read(quantity), stored)


# Killed and resumed


@pytest.fixture
def unsynced(monkeypatch):
    """Only a machine that loses power forgets what was not synced; a killed process does not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


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
    # data; the journal and its name; the flag, the file's name, and the folder's entry
    journal, flag = ["fsync", "replace"], ["pwrite", "fsync", "replace", "fsync"]
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
    if QUANTITIES[quantity].nan and np.isnan(value):
        put(tmp_path, quantity, array)
        return
    layer = HEADER.layers(quantity)[1]
    message = f"'{quantity}' at layer {layer}, sequence 4 is {value}"
    with pytest.raises(StoreError, match=re.escape(message)):
        put(tmp_path, quantity, array)


def test_nan_may_stand_where_a_quantity_does_not_exist():
    names = ["offset_score", "remasked_normalizer", "remasked_body", "sink_value"]
    assert [name for name, quantity in QUANTITIES.items() if quantity.nan] == names


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
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        StoreWriter.create(tmp_path / "a.h5", HEADER, INDEX | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 0}, "'n_heads' is 0: it must be at least 1"),
        ({"quantities": ("scores",)}, "quantity 'scores' is unknown: choose from normalizer"),
        ({"offsets": ()}, r"'offset_score' has an axis of length 0 \(D\)"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is unknown: choose float32 or float16"),
        ({"n_queries": 17}, "n_queries 17 exceeds length 16"),
        ({"layer_window": (0,)}, "layer_window has 1 entries for 2 layers"),
        ({"residual_layers": (2, 0)}, r"residual_layers \[2, 0\] must rise within 0 to 2"),
        ({"residual_layers": (0, 3)}, r"residual_layers \[0, 3\] must rise within 0 to 2"),
        ({"residual_queries": (3, 1)}, "residual_queries 3, 1 must rise within 0 to 4"),
        ({"residual_queries": (0, 5)}, "residual_queries 0, 5 must rise within 0 to 4"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(StoreError, match=message):
        child.header(**change)


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}])
def test_a_header_that_is_no_json_is_refused(tmp_path, value):
    with pytest.raises(StoreError, match="attribute 'config' cannot be written as JSON"):
        StoreWriter.create(tmp_path / "a.h5", child.header(config=value), INDEX)
    assert not list(tmp_path.iterdir())


def test_a_config_beyond_64_kilobytes_is_kept(tmp_path):
    header = child.header(config={"vocabulary": "ü" * 100_000})
    store = ActivationStore(write_all(tmp_path / "a.h5", header))
    assert store.header.config == header.config


# What readers refuse


def delete(name):
    return lambda file: file.__delitem__(name)


def set_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def drop_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


def remake(name, **keywords):
    def change(file):
        array = file[name][...]
        del file[name]
        file.create_dataset(name, **{"data": array} | keywords)

    return change


REFUSED = {
    "other format": (set_attribute("format", "anndata"), "not a posprobe file .* 'anndata'"),
    "no format": (drop_attribute("format"), "not a posprobe file .* is None"),
    "version": (set_attribute("version", 2), "has format version 2, this release reads 1"),
    "incomplete": (lambda file: file["complete"].__setitem__((), 0), "incomplete: .*--resume"),
    "no flag": (delete("complete"), "incomplete: .*--resume"),
    "missing": (delete("residual"), r"'/residual' is missing, expected float32 \(2, 11, 5, 8\)"),
    "group": (
        lambda file: (file.__delitem__("item"), file.create_group("item")),
        "'/item' is missing, expected int32",
    ),
    "shape": (
        remake("sink_score", data=np.zeros((2, 11, 5, 4), "f4")),
        r"'/sink_score' is float32 \(2, 11, 5, 4\), expected float32 \(2, 11, 5, 3\)",
    ),
    "dtype": (
        remake("sink_score", dtype="f8"),
        r"'/sink_score' is float64 \(2, 11, 5, 3\), expected float32",
    ),
    "big endian": (remake("sink_score", dtype=">f4"), r"'/sink_score' is >f4 .* expected float32"),
    "compressed": (
        remake("residual", compression="gzip"),
        "'/residual' is chunked or compressed, .* h5repack -l CONTI -f NONE",
    ),
    "attribute": (drop_attribute("n_heads"), "root attribute 'n_heads' is missing"),
    "kind": (set_attribute("n_heads", "many"), "attribute 'n_heads' is not of kind integer"),
    "text": (set_attribute("model", 3), "attribute 'model' is not of kind string"),
    "json": (set_attribute("config", "{"), "attribute 'config' is not of kind json"),
    "header": (set_attribute("n_layers", 3), "layer_window has 2 entries for 3 layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_readers_refuse(copy, case):
    change, message = REFUSED[case]
    ActivationStore(copy)
    edit(copy, change)
    with pytest.raises(StoreError, match=message) as caught:
        ActivationStore(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_say_which_queries_were_kept_has_all(copy):
    edit(copy, drop_attribute("residual_queries"))
    assert ActivationStore(copy).header.residual_queries == ()


def test_readers_ignore_what_they_do_not_know(copy):
    edit(copy, lambda file: (file.create_dataset("notes", data=[1]), file.attrs.create("mine", 1)))
    assert "notes" not in [row["name"] for row in ActivationStore(copy).summary()["rows"]]


def test_readers_refuse_a_partial_file_by_either_name(tmp_path):
    path = tmp_path / "a.h5"
    StoreWriter.create(path, HEADER, INDEX).close()
    with pytest.raises(StoreError, match=r"a\.h5 is incomplete .*a\.h5\.partial\): .*--resume"):
        ActivationStore(path)
    with pytest.raises(StoreError, match=r"a\.h5\.partial is an incomplete capture: .*--resume"):
        ActivationStore(tmp_path / "a.h5.partial")


def test_readers_refuse_what_is_no_file(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(StoreError, match=r"text\.h5 is not an HDF5 file"):
        ActivationStore(tmp_path / "text.h5")
    for name in (".", "absent.h5"):
        with pytest.raises(StoreError, match="is not a file: pass the name of a capture"):
            ActivationStore(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, None])
def test_readers_refuse_a_truncated_file(copy, share):
    size = copy.stat().st_size
    os.truncate(copy, size - 1 if share is None else int(share * size))
    with pytest.raises(StoreError, match=r"copy\.h5 is truncated \(.*eof = \d+.*\): copy it"):
        ActivationStore(copy)


def test_damage_to_the_structure_is_refused_or_harmless(copy):
    intact, rng = copy.read_bytes(), np.random.default_rng(0)
    with h5py.File(copy) as file:
        raw = [(d.id.get_offset(), d.id.get_offset() + d.nbytes) for d in file.values()]
    outside = [i for i in range(len(intact)) if not any(a <= i < b for a, b in raw)]
    expected, refused = datasets(copy), 0
    for position in rng.choice(outside, 150):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(rng.integers(8))
        copy.write_bytes(damaged)
        try:
            with ActivationStore(copy) as store:
                assert all(store.read(n).tobytes() == expected[n] for n in expected)
                assert store.header.attributes() == HEADER.attributes()
        except StoreError:
            refused += 1
    assert refused > 30


# The law


def table(rows):
    return {line.split("|")[1].strip(" `"): line.strip() for line in rows if line.startswith("| `")}


def test_the_document_lists_every_data_set():
    kinds = {"float": "f4 or f2"}
    expected = [
        f"| `{name}` | ({', '.join(q.axes)}) | {kinds.get(q.dtype, q.dtype.strip('<|'))} | "
        f"{q.unit} | {'MAY' if q.nan else 'MUST NOT' if q.by_layer else '-'} | {q.meaning} |"
        for name, q in QUANTITIES.items()
    ]
    text = FORMAT.read_text(encoding="utf-8").partition("## Data sets")[2].partition("\n## ")[0]
    assert table(text.splitlines()) == table(expected)


def test_the_document_lists_every_attribute():
    expected = [f"| `{name}` | {kind} | {text} |" for name, (kind, text) in ATTRIBUTES.items()]
    text = FORMAT.read_text(encoding="utf-8").partition("## Root attributes")[2]
    assert table(text.partition("\n## ")[0].splitlines()) == table(expected)


def mapped(path):
    """Resident kilobytes of a file's mapping in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")


def test_released_memory_goes_and_arrays_stay(complete):
    with ActivationStore(complete) as store:
        array = store.read("residual")
        before = array.copy()
        assert mapped(complete) > 0
        store.release()
        assert mapped(complete) == 0
        assert np.array_equal(array, before)
    store.release()  # closed: there is nothing to give back
