"""The two channels of several models: tables per model, layer and architecture, and their tests.

Models of different weights are the sample of a test of architecture; variants of one checkpoint
are compared over the items that they share. `posprobe.comparison.lineup` says which of the two it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from posprobe.architectures import (
    ArchitectureComparison,
    Contrast,
    ContrastResult,
    adjust_secondary,
    compare_architectures,
    contrast_interval,
    paired_contrasts,
    planned_contrasts,
)
from posprobe.channels import (
    SPLIT,
    Variances,
    channel_effects,
    gather_variances,
    shares,
    variance_table,
)
from posprobe.comparison.lineup import Lineup, Member
from posprobe.comparison.sinks import checks_by_file, replacement_by_member, sinks_by_member
from posprobe.errors import Telling
from posprobe.intervals import Array, Inference, Interval, fieller_ratio

__all__ = ["PRIMARY_VALUE", "RELATIVE", "VALUES", "Comparison", "compare_lineup", "share_rows"]

Step = Callable[[str], None]
PRIMARY_VALUE = "V_R"
DIAGNOSTICS = ("residuals", "influence")  # drawn of the primary value
RELATIVE = "relative"
VALUES = {
    "V_R": "residual channel",
    "relative": "size of the residual channel relative to the mask's, V_R/(V_R + V_M)",
    "V_M": "mask channel",
    "V_T": "total effect of position",
}


@dataclass(frozen=True, repr=False)
class Comparison(Telling):
    """What a comparison of several models found.

    Attributes
    ----------
    lineup : Lineup
    tables : dict of str to DataFrame
        By file name, without extension; see `compare_lineup`.
    found : dict of str to ArchitectureComparison
        By value, of `VALUES`; empty for variants of one checkpoint.
    contrasts : dict of str to tuple of ContrastResult
        The planned contrasts, by value.
    inference : Inference
        How every interval was made.
    intervals : dict of (str, str) to Interval
        V_M and V_R of each model, over items.
    """

    lineup: Lineup
    tables: dict[str, pd.DataFrame]
    found: dict[str, ArchitectureComparison]
    contrasts: dict[str, tuple[ContrastResult, ...]]
    inference: Inference
    intervals: dict[tuple[str, str], Interval]

    def _line(self) -> str:
        return f"tables {', '.join(self.tables)}"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {
            name: self.tables[name] for name in ("architectures", "tests") if name in self.tables
        }

    @property
    def level(self) -> float:
        """Nominal coverage of every interval."""
        return self.inference.level


def _kind_of(architecture: str) -> str:
    """An architecture without its number: ``ntk`` of ``ntk(8)``."""
    return architecture.partition("(")[0].strip()


def compare_lineup(
    lineup: Lineup,
    *,
    inference: Inference = Inference(),
    step: Step = lambda what: None,
) -> Comparison:
    """Measure both channels in every model, and compare architectures or variants.

    Parameters
    ----------
    lineup : Lineup
    inference : Inference
        How intervals are made; one set of bootstrap weights serves all models.
    step : callable
        Told what comes next, for a progress bar: once per model, and once for the tests.

    Returns
    -------
    Comparison
        With the tables `models` and `layers` (variances and shares with intervals over items),
        `layer_types` (means over full and over windowed layers, of models that have both),
        `architectures` (the same averaged over models, with intervals over models and over items),
        `estimates` (mean and depth slope), `tests`, `contrasts`, `mixed`, `differences` (variants
        only), `sinks` (where natural captures are given), `replacement` (where replaced ones are)
        and `checks`. Variances in nats squared.

    Raises
    ------
    DesignError
        If a file lacks a quantity, or has fewer than three items.
    """
    level = inference.level
    measured: dict[str, Variances] = {}
    for member in lineup.members:
        step(member.name)
        measured[member.name] = _measure(member, lineup, inference)
    step("tests")
    tables = {
        "models": _by_member(lineup, measured, level, layers=False),
        "layers": _by_member(lineup, measured, level, layers=True),
        "layer_types": _by_layer_type(lineup, measured, level),
        "architectures": _by_architecture(lineup, measured, level),
    }
    found: dict[str, ArchitectureComparison] = {}
    if lineup.paired:
        more, contrasts = _compare_variants(lineup, measured, level)
    else:
        found = _compare_models(tables, level)
        more = _tables_of(found)
        contrasts = {value: one.contrasts for value, one in found.items()}
    more |= {
        "sinks": sinks_by_member(lineup, inference=inference),
        "replacement": replacement_by_member(lineup, inference=inference),
        "checks": checks_by_file(lineup),
    }
    tables = {name: table for name, table in (tables | more).items() if not table.empty}
    intervals = {
        (name, value): variances.mean((0, 1)).interval(value, level)
        for name, variances in measured.items()
        for value in ("V_M", "V_R")
    }
    return Comparison(lineup, tables, found, contrasts, inference, intervals)


def _measure(member: Member, lineup: Lineup, inference: Inference) -> Variances:
    store = member.shifted
    places = np.searchsorted(np.unique(store.item), lineup.items)
    layers = (channel_effects(store, layer).take(places) for layer in range(store.n_layers))
    return gather_variances(layers, inference)


def _by_member(
    lineup: Lineup, measured: Mapping[str, Variances], level: float, *, layers: bool
) -> pd.DataFrame:
    tables = []
    for member in lineup.members:
        variances = measured[member.name]
        n_layers = member.shifted.n_layers
        names = list(range(n_layers)) if layers else ["all"]
        part = variances.mean((1,) if layers else (0, 1))
        table = variance_table(part, names, ["all"], level).drop(columns="head")
        if layers:
            table.insert(1, "layer_type", list(member.shifted.layer_types))
            table.insert(2, "depth", np.linspace(0, 1, n_layers) if n_layers > 1 else 0.0)
        else:
            table = table.drop(columns="layer")
            table.insert(0, "n_layers", n_layers)
            table.insert(1, "n_heads", member.shifted.n_heads)
            table.insert(2, "items", len(lineup.items))
        relative = [_relative(part, layer, level) for layer in range(len(names))]
        table[[RELATIVE, f"{RELATIVE}_low", f"{RELATIVE}_high"]] = relative
        if member.block is not None:
            table.insert(0, "block", member.block)
        table.insert(0, "model", member.name)
        table.insert(0, "architecture", member.architecture)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _by_layer_type(lineup: Lineup, measured: Mapping[str, Variances], level: float) -> pd.DataFrame:
    """Means over the layers of each type, in models whose layers differ in what they see."""
    tables = []
    for member in lineup.members:
        types = np.array(member.shifted.layer_types)
        for kind in np.unique(types) if len(set(types)) > 1 else ():
            part = measured[member.name].layers(types == kind).mean((0, 1))
            table = variance_table(part, ["all"], ["all"], level).drop(columns=["layer", "head"])
            table.insert(0, "layers", int((types == kind).sum()))
            table.insert(0, "layer_type", kind)
            table.insert(0, "model", member.name)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _relative(variances: Variances, layer: int, level: float) -> tuple[float, float, float]:
    """V_R/(V_R + V_M) with Fieller's limits over items; NaN where the sum is not above 0."""
    psi_r, psi_m = (variances.pseudo[name][:, layer, 0] for name in ("V_R", "V_M"))
    if variances.estimate["V_R"][layer, 0] + variances.estimate["V_M"][layer, 0] <= 0:
        return (np.nan,) * 3
    found = fieller_ratio(psi_r + psi_m, psi_r, quantity="ratio", level=level, estimand=RELATIVE)
    if found.low is None or found.high is None:
        return (np.nan,) * 3
    return found.estimate, found.low, found.high


