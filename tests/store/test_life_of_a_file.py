"""Whatever happens to a capture in its life: it opens as the true data, or is refused in one line.

A machine writes, kills, resumes, alters and opens in any order. Where nothing was altered, nothing
may be refused either.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import alterations
import pytest
import store_child as child
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from posprobe.errors import StoreError
from posprobe.store import ATTRIBUTES, DATA_SETS, ActivationStore, StoreWriter

HEADER = child.header(n_sequences=5)
INDEX = child.index(HEADER)
TRUTH = INDEX | child.batch(HEADER, 0, HEADER.n_sequences)
FILES = st.sampled_from(["a.h5", "a.h5.partial", "a.h5.journal"])
CAPTURES = st.sampled_from(["a.h5", "a.h5.partial"])
NAMES = st.sampled_from([name for name in DATA_SETS if name != "digest"])
BITS = st.integers(0, 2**20)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 7, 2**31, True, False, 3.0, 3.5, "3", None, [3]])
JOURNALS = st.one_of(
    NUMBERS.map(lambda done: {"done": done}),
    st.sampled_from([1, 3, "2", None, True]).map(lambda version: {"version": version}),
    st.sampled_from([{"digest": 0}, {"digest": None}, {"format": "x"}, {"more": 1}]),
    st.sampled_from(["", "{", "null", "[]", "3", '{"done": 3}', "nested", "\x00", "NaN"]),
)
VALUES = st.sampled_from([None, 0, 1, 2, 3, 2**40, -1, 3.5, "", "x", "{}", "[]", "[3]", "\x1b]0;"])


def is_true(path):
    """Open a file and read it all; whether it is the capture, to the last bit."""
    with ActivationStore(path) as store:
        store.verify()
        assert store.header.attributes() == HEADER.attributes()
        for name, expected in TRUTH.items():
            found = store.read(name)
            assert found.tobytes() == expected.astype(found.dtype).tobytes(), name


class LifeOfAFile(RuleBasedStateMachine):
    """One capture in a folder, with at most one writer."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "a.h5"
        self.writer, self.altered, self.saved, self.finished = None, False, 0, False

    def teardown(self):
        if hasattr(self, "folder"):
            self.let_go()
            shutil.rmtree(self.folder)

    def let_go(self):
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    @contextlib.contextmanager
    def refusable(self):
        """A refusal is one line, and has a reason: something was altered before."""
        try:
            yield
        except StoreError as error:
            message = str(error)
            assert self.altered, message
            assert message.isprintable(), message
            assert str(self.folder) in message or "quantity" in message, message

    @precondition(lambda self: self.writer is None)
    @rule(overwrite=st.booleans())
    def create(self, overwrite):
        exists = any(self.folder.joinpath(name).exists() for name in ("a.h5", "a.h5.partial"))
        if exists and not overwrite:
            with pytest.raises(StoreError, match=r"exists: choose another name"):
                StoreWriter.create(self.path, HEADER, INDEX)
            return
        self.writer = StoreWriter.create(self.path, HEADER, INDEX, overwrite=overwrite)
        # a partial file laid out anew owes nothing to what was altered; a complete one goes on
        self.altered, self.saved = self.altered and self.path.exists(), 0

    @precondition(lambda self: self.writer is None)
    @rule(sync_seconds=st.sampled_from([0, 1e9]))
    def resume(self, sync_seconds):
        with self.refusable():
            writer = StoreWriter.resume(self.path, HEADER, INDEX, sync_seconds=sync_seconds)
            if not self.altered:
                assert writer.done == (5 if writer.complete else self.saved)
            self.writer = None if writer.complete else writer

    @precondition(lambda self: self.writer is not None and self.writer.done < 5)
    @rule(n=st.integers(1, 3))
    def write(self, n):
        stop = min(self.writer.done + n, 5)
        self.writer.write(child.batch(HEADER, self.writer.done, stop))
        if self.writer.sync_seconds == 0:
            self.saved = stop

    @precondition(lambda self: self.writer is not None)
    @rule(n=st.integers(1, 3), layers=st.integers(1, 2))
    def write_a_part(self, n, layers):
        """Of the next batch, which then never comes to be complete."""
        start = self.writer.done
        for layer in range(layers if start < 5 else 0):
            values = child.values(HEADER, "normalizer", start, min(start + n, 5))
            self.writer.put("normalizer", values[layer], layer)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def a_second_writer_is_refused(self):
        for begin in (StoreWriter.create, StoreWriter.resume):
            with pytest.raises(StoreError, match=r"is being written by another process"):
                begin(self.path, HEADER, INDEX)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def leave(self):
        with self.writer:
            self.saved = self.writer.done
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule()
    def kill(self):
        """What a killed process leaves is what is in its folder at that moment."""
        left = Path(shutil.copytree(self.folder, tempfile.mkdtemp(), dirs_exist_ok=True))
        self.let_go()
        shutil.rmtree(self.folder)
        self.folder, self.path = left, left / "a.h5"

    @precondition(lambda self: self.writer is not None)
    @rule()
    def finish(self):
        if self.writer.done < 5:
            with pytest.raises(StoreError, match=r"has \d sequences of 5: write the others"):
                self.writer.finish()
            return
        self.writer.finish()
        self.writer, self.finished = None, True

    @rule()
    def start_over(self):
        self.let_go()
        for left in self.folder.iterdir():
            left.unlink()
        self.altered, self.saved = False, 0

    # alterations

    def alter(self, name, kind, *args):
        path = self.folder / name
        if path.exists():
            self.altered = True
            with contextlib.suppress(OSError, LookupError, RuntimeError, ValueError, TypeError):
                kind(path, *args)  # HDF5 cannot open what an earlier change broke

    @rule(name=FILES, bit=BITS)
    def flip(self, name, bit):
        self.alter(name, alterations.flip, bit)

    @rule(name=CAPTURES, data_set=NAMES, bit=BITS)
    def flip_in_a_data_set(self, name, data_set, bit):
        self.alter(name, alterations.flip_in, data_set, bit)

    @rule(name=FILES, n_bytes=st.integers(0, 40_000))
    def cut(self, name, n_bytes):
        self.alter(name, alterations.cut, n_bytes)

    @rule(name=FILES, n_bytes=st.integers(1, 5000))
    def append(self, name, n_bytes):
        self.alter(name, alterations.append, n_bytes)

    @rule(name=FILES, start=st.integers(0, 40_000), n_bytes=st.sampled_from([1, 64, 4096]))
    def blank(self, name, start, n_bytes):
        self.alter(name, alterations.blank, start, n_bytes)

    @rule(name=CAPTURES, one=NAMES, other=NAMES)
    def swap(self, name, one, other):
        self.alter(name, alterations.swap, one, other)

    @rule(name=CAPTURES, data_set=NAMES, kind=st.sampled_from(["drop", "reverse", "compress"]))
    def change_a_data_set(self, name, data_set, kind):
        self.alter(name, getattr(alterations, kind), data_set)

    @rule(name=CAPTURES, attribute=st.sampled_from([*ATTRIBUTES]), value=VALUES)
    def change_an_attribute(self, name, attribute, value):
        self.alter(name, alterations.attribute, attribute, value)

    @rule(journal=JOURNALS)
    def change_the_journal(self, journal):
        path = self.folder / "a.h5.journal"
        if isinstance(journal, dict) and path.exists():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                journal = json.dumps(json.loads(path.read_text()) | journal)
        if isinstance(journal, str):
            self.altered = True
            path.write_text("[" * 5000 if journal == "nested" else journal)

    @precondition(lambda self: self.writer is None)
    @rule(pair=st.permutations(["a.h5", "a.h5.partial", "a.h5.journal"]), kind=st.booleans())
    def rename_or_remove(self, pair, kind):
        one, other = (self.folder / name for name in pair[:2])
        if one.exists():
            self.altered = True
            one.rename(other) if kind else one.unlink()

    # whatever was done, whenever

    @invariant()
    def what_opens_is_true(self):
        if hasattr(self, "path") and self.path.exists():
            with self.refusable():
                is_true(self.path)

    @precondition(lambda self: self.writer is None)
    @rule()
    def go_on_to_the_end(self):
        """Where nothing was altered a capture can always be completed."""
        with self.refusable(), StoreWriter.resume(self.path, HEADER, INDEX) as writer:
            while writer.done < 5:
                writer.write(child.batch(HEADER, writer.done, min(writer.done + 2, 5)))
            writer.finish()
            self.finished = True


def live(examples, steps):
    run_state_machine_as_test(
        LifeOfAFile, settings=settings(max_examples=examples, stateful_step_count=steps)
    )


def test_a_capture_is_true_or_refused_whatever_happens_to_it(unsynced):
    live(60, 30)


@pytest.mark.slow
def test_a_capture_is_true_or_refused_in_a_long_life(unsynced):
    live(1000, 50)
