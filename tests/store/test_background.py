"""Writing in a thread: same bytes, same refusals, and no more memory than allowed."""

import errno
import os
import threading

import numpy as np
import pytest
import store_child as child

from posprobe.errors import StoreError
from posprobe.store import ActivationStore, BackgroundWriter, StoreWriter

INDEX = child.index(child.HEADER)


def put_batch(target, start, stop):
    for quantity, values in child.batch(child.HEADER, start, stop).items():
        for layer, row in zip(child.HEADER.layers(quantity), values, strict=True):
            target.put(quantity, row, layer)
    target.advance(stop - start)


def fill(path, stops, *, sync_seconds=10.0, **options):
    with StoreWriter.resume(path, child.HEADER, INDEX, sync_seconds=sync_seconds) as writer:
        with BackgroundWriter(writer, **options) as background:
            start = writer.done
            for stop in stops:
                put_batch(background, start, stop)
                start = stop
        if writer.done == child.HEADER.n_sequences:
            writer.finish()
        return writer.done


def using(path, function):
    with (
        StoreWriter.create(path, child.HEADER, INDEX) as writer,
        BackgroundWriter(writer) as background,
    ):
        function(background)


@pytest.mark.parametrize("max_bytes", [0, 1000, 10**9])
def test_the_file_is_that_of_the_plain_writer(max_bytes, tmp_path):
    plain, threaded = tmp_path / "plain.h5", tmp_path / "threaded.h5"
    child.capture(plain)
    assert fill(threaded, [3, 4, 9, 11], max_bytes=max_bytes) == 11
    assert threaded.read_bytes() == plain.read_bytes()


def test_an_interrupted_file_goes_on_to_the_same_bytes(tmp_path):
    plain, threaded = tmp_path / "plain.h5", tmp_path / "threaded.h5"
    child.capture(plain)

    def interrupted(background):
        put_batch(background, 0, 4)
        background.put("normalizer", child.values(child.HEADER, "normalizer", 4, 6)[0], 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        using(threaded, interrupted)
    assert fill(threaded, [11]) == 11
    assert threaded.read_bytes() == plain.read_bytes()


def refuse_pwrite(monkeypatch, count):
    plain, calls = os.pwrite, iter(range(10**6))

    def pwrite(*args):
        if next(calls) == count:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("max_bytes", [0, 10**9])
@pytest.mark.parametrize("count", [0, 5, 30])
def test_an_error_reaches_the_caller_and_stops_the_writing(count, max_bytes, tmp_path, monkeypatch):
    plain, threaded = tmp_path / "plain.h5", tmp_path / "threaded.h5"
    child.capture(plain)
    refuse_pwrite(monkeypatch, count)
    with pytest.raises(StoreError, match="No space left"):
        fill(threaded, range(1, 12), max_bytes=max_bytes)
    monkeypatch.undo()
    assert not threaded.exists()
    with StoreWriter.resume(threaded, child.HEADER, INDEX) as writer:
        done = writer.done
    assert done <= count // 10  # batches of which every array was written
    assert fill(threaded, [11]) == 11
    assert threaded.read_bytes() == plain.read_bytes()


def test_what_the_writer_refuses_is_refused(tmp_path):
    infinite = np.full((1, 5, 3), np.inf, "f4")
    with pytest.raises(StoreError, match=r"'normalizer' at layer 0, sequence 0 is inf"):
        using(tmp_path / "a.h5", lambda background: background.put("normalizer", infinite, 0))
    with pytest.raises(StoreError, match="put every kept quantity before advancing"):
        using(tmp_path / "b.h5", lambda background: background.advance(1))


def test_an_error_of_the_caller_is_not_hidden(tmp_path):
    def failing(background):
        background.advance(1)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        using(tmp_path / "a.h5", failing)


class Slow:
    """A disk that stands still until it is let go."""

    def __init__(self):
        self.going, self.written = threading.Event(), []

    def put(self, quantity, values, layer):
        self.going.wait(10)
        self.written.append((quantity, layer))

    def advance(self, n_sequences):
        self.written.append(n_sequences)


def test_no_more_waits_than_allowed():
    disk, values = Slow(), np.zeros(100, "f4")
    handed_over = []

    def work():
        with BackgroundWriter(disk, max_bytes=1000) as background:
            for layer in range(5):
                background.put("residual", values, layer)
                handed_over.append(layer)
            background.advance(1)

    caller = threading.Thread(target=work)
    caller.start()
    caller.join(0.3)
    assert handed_over == [0, 1]  # 400 bytes each
    disk.going.set()
    caller.join(10)
    assert disk.written == [("residual", layer) for layer in range(5)] + [1]


def test_the_caller_computes_meanwhile():
    disk = Slow()
    with BackgroundWriter(disk) as background:
        background.put("residual", np.zeros(3, "f4"), 0)
        assert disk.written == []
        disk.going.set()
        background.flush()
        assert disk.written == [("residual", 0)]


def test_the_written_file_reads_back(tmp_path):
    fill(tmp_path / "a.h5", [11])
    with ActivationStore(tmp_path / "a.h5") as store:
        expected = child.values(child.HEADER, "residual", 0, 11)
        np.testing.assert_array_equal(store.read("residual"), expected)