def _by_architecture(
    lineup: Lineup, measured: Mapping[str, Variances], level: float
) -> pd.DataFrame:
    """Means over the models of an architecture: intervals over models, and over items."""
    labels = [member.architecture for member in lineup.members]
    overall = {name: variances.mean((0, 1)) for name, variances in measured.items()}
    rows: list[dict[str, Any]] = []
    for architecture, names in lineup.architectures.items():
        own = np.array([float(name == architecture) for name in sorted(lineup.architectures)])
        parts = [overall[name] for name in names]
        pooled = _pool(parts) if len(parts) == 1 or lineup.same_tokens else None
        head = {"architecture": architecture, "models": len(names)}
        for value in SPLIT:
            numbers = [float(overall[m.name].estimate[value][0, 0]) for m in lineup.members]
            over_models, _ = contrast_interval(numbers, labels, own, estimand=value, level=level)
            rows.append(head | {"quantity": value} | _both(over_models, pooled, value, level))
        rows += [head | row for row in share_rows(parts, pooled, level)]
    return pd.DataFrame(rows)


def _pool(parts: list[Variances]) -> Variances:
    """The mean over models; items are resampled in all of them at once."""
    return Variances.side_by_side(parts).mean((1,))


def _both(
    over_models: Interval, pooled: Variances | None, value: str, level: float
) -> dict[str, Any]:
    """A variance with its limits over models, and over items where those can be pooled."""
    low, high = (np.nan,) * 2
    if pooled is not None:
        low, high = (float(limit[0, 0]) for limit in pooled.limits(value, level))
    return {
        "estimate": over_models.estimate,
        **_limits(over_models, "models"),
        "method_models": over_models.method,
        "low_items": low,
        "high_items": high,
    }


