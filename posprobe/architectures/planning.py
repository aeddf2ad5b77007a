"""How many models of each architecture a planned contrast needs, from the spread between models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from posprobe.architectures.contrasts import Part, contrast_parts, satterthwaite
from posprobe.errors import DesignError
from posprobe.intervals import Goal, Studies, plan_size

__all__ = ["plan_models", "simulate_contrast"]

REPETITIONS = 4000
LEAST_MODELS = 2
MOST_MODELS = 500


def simulate_contrast(
    parts: Sequence[Part],
    k: int,
    *,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    rng: np.random.Generator,
) -> Studies:
    """Simulate studies of k models in each architecture, or of k blocks.

    The values of each part are normal around their measured mean, with their own measured spread,
    and limits are those of `contrast_interval`: Student's, with Satterthwaite's degrees of freedom.

    Parameters
    ----------
    parts : sequence of Part
        From `contrast_parts`.
    k : int
        Models of each architecture, or blocks.
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
    means, spreads, weights = np.transpose(
        [(part.values.mean(), part.values.std(ddof=1), part.weight) for part in parts]
    )
    draws = rng.normal(means[:, None], spreads[:, None], size=(repetitions, len(parts), k))
    estimate = draws.mean(axis=2) @ weights
    variance, df = satterthwaite(weights, draws.var(axis=2, ddof=1), np.full(len(parts), k))
    half = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(variance)
    return Studies(estimate, estimate - half, estimate + half)


def plan_models(
    summaries: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    goal: Goal,
    *,
    blocks: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, int | None], pd.DataFrame]:
    """Find how many models of each architecture, or blocks, a contrast needs.

    Parameters
    ----------
    summaries, labels, weights, blocks
        As in `contrast_interval`, whose limits are simulated by `simulate_contrast`.
    goal : Goal
        What is wanted.
    seed : int
        Seed of the simulation.

    Returns
    -------
    needed : dict of str to (int or None)
        Models of each architecture (with blocks: of complete blocks) for ``"precision"`` and
        ``"power"``; None means more than 500.
    table : pandas.DataFrame
        One row for each simulated number of models.

    Raises
    ------
    DesignError
        If an architecture of non-zero weight has one model, or fewer than two blocks are complete.
    """
    parts, unit = contrast_parts(summaries, labels, weights, blocks)
    for part in parts:
        if part.values.size < 2 and unit == "blocks":
            raise DesignError(
                f"{part.values.size} complete blocks: nothing tells their spread, so add a model "
                "of each architecture to another block, or plan without blocks"
            )
        if part.values.size < 2:
            raise DesignError(
                f"one model of {part.name}: nothing tells architecture from model, so add a second "
                "model (another seed)"
            )
    rng = np.random.default_rng(seed)
    simulate = partial(simulate_contrast, parts, level=goal.level, rng=rng)
    return plan_size(simulate, goal, least=LEAST_MODELS, largest=MOST_MODELS)
