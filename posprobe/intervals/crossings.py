"""Where a curve that was measured at several places has made a part of its change."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level

__all__ = ["crossing", "crossing_limits"]


def crossing(values: ArrayLike, places: ArrayLike, *, share: float = 0.5) -> Array:
    r"""Find the first place where curves have made a share of their change from first to last.

    With values :math:`x_k` at places :math:`t_k`, straight lines between them, and the level
    :math:`x_1 + q (x_K - x_1)` for a share q, this is the first t where the curve is at the level.
    It says nothing of the way there: a curve may have been beyond its last value.

    Parameters
    ----------
    values : array-like of shape (..., K)
        Curves, each at the same K places.
    places : array-like of shape (K,)
        In ascending order.
    share : float
        Above 0 and at most 1.

    Returns
    -------
    ndarray of shape (...)
        In the unit of `places`; NaN where the first and the last value are equal.

    Raises
    ------
    DesignError
        If shapes do not match, places do not ascend, or the share is out of range.

    Examples
    --------
    >>> from posprobe.intervals import crossing
    >>> float(crossing([0.0, 0.0, 1.0, 4.0], [0, 1, 2, 3]))
    2.3333333333333335
    """
    x, t = np.asarray(values, dtype=np.float64), np.asarray(places, dtype=np.float64)
    if t.ndim != 1 or x.shape[-1:] != t.shape or len(t) < 2 or not (np.diff(t) > 0).all():
        raise DesignError(
            f"values of shape {x.shape} at {t.size} places: give each curve one value at each of "
            "two or more ascending places"
        )
    if not 0 < share <= 1:
        raise DesignError(f"share={share} must be above 0 and at most 1")
    change = x[..., -1:] - x[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        done = (x - x[..., :1]) / change  # 0 at the first place, 1 at the last
    there = np.argmax(done >= share, axis=-1)[..., None]
    before = np.maximum(there - 1, 0)
    low, high = (np.take_along_axis(done, k, -1)[..., 0] for k in (before, there))
    start, stop = t[before[..., 0]], t[there[..., 0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = start + (stop - start) * (share - low) / (high - low)
    return np.where(change[..., 0] == 0, np.nan, found)


def crossing_limits(replicates: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Take the limits of a crossing, or of a difference of two, from bootstrap samples.

    Parameters
    ----------
    replicates : array-like of shape (B,)
        What `crossing` finds in bootstrap samples of the units; NaN is as far as can be on either
        side.
    level : float
        Nominal coverage.

    Returns
    -------
    low, high : float
        Percentiles, in the unit of the replicates. NaN if more samples are NaN than a limit leaves
        beyond it: what does not change has no place where half of its change is made.

    Notes
    -----
    The noise of a curve makes its first crossing earlier rather than later, so intervals are only
    as good as the curve is smooth beside its noise: see ``tests/intervals/test_crossings.py`` for
    the coverage of curves with a known crossing.
    """
    check_level(level)
    draws = np.asarray(replicates, dtype=np.float64)
    known = draws[~np.isnan(draws)]
    tail = (1 - level) / 2
    if len(draws) - len(known) > tail * len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
