"""Lay out an HDF5 file, open it against the expected schema, and locate its arrays."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from posprobe.errors import StoreError
from posprobe.store.axes import AXES
from posprobe.store.digests import header_digest
from posprobe.store.files import LOCKING, RESUME, partial_path, refusing, without_locks
from posprobe.store.layout import (
    ATTRIBUTES,
    DATA_SETS,
    FORMAT,
    READABLE,
    DataSet,
    Header,
    difference,
)

__all__ = ["Place", "check_coordinates", "compare", "create_file", "locate", "open_complete"]

# Metadata of version 1.8 have checksums, and lack the "open for writing" mark that a killed process
# would leave behind.
_LIBVER = ("v108", "v108")
_ALIGNMENT = 64


class Place(NamedTuple):
    """Location of the raw bytes of a data set in its file, little-endian and in C order."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def end(self) -> int:
        """Offset of the first byte behind the data set."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


class _Quiet(io.FileIO):
    """A new file that remembers its first error instead of raising it.

    When a write fails, HDF5 prints pages of text and may crash while it closes the file. So HDF5 is
    told that every write succeeded, and the caller checks `failed` afterwards.
    """

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or remember the error."""
        rest = memoryview(data)
        with self._remembered():
            while rest:
                rest = rest[super().write(rest) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember the error."""
        with self._remembered():
            super().truncate(size)
        return size or 0

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = self.failed or error


def create_file(path: Path, header: Header, index: Mapping[str, np.ndarray]) -> None:
    """Lay out every data set at its full size, write attributes and index, and sync to disk.

    Parameters
    ----------
    path : Path
        File to create.
    header : Header
        Shapes and attributes.
    index : mapping of str to array
        Index data sets, in their stored types.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with _Quiet(path, "w+") as target:
        try:
            _lay_out(target, header, index)
        except Exception:
            if target.failed is None:
                raise
        if target.failed is not None:
            raise target.failed
        os.fsync(target.fileno())


def _lay_out(target: io.FileIO, header: Header, index: Mapping[str, np.ndarray]) -> None:
    with h5py.File(
        target, "w", libver=_LIBVER, alignment_threshold=1, alignment_interval=_ALIGNMENT
    ) as file:
        for name, value in header.attributes().items():
            _write_attribute(file, name, value)
        for name in header.datasets():
            _allocate(file, name, header.shape(name), header.stored_dtype(name))
            _describe(file[name], DATA_SETS[name])
        _name_axes(file, header)
        file["complete"][...] = 0
        for name, array in index.items():
            file[name][...] = array


def _describe(dataset: h5py.Dataset, quantity: DataSet) -> None:
    """Describe a data set for tools that do not know posprobe; no reader depends on this."""
    _write_attribute(dataset, "long_name", quantity.meaning)
    _write_attribute(dataset, "units", quantity.unit)
    _write_attribute(dataset, "axes", ", ".join(quantity.axes))


def _name_axes(file: h5py.File, header: Header) -> None:
    """Write the coordinates of each axis as a dimension scale, and attach them where they apply."""
    for symbol, values in header.coordinates().items():
        axis = AXES[symbol]
        _allocate(file, axis.name, values.shape, values.dtype)
        scale = file[axis.name]
        scale[...] = values
        _write_attribute(scale, "long_name", axis.meaning)
        _write_attribute(scale, "units", axis.unit)
        scale.make_scale(axis.name)
    for name in header.datasets():
        for dimension, symbol in zip(file[name].dims, DATA_SETS[name].axes, strict=True):
            dimension.attach_scale(file[AXES[symbol].name])
            dimension.label = AXES[symbol].name


def _write_attribute(
    owner: h5py.File | h5py.Dataset, name: str, value: str | int | tuple[int, ...]
) -> None:
    if isinstance(value, str):  # of fixed length: no checksum covers HDF5's heap of variable ones
        text = value.encode()
        dtype = h5py.string_dtype("utf-8", max(1, len(text)))
        owner.attrs.create(name, np.array(text, f"S{dtype.itemsize}"), dtype=dtype)
    else:
        owner.attrs.create(name, value, dtype="<i8")


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=plan)


