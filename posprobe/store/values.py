"""Checks of what is about to be written: index arrays, and activations in their stored type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.layout import DATA_SETS, Header

__all__ = ["checked_index", "checked_values"]


def checked_index(header: Header, index: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the per-sequence data sets in their stored type.

    Raises
    ------
    StoreError
        If one is missing, too many, not of the header's shape, not integer, or out of range; or if
        a stored query would lie beyond the tokens of its sequence.
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
    _check_queries(header, arrays)
    return arrays


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
    """Return one layer of a batch in its stored type, refusing what must not be stored.

    Parameters
    ----------
    quantity : str
        Name of the data set, for its rule on NaN and for the message.
    layer, first : int
        Layer number and number of the batch's first sequence, for the message.
    values : ndarray of shape (batch, ...)
        Values of one layer.
    dtype : dtype
        Stored type.

    Raises
    ------
    StoreError
        If a value is not finite once stored, other than NaN where `DataSet.nan` allows it.
    """
    if values.dtype.kind != "f":
        raise StoreError(f"quantity '{quantity}' has type {values.dtype}: pass floating point")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(values, dtype)
        # One pass without a mask; a finite sum has finite terms, and only others look closer.
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
