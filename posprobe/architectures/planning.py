"""How many models of each architecture a planned contrast needs, from the spread between models."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from posprobe.architectures.contrasts import group_means, pooled_variance
from posprobe.intervals import Goal, Studies, plan_size

__all__ = ["plan_models", "simulate_contrast"]

REPETITIONS = 4000
LEAST_MODELS = 2
MOST_MODELS = 500


def simulate_contrast(
    summaries: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    k: int,
    *,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    rng: np.random.Generator,
) -> Studies:
    """Simulate studies of k models in each architecture, with limits by the pooled t.

    Models of an architecture are normal around its measured mean, with the measured spread between
    models of one architecture, pooled.

    Parameters
    ----------
    summaries, labels : array-like of shape (M,)
        The number and the architecture of each measured model.
    weights : array-like of shape (A,)
        Weights of the contrast, in the sorted order of the architectures.
    k : int
        Models of each architecture.
    level : float
        Nominal coverage of the interval.
    repetitions : int
        Number of studies.
    rng : Generator
        Source of randomness.

    Returns
    -------
    Studies
        In the unit of the summaries.
    """
    means, *_ = group_means(summaries, labels)
    variance, _ = pooled_variance(summaries, labels)
    w = np.asarray(weights, dtype=float)
    draws = rng.normal(means[:, None], np.sqrt(variance), size=(repetitions, len(means), k))
    spread = draws.var(axis=2, ddof=1).mean(axis=1)
    estimate = draws.mean(axis=2) @ w
    quantile = stats.t.ppf(0.5 + level / 2, len(means) * (k - 1))
    half = quantile * np.sqrt(spread * np.sum(w**2) / k)
    return Studies(estimate, estimate - half, estimate + half)


def plan_models(
    summaries: ArrayLike, labels: ArrayLike, weights: ArrayLike, goal: Goal, *, seed: int = 0
) -> tuple[dict[str, int | None], pd.DataFrame]:
    """Find how many models of each architecture a contrast needs; see `simulate_contrast`.

    Parameters
    ----------
    summaries, labels, weights
        As in `simulate_contrast`.
    goal : Goal
        What is wanted.
    seed : int
        Seed of the simulation.

    Returns
    -------
    needed : dict of str to (int or None)
        Models of each architecture for ``"precision"`` and ``"power"``; None means more than 500.
    table : pandas.DataFrame
        One row for each simulated number of models.

    Raises
    ------
    DesignError
        If no architecture has two models.
    """
    simulate = partial(
        simulate_contrast, summaries, labels, weights, level=goal.level,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return plan_size(simulate, goal, least=LEAST_MODELS, largest=MOST_MODELS)