def open_complete(path: Path) -> Header:
    """Return the header of a complete file.

    Raises
    ------
    StoreError
        If the file is missing, incomplete, truncated, not HDF5, or of another format or version; or
        if an attribute is invalid, contradicts another, or is not what was written.
    """
    if path.name.endswith(".partial") and path.exists():
        raise StoreError(f"{path} is an incomplete capture: {RESUME}")
    if not path.exists() and partial_path(path).exists():
        raise StoreError(
            f"{path} is incomplete (there is only {partial_path(path).name}): {RESUME}"
        )
    with open_hdf5(path) as file:
        attributes = _attributes(path, file)
        header = _read_header(path, attributes)
        flag = file.get("complete")
        readable = isinstance(flag, h5py.Dataset) and not _is_variable(flag.id.get_type())
        if not readable or flag.shape != () or int(flag[()]) != 1:
            raise StoreError(f"{path} is incomplete: {RESUME}")
        if "digest" in header.datasets():
            _place(path, file, "digest", header)
            if int(file["digest"][0]) != header_digest(attributes):
                raise StoreError(
                    f"{path}: its attributes are not those that were written (their CRC-32 "
                    "differs): copy it again, or capture again"
                )
    return header


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises
    ------
    StoreError
        If the file does not exist, is not HDF5, is truncated or damaged, is being written by
        another process, or cannot be locked.
    """
    if not path.is_file():
        raise StoreError(f"{path} is not a file: pass the name of a capture (posprobe capture -o)")
    with refusing(path, "read the file"), open(path, "rb"):
        pass
    if not h5py.is_hdf5(path):
        raise StoreError(f"{path} is not an HDF5 file: pass one that posprobe capture wrote")
    try:
        locking = False if os.environ.get(LOCKING) == "off" else "best-effort"
        with h5py.File(path, "r", locking=locking) as file:
            yield file
    except StoreError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and "lock file" in str(error):
            raise _locked(path, error) from error
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise StoreError(
            f"{path} is {kind} ({str(error).splitlines()[0]}): copy it again, or capture again"
        ) from error


def _locked(path: Path, error: OSError) -> StoreError:
    """Return the refusal of a file that HDF5 could not lock; only the error's text says why."""
    found = re.search(r"errno = (\d+)", str(error))
    code = int(found[1]) if found else errno.EAGAIN
    if code == errno.EAGAIN:
        return StoreError(f"{path} is being written by another process: wait until it is complete")
    return without_locks(path, OSError(code, os.strerror(code)))


