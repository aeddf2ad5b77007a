"""Student's t intervals: of a mean over clusters, and of any smooth statistic by the jackknife."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level, check_replicates, check_units, common_length
from posprobe.intervals.interval import Interval
from posprobe.intervals.inversion import student_p

__all__ = ["jackknife_interval", "leave_one_out", "mean_interval", "pseudo_values"]


def mean_interval(values: ArrayLike, *, estimand: str, level: float = 0.95) -> Interval:
    """Student's t interval of a mean over clusters, ``mean ± t(n - 1) sd / sqrt(n)``.

    Parameters
    ----------
    values : array-like of shape (n,)
        One number for each cluster.
    estimand : str
        Name of what is estimated.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        If `values` is not one-dimensional, has fewer than two entries, or is not finite.

    References
    ----------
    Student (1908), Biometrika 6, 1.

    Examples
    --------
    >>> from posprobe.intervals import mean_interval
    >>> print(mean_interval([2.0, 3.0, 4.0, 3.0, 2.0, 4.0], estimand="mean"))
    3.0 [2.1, 3.9]
    """
    check_level(level)
    each = np.asarray(values, dtype=np.float64)
    if each.ndim != 1:
        raise DesignError(
            f"values of {estimand!r} have shape {each.shape}: give one number for each cluster"
        )
    check_units(len(each), f"mean of {estimand!r}")
    lost = int(np.sum(~np.isfinite(each)))
    if lost:
        raise DesignError(
            f"{lost} of {len(each)} values of {estimand!r} are not finite: leave these clusters out"
        )
    return _student(each, float(each.mean()), level, "Student t", estimand)


def leave_one_out(statistic: Callable[..., Any], *values: ArrayLike) -> Array:
    """Compute a statistic n times, each time without one of the n units.

    The statistic is called n times, so prefer a closed form if there is one.

    Parameters
    ----------
    statistic : callable
        Takes the arrays, each without one row, and returns a number or an array.
    *values : array-like of shape (n, ...)
        Samples with one row for each unit, paired by row.

    Returns
    -------
    ndarray of shape (n, ...)
        Entry i is the statistic without unit i.

    Raises
    ------
    DesignError
        If there are fewer than two units, or the samples differ in length.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import leave_one_out
    >>> leave_one_out(np.mean, [0.0, 3.0, 6.0])
    array([4.5, 3. , 1.5])
    """
    arrays = [np.asarray(value) for value in values]
    n = common_length(*arrays)
    check_units(n, "jackknife")
    return np.stack([statistic(*(np.delete(x, i, axis=0) for x in arrays)) for i in range(n)])


def pseudo_values(estimate: ArrayLike, leave_one_out: ArrayLike) -> Array:
    """Jackknife pseudo-values, ``n estimate - (n - 1) leave_one_out[i]``.

    Pseudo-values turn a statistic into a mean over units. For a mean they are the data
    themselves; for a U-statistic their mean is the statistic.

    Parameters
    ----------
    estimate : array-like of shape (...)
        The statistic in the data.
    leave_one_out : array-like of shape (n, ...)
        The statistic without each unit in turn.

    Returns
    -------
    ndarray of shape (n, ...)
        One pseudo-value for each unit, in the unit of the estimate.

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, or there are fewer than two units.

    References
    ----------
    Tukey (1958), Ann. Math. Statist. 29, 614; Efron and Tibshirani (1993), section 11.5.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import leave_one_out, pseudo_values
    >>> pseudo_values(3.0, leave_one_out(np.mean, [0.0, 3.0, 6.0]))
    array([0., 3., 6.])
    """
    center = np.asarray(estimate, dtype=np.float64)
    without = check_replicates(leave_one_out, center, what="leave-one-out values")
    n = len(without)
    return n * center - (n - 1) * without


def jackknife_interval(
    estimate: float, leave_one_out: ArrayLike, *, level: float = 0.95, estimand: str
) -> Interval:
    """Jackknife interval: ``estimate ± t(n - 1) sd(pseudo-values) / sqrt(n)``.

    Parameters
    ----------
    estimate : float
        The statistic in the data. It must be a smooth function of them, which a median is not.
    leave_one_out : array-like of shape (n,)
        The statistic without each unit in turn.
    level : float
        Nominal coverage.
    estimand : str
        Name of what is estimated.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        If `leave_one_out` is not one-dimensional or has fewer than two entries, values are not
        finite, or the level is not valid.

    References
    ----------
    Efron and Tibshirani (1993), chapter 11.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import jackknife_interval, leave_one_out
    >>> values = np.arange(10.0)
    >>> print(jackknife_interval(4.5, leave_one_out(np.mean, values), estimand="mean"))
    4.5 [2.3, 6.7]
    """
    check_level(level)
    values = pseudo_values(estimate, leave_one_out)
    return _student(values, float(estimate), level, "jackknife t", estimand)


def _student(values: Array, center: float, level: float, method: str, estimand: str) -> Interval:
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.isf((1 - level) / 2, n - 1)) * error
    test = partial(student_p, estimate=center, error=error, df=n - 1)
    return Interval(center, center - half, center + half, level, method, estimand, n, test)
