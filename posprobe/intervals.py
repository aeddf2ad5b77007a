"""Intervals: what a number is an estimate of, how sure it is, and over how many independent units.

The unit is the cluster (a sequence, or an item of a paired design), never the token. Resampling is
drawn once, as counts per cluster (`cluster_weights`), and handed to every statistic, so that many
statistics share their draws. What comes back goes to one of

- `bootstrap_interval`: percentile, basic, normal, t, BCa from bootstrap replicates;
- `jackknife_interval`: from leave-one-out values;
- `fieller_ratio`, `log_ratio_bootstrap_t`: a ratio of two paired means;
- `max_t`, `benjamini_hochberg`: many statistics at once.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import floor, isfinite, log10
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError

__all__ = [
    "Interval",
    "MaxT",
    "benjamini_hochberg",
    "bootstrap_interval",
    "bootstrap_limits",
    "cluster_weights",
    "fieller_ratio",
    "jackknife_interval",
    "leave_one_out",
    "log_ratio_bootstrap_t",
    "max_t",
    "pseudo_values",
]

Method = Literal["percentile", "basic", "normal", "t", "bca"]
Quantity = Literal["removed", "ratio"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, or with the statement that it has none.

    Parameters
    ----------
    estimate : float
        The point estimate; it may lie outside its interval (BCa, basic).
    low, high : float or None
        Limits in the unit of the estimate. Both None: the confidence set is unbounded.
    level : float
        Nominal coverage, in (0, 1).
    method : str
        How the limits were found.
    estimand : str
        What is estimated: ``"refit"``, ``"fixed_probe"``, ``"fraction removed"``, ...
    n : int
        Number of independent units (sequences or items).

    Raises
    ------
    DesignError
        If a field is out of its range, or only one limit is given.

    Examples
    --------
    >>> interval = Interval(0.4, 0.31, 0.52, 0.95, "fieller", "fraction removed", 30)
    >>> print(interval)
    0.40 [0.31, 0.52]
    >>> interval.excludes(0), interval.excludes(0.5)
    (True, False)
    >>> print(Interval(0.4, None, None, 0.95, "fieller", "fraction removed", 30))
    0.40 (95% CI unbounded)
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    method: str
    estimand: str
    n: int

    def __post_init__(self) -> None:
        """Refuse what is not an interval."""
        _check_level(self.level)
        if not isfinite(self.estimate):
            raise DesignError(f"the estimate of {self.estimand!r} is {self.estimate}: not a number")
        if self.n < 1:
            raise DesignError(f"the interval of {self.estimand!r} rests on n={self.n} units")
        if self.low is None and self.high is None:
            return
        if self.low is None or self.high is None:
            raise DesignError(
                f"the interval of {self.estimand!r} has one limit, low={self.low}, "
                f"high={self.high}: give both, or None for both where it is unbounded"
            )
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= self.high):
            raise DesignError(
                f"the limits of {self.estimand!r} are [{self.low}, {self.high}]: they must be "
                "finite and in order; give None for both where the interval is unbounded"
            )

    @property
    def unbounded(self) -> bool:
        """Whether the data leave the quantity without limits."""
        return self.low is None

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval; an unbounded one excludes nothing."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high

    def asdict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON or a table."""
        return asdict(self)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            digits = _decimals(abs(self.estimate))
            return f"{self.estimate:.{digits}f} ({100 * self.level:g}% CI unbounded)"
        digits = _decimals(self.high - self.low)
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


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

    estimate: Floats
    standard_error: Floats
    low: Floats
    high: Floats
    p_value: Floats
    critical: float
    level: float
    n: int


