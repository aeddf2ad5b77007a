"""What can happen to the bytes of a capture and of the files around it, one function a kind."""

import h5py
import numpy as np


def flip(path, bit):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    if content:
        content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path, n_bytes):
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:n_bytes])


def append(path, n_bytes):
    """Put zeros behind a file."""
    with open(path, "ab") as file:
        file.write(bytes(n_bytes))


def blank(path, start, n_bytes):
    """Make a run of bytes zero, as a lost block."""
    content = bytearray(path.read_bytes())
    rest = content[start : start + n_bytes]
    content[start : start + n_bytes] = bytes(len(rest))
    path.write_bytes(content)


def flip_in(path, name, bit):
    """Turn one bit of a data set."""
    with h5py.File(path) as file:
        start, size = file[name].id.get_offset(), file[name].size * file[name].dtype.itemsize
    flip(path, 8 * start + bit % (8 * size))


def swap(path, one, other):
    """Give two data sets each other's name."""
    with h5py.File(path, "r+") as file:
        file.move(one, "swapped")
        file.move(other, one)
        file.move("swapped", other)


def drop(path, name):
    """Remove a data set."""
    with h5py.File(path, "r+") as file:
        del file[name]


def reverse(path, name):
    """Turn the first axis of a data set round."""
    with h5py.File(path, "r+") as file:
        file[name][...] = file[name][...][::-1]


def put(path, name, where, value):
    """Set values of a data set."""
    with h5py.File(path, "r+") as file:
        file[name][tuple(where)] = value


def retype(path, name, dtype):
    """Store a data set in another type."""
    with h5py.File(path, "r+") as file:
        values, name = file[name][...], file[name].name
        del file[name]
        file[name] = values.astype(dtype)


def compress(path, name):
    """Store a data set in compressed pieces."""
    with h5py.File(path, "r+") as file:
        values, name = np.atleast_1d(file[name][...]), file[name].name
        del file[name]
        file.create_dataset(name, data=values, compression="gzip")


def fixed(value):
    """Text of fixed length, as captures have it, where h5py by itself writes variable length."""
    return np.bytes_(value.encode() or b"\0") if isinstance(value, str) else value


def attribute(path, name, value):
    """Set a root attribute; None removes it."""
    with h5py.File(path, "r+") as file:
        if value is None:
            file.attrs.pop(name, None)
        else:
            file.attrs[name] = fixed(value)


def write(path, text):
    """Replace a whole file, as a journal."""
    path.write_text(text)
