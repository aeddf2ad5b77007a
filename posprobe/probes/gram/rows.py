"""Check rows of data, group them by sequence, and compute their products."""

from __future__ import annotations

from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = [
    "Block",
    "as_block",
    "clusters",
    "column_means",
    "distinct",
    "products",
    "refuse_nonfinite",
]

Block = tuple[Any, ...]
Rows = slice | NDArray[np.intp]


def column_means(values: NDArray[Any]) -> Array:
    """Return the mean of every column in float64; overflow is reported later, by column."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.mean(axis=0, dtype=float))


def as_block(X: Any, y: Any, groups: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the checked arrays of a block, with y as a matrix and one label for each row."""
    X, y, groups = _numbers("X", X), _numbers("y", y), np.asarray(groups)
    y = y[:, None] if y.ndim == 1 else y
    groups = np.broadcast_to(groups, len(X)) if groups.ndim == 0 else groups
    if X.ndim != 2 or y.ndim != 2 or groups.ndim != 1:
        raise DesignError(
            f"X {X.shape}, y {y.shape}, groups {groups.shape}: pass X with two axes, y with one "
            "or two, groups with one"
        )
    if not len(X) == len(y) == len(groups):
        raise DesignError(
            f"X has {len(X)} rows, y {len(y)}, groups {len(groups)}: pass one of each per row"
        )
    if 0 in X.shape:
        raise DesignError(f"X has shape {X.shape}: pass at least one row and one column")
    return X, y, groups


def _numbers(what: str, values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "c":
        raise DesignError(f"{what} has complex numbers: pass real and imaginary parts as columns")
    try:
        return array.astype(float)
    except (TypeError, ValueError) as error:
        raise DesignError(
            f"{what} holds {array.dtype}, not numbers: convert it to float"
        ) from error


def distinct(groups: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the sorted distinct labels, and the index of the label of every row."""
    if groups.dtype.kind == "O" and len({_kind(label) for label in groups.tolist()}) > 1:
        raise DesignError(
            "groups mix labels of several types: use only integers, or only strings, for all rows"
        )
    try:
        labels, inverse = np.unique(groups, return_inverse=True)
    except TypeError as error:
        raise DesignError(
            "groups mix labels that cannot be sorted: use only integers, or only strings"
        ) from error
    if labels.dtype.kind == "O":
        labels = np.array(labels.tolist())
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise DesignError("groups contain NaN: give every row the label of its sequence")
    return labels, inverse


def _kind(label: Any) -> type:
    """Return the type of a label; all numbers count as one type, since they can be sorted."""
    return next((kind for kind in (str, Real) if isinstance(label, kind)), type(label))


def clusters(groups: NDArray[Any]) -> tuple[NDArray[Any], list[Rows]]:
    """Return the sorted labels and the rows of each, as slices if rows are already in order."""
    if groups.dtype.kind in "iu" and (groups[1:] >= groups[:-1]).all():
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        return groups[starts], _slices([*starts.tolist(), len(groups)])
    labels, inverse = distinct(groups)
    slices = _slices([0, *np.cumsum(np.bincount(inverse)).tolist()])
    if (np.diff(inverse) >= 0).all():
        return labels, slices
    order = np.argsort(inverse, kind="stable")
    return labels, [order[rows] for rows in slices]


def _slices(bounds: list[int]) -> list[Rows]:
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _count(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


# Warnings are off because values that are not finite are found on the diagonal afterwards.
@np.errstate(over="ignore", invalid="ignore")
def products(
    X: NDArray[Any], y: NDArray[Any], shift: Array, rows: list[Rows], weights: Array | None = None
) -> Array:
    """Return the shifted [X, 1, y]' W [X, 1, y] of each set of rows, (S, p + 1 + t, p + 1 + t)."""
    roots = None if weights is None else np.sqrt(weights)
    n, p, q = max(map(_count, rows)), X.shape[1], len(shift) + 1
    out = np.empty((len(rows), q, q))
    # All operands are contiguous; a separate border [1, y] keeps the columns of X aligned.
    features, border = np.empty((n, p)), np.ones((n, q - p))
    level = np.tile(shift[:p], (n, 1))
    upper = np.zeros((p, p), order="F")
    for chosen, product in zip(rows, out, strict=True):
        x = X[chosen]
        Z, B = features[: len(x)], border[: len(x)]
        np.subtract(x, level[: len(x)], out=Z)
        np.subtract(y[chosen], shift[p:], out=B[:, 1:])
        if roots is not None:
            Z *= roots[chosen, None]
            B[:, 1:] *= roots[chosen, None]
            B[:, 0] = roots[chosen]
        blas.dsyrk(1.0, Z.T, 0.0, upper, overwrite_c=1)
        np.add(upper, upper.T, out=product[:p, :p])
        np.matmul(B.T, Z, out=product[p:, :p])
        np.matmul(B.T, B, out=product[p:, p:])
    # Both triangles contain the diagonal, and halving it is exact.
    np.einsum("sqq->sq", out[:, :p, :p])[:] *= 0.5
    out[:, :p, p:] = out[:, p:, :p].transpose(0, 2, 1)
    return out


def refuse_nonfinite(X: NDArray[Any], y: NDArray[Any], names: NDArray[Any]) -> None:
    """Raise an error that names the sequence and column of a value that is not finite."""
    for what, values, remedy in (
        ("X", X, "drop the sequence, or capture in a wider float type"),
        ("y", y, "give every row a finite target, or drop the sequence"),
    ):
        bad = np.argwhere(~np.isfinite(np.asarray(values, dtype=float)))
        if len(bad):
            row, column = bad[0]
            value = "NaN" if np.isnan(values[row, column]) else "inf"
            raise DesignError(
                f"sequence {names[row]!s}: column {column} of {what} is {value} (row {row}; "
                f"{len(bad)} such values): {remedy}"
            )
    raise DesignError("squares of the data overflow float64: rescale X or y")
