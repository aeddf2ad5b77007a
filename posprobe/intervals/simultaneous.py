"""Many statistics at once."""

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
    """Simultaneous intervals and adjusted p-values; every array has the shape of the estimates.

    Attributes
    ----------
    estimate, standard_error, low, high, p_value : ndarray
        One entry for each statistic.
    critical : float
        Half width of every interval in standard errors.
    level : float
        Probability that *all* intervals cover at once.
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
) -> MaxT:
    r"""Simultaneous intervals and adjusted p-values of many statistics from shared weights.

    With standard errors :math:`se_k` of `standard_error`, :math:`t_k = (\theta_k - null) / se_k`,
    replicates :math:`\theta^*_{bk}` of standard deviation :math:`sd_k`, and
    :math:`m_b = \max_k |\theta^*_{bk} - \theta_k| / sd_k`, all intervals
    :math:`\theta_k \pm c\, se_k` cover at once with probability `level` where c is that quantile
    of m, and the single-step adjusted p-value is the share of m that reaches :math:`|t_k|`.
    Because the :math:`se_k` are estimated from n clusters, normal quantiles are exchanged for
    those of t(n - 1): one statistic gets the "t" interval of `bootstrap_limits`.

    Parameters
    ----------
    estimates : array-like (...)
        Statistics in the data, for instance (layers, heads).
    replicates : array-like (B, ...)
        The same in B bootstrap samples with the same `cluster_weights` for all of them.
    n : int
        Number of clusters that were resampled.
    level : float
        Probability that all intervals cover.
    null : float
        Value to test against.

    Returns
    -------
    MaxT

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, or a statistic does not vary.

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
    # Identical replicates differ by rounding alone, so their deviation is compared with their size.
    still = np.argwhere(spread <= 1e-12 * np.abs(draws).max(axis=0))
    if len(still):
        raise DesignError(
            f"statistic {tuple(still[0].tolist())} is the same in all bootstrap replicates: "
            "leave it out"
        )
    largest = (np.abs(draws - center) / spread).reshape(len(draws), -1).max(axis=1)
    critical = float(stats.t.isf(stats.norm.sf(np.quantile(largest, level)), n - 1))
    observed = stats.norm.isf(stats.t.sf(np.abs(center - null) / error, n - 1))
    reached = len(largest) - np.searchsorted(np.sort(largest), observed)
    p_value = (1 + reached) / (1 + len(largest))
    half = critical * error
    return MaxT(center, error, center - half, center + half, p_value, critical, level, n)


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """P-values adjusted for the false discovery rate, over all entries at once.

    Parameters
    ----------
    p_values : array-like (...)
        P-values, for instance (layers, heads); independent or positively dependent.

    Returns
    -------
    ndarray (...)
        Reject where an entry is at most q: the expected share of false rejections is at most q.

    Raises
    ------
    DesignError
        If an entry is not within 0 and 1.

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
    r"""P-values adjusted for the family-wise error rate, over all entries at once.

    With m p-values in order, the k-th becomes :math:`\max_{j \le k} (m - j + 1) p_{(j)}`, and 1
    at most.

    Parameters
    ----------
    p_values : array-like (...)
        P-values of any dependence.

    Returns
    -------
    ndarray (...)
        Reject where an entry is at most alpha: the chance of any false rejection is at most alpha.

    Raises
    ------
    DesignError
        If an entry is not within 0 and 1.

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
    # statsmodels' own collects garbage at every call, a tenth of a second in a large process.
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted.reshape(np.shape(p_values))


def _checked(p_values: ArrayLike) -> Array:
    p = np.asarray(p_values, dtype=np.float64)
    if not p.size or not np.all((p >= 0) & (p <= 1)):
        raise DesignError("p-values must all be within 0 and 1: leave undefined tests out")
    return p
