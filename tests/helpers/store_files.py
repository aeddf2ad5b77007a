"""Small files of the store, written, compared and edited."""

import hashlib
from pathlib import Path

import h5py
import store_child as child

from posprobe.store import StoreWriter

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
    with h5py.File(path, "r+") as file:
        change(file)
