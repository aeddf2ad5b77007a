"""Speed of the store against bare h5py, and what compression would save.

    python benchmarks/store.py [--folder DIR] [--sequences N] [--length T] [--file FILE.h5]

Sizes are those of SmolLM2-135M (30 layers, 9 heads, width 576). Every ratio is a speed, the
median over runs paired back to back in alternating order; above 1, the store is faster. It comes in
wall time, with its range, and in processor time, which neighbours on the machine disturb less.
Writing includes creating the file and syncing it to disk. With --file, compression is measured on
the activations of that capture, chunked by sequence and layer; without, on synthetic ones: channels
with scales over two decades, three of them massive, neighbouring tokens correlated.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from posprobe.store import ActivationStore, Header, StoreWriter

CODECS = {
    "contiguous": {},
    "lzf": {"compression": "lzf"},
    "lzf + shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "gzip 1 + shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}


def capture_header(n_sequences, length, batch_tokens):
    return Header(
        model="benchmark",
        design="natural",
        n_layers=30,
        n_heads=9,
        width=576,
        n_sequences=n_sequences,
        length=length,
        n_queries=length,
        quantities=("normalizer", "sink_score", "residual", "position0"),
        layer_window=(0,) * 30,
        batch_tokens=batch_tokens,
    )


def capture_index(header):
    s = np.arange(header.n_sequences)
    tokens = np.zeros((header.n_sequences, header.length), "i4")
    return {
        "tokens": tokens,
        "item": s,
        "prefix_length": 0 * s,
        "sequence_id": s,
        "query_start": 0 * s,
    }


def activations(shape, seed=0):
    """Residual-like float32: AR(1) along tokens, scales over two decades, massive channels."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape, dtype="f4")
    values[..., 1:, :] += 0.7 * values[..., :-1, :]
    values *= 10 ** rng.uniform(-1, 1, shape[-1]).astype("f4")
    values[..., rng.choice(shape[-1], 3)] += 500
    return values


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_posprobe(path, header, batch):
    with StoreWriter.create(path, header, capture_index(header), overwrite=True) as writer:
        while writer.done < header.n_sequences:
            writer.write(batch)
        writer.finish()


def write_h5py(path, header, batch):
    with h5py.File(path, "w") as file:
        sets = {name: file.create_dataset(name, header.shape(name), "f4") for name in batch}
        for start in range(0, header.n_sequences, header.batch_tokens):
            for name, values in batch.items():
                sets[name][:, start : start + header.batch_tokens] = values
    sync(path)


def seconds(function):
    """Wall and processor time of one call."""
    start = time.perf_counter(), time.process_time()
    function()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def paired(ours, reference, repeats):
    """Times of shape (repeats, 2, 2): pair; ours, reference; wall, processor.

    Each argument prepares a run, untimed, and returns the function to time.
    """
    times = np.empty((repeats + 1, 2, 2))
    for repeat in range(repeats + 1):  # the first pair warms up
        for which in (0, 1) if repeat % 2 else (1, 0):
            times[repeat, which] = seconds((ours, reference)[which]())
    return times[1:]


def row(what, target, times, n_bytes):
    wall, cpu = (times[:, 1] / times[:, 0]).T
    rate = n_bytes / np.median(times[:, 0, 0]) / 2**20
    return (
        f"| {what} | {np.median(wall):.2f} | {wall.min():.2f} to {wall.max():.2f} | "
        f"{np.median(cpu):.2f} | {target} | {rate:,.0f} |"
    )


def compare_write(folder, header, repeats):
    batch = {
        name: activations((header.shape(name)[0], header.batch_tokens, *header.shape(name)[2:]))
        for name in header.quantities
    }

    def on_a_new_file(write, name):
        (folder / name).unlink(missing_ok=True)
        os.sync()
        return lambda: write(folder / name, header, batch)

    times = paired(
        lambda: on_a_new_file(write_posprobe, "ours.h5"),
        lambda: on_a_new_file(write_h5py, "bare.h5"),
        repeats,
    )
    n_bytes = sum(header.nbytes(name) for name in batch)
    return row("sequential write, against bare h5py", ">= 0.7", times, n_bytes)