def share_rows(
    parts: list[Variances], pooled: Variances | None, level: float
) -> list[dict[str, Any]]:
    """Shares of both channels: ratios of means over models, with limits over models and items.

    A share is shown where V_T is distinguishable from 0: over items, or over models where their
    items cannot be pooled. Otherwise its estimate and its limits over models are NaN.

    Parameters
    ----------
    parts : list of Variances
        One per model of an architecture, with a single cell.
    pooled : Variances or None
        Their mean, resampled over items; None where models saw different tokens.
    level : float

    Returns
    -------
    list of dict
        Keys: quantity, estimate, low_models, high_models, low_items, high_items, method_models.
    """
    over_items = {} if pooled is None else shares(pooled, 0, 0, level)
    rows = []
    for channel, value in (("mask", "V_M"), ("residual", "V_R")):
        over_models = _share_over_models(parts, value, level)
        deciding = over_models if pooled is None else over_items.get(channel)
        shown = _is_bounded(deciding)
        rows.append(
            {
                "quantity": f"share_{channel}",
                "estimate": _share(parts, value) if shown else np.nan,
                **_limits(over_models if shown else None, "models"),
                **_limits(over_items.get(channel), "items"),
                "method_models": "one model per architecture" if len(parts) == 1 else "fieller",
            }
        )
    return rows


def _total_and_part(parts: list[Variances], value: str) -> tuple[Array, Array]:
    """V_T and the part of one channel in it, its variance + C_MR, of every model: (m,) each."""
    total, own, interplay = (
        np.array([part.estimate[name][0, 0] for part in parts]) for name in ("V_T", value, "C_MR")
    )
    return total, own + interplay


def _share(parts: list[Variances], value: str) -> float:
    total, part = _total_and_part(parts, value)
    return float(part.mean() / total.mean())


def _share_over_models(parts: list[Variances], value: str, level: float) -> Interval | None:
    """Share with Fieller's limits over models; None for a single model, or V_T not above 0."""
    total, part = _total_and_part(parts, value)
    if len(parts) == 1 or total.mean() <= 0:
        return None
    return fieller_ratio(total, part, quantity="ratio", level=level, estimand="share")


def _is_bounded(interval: Interval | None) -> bool:
    return interval is not None and not interval.unbounded


def _limits(interval: Interval | None, over: str) -> dict[str, float]:
    """Limits as columns of a table; NaN where there is no interval, or an unbounded one."""
    low, high = (np.nan,) * 2 if interval is None else interval.limits().values()
    return {f"low_{over}": low, f"high_{over}": high}


def _compare_models(tables: Mapping[str, pd.DataFrame], level: float) -> dict[
    str, ArchitectureComparison
]:  # fmt: skip
    found = {}
    for value in VALUES:
        table = tables["layers"]
        if value == RELATIVE:
            # a ratio of layer means: layers in which both channels vanish would rule their mean
            table = tables["models"].assign(layer=0, depth=0.0)
            table[value] = table["V_R"] / (table["V_R"] + table["V_M"])
            if not np.isfinite(table[value]).all() or (table["V_R"] + table["V_M"] <= 0).any():
                continue
        found[value] = compare_architectures(
            table, value=value, level=level, mixed_model=value != RELATIVE
        )
    return found


