"""Intervals of a ratio of two paired means."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level, check_pairs, check_resamples
from posprobe.intervals.interval import Interval
from posprobe.intervals.inversion import student_p
from posprobe.intervals.resampling import cluster_weights

__all__ = ["fieller_limits", "fieller_ratio", "log_ratio_bootstrap_t"]

Quantity = Literal["removed", "ratio"]


def fieller_ratio(
    baseline: ArrayLike,
    treated: ArrayLike,
    *,
    level: float = 0.95,
    quantity: Quantity = "removed",
    estimand: str = "fraction removed",
) -> Interval:
    r"""Fieller's interval of a ratio of two paired means.

    The interval of :math:`\rho = \bar b / \bar a` contains every :math:`\rho` for which a paired t
    test does not reject that :math:`b - \rho a` has mean 0. Its limits solve

    .. math:: (\bar b - \rho \bar a)^2 = t^2_{n-1} (s_{bb} - 2 \rho s_{ab} + \rho^2 s_{aa}) / n

    If :math:`\bar a` itself does not differ significantly from 0, no finite interval has the
    nominal coverage, and the result is unbounded.

    Parameters
    ----------
    baseline : array-like of shape (n,)
        Values a of the denominator, one for each item. They may be jackknife pseudo-values.
    treated : array-like of shape (n,)
        Values b of the numerator, for the same items in the same order.
    level : float
        Nominal coverage.
    quantity : {"removed", "ratio"}
        Estimate ``1 - mean(b) / mean(a)``, or ``mean(b) / mean(a)``.
    estimand : str
        Name of what is estimated.

    Returns
    -------
    Interval
        Without unit.

    Raises
    ------
    DesignError
        If the samples differ in length, have fewer than two items or contain values that are not
        finite, or if the mean of the baseline is exactly 0.

    References
    ----------
    Fieller (1954), J. R. Statist. Soc. B 16, 175; Franz (2007), arXiv 0710.2024.

    Examples
    --------
    >>> from posprobe.intervals import fieller_ratio
    >>> before, after = [2.1, 1.9, 2.4, 2.0, 1.8], [1.2, 1.0, 1.5, 1.3, 1.0]
    >>> print(fieller_ratio(before, after))
    0.41 [0.35, 0.48]
    >>> print(fieller_ratio([1.0, -1.0, 2.0, 0.5, -1.5], after))
    -5.0 (95% CI unbounded)
    """
    check_level(level)
    a, b = check_pairs(baseline, treated)
    if a.mean() == 0:
        raise DesignError("the mean of the baseline is exactly 0, so a ratio to it does not exist")
    low, high = (float(limit) for limit in fieller_limits(a, b, level=level))
    limits = None if np.isnan(low) else (low, high)
    ratio = float(b.mean() / a.mean())
    interval = _ratio_interval(ratio, limits, quantity, level, "fieller", estimand, len(a))
    return dataclasses.replace(interval, test=partial(_fieller_p, a=a, b=b, quantity=quantity))


def fieller_limits(a: Array, b: Array, *, level: float = 0.95) -> tuple[Array, Array]:
    """Limits of ratios mean(b) / mean(a), by the equation of `fieller_ratio`, for any number.

    Parameters
    ----------
    a, b : ndarray of shape (n, ...)
        Values of each denominator and numerator, one for each item.
    level : float
        Nominal coverage.

    Returns
    -------
    low, high : ndarray of shape (...)
        Without unit. Both are NaN, which means unbounded, where a mean of `a` is not
        distinguishable from 0.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import fieller_limits
    >>> a = np.array([[2.1, 1.0], [1.9, -1.0], [2.4, 0.5]])
    >>> low, high = fieller_limits(a, np.array([[1.2], [1.0], [1.5]]))
    >>> low.round(2), high.round(2)
    (array([0.4, nan]), array([0.67,  nan]))
    """
    n, mean_a, mean_b = len(a), a.mean(0), b.mean(0)
    t2 = _squared_quantile(level, n - 1) / n
    s_aa, s_ab, s_bb = (
        ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (n - 1) for x, y in ((a, a), (a, b), (b, b))
    )
    # The discriminant of the quadratic, in a form without cancellation where errors are small.
    spread = t2 * np.var(mean_a * b - mean_b * a, axis=0, ddof=1) - t2**2 * (s_aa * s_bb - s_ab**2)
    leading = mean_a**2 - t2 * s_aa
    middle, half = mean_a * mean_b - t2 * s_ab, np.sqrt(np.maximum(spread, 0.0))
    leading = np.where(leading > 0, leading, np.nan)
    return (middle - half) / leading, (middle + half) / leading


@lru_cache(maxsize=16)
def _squared_quantile(level: float, df: int) -> float:
    """Return the square of Student's two-sided quantile, which SciPy takes long to find."""
    return float(stats.t.isf((1 - level) / 2, df)) ** 2