def forget(path):
    """Drop a file that nobody maps from the page cache, so that the next read is from disk."""
    sync(path)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def compare_read(folder, header, repeats):
    ours, layer = folder / "ours.h5", 17
    with ActivationStore(ours) as store:
        n_bytes = store.residual(layer).nbytes

    def from_store(prepare):
        prepare(ours)
        store = ActivationStore(ours, verify=False)
        return lambda: store.residual(layer).sum()

    def verified(prepare):
        prepare(ours)
        store = ActivationStore(ours)
        return lambda: store.residual(layer).sum()

    def in_blocks(prepare):
        prepare(ours)
        store = ActivationStore(ours, verify=False)
        return lambda: [
            block.sum() for _, block in store.blocks("residual", layer, header.batch_tokens)
        ]

    def bare(prepare):
        prepare(ours)

        def read():
            with h5py.File(ours) as file:
                file["residual"][layer].sum()

        return read

    rows = []
    for what, read, prepare, target in (
        ("read one layer, cached", from_store, lambda path: None, ">= 0.8"),
        ("read one layer, from disk", from_store, forget, ">= 0.8"),
        (
            "read one layer for the first time, with its digest, cached",
            verified,
            lambda path: None,
            "",
        ),
        ("stream one layer as copied blocks, cached", in_blocks, lambda path: None, ""),
    ):
        pairs = paired(lambda r=read, p=prepare: r(p), lambda p=prepare: bare(p), 3 * repeats)
        rows.append(row(f"{what}, against bare h5py", target, pairs, n_bytes))
    opening = np.median([seconds(lambda: ActivationStore(ours))[0] for _ in range(repeats)])
    return rows, opening


def compression(folder, name, values, repeats):
    """Time, per codec, writing to disk and reading back from the page cache."""
    path, rows = folder / "codec.h5", []

    def write(options):
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, **options)
        sync(path)

    def read():
        with h5py.File(path) as file:
            file["x"][...]

    for codec, options in CODECS.items():
        chunks = {"chunks": (1, *values.shape[1:])} if options else {}  # one sequence of one layer
        times = []
        for _ in range(repeats):
            path.unlink(missing_ok=True)
            times.append((seconds(lambda o=options | chunks: write(o))[0], seconds(read)[0]))
        writing, reading = values.nbytes / 2**20 / np.median(times, axis=0)
        share = path.stat().st_size / values.nbytes
        rows.append(f"| {name} | {codec} | {share:.2f} | {writing:,.0f} | {reading:,.0f} |")
    return rows


def samples(file, length):
    """Yield (name, values) of what compression is measured on: up to 16 MiB of middle layers."""
    if file is None:
        yield "synthetic residual", activations((8, length, 576))
        return
    with ActivationStore(file) as store:
        for name in store.header.quantities:
            values = store.read(name)
            n = max(1, min(len(values), 2**24 // values[0].nbytes))
            first = (len(values) - n) // 2
            if values.nbytes >= 2**20:  # in less, opening and syncing the file are most of the time
                yield name, np.array(values[first : first + n]).reshape(-1, *values.shape[2:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--file", type=Path, default=None)
    options = parser.parse_args()
    header = capture_header(options.sequences, options.length, batch_tokens=4)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write = compare_write(folder, header, options.repeats)
        reads, opening = compare_read(folder, header, options.repeats)
        codecs = [
            line
            for what, values in samples(options.file, options.length)
            for line in compression(folder, what, values, min(3, options.repeats))
        ]
        size = (folder / "ours.h5").stat().st_size
    print(
        f"{options.sequences} sequences of {options.length} tokens, {size / 2**20:,.0f} MiB; ",
        end="",
    )
    print(
        f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, {platform.machine()}, ", end=""
    )
    print(f"{os.cpu_count()} cores; opening the store takes {1e3 * opening:.1f} ms.\n")
    print("| what | wall | range | processor | target | MiB/s |\n|---|---|---|---|---|---|")
    print("\n".join([write, *reads]))
    print("\n| data | codec | size | write MiB/s | read MiB/s |\n|---|---|---|---|---|")
    print("\n".join(codecs))


if __name__ == "__main__":
    main()
