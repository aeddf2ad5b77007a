"""Interval estimates in which sequences, never tokens, are the unit of resampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError

__all__ = ["Interval", "bootstrap_interval", "cluster_weights", "fieller_ratio"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate, how sure it is, and of what.

    Attributes
    ----------
    estimate : float
    low, high : float or None
        Bounds; both None where the confidence set is unbounded.
    level : float
        Nominal coverage, for example 0.95.
    method : str
        How the bounds were made.
    estimand : str
        What is estimated.
    n : int
        Number of resampling units.

    Examples
    --------
    >>> from posprobe.intervals import Interval
    >>> print(Interval(0.4, 0.31, 0.52, 0.95, "fieller", "fraction removed", 32))
    0.4 [0.31, 0.52]
    >>> print(Interval(0.4, None, None, 0.95, "fieller", "fraction removed", 32))
    0.4 (95% CI unbounded)
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    method: str
    estimand: str
    n: int

    def __post_init__(self) -> None:
        """Refuse half an interval and bounds that do not rise."""
        if (self.low is None) != (self.high is None):
            raise DesignError("an interval has two bounds, or none; give both or neither")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise DesignError(f"interval bounds {self.low} and {self.high} do not rise")

    @property
    def unbounded(self) -> bool:
        """Whether the data bound the estimand on neither side."""
        return self.low is None

    def excludes(self, value: float) -> bool:
        """Whether the interval is bounded and `value` lies outside."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high

    def asdict(self) -> dict[str, Any]:
        """Plain values, for a table."""
        return asdict(self)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.estimate:.3g} ({self.level:.0%} CI unbounded)"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def cluster_weights(n_clusters: int, n_resamples: int, rng: np.random.Generator) -> Array:
    """Bootstrap counts of clusters drawn with replacement: (n_resamples, n_clusters).

    One set of weights serves every statistic, head and layer, so that they are resampled together.
    """
    if n_clusters < 2:
        raise DesignError(f"a bootstrap needs at least 2 sequences, not {n_clusters}")
    chances = np.full(n_clusters, 1 / n_clusters)
    return rng.multinomial(n_clusters, chances, size=n_resamples).astype(float)


def bootstrap_interval(
    replicates: ArrayLike,
    estimate: float,
    *,
    n: int,
    estimand: str,
    level: float = 0.95,
    method: str = "t",
) -> Interval:
    """Interval from bootstrap replicates of one statistic.

    Parameters
    ----------
    replicates : array of shape (B,)
    estimate : float
        On the data themselves.
    n : int
        Clusters.
    estimand : str
    level : float
    method : {"t", "percentile"}
        Estimate plus and minus the replicates' standard deviation times Student's t with n - 1
        degrees of freedom; or the replicates' quantiles.
    """
    values = np.asarray(replicates, dtype=float)
    tail = (1 - level) / 2
    if method == "t":
        reach = float(stats.t.ppf(1 - tail, n - 1) * values.std(ddof=1))
        low, high = estimate - reach, estimate + reach
    elif method == "percentile":
        low, high = (float(q) for q in np.quantile(values, [tail, 1 - tail]))
    else:
        raise DesignError(f"interval method {method!r} is unknown; use 't' or 'percentile'")
    return Interval(float(estimate), low, high, level, f"cluster bootstrap, {method}", estimand, n)


def fieller_ratio(
    denominator: ArrayLike, numerator: ArrayLike, *, estimand: str, level: float = 0.95
) -> Interval:
    r"""Ratio of two paired means, :math:`\bar b / \bar a`, by Fieller's theorem.

    The set of ratios :math:`\rho` for which :math:`\bar b - \rho \bar a` is not distinguishable
    from 0 by a t test with n - 1 degrees of freedom. Unbounded where :math:`\bar a` itself is not
    distinguishable from 0.

    Parameters
    ----------
    denominator, numerator : array of shape (n,)
        Values, or jackknife pseudo-values, of a and b, item by item.
    estimand : str
    level : float

    References
    ----------
    Fieller, E. C. (1954). Some problems in interval estimation. JRSS B 16, 175-185.
    """
    a, b = np.asarray(denominator, dtype=float), np.asarray(numerator, dtype=float)
    n = len(a)
    if n < 2:
        raise DesignError(f"a ratio needs at least 2 paired items, not {n}")
    mean_a, mean_b = a.mean(), b.mean()
    covariance = np.cov(a, b) / n
    t2 = stats.t.ppf((1 + level) / 2, n - 1) ** 2
    leading = mean_a**2 - t2 * covariance[0, 0]
    middle = mean_a * mean_b - t2 * covariance[0, 1]
    last = mean_b**2 - t2 * covariance[1, 1]
    estimate = float(mean_b / mean_a) if mean_a else float("nan")
    if leading <= 0:
        return Interval(estimate, None, None, level, "fieller: unbounded", estimand, n)
    reach = np.sqrt(max(middle**2 - leading * last, 0.0))
    low, high = (float((middle + sign * reach) / leading) for sign in (-1, 1))
    return Interval(estimate, low, high, level, "fieller", estimand, n)