def _fieller_p(value: float, *, a: Array, b: Array, quantity: Quantity) -> float:
    """Return the p-value of a ratio: that of the paired t test, and of the baseline against 0.

    The interval is unbounded at all levels at which the baseline is not distinguishable from 0.
    """
    ratio = 1 - value if quantity == "removed" else value
    return max(
        student_p(0.0, estimate=x.mean(), error=x.std(ddof=1) / np.sqrt(len(x)), df=len(x) - 1)
        for x in (b - ratio * a, a)
    )


def log_ratio_bootstrap_t(
    baseline: ArrayLike,
    treated: ArrayLike,
    *,
    n_resamples: int = 2000,
    rng: np.random.Generator | int | None = 0,
    level: float = 0.95,
    quantity: Quantity = "removed",
    estimand: str = "fraction removed",
) -> Interval:
    r"""Bootstrap-t interval of a paired ratio on the log scale, a cross-check of `fieller_ratio`.

    Let :math:`\lambda = \log(\bar b / \bar a)` and :math:`s` its delta-method standard error. With
    quantiles :math:`q` of :math:`(\lambda^* - \lambda) / s^*` over the bootstrap replicates, the
    limits of the ratio are

    .. math:: \exp(\lambda - q_{1-\alpha/2}\, s), \qquad \exp(\lambda - q_{\alpha/2}\, s)

    The result is unbounded if the ratio is not positive in a share of :math:`\alpha / 2` or more
    of the replicates, since these have no logarithm. With noisy baselines and few items this
    interval covers less often than `fieller_ratio`; `posprobe selfcheck` measures by how much.

    Parameters
    ----------
    baseline, treated : array-like of shape (n,)
        Paired values as in `fieller_ratio`; their means must have the same sign.
    n_resamples : int
        Number of bootstrap replicates.
    rng : Generator, int or None
        Random generator, or the seed of one.
    level : float
        Nominal coverage.
    quantity : {"removed", "ratio"}
        As in `fieller_ratio`.
    estimand : str
        Name of what is estimated.

    Returns
    -------
    Interval
        Without unit.

    Raises
    ------
    DesignError
        If the samples differ in length, have fewer than two items or contain values that are not
        finite, or if the ratio is not positive.

    References
    ----------
    Efron and Tibshirani (1993), section 12.5.

    Examples
    --------
    >>> from posprobe.intervals import log_ratio_bootstrap_t
    >>> before, after = [2.1, 1.9, 2.4, 2.0, 1.8], [1.2, 1.0, 1.5, 1.3, 1.0]
    >>> print(log_ratio_bootstrap_t(before, after))
    0.41 [0.3..., 0.4...]
    """
    check_level(level)
    check_resamples(n_resamples)
    a, b = check_pairs(baseline, treated)
    n = len(a)
    if not a.mean() * b.mean() > 0:
        raise DesignError(
            f"the ratio of means {b.mean():.3g} / {a.mean():.3g} is not positive and has no "
            "logarithm: call fieller_ratio"
        )
    center, error = _log_ratio(a, b, np.ones((1, n)))
    draws, errors = _log_ratio(a, b, cluster_weights(n, n_resamples, rng))
    defined = np.isfinite(draws) & (errors > 0)
    tail, ratio = (1 - level) / 2, float(np.exp(center[0]))
    method = "log-ratio bootstrap t"
    if np.mean(~defined) >= tail:
        return _ratio_interval(ratio, None, quantity, level, method, estimand, n)
    studentized = (draws[defined] - center) / errors[defined]
    limits = np.exp(center - np.quantile(studentized, [1 - tail, tail]) * error)
    return _ratio_interval(
        ratio, (float(limits[0]), float(limits[1])), quantity, level, method, estimand, n
    )


def _log_ratio(a: Array, b: Array, weights: NDArray[Any]) -> tuple[Array, Array]:
    """Return log ratios of weighted means and their delta-method errors; both (B,).

    The log ratio is not finite where the ratio is not positive.
    """
    n = len(a)
    mean_a, mean_b = weights @ a / n, weights @ b / n
    with np.errstate(divide="ignore", invalid="ignore"):
        influence = b / mean_b[:, None] - a / mean_a[:, None]
        error = np.sqrt((weights * influence**2).sum(axis=1) / (n * (n - 1)))
        return np.log(mean_b / mean_a), error


def _ratio_interval(
    ratio: float,
    limits: tuple[float, float] | None,
    quantity: Quantity,
    level: float,
    method: str,
    estimand: str,
    n: int,
) -> Interval:
    """Return the interval of the ratio, or that of one minus the ratio, with limits swapped."""
    if quantity not in ("removed", "ratio"):
        raise DesignError(f"unknown quantity {quantity!r}: choose 'removed' or 'ratio'")
    low, high = limits if limits else (None, None)
    if quantity == "ratio":
        return Interval(ratio, low, high, level, method, estimand, n)
    if low is None or high is None:
        return Interval(1 - ratio, None, None, level, method, estimand, n)
    return Interval(1 - ratio, 1 - high, 1 - low, level, method, estimand, n)
