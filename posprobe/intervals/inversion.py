"""Two-sided p-values of the tests whose inversions the intervals are.

Each is 1 - the level at which a limit touches the value. So an interval excludes a value where its
p-value is below 1 - level, and only there.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from posprobe.intervals.arrays import Array

__all__ = ["pivot_p", "student_p"]

FAR = 1e300  # stands for infinity where numbers are subtracted


def student_p(value: float, *, estimate: float, error: float, df: float) -> float:
    """Return the p-value of a value under estimate ± t(df) x error; NaN for an error of 0."""
    return 2 * float(stats.t.sf(abs(estimate - value) / error, df)) if error > 0 else float("nan")


def pivot_p(observed: float, pivots: Array) -> float:
    """Return the p-value of an observed pivot among those of B bootstrap samples.

    Twice the smaller tail, with the tails that `numpy.quantile` has, so interval and p-value agree;
    a tail is never below 1/(B + 1), which is what the data themselves are among the samples.

    Parameters
    ----------
    observed : float
        The pivot of the value in the data.
    pivots : ndarray of shape (B,)
        Those of the samples. An infinite one is beyond every value.

    Returns
    -------
    float
        From 2/(B + 1) to 1.

    Examples
    --------
    >>> pivots = np.arange(101.0)
    >>> round(pivot_p(np.quantile(pivots, 0.975), pivots), 4), round(pivot_p(1e9, pivots), 4)
    (0.05, 0.0196)
    """
    lost = max(np.mean(pivots == end) for end in (np.inf, -np.inf))
    finite = np.clip(pivots, -FAR, FAR)
    tail = min(_beyond(observed, np.sort(finite)), _beyond(-observed, np.sort(-finite)))
    return float(min(1.0, 2 * max(tail, lost, 1 / (len(pivots) + 1))))


def _beyond(value: float, ordered: Array) -> float:
    """Return 1 - q for the largest q whose quantile is below a value."""
    below = int(np.searchsorted(ordered, value))
    if below in (0, len(ordered)):
        return float(below == 0)
    gap = ordered[below] - ordered[below - 1]
    return float(1 - (below - 1 + (value - ordered[below - 1]) / gap) / (len(ordered) - 1))
