r"""Digests: what a file holds is what was written, part by part.

.. math:: d = \mathrm{CRC32}(\mathrm{label} \,\|\, 0 \,\|\, \mathrm{bytes})

A part is a data set without layers, or one layer of another: one contiguous run of bytes, which a
capture writes from front to back. So a digest grows with the capture, in one pass over bytes that
are in the processor's cache, and one layer can be checked without reading the others. The label,
``normalizer/5`` for layer 5, tells parts of the same bytes from one another.

CRC-32 finds every change within 32 bits in a row, hence every changed float32, and misses one other
change in four billion. It shows damage; nothing without a key shows who wrote a file. SHA-256 would
halve the speed of writing, where CRC-32 costs nothing that can be measured.
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
    """Return the digest of a part that goes on with `data`, which is contiguous.

    Examples
    --------
    >>> whole = extended(begin_digest("item"), b"abcd")
    >>> extended(extended(begin_digest("item"), b"ab"), b"cd") == whole
    True
    """
    return zlib.crc32(data, digest)


def header_digest(attributes: Mapping[str, Any]) -> int:
    """Return the digest of the root attributes, as sorted JSON without spaces, labelled header."""
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return extended(begin_digest("header"), text.encode(errors="surrogateescape"))


def digest_table(
    header: Header, index: Mapping[str, np.ndarray], layers: Iterable[int]
) -> np.ndarray:
    """Return the data set ``digest``: header, index data sets, and every layer, one a row.

    Parameters
    ----------
    header : Header
    index : mapping of str to array
        In their stored types.
    layers : iterable of int
        Digests of the layers, in the order of `Header.parts`.

    Returns
    -------
    ndarray of u4, shape (G,)
    """
    known = [extended(begin_digest(name), index[name].data) for name in header.index]
    return np.array([header_digest(header.attributes()), *known, *layers], "<u4")


def combined(digests: Iterable[int]) -> int:
    """Return one digest of many."""
    return zlib.crc32(np.array([*digests], "<u4").data)
