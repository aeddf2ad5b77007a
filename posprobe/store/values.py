"""Check index arrays and activations before they are written and when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.layout import DATA_SETS, Header

__all__ = ["check_index", "check_stored", "checked_index", "checked_values", "is_finite"]

_BLOCK = 2**22  # bytes of a block in which the places of NaN are checked
_AXES = {
    "S": "sequence",
    "Q": "query",
    "K": "query",
    "H": "head",
    "D": "offset",
    "P": "prefix",
    "W": "row",
    "d": "coordinate",
    "B": "band",
    "B+1": "band",
}


def checked_index(header: Header, index: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the index data sets in their stored types.

    Parameters
    ----------
    header : Header
        Header of the file.
    index : mapping of str to array
        Index data sets, by name.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    StoreError
        If a data set is missing, unexpected, not of the header's shape, not integer, or out of
        range; or as in `check_index`.
    """
    if set(index) != set(header.index):
        raise StoreError(
            f"index has {', '.join(sorted(index))}, expected {', '.join(header.index)}: "
            "pass exactly these"
        )
    arrays = {}
    for name in header.index:
        given = np.asarray(index[name])
        arrays[name] = array = np.ascontiguousarray(given, header.stored_dtype(name))
        if array.shape != header.shape(name):
            raise StoreError(
                f"index '{name}' has shape {array.shape}, expected {header.shape(name)}: "
                "pass one row per sequence"
            )
        if not np.array_equal(array, given):
            raise StoreError(f"index '{name}' holds values beyond {array.dtype}: pass integers")
    check_index(header, arrays)
    return arrays


