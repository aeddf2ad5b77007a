"""How many items a wanted width or power needs, by resampling the items of a capture."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from posprobe.channels.reading import channel_effects
from posprobe.channels.variances import Variances, gather_variances, resampled
from posprobe.errors import DesignError
from posprobe.intervals import Goal, Inference, Studies, plan_size, studentized_limits
from posprobe.store import ActivationStore

__all__ = ["LEAST_ITEMS", "overall_variances", "plan_items", "simulate_items"]

LEAST_ITEMS = 8  # fewer have Student's limits
RESAMPLES = 400  # bootstrap samples of each simulated study
REPETITIONS = 400
SHRINKAGE = 2.5  # N times the share of a width that resampling from N items loses
MOST = 64  # times as many items as were measured


def simulate_items(
    variances: Variances,
    name: str,
    n: int,
    *,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    rng: np.random.Generator,
) -> Studies:
    """Simulate studies of n items, drawn with replacement from measured ones.

    Each study has a population of its own, in which the N measured items have random shares
    (Dirichlet), so that what the pilot does not know enters; n items are drawn from it, and get a
    studentised bootstrap interval. Two copies of one item are no pair, in the estimate as in the
    interval, so nothing of an item's own noise enters. Both this and drawing from N items only make
    widths too small by 2.5/N of them, which is put back.

    Parameters
    ----------
    variances : Variances
        Of a single cell, with the products of all pairs of N items.
    name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
        The variance.
    n : int
        Items in each study.
    level : float
        Nominal coverage of its interval.
    repetitions : int
        Number of studies.
    rng : Generator
        Source of randomness.

    Returns
    -------
    Studies
        In squared nats.
    """
    products = variances.products[name].reshape(1, *variances.products[name].shape[-2:])
    wider = 1 + SHRINKAGE / variances.n_items
    found = np.empty((repetitions, 3))
    for row in found:
        own = rng.multinomial(n, rng.dirichlet(np.ones(variances.n_items)))
        draws = rng.multinomial(n, own / n, size=RESAMPLES)
        weights = np.vstack([own, draws]).astype(float)
        weights = weights[(weights > 0).sum(1) > 1]  # a single item has no pairs
        values, errors = (part[:, 0] for part in resampled(products, weights))
        limits = studentized_limits(values[1:], errors[1:], values[0], errors[0], n=n, level=level)
        row[:] = values[0], *(values[0] + wider * (limit - values[0]) for limit in limits)
    return Studies(*found.T)


def overall_variances(
    store: ActivationStore, inference: Inference | None = None, *, max_units: int | None = None
) -> Variances:
    """Compute variances averaged over layers and heads, one layer in memory at a time.

    Parameters
    ----------
    store : ActivationStore
        A capture with all scores.
    inference : Inference or None
        As in `gather_variances`.
    max_units : int or None
        As in `channel_effects`.

    Returns
    -------
    Variances
        A single cell.

    Raises
    ------
    DesignError
        As in `posprobe.channels.channel_effects` and `gather_variances`.
    """
    effects = (
        channel_effects(store, layer, max_units=max_units) for layer in range(store.n_layers)
    )
    layers = [gather_variances([layer], inference).mean((0, 1)) for layer in effects]
    return Variances.side_by_side(layers).mean((1,))


def plan_items(
    variances: Variances,
    name: str,
    goal: Goal,
    *,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> tuple[dict[str, int | None], pd.DataFrame]:
    """Find how many items the interval of a variance needs; see `posprobe.intervals.plan_size`.

    Parameters
    ----------
    variances : Variances
        Of a single cell, measured on 8 items or more.
    name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
        The variance.
    goal : Goal
        What is wanted.
    repetitions : int
        Studies of each size.
    seed : int
        Seed of the simulation.

    Returns
    -------
    needed : dict of str to (int or None)
        Items for ``"precision"`` and ``"power"``; None means more than 64 times those measured.
    table : pandas.DataFrame
        One row for each simulated number of items.

    Raises
    ------
    DesignError
        If fewer than 8 items were measured.
    """
    if variances.n_items < LEAST_ITEMS:
        raise DesignError(
            f"{variances.n_items} items are too few to plan from: capture {LEAST_ITEMS} or more"
        )
    simulate = partial(
        simulate_items, variances, name, level=goal.level, repetitions=repetitions,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return plan_size(simulate, goal, least=LEAST_ITEMS, largest=MOST * variances.n_items)