def _tables_of(found: Mapping[str, ArchitectureComparison]) -> dict[str, pd.DataFrame]:
    tables: dict[str, pd.DataFrame] = {}
    for name, part in (
        ("estimates", "estimates"),
        ("tests", "tests"),
        ("contrasts", "contrasts"),
        ("summaries", "models"),
        ("mixed", "mixed"),
        ("residuals", "residuals"),
        ("influence", "influence"),
    ):
        parts = {
            value: one.table(part)
            for value, one in found.items()
            if part not in DIAGNOSTICS or value == PRIMARY_VALUE
        }
        parts = {value: table for value, table in parts.items() if not table.empty}
        for value, table in parts.items():
            table.insert(0, "value", value)
        tables[name] = pd.concat(parts.values(), ignore_index=True) if parts else pd.DataFrame()
    tests = tables["tests"]
    if not tests.empty:
        tables["tests"] = adjust_secondary(
            tests, tests["primary"] & (tests["value"] == PRIMARY_VALUE)
        )
    return tables


def _compare_variants(
    lineup: Lineup, measured: Mapping[str, Variances], level: float
) -> tuple[dict[str, pd.DataFrame], dict[str, tuple[ContrastResult, ...]]]:
    names = [member.architecture for member in lineup.members]
    own = [
        Contrast(name, response, {name: 1.0})
        for response in ("intercept", "slope")
        for name in names
    ]
    against = [
        Contrast(f"{name} - {names[0]}", "intercept", {names[0]: -1.0, name: 1.0})
        for name in names[1:]
    ]
    planned = _planned(names)
    n, contrasts = len(lineup.items), {}
    rows: dict[str, list[pd.DataFrame]] = {"estimates": [], "differences": [], "contrasts": []}
    for value in VALUES:
        estimate, replicates = _stacked(lineup, measured, value)
        if not (np.isfinite(estimate).all() and np.isfinite(replicates).all()):
            continue
        for name, asked in (("estimates", own), ("differences", against), ("contrasts", planned)):
            results = paired_contrasts(estimate, replicates, names, asked, n=n, level=level)
            rows[name].append(_contrast_rows(value, results))
            if name == "contrasts":
                contrasts[value] = results
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}
    return tables, contrasts


def _stacked(
    lineup: Lineup, measured: Mapping[str, Variances], value: str
) -> tuple[Array, Array]:  # fmt: skip
    """A quantity of each variant and layer, mean over heads: (V, L) and (B, V, L)."""
    parts = [measured[member.name].mean((1,)) for member in lineup.members]
    if value != RELATIVE:
        estimates = [part.estimate[value][:, 0] for part in parts]
        draws = [part.replicates(value)[0][..., 0] for part in parts]
        return np.stack(estimates), np.stack(draws, 1)
    # one ratio of layer means per variant, as for models
    both = []
    reads: tuple[Callable[[Variances, str], Array], ...] = (
        lambda part, name: part.estimate[name],
        lambda part, name: part.replicates(name)[0],
    )
    for read in reads:
        sums = [
            [read(part, name)[..., 0].mean(-1, keepdims=True) for part in parts]
            for name in ("V_R", "V_M")
        ]
        residual, mask = (np.stack(one, -2) for one in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            both.append(np.where(residual + mask > 0, residual / (residual + mask), np.nan))
    return both[0], both[1]


def _planned(names: list[str]) -> tuple[Contrast, ...]:
    """The study's contrasts, where each kind of variant is there exactly once."""
    by_kind: dict[str, list[str]] = {}
    for name in names:
        by_kind.setdefault(_kind_of(name), []).append(name)
    ntk, window, middle = (by_kind.get(kind, []) for kind in ("ntk", "window", "standard"))
    if not (len(ntk) == len(window) == len(middle) == 1):
        return ()
    return planned_contrasts(ntk=ntk[0], standard=middle[0], window=window[0])


def _contrast_rows(value: str, results: tuple[ContrastResult, ...]) -> pd.DataFrame:
    rows = [
        {"value": value, "contrast": one.contrast.name, "response": one.contrast.response}
        | one.interval.asdict()
        | {"p_value": one.p_value, "p_holm": one.p_holm, "p_bh": one.p_bh}
        for one in results
    ]
    return pd.DataFrame(rows)
