r"""Digests that show, part by part, whether a file holds what was written.

.. math:: d = \mathrm{CRC32}(\mathrm{label} \,\|\, 0 \,\|\, \mathrm{bytes})

A part is a data set without a layer axis, or one layer of any other data set. It is one contiguous
run of bytes, which a capture writes from front to back. So a digest is extended as the capture
proceeds, while the bytes are still in the processor's cache, and one layer can be checked without
reading the others. The label, such as ``normalizer/5`` for layer 5, distinguishes parts that have
the same bytes.

CRC-32 detects every change within 32 consecutive bits, hence every single changed float32. It
misses one in four billion of the other changes. It detects damage, not forgery, which would need a
key. The cost of CRC-32 is too small to measure, whereas SHA-256 would halve the speed of writing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from posprobe.store.layout import Header

__all__ = ["begin_digest", "combined", "digest_table", "extended", "header_digest"]


def begin_digest(name: str, layer: int | None = None) -> int:
    """Return the digest of a part that has no bytes yet."""
    label = name if layer is None else f"{name}/{layer}"
    return zlib.crc32(label.encode() + b"\0")


def extended(digest: int, data: memoryview | bytes) -> int:
    """Return the digest of a part after `data` is appended to it.

    Parameters
    ----------
    digest : int
        Digest of the part so far.
    data : memoryview or bytes
        Contiguous bytes.

    Returns
    -------
    int

    Examples
    --------
    >>> whole = extended(begin_digest("item"), b"abcd")
    >>> extended(extended(begin_digest("item"), b"ab"), b"cd") == whole
    True
    """
    return zlib.crc32(data, digest)


def header_digest(attributes: Mapping[str, Any]) -> int:
    """Return the digest of the root attributes, written as sorted JSON without spaces."""
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return extended(begin_digest("header"), text.encode(errors="surrogateescape"))


def digest_table(
    header: Header, index: Mapping[str, np.ndarray], layers: Iterable[int]
) -> np.ndarray:
    """Return the data set ``digest``.

    Parameters
    ----------
    header : Header
        Header of the file.
    index : mapping of str to array
        Index data sets, in their stored types.
    layers : iterable of int
        Digests of the layers, in the order of `Header.parts`.

    Returns
    -------
    ndarray of uint32, shape (G,)
        Digests of the header, of the index data sets, and of every layer.
    """
    known = [extended(begin_digest(name), index[name].data) for name in header.index]
    return np.array([header_digest(header.attributes()), *known, *layers], "<u4")


def combined(digests: Iterable[int]) -> int:
    """Combine several digests into one."""
    return zlib.crc32(np.array([*digests], "<u4").data)
