"""`posprobe plan`: how many items, texts or models a wanted width or power needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from posprobe.analysis import condition_of, measurable, sort_files
from posprobe.architectures import Contrast, contrast_interval, default_contrasts, plan_models
from posprobe.channels import SPLIT, overall_variances, plan_items
from posprobe.comparison import VALUES, compare_lineup, line_up
from posprobe.errors import DesignError, Telling
from posprobe.intervals import Goal, Inference
from posprobe.store import ActivationStore, open_stores, path_list

__all__ = ["SizePlan", "plan"]

SUMMARIES = "summaries.csv"  # of a comparison's tables
LEAST_TEXTS = 3
PRECISION = 0.1


@dataclass(frozen=True, repr=False)
class SizePlan(Telling):
    """How many units one number needs.

    Attributes
    ----------
    unit : {"items", "texts", "models", "blocks"}
        What is counted; models are those of each architecture, and a block has one of each.
    what : str
        The number, and what it was measured on.
    n : int
        Units that were measured, in all.
    estimate : float
        Estimate from these.
    goal : Goal
        What is wanted.
    needed : dict of str to (int or None)
        Units for ``"precision"`` and for ``"power"``; None means more than were simulated.
    table : pandas.DataFrame
        For each simulated number of units `n`: the `precision` that the wanted share of studies
        reaches, the share `reached` that reaches the wanted one, and `power`.
    """

    unit: str
    what: str
    n: int
    estimate: float
    goal: Goal
    needed: dict[str, int | None]
    table: pd.DataFrame

    def _line(self) -> str:
        wanted = ", ".join(
            f"{count or 'more than were simulated'} for {goal}"
            for goal, count in self.needed.items()
        )
        return f"{self.unit} of {self.what}: {wanted}; measured on {self.n}"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {f"studies of n {self.unit}": self.table}

    def sentences(self) -> str:
        """Say what is needed, a line for each goal."""
        goal = self.goal
        lines = [f"{self.what}: {self.estimate:.3g} on {self.n} {self.unit}"]
        if math.isfinite(goal.precision):
            lines.append(
                f"  half of the interval's width at most {goal.precision:g} of the estimate, in "
                f"{100 * goal.assurance:g}% of studies: {self._needed('precision')}"
            )
        wanted = f"  interval without 0, in {100 * goal.power:g}% of studies: "
        return "\n".join([*lines, wanted + self._needed("power")])

    def _needed(self, name: str) -> str:
        n, simulated = self.needed[name], self.table["n"]
        unit = "models of each architecture" if self.unit == "models" else self.unit
        if n is None:
            return f"more than {simulated.max()} {unit}"
        return f"{n} {unit}" + " or fewer" * bool(n == simulated.min())

    def asdict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON; an infinite precision is None."""
        rows = [_finite(row) for row in self.table.to_dict("records")]
        return vars(self) | {"goal": _finite(asdict(self.goal)), "table": rows}