def _attributes(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the format's root attributes as plain values; bytes that are not UTF-8 are kept."""
    found = {}
    for name in ATTRIBUTES:
        if name in file.attrs:
            if _is_variable(file.attrs.get_id(name).get_type()):
                raise StoreError(
                    f"{path}: attribute '{name}' has variable length, which HDF5 reads without "
                    "end where it is damaged: capture again"
                )
            try:
                value = file.attrs[name]
            except Exception as error:  # h5py raises various errors for types it does not know
                raise StoreError(
                    f"{path}: attribute '{name}' cannot be read: copy the file again, or capture "
                    "again"
                ) from error
            if isinstance(value, bytes):
                value = value.decode(errors="surrogateescape")
            found[name] = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return found


def _is_variable(kind: h5py.h5t.TypeID) -> bool:
    """Whether values are kept in HDF5's heap; reading a damaged one never returns."""
    return kind.detect_class(h5py.h5t.VLEN) or (
        kind.detect_class(h5py.h5t.STRING) and kind.is_variable_str()
    )


def _read_header(path: Path, attributes: Mapping[str, Any]) -> Header:
    if attributes.get("format") != FORMAT:
        raise StoreError(
            f"{path} is HDF5 but not a posprobe file (root attribute 'format' is "
            f"{reprlib.repr(attributes.get('format'))}): pass one that posprobe capture wrote"
        )
    if attributes.get("version") not in READABLE:
        raise StoreError(
            f"{path} has format version {reprlib.repr(attributes.get('version'))}, this release "
            f"reads {' and '.join(map(str, READABLE))}: install the release that wrote it, or "
            "capture again"
        )
    try:
        return Header.from_attributes(attributes)
    except StoreError as error:
        raise StoreError(f"{path}: {error}; copy the file again, or capture again") from error


def locate(path: Path, header: Header) -> dict[str, Place]:
    """Locate the bytes of every data set that `header` describes.

    Parameters
    ----------
    path : Path
        File to look into.
    header : Header
        Header of the file.

    Returns
    -------
    dict of str to Place

    Raises
    ------
    StoreError
        If a data set is missing, compressed or chunked, or of another shape or type. The message
        says what was expected and what was found. Also if a file of format 1, which has no digests,
        has some: its version was changed, and damage would go unnoticed.
    """
    with open_hdf5(path) as file:
        if header.version == 1 and "digest" in file:
            raise StoreError(
                f"{path} says format version 1, which has no digests, and has some: its header was "
                "changed; copy the file again, or capture again"
            )
        return {name: _place(path, file, name, header) for name in header.datasets()}


def _place(path: Path, file: h5py.File, name: str, header: Header) -> Place:
    shape, dtype, found = header.shape(name), header.stored_dtype(name), file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise StoreError(
            f"{path}: data set '/{name}' is missing, expected {dtype} {shape}: capture again"
        )
    if (found.shape, found.dtype) != (shape, dtype):
        raise StoreError(
            f"{path}: data set '/{name}' is {found.dtype} {found.shape}, expected {dtype} {shape}: "
            "capture again"
        )
    offset = found.id.get_offset()
    if offset is None:
        raise StoreError(
            f"{path}: data set '/{name}' is chunked or compressed, expected contiguous: "
            "run h5repack -l CONTI -f NONE on it"
        )
    return Place(offset, shape, dtype)


def check_coordinates(path: Path, header: Header) -> None:
    """Refuse coordinates of axes that are not those of the header; a file may have none.

    Raises
    ------
    StoreError
        If some differ; the message names the first.
    """
    with open_hdf5(path) as file:
        for symbol, expected in header.coordinates().items():
            name = AXES[symbol].name
            if name not in file:
                continue
            found = file[name]
            readable = isinstance(found, h5py.Dataset) and not _is_variable(found.id.get_type())
            if not readable or not np.array_equal(found[()], expected):
                raise StoreError(
                    f"{path}: data set '/{name}' is not the axis that the attributes describe: "
                    "copy the file again, or capture again"
                )


def compare(path: Path, header: Header, index: Mapping[str, np.ndarray]) -> None:
    """Refuse to resume into the file of another capture.

    Parameters
    ----------
    path : Path
        Existing file.
    header : Header
        Header of the capture that wants to go on.
    index : mapping of str to array
        Index data sets of that capture, in their stored types.

    Raises
    ------
    StoreError
        If an attribute or a data set differs; the message names the first.
    """
    with open_hdf5(path) as file:
        changed = difference(_attributes(path, file), header.attributes())
    if changed:
        raise StoreError(
            f"resume: {changed} ({path}): repeat the first call exactly, choose another output "
            f"(-o, --out), or delete {path.name}"
        )
    locate(path, header)
    with open_hdf5(path) as file:
        for name, expected in index.items():
            differs = file[name][...] != expected
            if differs.any():
                raise StoreError(
                    f"resume: data set '/{name}' differs at sequence {np.argwhere(differs)[0][0]} "
                    f"({path}): repeat the first call exactly, choose another output (-o, --out), "
                    f"or delete {path.name}"
                )
