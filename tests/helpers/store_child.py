"""A capture of reproducible random data, in a process of its own that can be killed.

`python store_child.py PATH` writes PATH with --resume, printing a line per batch.
`python store_child.py FOLDER every` writes FOLDER/K.h5 for K = 0, 1, ..., and kills the K-th writer
in front of its K-th operation on files, until one of them survives.
"""

import itertools
import os
import signal
import sys

import h5py
import numpy as np

from posprobe.store import Header, StoreWriter
from posprobe.store.layout import BAND_DATA_SETS, DATA_SETS

N_SEQUENCES, BATCH = 11, 2
ACTIVATIONS = tuple(
    name
    for name, quantity in DATA_SETS.items()
    if quantity.by_layer and name not in BAND_DATA_SETS  # those of version 2
)


def header(**changes):
    values = dict(
        model="tiny",
        design="shifted",
        n_layers=2,
        n_heads=3,
        width=8,
        n_sequences=N_SEQUENCES,
        length=16,
        n_queries=5,
        quantities=ACTIVATIONS,
        layer_window=(0, 4),
        offsets=(1, 4),
        prefixes=(1, 3, 9),
        window=5,
        residual_layers=(0, 2),
        weights_digest="sha256:00",
        config={"rope": {"theta": 10000.0}, "name": "tïny"},
        stimulus={"bos": "force"},
        batch_tokens=BATCH,
        versions={"torch": "2", "transformers": "5"},
    )
    return Header(**values | changes)


HEADER, SHORT = header(), header(n_sequences=3)


def index(h):
    rng = np.random.default_rng(7)
    s = np.arange(h.n_sequences)
    return {
        "tokens": rng.integers(0, 99, (h.n_sequences, h.length)),
        "item": s // 2,
        "prefix_length": np.resize(h.prefixes or 0, h.n_sequences),
        "sequence_id": s,
        "query_start": s % (h.length - h.n_queries + 1),
    }


def values(h, quantity, start, stop):
    """Random values that depend on the sequence alone, not on the batch."""
    shape = h.shape(quantity)
    each = [
        np.random.default_rng([ACTIVATIONS.index(quantity), s]).normal(size=(shape[0], *shape[2:]))
        for s in range(start, stop)
    ]
    return np.stack(each, axis=1).astype("f4")


def batch(h, start, stop):
    return {quantity: values(h, quantity, start, stop) for quantity in h.quantities}


def capture(path, h=HEADER, say=lambda done: None):
    with StoreWriter.resume(path, h, index(h), sync_seconds=0) as writer:
        while writer.done < h.n_sequences:
            writer.write(batch(h, writer.done, min(writer.done + BATCH, h.n_sequences)))
            say(writer.done)
        writer.finish()


def kill_at(count):
    """Make the process kill itself in front of the `count`-th operation, or halfway a write."""
    counter = itertools.count()

    def guard(function):
        def guarded(*args, **keywords):
            if next(counter) == count:
                if function is pwrite:
                    descriptor, data, offset = args
                    pwrite(descriptor, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **keywords)

        return guarded

    pwrite = os.pwrite
    for name in ("open", "pwrite", "replace", "unlink"):
        setattr(os, name, guard(getattr(os, name)))
    for name in ("fsync", "fdatasync"):  # counted, but skipped: they cost time and save no process
        setattr(os, name, guard(lambda descriptor: None))
    h5py.h5d.create = guard(h5py.h5d.create)


def every(folder):
    for count in itertools.count():
        child = os.fork()
        if child == 0:
            kill_at(count)
            capture(os.path.join(folder, f"{count}.h5"), SHORT)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


if __name__ == "__main__":
    if sys.argv[2:] == ["every"]:
        every(sys.argv[1])
    else:
        capture(sys.argv[1], say=lambda done: print(done, flush=True))