def check_index(header: Header, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse index data sets that contradict the header or one another.

    Raises
    ------
    StoreError
        If tokens are not padded on the right with -1, a stored query would lie beyond the tokens of
        its sequence, or a sequence of the shifted design has a prefix length that the header lacks.
    """
    tokens, ahead = arrays["tokens"], arrays["prefix_length"]
    real = tokens >= 0
    bad = (tokens < -1).any(axis=1) | (real[:, 1:] > real[:, :-1]).any(axis=1)
    if bad.any():
        raise StoreError(
            f"index: tokens of sequence {np.argmax(bad)} are not padded on the right with -1: pass "
            "ids from 0 on, then -1"
        )
    bad = ~np.isin(ahead, header.prefixes)
    if header.design == "shifted" and header.prefixes and bad.any():
        s = np.argmax(bad)
        raise StoreError(
            f"index: prefix_length of sequence {s} is {ahead[s]}, none of the prefixes "
            f"{', '.join(map(str, header.prefixes))}: capture again"
        )
    _check_queries(header, arrays)


def _check_queries(header: Header, arrays: Mapping[str, np.ndarray]) -> None:
    lengths = (arrays["tokens"] >= 0).sum(axis=1)
    ends = arrays["query_start"].astype(np.int64) + header.n_queries
    bad = np.flatnonzero((ends > lengths) | (arrays["query_start"] < 0))
    if len(bad):
        s = bad[0]
        raise StoreError(
            f"index: sequence {s} has {lengths[s]} tokens, its stored queries end at {ends[s]}: "
            "shorten n_queries or move query_start"
        )


def checked_values(
    quantity: str, layer: int, first: int, values: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Return one layer of a batch in its stored type, or refuse values that must not be stored.

    Parameters
    ----------
    quantity : str
        Name of the data set, for its rule on NaN and for the message.
    layer : int
        Layer number, for the message.
    first : int
        Number of the batch's first sequence, for the message.
    values : ndarray of shape (batch, ...)
        Values of one layer.
    dtype : dtype
        Stored type.

    Returns
    -------
    ndarray of shape (batch, ...)
        Contiguous values of type `dtype`.

    Raises
    ------
    StoreError
        If the values are not floating point, or a stored value would not be finite, other than NaN
        where `DataSet.nan` allows it.
    """
    if values.dtype.kind != "f":
        raise StoreError(f"quantity '{quantity}' has type {values.dtype}: pass floating point")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(values, dtype)
        # A finite sum has finite terms, so most arrays need only this one pass without a mask.
        finite = bool(np.isfinite(stored.sum(dtype="f4")))
    if finite:
        return stored
    bad = np.isinf(stored) if DATA_SETS[quantity].nan else ~np.isfinite(stored)
    if not bad.any():
        return stored
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    place = f"'{quantity}' at layer {layer}, sequence {first + int(where[0])}"
    if np.isfinite(values[where]):
        raise StoreError(
            f"{place} is {values[where]:g}, beyond {dtype.name}: capture with dtype float32"
        )
    raise StoreError(
        f"{place} is {values[where]}: check the model's weights, or compute in float32"
    )


def is_finite(values: np.ndarray) -> bool:
    """Whether all values are finite, read from their bits, which is faster than `numpy.isfinite`.

    Examples
    --------
    >>> is_finite(np.array([1, 65504], "<f2")), is_finite(np.array([1, -np.inf], "<f4"))
    (True, False)
    """
    if values.dtype.kind != "f" or not values.size:
        return True
    bits = values.view(f"<u{values.itemsize}")
    infinity = np.array(np.inf, values.dtype).view(bits.dtype)
    return bool((bits & ~infinity.dtype.type(1 << (8 * values.itemsize - 1))).max() < infinity)


def check_stored(
    header: Header, quantity: str, layer: int, values: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> None:
    """Refuse infinities in one layer, and NaN where the quantity exists.

    Parameters
    ----------
    header : Header
        Header of the file.
    quantity : str
        Name of an activation data set.
    layer : int
        Layer number, for the message.
    values : ndarray of shape (S, ...)
        The layer as it is stored.
    arrays : mapping of str to array
        Index data sets, which determine where a quantity does not exist.

    Raises
    ------
    StoreError
        If there is such a value; the message says where the first one is.
    """
    step = max(1, _BLOCK // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        sequences = slice(start, start + step)
        bad = ~np.isfinite(values[sequences])
        if DATA_SETS[quantity].nan and bad.any():
            absent = _absent(header, quantity, values, arrays, sequences)
            bad &= ~(absent & np.isnan(values[sequences]))
        if bad.any():
            at = np.unravel_index(int(np.argmax(bad)), bad.shape)
            where = (start + int(at[0]), *map(int, at[1:]))
            raise StoreError(
                f"'{quantity}' at layer {layer}, {_place(header, quantity, where)} is "
                f"{values[where]}: check the model's weights, and capture again"
            )


def _absent(
    header: Header,
    quantity: str,
    values: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    sequences: slice,
) -> np.ndarray:
    """Return where a quantity does not exist, in a shape that broadcasts to the values."""
    if quantity in ("offset_score", "band_offset_score"):  # the key would lie before position 0
        query = arrays["query_start"][sequences, np.newaxis] + np.arange(header.n_queries)
        absent = (query[..., np.newaxis] < np.array(header.offsets))[:, :, np.newaxis]
        return absent[..., np.newaxis] if quantity == "band_offset_score" else absent
    if quantity == "sink_value":  # all of it is NaN if the output projection is not known
        return np.isnan(values).all() & np.ones((1, 1), bool)
    own = (arrays["tokens"][sequences] >= 0).sum(axis=1) - header.window
    beyond = np.array(header.prefixes) > own[:, np.newaxis]
    early = own[:, np.newaxis] < header.prefixes[-1]  # a writer may leave these out
    left_out = early & np.isnan(values[sequences]).all(axis=tuple(range(2, values.ndim)))
    return (beyond | left_out)[(..., *[np.newaxis] * (values.ndim - 2))]


def _place(header: Header, quantity: str, where: tuple[int, ...]) -> str:
    """Describe where a value is, the head first, as in "head 2, sequence 5, query 3"."""
    numbers = {"D": header.offsets, "P": header.prefixes}
    parts = [
        f"{_AXES[axis]} {numbers[axis][i] if axis in numbers else i}"
        for axis, i in zip(DATA_SETS[quantity].axes[1:], where, strict=True)
    ]
    return ", ".join(sorted(parts, key=lambda part: not part.startswith("head")))
