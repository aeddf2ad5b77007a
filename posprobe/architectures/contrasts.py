"""Planned contrasts between architectures: one number per model in, Student's limits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals import Interval, benjamini_hochberg, holm, student_p

__all__ = [
    "Contrast",
    "Part",
    "adjust",
    "contrast_interval",
    "contrast_parts",
    "default_contrasts",
    "group_means",
    "has_spread",
    "planned_contrasts",
    "pooled_variance",
    "satterthwaite",
]


RESPONSES = ("intercept", "slope")


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of architecture means, planned before the data were seen.

    Parameters
    ----------
    name : str
        Label of the contrast.
    response : {"intercept", "slope"}
        Whether the value at the reference depth is compared, or the slope over depth.
    weights : mapping of str to float
        Weight of each architecture's mean, signed so that the hypothesis predicts a positive
        estimate. Architectures that are left out have weight 0.

    Raises
    ------
    DesignError
        If the response is unknown, or the weights are all 0 or not finite.
    """

    name: str
    response: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check the response and the weights."""
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
        """Return the weights in the order of `architectures`.

        Parameters
        ----------
        architectures : sequence of str
            Names of the A architectures.

        Returns
        -------
        ndarray of shape (A,)

        Raises
        ------
        DesignError
            If the contrast weights an architecture that is not among them.
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
    """Return the contrasts that the study's hypotheses H1 and H2 imply.

    H1 says NTK < standard < sliding window. It is tested by the linear trend and by both steps,
    since the trend may be positive while the middle is out of order. H2 says that the slope over
    depth is positive under a sliding window, and larger than under the two others.

    Parameters
    ----------
    ntk, standard, window : str
        Labels of the three architectures in the table.

    Returns
    -------
    tuple of Contrast
        The hypothesis predicts a positive estimate for each of them.

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


def default_contrasts(names: Sequence[str]) -> tuple[Contrast, ...]:
    """Return the `planned_contrasts`, or none if an architecture that they name is missing.

    Parameters
    ----------
    names : sequence of str
        Architectures that there are.

    Returns
    -------
    tuple of Contrast
        With "standard", or else "rope", in the middle.

    Examples
    --------
    >>> len(default_contrasts(["ntk", "rope", "window"])), default_contrasts(["rope", "nope"])
    (5, ())
    """
    middle = next((name for name in ("standard", "rope") if name in names), None)
    if middle and {"ntk", "window"} <= set(names):
        return planned_contrasts(standard=middle)
    return ()


def group_means(
    summaries: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return means, numbers of models, sums of squares within, and names, by architecture."""
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
    """Estimate the variance between models of one architecture, pooled over architectures.

    ``s^2 = sum_a sum_i (y_ai - ybar_a)^2 / (M - A)``.

    Parameters
    ----------
    summaries : array-like of shape (..., M)
        One number for each of M models; leading axes are independent studies.
    labels : array-like of shape (M,)
        Architecture of each model.

    Returns
    -------
    variance : ndarray of shape (...)
        The pooled variance s^2.
    df : int
        Its degrees of freedom, M - A.

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
    """Return whether models of one architecture differ by more than rounding error."""
    # Copies of one model differ only by rounding, and no test can be based on that.
    size = np.max(np.abs(np.asarray(summaries, dtype=float)), axis=-1)
    return np.asarray(np.sqrt(variance) > 1e-10 * size)


def contrast_interval(
    summaries: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    *,
    estimand: str,
    blocks: ArrayLike | None = None,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """Estimate a weighted sum of architecture means, each with the spread of its own models.

    ``L = sum_a w_a ybar_a`` has ``se^2 = sum_a w_a^2 s_a^2 / m_a``, where architecture a has m_a
    models of variance s_a^2, and Satterthwaite's degrees of freedom. With blocks, L is taken within
    each of the B blocks that have all architectures of non-zero weight, and the mean over blocks
    has a t(B - 1) interval: what the models of a block share cancels.

    Parameters
    ----------
    summaries, labels : array-like of shape (M,)
        The number and the architecture of each model.
    weights : array-like of shape (A,)
        Weights in the sorted order of the architectures.
    estimand : str
        Name of what is estimated.
    blocks : array-like of shape (M,), optional
        Block of each model, for instance its seed. They change nothing where only one architecture
        has a weight: then there is nothing to pair.
    level : float
        Nominal coverage, not adjusted for other contrasts.

    Returns
    -------
    interval : Interval
        In the unit of the summaries. It is unbounded if the spread between models cannot be
        estimated: if an architecture of non-zero weight has one model, if fewer than two blocks are
        complete, or if models are copies of one another.
    p_value : float
        Two-sided p-value of L = 0; NaN if the interval is unbounded.

    Raises
    ------
    DesignError
        If `summaries` and `labels` differ in length.

    Notes
    -----
    With three models each and standard deviations 1, 1 and 4, limits with the spread pooled over
    architectures covered .87 at 95%, and these .94 (docs/statistics.md).

    Examples
    --------
    >>> y, kinds = [1.0, 2.0, 4.0, 5.5], ["a", "a", "b", "b"]
    >>> print(contrast_interval(y, kinds, [-1, 1], estimand="b - a")[0])
    3.2 [-1.2, 7.7]
    >>> print(contrast_interval(y, kinds, [-1, 1], estimand="b - a", blocks=[0, 1, 0, 1])[0])
    3.2 [0.1, 6.4]
    """
    y, n = np.asarray(summaries, dtype=float), len(np.asarray(labels))
    parts, unit = contrast_parts(y, labels, weights, blocks)
    if unit == "blocks":
        n = parts[0].values.size
    short = [part for part in parts if part.values.size < 2]
    if short and unit == "blocks":
        found = float(np.mean(short[0].values)) if n else float("nan")
        return _unbounded(found, level, f"{n} complete blocks", estimand, n)
    estimate = float(sum(part.weight * part.values.mean() for part in parts))
    if short:
        return _unbounded(estimate, level, f"one model of {short[0].name}", estimand, n)
    variance, df = satterthwaite(
        [part.weight for part in parts],
        np.array([part.values.var(ddof=1) for part in parts]),
        [part.values.size for part in parts],
    )
    if not has_spread(variance, y):
        return _unbounded(estimate, level, f"no spread between {unit}", estimand, n)
    method = f"t({float(df):.3g}) over {unit}"
    return _student(estimate, float(np.sqrt(variance)), float(df), level, method, estimand, n)


@dataclass(frozen=True)
class Part:
    """Independent numbers with one mean and one spread, and the weight of their mean.

    Parameters
    ----------
    name : str
        Architecture, or what is contrasted within blocks.
    weight : float
        Weight of the mean.
    values : ndarray of shape (m,)
        One number for each model, or for each block.
    """

    name: str
    weight: float
    values: NDArray[np.float64]


def contrast_parts(
    summaries: ArrayLike, labels: ArrayLike, weights: ArrayLike, blocks: ArrayLike | None = None
) -> tuple[list[Part], str]:
    """Split a contrast into independent parts: architectures, or the contrast within each block.

    Parameters
    ----------
    summaries, labels, weights, blocks
        As in `contrast_interval`.

    Returns
    -------
    parts : list of Part
        Those of non-zero weight; one of weight 1 where blocks pair architectures.
    unit : {"models", "blocks"}
        What the values of a part are of.

    Raises
    ------
    DesignError
        If `summaries` and `labels` differ in length.
    """
    y, kinds = np.asarray(summaries, dtype=float), np.asarray(labels)
    *_, names = group_means(y, kinds)
    by_name = zip(names, np.asarray(weights, dtype=float).tolist(), strict=True)
    wanted = {name: weight for name, weight in by_name if weight}
    if blocks is None or len(wanted) < 2:
        return [Part(name, w, y[kinds == name]) for name, w in wanted.items()], "models"
    homes, within = np.asarray(blocks), []
    for block in np.unique(homes):
        own = {name: y[(homes == block) & (kinds == name)] for name in wanted}
        if all(part.size for part in own.values()):
            within.append(sum(weight * own[name].mean() for name, weight in wanted.items()))
    return [Part("within blocks", 1.0, np.array(within, dtype=float))], "blocks"


def satterthwaite(
    weights: ArrayLike, variances: ArrayLike, sizes: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of a weighted sum of means, each of a sample of its own, and its degrees of freedom.

    ``v = sum_a v_a`` with ``v_a = w_a^2 s_a^2 / m_a``, and
    ``1 / df = sum_a (v_a / v)^2 / (m_a - 1)``.

    Parameters
    ----------
    weights, sizes : array-like of shape (A,)
        Weight and size of each sample.
    variances : array-like of shape (..., A)
        Variance within each sample; leading axes are independent studies.

    Returns
    -------
    variance, df : ndarray of shape (...)
        The degrees of freedom are NaN where the variance is 0.

    Examples
    --------
    >>> variance, df = satterthwaite([-1, 1], [1.0, 1.0], [3, 3])
    >>> print(f"{variance:.2f} {df:.1f}")
    0.67 4.0
    """
    m = np.asarray(sizes, dtype=float)
    parts = np.asarray(weights, dtype=float) ** 2 * np.asarray(variances, dtype=float) / m
    variance = parts.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        df = 1 / np.sum((parts / variance[..., None]) ** 2 / (m - 1), axis=-1)
    return variance, df


def _student(
    estimate: float, se: float, df: float, level: float, method: str, estimand: str, n: int
) -> tuple[Interval, float]:
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    interval = Interval(estimate, estimate - half, estimate + half, level, method, estimand, n)
    return interval, student_p(0.0, estimate=estimate, error=se, df=df)


def _unbounded(
    estimate: float, level: float, reason: str, estimand: str, n: int
) -> tuple[Interval, float]:
    return Interval(estimate, None, None, level, reason, estimand, n), float("nan")


def adjust(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """Adjust p-values for multiple testing; NaN stays NaN and is not counted.

    Parameters
    ----------
    p_values : sequence of float
        P-values, or NaN for tests that were not made.
    method : {"holm", "fdr_bh"}
        Control the family-wise error rate by Holm's method, or the false discovery rate by that of
        Benjamini and Hochberg.

    Returns
    -------
    list of float
        Adjusted p-values in the same order.

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
