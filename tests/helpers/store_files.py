"""Small files of the store, written, compared and edited."""

import hashlib
import json
import zlib
from pathlib import Path

import h5py
import numpy as np
import store_child as child

from posprobe.store import ATTRIBUTES, StoreWriter

HEADER = child.header()
INDEX = child.index(HEADER)


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


def edit(path, change):
    """Change a file, and leave its digests as they were."""
    with h5py.File(path, "r+") as file:
        change(file)


def forge(path, change):
    """Change a file, and give it the digests of what it holds then: a writer's fault, no damage."""
    edit(path, change)
    edit(path, lambda file: file["digest"].__setitem__(slice(None), digests(file)))


def as_format_1(path):
    """Make a file one of format 1, which had no digests."""

    def change(file):
        file.attrs["version"] = 1
        del file["digest"]

    edit(path, change)
    return path


def digests(file):
    """What docs/format.md says of the data set `digest`, word by word, with h5py alone."""
    rows = [header_digest(file)]
    for name in ("tokens", "item", "prefix_length", "sequence_id", "query_start"):
        rows.append(crc32(name, file[name][...].tobytes()))
    for name in child.ACTIVATIONS:
        if name in json.loads(file.attrs["quantities"]):
            layers = file.attrs["residual_layers"] if name == "residual" else range(len(file[name]))
            for row, layer in enumerate(layers):
                rows.append(crc32(f"{name}/{layer}", file[name][row].tobytes()))
    return np.array(rows)


def header_digest(file):
    """Its first row."""
    attributes = {name: plain(file.attrs[name]) for name in ATTRIBUTES if name in file.attrs}
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return crc32("header", text.encode(errors="surrogateescape"))


def crc32(label, data):
    return zlib.crc32(label.encode() + b"\0" + data)


def plain(value):
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