def cluster_weights(
    n_clusters: int,
    n_resamples: int,
    rng: np.random.Generator | int | None,
    strata: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """How often each cluster is drawn in each bootstrap replicate.

    A row is multinomial, ``w_b ~ Mult(n; 1/n, ..., 1/n)``: drawing n clusters with replacement.
    With strata, each stratum keeps its size. Give the same weights to all statistics that are to
    be compared. For two crossed factors multiply the weights of two calls.

    Parameters
    ----------
    n_clusters : int
        Number n of sequences or items.
    n_resamples : int
        Number B of replicates.
    rng : Generator, int or None
        Source of randomness; an int is a seed.
    strata : array-like (n,), optional
        Label of each cluster's stratum.

    Returns
    -------
    ndarray (B, n) of int
        Counts; every row sums to n.

    Raises
    ------
    DesignError
        If there are fewer than two clusters in all or in a stratum, no resamples, or if the
        strata do not match the clusters.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, sections 6.2 and 8.3; Davison
    and Hinkley (1997), Bootstrap Methods and their Application, section 3.8, for whole clusters.

    Examples
    --------
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
        _check_units(len(members), f"bootstrap over clusters{where}")
        chances = np.full(len(members), 1 / len(members))
        weights[:, members] = generator.multinomial(len(members), chances, size=n_resamples)
    return weights


def bootstrap_limits(
    replicates: ArrayLike,
    estimate: ArrayLike,
    *,
    n: int,
    level: float = 0.95,
    method: Method = "t",
    leave_one_out: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    r"""Limits of bootstrap intervals, for any number of statistics at once.

    With :math:`\alpha = 1 - level`, quantiles :math:`q` of the replicates and their standard
    deviation :math:`se`::

        percentile   [q(α/2), q(1 - α/2)]
        basic        [2 estimate - q(1 - α/2), 2 estimate - q(α/2)]
        normal       estimate ± z(1 - α/2) se
        t            estimate ± t(1 - α/2; n - 1) se
        bca          [q(α₁), q(α₂)], with bias z₀ and acceleration a:
                     α₁ = Φ(z₀ + (z₀ + z(α/2)) / (1 - a (z₀ + z(α/2)))), α₂ alike

    Parameters
    ----------
    replicates : array-like (B, ...)
        The statistic in each of B bootstrap samples.
    estimate : array-like (...)
        The statistic in the data.
    n : int
        Number of clusters that were resampled.
    level : float
        Nominal coverage.
    method : {"percentile", "basic", "normal", "t", "bca"}
        See above. "t" is the default: the others are too short where clusters are few.
    leave_one_out : array-like (n, ...), optional
        The statistic without each cluster in turn; "bca" needs it.

    Returns
    -------
    low, high : ndarray (...)
        In the unit of the estimate.

    Raises
    ------
    DesignError
        If shapes do not match, replicates are not finite, the method is unknown, or "bca" comes
        without leave-one-out values.

    References
    ----------
    Efron and Tibshirani (1993), chapters 13 and 14; Davison and Hinkley (1997), section 5.2.

    Examples
    --------
    >>> values = np.arange(10.0)
    >>> means = cluster_weights(10, 5000, rng=0) @ values / 10
    >>> low, high = bootstrap_limits(means, values.mean(), n=10, method="percentile")
    >>> print(f"{low:.1f} {high:.1f}")
    2.7 6.2
    """
    _check_level(level)
    _check_units(n, "bootstrap interval")
    center = np.asarray(estimate, dtype=np.float64)
    draws = _check_replicates(replicates, center)
    tail = (1 - level) / 2
    if method in ("normal", "t"):
        quantile = stats.norm.isf(tail) if method == "normal" else stats.t.isf(tail, n - 1)
        half = quantile * draws.std(axis=0, ddof=1)
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
    """One bootstrap interval; equations and methods as in `bootstrap_limits`.

    Parameters
    ----------
    replicates : array-like (B,)
        The statistic in each bootstrap sample.
    estimate : float
        The statistic in the data.
    n : int
        Number of clusters that were resampled.
    level : float
        Nominal coverage.
    method : {"percentile", "basic", "normal", "t", "bca"}
        See `bootstrap_limits`.
    estimand : str
        ``"refit"`` where each replicate fitted anew, ``"fixed_probe"`` where it only scored.
    leave_one_out : array-like (n,), optional
        The statistic without each cluster in turn; "bca" needs it.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        As `bootstrap_limits`.

    Examples
    --------
    >>> values = np.arange(10.0)
    >>> means = cluster_weights(10, 5000, rng=0) @ values / 10
    >>> print(bootstrap_interval(means, values.mean(), n=10, estimand="mean"))
    4.5 [2.5, 6.5]
    """
    low, high = bootstrap_limits(
        replicates, estimate, n=n, level=level, method=method, leave_one_out=leave_one_out
    )
    if low.ndim:
        raise DesignError(
            f"one interval was asked for, the estimate has shape {low.shape}: call bootstrap_limits"
        )
    return Interval(float(estimate), float(low), float(high), level, method, estimand, n)


def leave_one_out(statistic: Callable[..., Any], *values: ArrayLike) -> Floats:
    """Any statistic without each unit in turn; where a closed form exists, use that instead.

    Parameters
    ----------
    statistic : callable
        Takes the arrays, each without one row, and returns a number or an array.
    *values : array-like (n, ...)
        Samples with one row for each unit, paired by row.

    Returns
    -------
    ndarray (n, ...)
        Entry i leaves unit i out.

    Raises
    ------
    DesignError
        If there are fewer than two units, or the samples differ in length.

    Examples
    --------
    >>> leave_one_out(np.mean, [0.0, 3.0, 6.0])
    array([4.5, 3. , 1.5])
    """
    arrays = [np.asarray(value) for value in values]
    n = _common_length(*arrays)
    _check_units(n, "jackknife")
    return np.stack([statistic(*(np.delete(x, i, axis=0) for x in arrays)) for i in range(n)])


def pseudo_values(estimate: ArrayLike, leave_one_out: ArrayLike) -> Floats:
    """Jackknife pseudo-values ``n estimate - (n - 1) estimate without i``.

    They turn a statistic into a mean over units: for a mean they are the data themselves, for a
    U-statistic their mean is the statistic.

    Parameters
    ----------
    estimate : array-like (...)
        The statistic in the data.
    leave_one_out : array-like (n, ...)
        The statistic without each unit in turn.

    Returns
    -------
    ndarray (n, ...)
        In the unit of the estimate.

    Raises
    ------
    DesignError
        If shapes do not match, values are not finite, or there are fewer than two units.

    References
    ----------
    Tukey (1958), Ann. Math. Statist. 29, 614; Efron and Tibshirani (1993), section 11.5.

    Examples
    --------
    >>> pseudo_values(3.0, leave_one_out(np.mean, [0.0, 3.0, 6.0]))
    array([0., 3., 6.])
    """
    center = np.asarray(estimate, dtype=np.float64)
    without = _check_replicates(leave_one_out, center, what="leave-one-out values")
    n = len(without)
    return n * center - (n - 1) * without


def jackknife_interval(
    estimate: float, leave_one_out: ArrayLike, *, level: float = 0.95, estimand: str
) -> Interval:
    """Jackknife interval: ``estimate ± t(n - 1) sd(pseudo-values) / sqrt(n)``.

    Parameters
    ----------
    estimate : float
        The statistic in the data; it must be smooth (a median is not).
    leave_one_out : array-like (n,)
        The statistic without each unit in turn.
    level : float
        Nominal coverage.
    estimand : str
        What is estimated.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        As `pseudo_values`.

    References
    ----------
    Efron and Tibshirani (1993), chapter 11.

    Examples
    --------
    >>> values = np.arange(10.0)
    >>> print(jackknife_interval(4.5, leave_one_out(np.mean, values), estimand="mean"))
    4.5 [2.3, 6.7]
    """
    _check_level(level)
    values = pseudo_values(estimate, leave_one_out)
    n = len(values)
    half = float(stats.t.isf((1 - level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    center = float(estimate)
    return Interval(center, center - half, center + half, level, "jackknife t", estimand, n)


def fieller_ratio(
    baseline: ArrayLike,
    treated: ArrayLike,
    *,
    level: float = 0.95,
    quantity: Quantity = "removed",
    estimand: str = "fraction removed",
) -> Interval:
    r"""Fieller's interval of a ratio of two paired means.

    :math:`\rho = \bar b / \bar a` and its limits are where the paired mean of :math:`b - \rho a`
    is just not significant,

    .. math:: (\bar b - \rho \bar a)^2 = t^2_{n-1} (s_{bb} - 2 \rho s_{ab} + \rho^2 s_{aa}) / n

    "removed" reports :math:`1 - \rho`. Where :math:`\bar a` itself does not differ from 0 at this
    level, no finite interval has the coverage: the result is unbounded.

    Parameters
    ----------
    baseline : array-like (n,)
        Values a of the denominator, one for each item; jackknife pseudo-values do as well.
    treated : array-like (n,)
        Values b of the same items in the numerator.
    level : float
        Nominal coverage.
    quantity : {"removed", "ratio"}
        ``1 - mean(b) / mean(a)``, or ``mean(b) / mean(a)``.
    estimand : str
        What is estimated.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        If the samples are not paired and finite, or the baseline averages exactly 0.

    References
    ----------
    Fieller (1954), J. R. Statist. Soc. B 16, 175; Franz (2007), arXiv 0710.2024.

    Examples
    --------
    >>> before, after = [2.1, 1.9, 2.4, 2.0, 1.8], [1.2, 1.0, 1.5, 1.3, 1.0]
    >>> print(fieller_ratio(before, after))
    0.41 [0.35, 0.48]
    >>> print(fieller_ratio([1.0, -1.0, 2.0, 0.5, -1.5], after))
    -5.0 (95% CI unbounded)
    """
    _check_level(level)
    a, b = _check_pairs(baseline, treated)
    n, (mean_a, mean_b) = len(a), (a.mean(), b.mean())
    if mean_a == 0:
        raise DesignError("the baseline averages exactly 0: no ratio to it exists")
    t2 = stats.t.isf((1 - level) / 2, n - 1) ** 2 / n
    (s_aa, s_ab), (_, s_bb) = np.cov(a, b)
    # The quadratic's discriminant, written so that nothing large cancels where errors are small.
    spread = t2 * np.var(mean_a * b - mean_b * a, ddof=1) - t2**2 * (s_aa * s_bb - s_ab**2)
    leading = mean_a**2 - t2 * s_aa
    ratio = float(mean_b / mean_a)
    if leading <= 0:
        return _ratio_interval(ratio, None, quantity, level, "fieller", estimand, n)
    middle, half = mean_a * mean_b - t2 * s_ab, np.sqrt(max(spread, 0.0))
    limits = float((middle - half) / leading), float((middle + half) / leading)
    return _ratio_interval(ratio, limits, quantity, level, "fieller", estimand, n)


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

    With :math:`\lambda = \log(\bar b / \bar a)`, its delta-method error :math:`s` and quantiles
    :math:`q` of :math:`(\lambda^* - \lambda) / s^*`, the limits are
    :math:`\exp(\lambda - q_{1-\alpha/2} s)` and :math:`\exp(\lambda - q_{\alpha/2} s)`.
    If a share of :math:`\alpha / 2` or more of the replicates has a ratio that is not positive,
    the logarithm is out of reach of the data and the result is unbounded.

    Parameters
    ----------
    baseline, treated : array-like (n,)
        Paired values as in `fieller_ratio`; their means have the same sign.
    n_resamples : int
        Number of bootstrap replicates.
    rng : Generator, int or None
        Source of randomness; an int is a seed.
    level : float
        Nominal coverage.
    quantity : {"removed", "ratio"}
        As in `fieller_ratio`.
    estimand : str
        What is estimated.

    Returns
    -------
    Interval

    Raises
    ------
    DesignError
        If the samples are not paired and finite, or the ratio is not positive.

    References
    ----------
    Efron and Tibshirani (1993), section 12.5.

    Examples
    --------
    >>> before, after = [2.1, 1.9, 2.4, 2.0, 1.8], [1.2, 1.0, 1.5, 1.3, 1.0]
    >>> print(log_ratio_bootstrap_t(before, after))  # doctest: +ELLIPSIS
    0.41 [0.3..., 0.4...]
    """
    _check_level(level)
    a, b = _check_pairs(baseline, treated)
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


def max_t(
    estimates: ArrayLike,
    replicates: ArrayLike,
    *,
    n: int,
    level: float = 0.95,
    null: float = 0.0,
) -> MaxT:
    r"""Simultaneous intervals and adjusted p-values of many statistics from shared weights.

    With :math:`t_k = (\theta_k - null) / se_k`, replicates :math:`\theta^*_{bk}` and
    :math:`m_b = \max_k |\theta^*_{bk} - \theta_k| / se_k`, all intervals
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
    >>> heads = np.random.default_rng(0).normal([0.0, 0.0, 1.0], 1.0, size=(40, 3))
    >>> draws = cluster_weights(40, 2000, rng=0) @ heads / 40
    >>> many = max_t(heads.mean(axis=0), draws, n=40)
    >>> many.p_value < 0.05
    array([False, False,  True])
    """
    _check_level(level)
    _check_units(n, "max-T")
    center = np.asarray(estimates, dtype=np.float64)
    draws = _check_replicates(replicates, center)
    error = draws.std(axis=0, ddof=1)
    # Identical replicates differ by rounding alone, so their deviation is compared with their size.
    still = np.argwhere(error <= 1e-12 * np.abs(draws).max(axis=0))
    if len(still):
        raise DesignError(
            f"statistic {tuple(still[0].tolist())} is the same in all bootstrap replicates: "
            "leave it out"
        )
    largest = (np.abs(draws - center) / error).reshape(len(draws), -1).max(axis=1)
    critical = float(stats.t.isf(stats.norm.sf(np.quantile(largest, level)), n - 1))
    observed = stats.norm.isf(stats.t.sf(np.abs(center - null) / error, n - 1))
    reached = len(largest) - np.searchsorted(np.sort(largest), observed)
    p_value = (1 + reached) / (1 + len(largest))
    half = critical * error
    return MaxT(center, error, center - half, center + half, p_value, critical, level, n)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
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
    >>> benjamini_hochberg([0.01, 0.02, 0.03, 0.5])
    array([0.04, 0.04, 0.04, 0.5 ])
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not p.size or not np.all((p >= 0) & (p <= 1)):
        raise DesignError("p-values must all be within 0 and 1: leave undefined tests out")
    return stats.false_discovery_control(p.ravel()).reshape(p.shape)


def _bca_limits(
    draws: Floats, center: Floats, n: int, tail: float, leave_one_out: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated limits, one statistic after the other."""
    if leave_one_out is None:
        raise DesignError("method 'bca' needs leave_one_out values: give them, or use method 't'")
    without = _check_replicates(leave_one_out, center, what="leave-one-out values")
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


def _log_ratio(a: Floats, b: Floats, weights: NDArray[Any]) -> tuple[Floats, Floats]:
    """Log ratio of weighted means and its delta-method error; NaN where it is not positive."""
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
    """The ratio itself, or one minus it with the limits exchanged."""
    if quantity not in ("removed", "ratio"):
        raise DesignError(f"unknown quantity {quantity!r}: choose 'removed' or 'ratio'")
    low, high = limits if limits else (None, None)
    if quantity == "ratio":
        return Interval(ratio, low, high, level, method, estimand, n)
    if low is None or high is None:
        return Interval(1 - ratio, None, None, level, method, estimand, n)
    return Interval(1 - ratio, 1 - high, 1 - low, level, method, estimand, n)


def _decimals(width: float) -> int:
    """Decimals that show two significant digits of `width`."""
    return max(0, 1 - floor(log10(width))) if width > 0 else 2


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DesignError(f"level={level} is no coverage: give a number between 0 and 1, as 0.95")


def _check_units(n: int, what: str) -> None:
    if n < 2:
        raise DesignError(f"{what}: n={n} independent unit(s), at least 2 are needed")


def _check_replicates(
    replicates: ArrayLike, center: Floats, what: str = "bootstrap replicates"
) -> Floats:
    """Finite replicates (B, ...) of a finite estimate (...), B at least 2."""
    draws = np.asarray(replicates, dtype=np.float64)
    if draws.ndim != center.ndim + 1 or draws.shape[1:] != center.shape:
        raise DesignError(
            f"{what} have shape {draws.shape}, the estimate {center.shape}: they must have one "
            "more axis, in front"
        )
    if len(draws) < 2:
        raise DesignError(f"there are {len(draws)} {what}: at least 2 are needed")
    lost = int(np.sum(~np.isfinite(draws)))
    if lost or not np.all(np.isfinite(center)):
        raise DesignError(f"{lost} of {draws.size} {what}, or the estimate itself, are not finite")
    return draws


def _check_pairs(baseline: ArrayLike, treated: ArrayLike) -> tuple[Floats, Floats]:
    """Two finite samples (n,) of the same items."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (baseline, treated))
    _check_units(_common_length(a, b), "paired ratio")
    for name, x in (("baseline", a), ("treated", b)):
        if x.ndim != 1:
            raise DesignError(f"{name} has shape {x.shape}: give one value for each item")
        if not np.all(np.isfinite(x)):
            raise DesignError(f"{name} has {np.sum(~np.isfinite(x))} values that are not finite")
    return a, b


def _common_length(*samples: NDArray[Any]) -> int:
    lengths = {len(sample) for sample in samples}
    if len(lengths) != 1:
        raise DesignError(f"paired samples have lengths {sorted(lengths)}: pair them by item")
    return lengths.pop()
