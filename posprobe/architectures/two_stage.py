"""Stage two across architectures: one number per model in, F test out.

The numbers come from `posprobe.architectures.summaries`. Architectures are compared by one-way
analysis of variance, with the spread between models of one architecture as the yardstick.
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
    """F test that one response has the same mean in every architecture."""

    response: str
    statistic: float
    df_between: int
    df_within: int
    p_value: float


def two_stage_f(
    summaries: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    """Test that model-level summaries have the same mean in every architecture.

    ``F = sum_a m_a (ybar_a - ybar)^2 / (A - 1) / s^2`` with the pooled variance s^2, referred to
    F(A - 1, M - A). Models weigh equally whatever their number of layers.

    Parameters
    ----------
    summaries : array_like, shape (..., M)
        One number per model; leading axes are independent studies.
    labels : array_like, shape (M,)
        Architecture of each model.

    Returns
    -------
    statistic, p_value : ndarray, shape (...)
        NaN where the models of each architecture agree to rounding.
    df_between, df_within : int
        A - 1 and M - A.

    Raises
    ------
    DesignError
        If there is one architecture, or one model per architecture.

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
    grand = np.sum(counts * means, axis=-1, keepdims=True) / counts.sum()
    between = np.sum(counts * (means - grand) ** 2, axis=-1) / (len(names) - 1)
    usable = has_spread(variance, summaries)
    statistic = np.where(usable, between / np.where(usable, variance, 1.0), np.nan)
    return statistic, stats.f.sf(statistic, len(names) - 1, df), len(names) - 1, df


def welch_f(summaries: ArrayLike, labels: ArrayLike) -> tuple[float, float, int, float] | None:
    """Test equal means without assuming equal variances (Welch 1951), by statsmodels.

    Weaker than `two_stage_f` with few models, and right where architectures differ in spread.

    Parameters
    ----------
    summaries, labels : array_like, shape (M,)
        One number and one architecture per model.

    Returns
    -------
    tuple of float, or None
        Statistic, p-value, and the degrees of freedom between and within; None where an
        architecture has one model, or models that agree to rounding.

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
