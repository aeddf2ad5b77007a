"""Simultaneous intervals and adjusted p-values of many statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level, check_replicates, check_units
from posprobe.intervals.resampling import standard_error

__all__ = ["MaxT", "benjamini_hochberg", "holm", "max_t"]


@dataclass(frozen=True)
class MaxT:
    """Simultaneous intervals and adjusted p-values, as `max_t` returns them.

    Attributes
    ----------
    estimate, standard_error, low, high, p_value : ndarray of shape (...)
        One entry for each statistic; p-values are adjusted.
    critical : float
        Half width of every interval, in standard errors.
    level : float
        Nominal probability that *all* intervals cover at once.
    n : int
        Number of independent units.
    """

    estimate: Array
    standard_error: Array
    low: Array
    high: Array
    p_value: Array
    critical: float
    level: float
    n: int


def max_t(
    estimates: ArrayLike,
    replicates: ArrayLike,
    *,
    n: int,
    level: float = 0.95,
    null: float = 0.0,
    errors: tuple[ArrayLike, ArrayLike] | None = None,
) -> MaxT:
    r"""Simultaneous intervals and adjusted p-values by the bootstrap max-T method.

    Replicate b of statistic k is :math:`\theta^*_{bk}`, and :math:`sd_k` is the standard deviation
    of the replicates. The largest deviation in replicate b is

    .. math:: m_b = \max_k |\theta^*_{bk} - \theta_k| / sd_k

    With c the `level` quantile of m, all intervals :math:`\theta_k \pm c\, se_k` cover at once
    with probability `level`. The single-step adjusted p-value of statistic k is the share of m
    that reaches :math:`|t_k|`, where :math:`t_k = (\theta_k - null) / se_k`. Because the
    `standard_error` :math:`se_k` is estimated from n clusters, c and :math:`t_k` are converted
    between normal and t(n - 1) quantiles. For a single statistic the result is the "t" interval
    of `bootstrap_limits`.

    With the standard error of every statistic in every bootstrap sample, :math:`se^*_{bk}`, the
    deviations are studentised, :math:`m_b = \max_k |\theta^*_{bk} - \theta_k| / se^*_{bk}`, and c
    is their quantile as it is. This holds better for skewed statistics, such as variances.

    Parameters
    ----------
    estimates : array-like of shape (...)
        Statistics in the data, for instance one for each layer and head.
    replicates : array-like of shape (B, ...)
        The statistics in B bootstrap samples. All must use the same `cluster_weights`.
    n : int
        Number of resampled clusters.
    level : float
        Nominal probability that all intervals cover.
    null : float
        Value of every statistic under the null hypothesis.
    errors : tuple of array-like of shape (...) and of shape (B, ...), optional
        Standard errors in the data and in the bootstrap samples, by one formula.

    Returns
    -------
    MaxT
        Arrays with the shape of the estimates.

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, there are fewer than two clusters, or a
        statistic is the same in all replicates.

    References
    ----------
    Westfall and Young (1993), Resampling-Based Multiple Testing, section 2.3; Romano and Wolf
    (2005), Econometrica 73, 1237.

    Examples
    --------
    >>> from posprobe.intervals import cluster_weights
    >>> heads = np.random.default_rng(0).normal([0.0, 0.0, 1.0], 1.0, size=(40, 3))
    >>> draws = cluster_weights(40, 2000, rng=0) @ heads / 40
    >>> many = max_t(heads.mean(axis=0), draws, n=40)
    >>> many.p_value < 0.05
    array([False, False,  True])
    """
    check_level(level)
    check_units(n, "max-T")
    center = np.asarray(estimates, dtype=np.float64)
    draws = check_replicates(replicates, center)
    spread, error = draws.std(axis=0, ddof=1), standard_error(draws, n)
    # Rounding makes equal replicates differ slightly, so compare their spread with their size.
    still = np.argwhere(spread <= 1e-12 * np.abs(draws).max(axis=0))
    if len(still):
        raise DesignError(
            f"statistic {tuple(still[0].tolist())} is the same in all bootstrap replicates: "
            "leave it out"
        )
    if errors is None:
        largest = (np.abs(draws - center) / spread).reshape(len(draws), -1).max(axis=1)
        critical = float(stats.t.isf(stats.norm.sf(np.quantile(largest, level)), n - 1))
        observed = stats.norm.isf(stats.t.sf(np.abs(center - null) / error, n - 1))
    else:
        error = np.asarray(errors[0], dtype=np.float64)
        scale = check_replicates(errors[1], center)
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample without any spread is far
            far = (np.abs(draws - center) / scale).reshape(len(draws), -1)
        largest = np.nan_to_num(far, nan=np.inf, posinf=np.inf).max(axis=1)
        critical = float(np.quantile(largest, level, method="higher"))
        observed = np.abs(center - null) / error
    reached = len(largest) - np.searchsorted(np.sort(largest), observed)
    p_value = (1 + reached) / (1 + len(largest))
    half = critical * error
    return MaxT(center, error, center - half, center + half, p_value, critical, level, n)


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    r"""Adjust p-values for the false discovery rate, over all entries at once.

    With m p-values in ascending order, the k-th becomes
    :math:`\min_{j \ge k} m\, p_{(j)} / j`, and at most 1.

    Parameters
    ----------
    p_values : array-like of shape (...)
        P-values that are independent or positively dependent.

    Returns
    -------
    ndarray of shape (...)
        Adjusted p-values. If the entries of at most q are rejected, the expected share of false
        rejections among them is at most q.

    Raises
    ------
    DesignError
        If there are no p-values, or one is not between 0 and 1.

    References
    ----------
    Benjamini and Hochberg (1995), J. R. Statist. Soc. B 57, 289.

    Examples
    --------
    >>> from posprobe.intervals import benjamini_hochberg
    >>> benjamini_hochberg([0.01, 0.02, 0.03, 0.5])
    array([0.04, 0.04, 0.04, 0.5 ])
    """
    p = _checked(p_values)
    return stats.false_discovery_control(p.ravel()).reshape(p.shape)


def holm(p_values: ArrayLike) -> Array:
    r"""Adjust p-values for the family-wise error rate, over all entries at once.

    With m p-values in ascending order, the k-th becomes
    :math:`\max_{j \le k} (m - j + 1)\, p_{(j)}`, and at most 1.

    Parameters
    ----------
    p_values : array-like of shape (...)
        P-values, with any dependence between them.

    Returns
    -------
    ndarray of shape (...)
        Adjusted p-values. If the entries of at most alpha are rejected, the probability of any
        false rejection is at most alpha.

    Raises
    ------
    DesignError
        If there are no p-values, or one is not between 0 and 1.

    References
    ----------
    Holm (1979), Scand. J. Statist. 6, 65.

    Examples
    --------
    >>> from posprobe.intervals import holm
    >>> holm([0.01, 0.04, 0.03, 0.5])
    array([0.04, 0.09, 0.09, 0.5 ])
    """
    p = _checked(p_values).ravel()
    # The function in statsmodels runs the garbage collector at every call, which takes a tenth of
    # a second in a large process.
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted.reshape(np.shape(p_values))


def _checked(p_values: ArrayLike) -> Array:
    p = np.asarray(p_values, dtype=np.float64)
    if not p.size or not np.all((p >= 0) & (p <= 1)):
        raise DesignError("p-values must all be within 0 and 1: leave undefined tests out")
    return p
