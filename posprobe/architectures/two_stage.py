"""Stage two across architectures: F tests on one number for each model.

The numbers come from `posprobe.architectures.summaries`. A one-way analysis of variance compares
the differences between architectures with the spread between models of one architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.oneway import anova_oneway

from posprobe.architectures.contrasts import RESPONSES, group_means, has_spread, pooled_variance
from posprobe.errors import DesignError

__all__ = ["RESPONSES", "FTest", "two_stage_f", "welch_f"]


@dataclass(frozen=True)
class FTest:
    """An F test that one response has the same mean in every architecture.

    Attributes
    ----------
    response : {"intercept", "slope"}
        The tested response.
    statistic : float
        F.
    df_between : int
        Degrees of freedom of the architectures, A - 1.
    df_within : float
        Degrees of freedom of models, M - A for the two-stage test without blocks.
    p_value : float
        Probability of a statistic at least as large if the means are equal.
    method : {"mixed model F", "two-stage F", "Welch F"}
        The test.
    """

    response: str
    statistic: float
    df_between: int
    df_within: float
    p_value: float
    method: str


def two_stage_f(
    summaries: ArrayLike, labels: ArrayLike, blocks: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    """Test that model-level summaries have the same mean in every architecture.

    ``F = sum_a m_a (ybar_a - ybar)^2 / (A - 1) / s^2`` is referred to F(A - 1, M - A). m_a is the
    number of models of architecture a, and s^2 the pooled variance between models of one
    architecture. All models weigh the same, whatever their number of layers.

    Parameters
    ----------
    summaries : array-like of shape (..., M)
        One number for each of M models; leading axes are independent studies.
    labels : array-like of shape (M,)
        Architecture of each model, A in all.
    blocks : array-like of shape (M,), optional
        Block of each model, for instance its seed. Blocks are then set aside first, in an analysis
        of variance by architecture and block; of B complete blocks (A - 1)(B - 1) degrees of
        freedom are left.

    Returns
    -------
    statistic, p_value : ndarray of shape (...)
        F and its p-value; NaN if the models of each architecture are equal up to rounding.
    df_between, df_within : int
        A - 1 and M - A, or less if there are blocks.

    Raises
    ------
    DesignError
        If there is only one architecture, only one model of each, or blocks leave no spread between
        models or tell architectures no longer apart.

    Examples
    --------
    >>> F, p, between, within = two_stage_f([1, 2, 4, 5], ["a", "a", "b", "b"])
    >>> float(F), round(float(p), 3), between, within
    (18.0, 0.051, 1, 2)
    """
    means, counts, _, names = group_means(summaries, labels)
    if len(names) < 2:
        raise DesignError(f"one architecture ({names[0]!r}): there is nothing to compare")
    variance, df = pooled_variance(summaries, labels)
    if blocks is not None:
        return _blocked_f(np.asarray(summaries, dtype=float), np.asarray(labels), blocks)
    grand = np.sum(counts * means, axis=-1, keepdims=True) / counts.sum()
    between = np.sum(counts * (means - grand) ** 2, axis=-1) / (len(names) - 1)
    usable = has_spread(variance, summaries)
    statistic = np.where(usable, between / np.where(usable, variance, 1.0), np.nan)
    return statistic, stats.f.sf(statistic, len(names) - 1, df), len(names) - 1, df


def _blocked_f(
    y: NDArray[np.float64], labels: NDArray[np.str_], blocks: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    own, arms = (
        np.eye(len(np.unique(x)))[np.unique(x, return_inverse=True)[1]]
        for x in (np.asarray(blocks), labels)
    )
    both = np.column_stack([own, arms])
    less, more = (int(np.linalg.matrix_rank(X)) for X in (own, both))
    between, within = more - less, y.shape[-1] - more
    if between < arms.shape[1] - 1 or within < 1:
        raise DesignError(
            "blocks leave no comparison of architectures: give models of several architectures "
            "the same blocks, two or more"
        )
    without, rest = (np.sum((y - y @ X @ np.linalg.pinv(X)) ** 2, axis=-1) for X in (own, both))
    usable = has_spread(rest / within, y)
    statistic = (without - rest) / between / np.where(usable, rest / within, np.nan)
    return statistic, stats.f.sf(statistic, between, within), between, within


def welch_f(summaries: ArrayLike, labels: ArrayLike) -> tuple[float, float, int, float] | None:
    """Test equal means without assuming equal variances, by Welch's F test.

    The test is valid if architectures differ in their spread, but has less power than `two_stage_f`
    if there are few models.

    Parameters
    ----------
    summaries, labels : array-like of shape (M,)
        The number and the architecture of each model.

    Returns
    -------
    tuple of float or None
        Statistic, p-value, and the degrees of freedom between and within architectures. None if
        there is only one architecture, or if one has a single model or models that are equal up
        to rounding.

    References
    ----------
    Welch (1951), Biometrika 38, 330; computed by statsmodels.

    Examples
    --------
    >>> F, p, between, within = welch_f([1, 2, 4, 5], ["a", "a", "b", "b"])
    >>> round(F, 3), round(p, 3), between, round(within, 3)
    (18.0, 0.051, 1, 2.0)
    """
    y, groups = np.asarray(summaries, dtype=float), np.asarray(labels)
    samples = [y[groups == name] for name in np.unique(groups)]
    spread = [len(sample) > 1 and bool(has_spread(sample.var(ddof=1), y)) for sample in samples]
    if len(samples) < 2 or not all(spread):
        return None
    found = anova_oneway(samples, use_var="unequal", welch_correction=True)
    return float(found.statistic), float(found.pvalue), len(samples) - 1, float(found.df_denom)
