"""The cluster bootstrap: weights, standard errors and limits."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level, check_replicates, check_units
from posprobe.intervals.interval import Interval
from posprobe.intervals.inversion import pivot_p, student_p

__all__ = [
    "STUDENTIZED",
    "bootstrap_interval",
    "bootstrap_limits",
    "cluster_weights",
    "standard_error",
    "studentized_limits",
    "studentized_means",
    "studentized_p",
]

Method = Literal["percentile", "basic", "normal", "t", "bca"]
STUDENTIZED = "studentised"
LEAST_UNITS = 8
SCALE = 3.0
FAR = 1e6  # standard errors from the estimate at which a limit says nothing


def cluster_weights(
    n_clusters: int,
    n_resamples: int,
    rng: np.random.Generator | int | None,
    strata: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Draw how often each cluster appears in each bootstrap replicate.

    Each row is multinomial, ``w_b ~ Mult(n; 1/n, ..., 1/n)``, which is the same as drawing n
    clusters with replacement. With strata, each stratum keeps its size. Use the same weights for
    all statistics that are compared with each other. For two crossed factors, multiply the
    weights of two calls.

    Parameters
    ----------
    n_clusters : int
        Number n of sequences or items.
    n_resamples : int
        Number B of replicates.
    rng : Generator, int or None
        Random generator, or the seed of one.
    strata : array-like of shape (n,), optional
        The stratum of each cluster.

    Returns
    -------
    ndarray of shape (B, n)
        Integer counts; every row sums to n.

    Raises
    ------
    DesignError
        If there are fewer than two clusters, in all or in a stratum, if `n_resamples` is below 1,
        or if `strata` does not have one label for each cluster.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, sections 6.2 and 8.3; Davison
    and Hinkley (1997), Bootstrap Methods and their Application, section 3.8, for whole clusters.

    Examples
    --------
    >>> from posprobe.intervals import cluster_weights
    >>> weights = cluster_weights(4, 1000, rng=0)
    >>> weights.shape, set(weights.sum(axis=1).tolist())
    ((1000, 4), {4})
    """
    if n_resamples < 1:
        raise DesignError(f"n_resamples={n_resamples}: ask for at least one bootstrap replicate")
    labels = np.zeros(n_clusters) if strata is None else np.asarray(strata)
    if labels.shape != (n_clusters,):
        raise DesignError(
            f"strata have shape {labels.shape}, there are {n_clusters} clusters: give a label each"
        )
    generator = np.random.default_rng(rng)
    weights = np.empty((n_resamples, n_clusters), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        where = "" if strata is None else f" in stratum {label}"
        check_units(len(members), f"bootstrap over clusters{where}")
        chances = np.full(len(members), 1 / len(members))
        weights[:, members] = generator.multinomial(len(members), chances, size=n_resamples)
    return weights


def standard_error(replicates: Array, n: int) -> Array:
    """Bootstrap standard error, ``sd(replicates) sqrt(n / (n - 1))``.

    The notes of `bootstrap_limits` explain the factor.

    Parameters
    ----------
    replicates : ndarray of shape (B, ...)
        The statistic in each of B bootstrap samples.
    n : int
        Number of resampled clusters, at least 2.

    Returns
    -------
    ndarray of shape (...)
        In the unit of the statistic.
    """
    return np.asarray(replicates.std(axis=0, ddof=1) * np.sqrt(n / (n - 1)))


def bootstrap_limits(
    replicates: ArrayLike,
    estimate: ArrayLike,
    *,
    n: int,
    level: float = 0.95,
    method: Method = "t",
    leave_one_out: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Limits of bootstrap intervals, for any number of statistics at once.

    With :math:`\alpha = 1 - level`, quantiles :math:`q` of the replicates and the `standard_error`
    :math:`se`, the limits are::

        percentile   [q(α/2), q(1 - α/2)]
        basic        [2 estimate - q(1 - α/2), 2 estimate - q(α/2)]
        normal       estimate ± z(1 - α/2) se
        t            estimate ± t(1 - α/2; n - 1) se
        bca          [q(α₁), q(α₂)], with bias z₀ and acceleration a:
                     α₁ = Φ(z₀ + (z₀ + z(α/2)) / (1 - a (z₀ + z(α/2)))),
                     and α₂ likewise with 1 - α/2

    Parameters
    ----------
    replicates : array-like of shape (B, ...)
        The statistic in each of B bootstrap samples.
    estimate : array-like of shape (...)
        The statistic in the data.
    n : int
        Number of resampled clusters.
    level : float
        Nominal coverage.
    method : {"percentile", "basic", "normal", "t", "bca"}
        See above. The default is "t" because the other intervals are too short if there are few
        clusters.
    leave_one_out : array-like of shape (n, ...), optional
        The statistic without each cluster in turn. Only "bca" needs it.

    Returns
    -------
    low, high : ndarray of shape (...)
        In the unit of the estimate.

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, the level or the method is not valid, or
        there are fewer than two clusters. With "bca", also if `leave_one_out` is missing or
        constant, or if all replicates lie on one side of the estimate.

    Notes
    -----
    The variance of bootstrap means has the divisor n where the unbiased variance has n - 1. The
    factor :math:`\sqrt{n / (n - 1)}` in the standard error corrects this, so for a mean the "t"
    interval is Student's interval, up to Monte Carlo error.

    References
    ----------
    Efron and Tibshirani (1993), chapters 13 and 14; Davison and Hinkley (1997), section 5.2.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import bootstrap_limits, cluster_weights
    >>> values = np.arange(10.0)
    >>> means = cluster_weights(10, 5000, rng=0) @ values / 10
    >>> low, high = bootstrap_limits(means, values.mean(), n=10, method="percentile")
    >>> print(f"{low:.1f} {high:.1f}")
    2.7 6.2
    """
    check_level(level)
    check_units(n, "bootstrap interval")
    center = np.asarray(estimate, dtype=np.float64)
    draws = check_replicates(replicates, center)
    tail = (1 - level) / 2
    if method in ("normal", "t"):
        quantile = stats.norm.isf(tail) if method == "normal" else stats.t.isf(tail, n - 1)
        half = quantile * standard_error(draws, n)
        return center - half, center + half
    if method == "bca":
        return _bca_limits(draws, center, n, tail, leave_one_out)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    if method == "percentile":
        return low, high
    if method == "basic":
        return 2 * center - high, 2 * center - low
    raise DesignError(
        f"unknown bootstrap method {method!r}: choose percentile, basic, normal, t or bca"
    )


def studentized_limits(
    replicates: ArrayLike,
    errors: ArrayLike,
    estimate: ArrayLike,
    error: ArrayLike,
    *,
    n: int,
    level: float = 0.95,
) -> tuple[Array, Array]:
    r"""Limits of the studentised bootstrap on the asinh scale, for any number of statistics.

    Where a few clusters carry most of a statistic, its estimate and its standard error are
    correlated, and every interval of the form estimate ± quantile x standard error lies too low.
    Here each replicate :math:`\theta^*_b` is divided by its own standard error :math:`se^*_b`, on
    the scale :math:`h(\theta) = \operatorname{asinh}(\theta / c)` with :math:`c = 3\, se`, which is
    linear near 0 and logarithmic far from it. It admits statistics of either sign:

    .. math::

        t_b = \frac{h(\theta^*_b) - h(\theta)}{h'(\theta^*_b)\, se^*_b}, \qquad
        h^{-1}\left(h(\theta) - q_{1 - \alpha/2}\, h'(\theta)\, se\right), \quad
        h^{-1}\left(h(\theta) - q_{\alpha/2}\, h'(\theta)\, se\right)

    with quantiles q of t and :math:`\alpha = 1 - level`. Fewer than 8 clusters are too few for
    standard errors within samples; the limits are then Student's, estimate ± t(n - 1) x error.

    Parameters
    ----------
    replicates, errors : array-like of shape (B, ...)
        The statistic and its standard error in each of B bootstrap samples.
    estimate, error : array-like of shape (...)
        The statistic and its standard error in the data, by the same equation as in the samples.
    n : int
        Number of resampled clusters.
    level : float
        Nominal coverage.

    Returns
    -------
    low, high : ndarray of shape (...)
        In the unit of the estimate. Both are NaN, which means unbounded, where one of them is more
        than a million standard errors away: a single cluster then carries nearly all of the
        statistic, and more than :math:`\alpha / 2` of the samples have a standard error near 0.
        Both equal the estimate where the standard error of the data is 0.

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, or the level is not valid.

    References
    ----------
    Hall (1988), Ann. Statist. 16, 927; Efron and Tibshirani (1993), sections 12.5 and 12.6.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import cluster_weights, studentized_means
    >>> few_large = np.exp(np.arange(10.0) / 2)
    >>> low, high = studentized_means(few_large, cluster_weights(10, 5000, rng=0))
    >>> print(f"{few_large.mean():.0f} [{low:.0f}, {high:.0f}]")
    23 [7, 100]
    """
    check_level(level)
    check_units(n, "studentised bootstrap")
    center, spread = (np.asarray(x, dtype=np.float64) for x in (estimate, error))
    upper, lower = (1 + level) / 2, (1 - level) / 2
    if n < LEAST_UNITS:
        half = stats.t.ppf(upper, n - 1) * spread
        return center - half, center + half
    draws = check_replicates(replicates, center)
    each = check_replicates(errors, center, "standard errors of bootstrap replicates")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        c = SCALE * spread
        q = np.quantile(_pivots(draws, each, center, c), [upper, lower], axis=0)
        low, high = c * np.sinh(np.arcsinh(center / c) - q * spread / np.hypot(center, c))
        bounded = (center - low <= FAR * spread) & (high - center <= FAR * spread)
    low, high = (np.where(bounded, limit, np.nan) for limit in (low, high))
    still = spread == 0
    return np.where(still, center, low), np.where(still, center, high)


def _pivots(draws: Array, errors: Array, center: Array, c: Array) -> Array:
    """Return how far each sample is from the data on the asinh scale, in standard errors."""
    pivots = np.arcsinh(draws / c)
    pivots -= np.arcsinh(center / c)
    pivots *= np.hypot(draws, c)
    pivots /= errors
    pivots[(errors == 0) & (draws == center)] = 0
    return np.asarray(pivots)


def studentized_p(
    value: float, replicates: Array, errors: Array, *, estimate: float, error: float, n: int
) -> float:
    """Return the two-sided p-value of a value by the inversion of `studentized_limits`.

    Parameters
    ----------
    value : float
        In the unit of the estimate.
    replicates, errors : ndarray of shape (B,)
        As in `studentized_limits`.
    estimate, error : float
        As in `studentized_limits`.
    n : int
        Number of resampled clusters.

    Returns
    -------
    float
        At least 2 / (B + 1) where limits are those of the bootstrap; NaN for an error of 0.
    """
    if n < LEAST_UNITS or error == 0:
        return student_p(value, estimate=estimate, error=error, df=n - 1)
    c = np.asarray(SCALE * error)
    center = np.asarray(estimate, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = _pivots(replicates, errors, center, c)
    observed = (np.arcsinh(center / c) - np.arcsinh(value / c)) * np.hypot(center, c) / error
    return pivot_p(float(observed), pivots)


def studentized_means(
    values: ArrayLike, weights: ArrayLike, *, level: float = 0.95
) -> tuple[Array, Array]:
    """Limits of means over clusters, by `studentized_limits`.

    Parameters
    ----------
    values : array-like of shape (n, ...)
        One value of each statistic for each cluster.
    weights : array-like of shape (B, n)
        Bootstrap samples of the clusters, as `cluster_weights` draws them.
    level : float
        Nominal coverage.

    Returns
    -------
    low, high : ndarray of shape (...)
        In the unit of the values.

    Raises
    ------
    DesignError
        For the reasons given in `studentized_limits`.
    """
    each, rows = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    n, mean = len(each), each.mean(0)
    centred = each - mean
    moved = np.tensordot(rows, centred, 1) / n
    squares = np.tensordot(rows, centred**2, 1) / n
    variance = squares - moved**2
    variance[variance <= 1e-13 * squares] = 0
    error = centred.std(0, ddof=1) / np.sqrt(n)
    return studentized_limits(
        moved + mean, np.sqrt(variance / (n - 1)), mean, error, n=n, level=level
    )


def bootstrap_interval(
    replicates: ArrayLike,
    estimate: float,
    *,
    n: int,
    level: float = 0.95,
    method: Method = "t",
    estimand: str = "refit",
    leave_one_out: ArrayLike | None = None,
) -> Interval:
    """Bootstrap interval of a single statistic, by the equations of `bootstrap_limits`.

    Parameters
    ----------
    replicates : array-like of shape (B,)
        The statistic in each of B bootstrap samples.
    estimate : float
        The statistic in the data.
    n : int
        Number of resampled clusters.
    level : float
        Nominal coverage.
    method : {"percentile", "basic", "normal", "t", "bca"}
        See `bootstrap_limits`.
    estimand : str
        Name of what is estimated: ``"refit"`` if the model was fitted again in each replicate,
        ``"fixed_probe"`` if it was only scored.
    leave_one_out : array-like of shape (n,), optional
        The statistic without each cluster in turn. Only "bca" needs it.

    Returns
    -------
    Interval
        With a `test` if the method is "t" or "normal".

    Raises
    ------
    DesignError
        If the estimate is not a single number, or for the reasons given in `bootstrap_limits`.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import bootstrap_interval, cluster_weights
    >>> values = np.arange(10.0)
    >>> means = cluster_weights(10, 5000, rng=0) @ values / 10
    >>> print(bootstrap_interval(means, values.mean(), n=10, estimand="mean"))
    4.5 [2.4, 6.6]
    """
    low, high = bootstrap_limits(
        replicates, estimate, n=n, level=level, method=method, leave_one_out=leave_one_out
    )
    if low.ndim:
        raise DesignError(
            f"one interval was asked for, the estimate has shape {low.shape}: call bootstrap_limits"
        )
    test = None
    if method in ("t", "normal"):
        error = float(standard_error(np.asarray(replicates, dtype=np.float64), n))
        df = n - 1 if method == "t" else np.inf
        test = partial(student_p, estimate=float(estimate), error=error, df=df)
    return Interval(float(estimate), float(low), float(high), level, method, estimand, n, test)


def _bca_limits(
    draws: Array, center: Array, n: int, tail: float, leave_one_out: ArrayLike | None
) -> tuple[Array, Array]:
    """Return bias-corrected and accelerated (BCa) limits, each with the shape of `center`."""
    if leave_one_out is None:
        raise DesignError("method 'bca' needs leave_one_out values: give them, or use method 't'")
    without = check_replicates(leave_one_out, center, what="leave-one-out values")
    if len(without) != n:
        raise DesignError(f"there are {len(without)} leave-one-out values for n={n} clusters")
    share = (draws < center).mean(axis=0) + (draws == center).mean(axis=0) / 2
    if np.any((share == 0) | (share == 1)):
        raise DesignError(
            "all bootstrap replicates lie on one side of the estimate, the bias is beyond BCa: "
            "use method 't'"
        )
    influence = without.mean(axis=0) - without
    scale = (influence**2).sum(axis=0)
    if np.any(scale == 0):
        raise DesignError("the leave-one-out values are all equal: BCa has no acceleration")
    acceleration = (influence**3).sum(axis=0) / (6 * scale**1.5)
    bias = stats.norm.ppf(share)
    shifted = bias + np.array([1, -1]).reshape(2, *[1] * center.ndim) * stats.norm.ppf(tail)
    levels = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    columns = draws.reshape(len(draws), -1)
    flat = levels.reshape(2, -1)
    limits = [np.quantile(columns[:, k], flat[:, k]) for k in range(columns.shape[1])]
    low, high = np.array(limits).T.reshape(2, *center.shape)
    return low, high
