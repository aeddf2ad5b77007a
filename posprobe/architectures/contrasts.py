"""Planned contrasts between architectures: one number per model in, Student's limits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals import Interval, benjamini_hochberg, holm

__all__ = [
    "Contrast",
    "adjust",
    "contrast_interval",
    "group_means",
    "has_spread",
    "planned_contrasts",
    "pooled_variance",
]


RESPONSES = ("intercept", "slope")


@dataclass(frozen=True)
class Contrast:
    """A comparison of architectures that was planned before the data were seen.

    Attributes
    ----------
    name : str
        Label; a positive estimate is what the hypothesis says.
    response : str
        `"intercept"` or `"slope"`.
    weights : mapping of str to float
        Weight of each architecture's mean; architectures left out weigh 0.
    """

    name: str
    response: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse a response that stage one does not give, and weights that compare nothing."""
        if self.response not in RESPONSES:
            raise DesignError(
                f"contrast {self.name!r} is on {self.response!r}: use 'intercept' or 'slope'"
            )
        values = list(self.weights.values())
        if not any(values) or not np.all(np.isfinite(values)):
            raise DesignError(
                f"contrast {self.name!r} has the weights {values}: give finite ones, not all 0"
            )

    def vector(self, architectures: Sequence[str]) -> NDArray[np.float64]:
        """Give the weights in the order of `architectures`, shape (A,).

        Raises
        ------
        DesignError
            If a weight is on an architecture that is not among them.
        """
        unknown = sorted(set(self.weights) - set(architectures))
        if unknown:
            raise DesignError(
                f"contrast {self.name!r} weighs architecture {unknown[0]!r}, which the table "
                f"lacks: use {', '.join(architectures)}"
            )
        return np.array([float(self.weights.get(name, 0.0)) for name in architectures])


def planned_contrasts(
    *, ntk: str = "ntk", standard: str = "standard", window: str = "window"
) -> tuple[Contrast, ...]:
    """Give the study's planned contrasts under the names that a table uses.

    H1 says NTK < standard < sliding window: the linear trend, and both steps, since a trend may
    be positive while the middle is out of order. H2 says that the slope over depth is positive
    under a sliding window, and larger than under the two others.

    Parameters
    ----------
    ntk, standard, window : str
        Labels of the three architectures in the table.

    Returns
    -------
    tuple of Contrast
        A positive estimate is what the hypothesis says.

    Examples
    --------
    >>> [contrast.name for contrast in planned_contrasts(standard="rope")]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['H1 trend: window - ntk', 'H1 step: rope - ntk', 'H1 step: window - rope',
     'H2 slope of window', 'H2 slope: window - others']
    """
    return (
        Contrast(f"H1 trend: {window} - {ntk}", "intercept", {ntk: -1.0, window: 1.0}),
        Contrast(f"H1 step: {standard} - {ntk}", "intercept", {ntk: -1.0, standard: 1.0}),
        Contrast(f"H1 step: {window} - {standard}", "intercept", {standard: -1.0, window: 1.0}),
        Contrast(f"H2 slope of {window}", "slope", {window: 1.0}),
        Contrast(f"H2 slope: {window} - others", "slope", {ntk: -0.5, standard: -0.5, window: 1.0}),
    )


def group_means(
    summaries: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Mean response of each architecture, and the number of its models."""
    y = np.asarray(summaries, dtype=float)
    names, index, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if y.shape[-1:] != index.shape:
        raise DesignError(
            f"{y.shape[-1]} model summaries came with {len(index)} architectures: give one each"
        )
    indicator = np.eye(len(names))[index]
    means = y @ indicator / counts
    within = np.sum((y - means @ indicator.T) ** 2, axis=-1)
    return means, counts, within, [str(name) for name in names]


def pooled_variance(summaries: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """Pool the variance between models of one architecture over the architectures.

    Parameters
    ----------
    summaries : array_like, shape (..., M)
        One number per model; leading axes are independent studies.
    labels : array_like, shape (M,)
        Architecture of each model.

    Returns
    -------
    variance : ndarray, shape (...)
    df : int
        M - A.

    Raises
    ------
    DesignError
        If no architecture has two models.
    """
    _, counts, within, _ = group_means(summaries, labels)
    df = int(counts.sum() - len(counts))
    if df < 1:
        raise DesignError(
            "one model per architecture: nothing tells architecture from model, so add a second "
            "model (another seed) to one architecture at least"
        )
    return within / df, df


def has_spread(variance: ArrayLike, summaries: ArrayLike) -> NDArray[np.bool_]:
    """Whether models of one architecture differ by more than rounding."""
    # Copies of one model differ by rounding alone, which is not a yardstick.
    size = np.max(np.abs(np.asarray(summaries, dtype=float)), axis=-1)
    return np.asarray(np.sqrt(variance) > 1e-10 * size)


def contrast_interval(
    summaries: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    *,
    estimand: str,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """Estimate a weighted sum of architecture means, with a pooled t(M - A) interval.

    ``L = sum_a w_a ybar_a``, ``se^2 = s^2 sum_a w_a^2 / m_a``.

    Parameters
    ----------
    summaries, labels : array_like, shape (M,)
        One number and one architecture per model.
    weights : array_like, shape (A,)
        In the sorted order of the architectures.
    estimand : str
        What is estimated, in words.
    level : float
        Confidence level, not adjusted for other contrasts.

    Returns
    -------
    interval : Interval
        Unbounded where no architecture has two models, or where they are copies of one: nothing
        then says how far the next model would lie.
    p_value : float
        Two-sided, that L = 0; NaN where the interval is unbounded.
    """
    means, counts, within, _ = group_means(summaries, labels)
    w = np.asarray(weights, dtype=float)
    estimate = float(means @ w)
    n, df = int(counts.sum()), int(counts.sum() - len(counts))
    reason = None
    if df < 1:
        reason = "one model per architecture"
    elif not has_spread(within / df, summaries):
        reason = "no spread between models"
    if reason is not None:
        return Interval(estimate, None, None, level, reason, estimand, n), float("nan")
    se = float(np.sqrt(within / df * np.sum(w**2 / counts)))
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    method = f"pooled t({df}) over models"
    interval = Interval(estimate, estimate - half, estimate + half, level, method, estimand, n)
    return interval, 2 * float(stats.t.sf(abs(estimate) / se, df))


def adjust(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """Adjust p-values for their number; NaN stays NaN and is not counted.

    Parameters
    ----------
    p_values : sequence of float
    method : str
        `"holm"` (chance of any false positive) or `"fdr_bh"` (share of false ones among them).

    Returns
    -------
    list of float

    Examples
    --------
    >>> adjust([0.01, 0.04, float("nan")])
    [0.02, 0.04, nan]
    """
    p = np.array(p_values, dtype=float)
    known = np.isfinite(p)
    if known.any():
        p[known] = holm(p[known]) if method == "holm" else benjamini_hochberg(p[known])
    return p.tolist()