def _finite(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def plan(
    paths: str | Path | Iterable[str | Path],
    *,
    quantity: str = "V_R",
    precision: float | None = None,
    power: float = 0.8,
    assurance: float = 0.8,
    level: float = 0.95,
    architectures: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[SizePlan]:
    """Say how many items, texts or models are needed, by simulation from what was measured.

    From files of one model: the *items* of each text, drawn with replacement from those measured,
    with a studentised interval in every simulated study; and, given three texts or more under the
    same conditions, the *texts*, whose mean has an interval over texts. From files of several
    models, or the folder that `posprobe.compare` wrote: the *models* of each architecture that a
    planned contrast needs, or the complete *blocks* where models have blocks.

    Parameters
    ----------
    paths : str or Path, or an iterable of these
        Captures of the shifted design, or one folder of a comparison.
    quantity : str
        V_T, V_M, V_R or C_MR; for models also relative, V_R/(V_R + V_M).
    precision : float or None
        Wanted: half of the interval's width over the size of the estimate. By default 0.1 for items
        and texts, and whatever the power needs for models, whose contrasts may be near 0.
    power : float
        Wanted: probability that the interval excludes 0.
    assurance : float
        Share of studies that are to reach the precision.
    level : float
        Nominal coverage of the interval.
    architectures, blocks : mapping of str to str, optional
        As in `posprobe.compare`; a folder of a comparison has its own.
    seed : int
        Seed of the simulation.

    Returns
    -------
    list of SizePlan

    Raises
    ------
    PosprobeError
        If nothing can be planned from the files; the message is one line.

    Examples
    --------
    ::

        (items,) = posprobe.plan(["shifted.h5"], precision=0.2)
        items.needed["precision"]                       # items that a precision of 0.2 needs
    """
    goal = Goal(PRECISION if precision is None else precision, power, assurance, level)
    of_models = replace(goal, precision=math.inf) if precision is None else goal
    given = [Path(path) for path in path_list(paths)]
    known = (*SPLIT, *(name for name in VALUES if name not in SPLIT))
    if quantity not in known:
        raise DesignError(f"quantity {quantity!r} is unknown: use one of {', '.join(known)}")
    if len(given) == 1 and given[0].is_dir():
        return _models(_read_summaries(given[0]), quantity, of_models, seed)
    stores = open_stores(given)
    if len({(store.header.weights_digest, store.header.variant) for store in stores}) > 1:
        lineup = line_up(stores, architectures=architectures, blocks=blocks)
        if lineup.paired:
            raise DesignError(
                "the files are of variants of one checkpoint, which are no sample of models: plan "
                "from the files of one of them"
            )
        tables = compare_lineup(lineup, inference=Inference(n_resamples=100)).tables
        return _models(tables["summaries"], quantity, of_models, seed)
    return _one_model(stores, quantity, goal, seed)


def _one_model(
    stores: list[ActivationStore], quantity: str, goal: Goal, seed: int
) -> list[SizePlan]:
    """Plans for the items of each condition, and for texts where there are several."""
    if quantity not in SPLIT:
        raise DesignError(f"{quantity!r} is planned over models only: give files of several models")
    shifted = [one.shifted for one in measurable(sort_files(stores)) if one.shifted is not None]
    if not shifted:
        names = ", ".join(store.path.name for store in stores)
        raise DesignError(
            f"{names}: no shifted capture whose effects can be split; capture with --design shifted"
        )
    plans = []
    texts: dict[tuple[str, int], list[float]] = {}
    for store in shifted:
        variances = overall_variances(store)
        estimate = variances.estimate[quantity].item()
        needed, table = plan_items(variances, quantity, goal, seed=seed)
        what = f"{quantity}, {condition_of(store)}"
        plans.append(SizePlan("items", what, variances.n_items, estimate, goal, needed, table))
        if not store.header.stimulus.get("text", {}).get("shuffled"):
            position0, _, length = condition_of(store)
            texts.setdefault((position0, length), []).append(estimate)
    for (position0, length), values in texts.items():
        if len(values) >= LEAST_TEXTS:
            needed, table = plan_models(values, ["text"] * len(values), [1.0], goal, seed=seed)
            what = f"mean {quantity} over texts, {position0} at position 0, {length} tokens"
            mean = float(np.mean(values))
            plans.append(SizePlan("texts", what, len(values), mean, goal, needed, table))
    return plans


def _read_summaries(folder: Path) -> pd.DataFrame:
    for path in (folder / "tables" / SUMMARIES, folder / SUMMARIES):
        if path.is_file():
            return pd.read_csv(path)
    raise DesignError(
        f"{folder} has no tables/{SUMMARIES}: give a folder that posprobe compare wrote for "
        "several models, or captured files"
    )


def _models(summaries: pd.DataFrame, quantity: str, goal: Goal, seed: int) -> list[SizePlan]:
    """Plans for the models of each architecture, one for each planned contrast."""
    needs = {"value", "architecture", "intercept", "slope"}
    if not needs <= set(summaries.columns):
        raise DesignError(f"{SUMMARIES} lacks column {min(needs - set(summaries.columns))!r}")
    own = summaries[summaries["value"] == quantity]
    if own.empty:
        there = ", ".join(map(str, summaries["value"].unique()))
        raise DesignError(f"the comparison has no {quantity}: use one of {there}")
    labels = own["architecture"].astype(str).to_numpy()
    blocks = own["block"].astype(str).to_numpy() if "block" in own else None
    names = sorted(set(labels))
    plans = []
    for contrast in default_contrasts(names) or _differences(names):
        values = own[contrast.response].to_numpy(dtype=float)
        if not np.isfinite(values).all():
            continue  # one layer per model has no slope
        weights = contrast.vector(names)
        needed, table = plan_models(values, labels, weights, goal, blocks=blocks, seed=seed)
        if math.isinf(goal.precision):
            table = table.drop(columns="reached")
        what = f"{contrast.name} ({contrast.response} of {quantity})"
        paired = blocks is not None and np.count_nonzero(weights) > 1
        now, _ = contrast_interval(values, labels, weights, estimand=what, blocks=blocks)
        unit = "blocks" if paired else "models"
        plans.append(SizePlan(unit, what, now.n, now.estimate, goal, needed, table))
    return plans


def _differences(names: list[str]) -> tuple[Contrast, ...]:
    """All differences of two means, where no contrast was planned."""
    if len(names) < 2:
        raise DesignError(f"one architecture ({names[0]}): there is no contrast to plan")
    return tuple(
        Contrast(f"{b} - {a}", "intercept", {a: -1.0, b: 1.0}) for a, b in combinations(names, 2)
    )
