r"""The specification curve: how much a result depends on how it was measured.

The study says that replacing the BOS embedding removes 40% of the residual component at early
queries, but not how this was measured. The fraction removed is therefore computed under every
combination of treatment, range of queries, offset, layers and measure. The specification that was
fixed beforehand is marked.

All measures are means over heads, offsets and layers, and so are their jackknife pseudo-values.
Each file is therefore read only once, and specifications are averages of the stored pseudo-values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.analysis.replacement import PRIMARY_TREATMENT, common_items, ratio_of_variances
from posprobe.channels import ChannelEffects, channel_effects, early_limit, position_covariance
from posprobe.intervals import Array, Inference, pseudo_values
from posprobe.store import ActivationStore

__all__ = ["METRICS", "specification_curve"]

METRICS = {
    "V_R": "variance over positions of the residual channel",
    "V_S": "variance over positions of the sink's part of it",
    "mean |R|": "mean absolute residual effect at the early positions themselves, in nats",
}


def specification_curve(
    native: ActivationStore,
    replaced: Iterable[ActivationStore],
    *,
    sink_reading: Sequence[tuple[int, int]] = (),
    inference: Inference = Inference(),
) -> pd.DataFrame:
    r"""Estimate the fraction removed under every specification.

    The estimand is :math:`1 - m(\mathrm{replaced}) / m(\mathrm{native})` for a metric m of
    `METRICS`. The specifications are all combinations of treatment, range of queries (up to each
    prefix, and all), offset (each, and all), layers (all, each third, and the sink-reading ones)
    and metric. V_R and V_S are U-statistics over pairs of different items. Mean \|R\| is
    :math:`|E_n R_n(p)|`, averaged over the positions of the range except the reference; the
    jackknife reduces its bias.

    Parameters
    ----------
    native : ActivationStore
        A native capture of the shifted design.
    replaced : iterable of ActivationStore
        Captures of the same stimulus, or of its first items, with position 0 replaced.
    sink_reading : sequence of (layer, head)
        The sink-reading heads. A layer is sink-reading if at least half of its heads are. If there
        is no such layer, this choice of layers is left out.
    inference : Inference
        Level of each interval. The intervals are not adjusted for their number: the curve shows how
        much the choice matters, and only the primary specification is a test.

    Returns
    -------
    pandas.DataFrame
        treatment, positions ("early", "up to P", "all"), up_to (tokens), offsets, layers, metric,
        primary, fraction_removed, low, high (empty if unbounded), method ("fieller", "fieller:
        unbounded", or "undefined" if there is nothing to remove), n (items).

    Raises
    ------
    DesignError
        If a file does not have the same windows behind the same prefixes.
    """
    ranges = _ranges(native)
    choices = _layer_choices(native, sink_reading)
    own: dict[tuple[int, ...], dict[str, Array]] = {}
    rows: list[dict[str, Any]] = []
    for store in replaced:
        mine, theirs = common_items(native, store)
        key = tuple(mine.tolist())
        if key not in own:
            own[key] = _all_pseudo_values(native, mine, ranges)
        pair = own[key], _all_pseudo_values(store, theirs, ranges)
        for row in _specifications(pair, ranges, choices, native.offsets, inference.level):
            rows.append({"treatment": store.header.position0_treatment} | row)
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(6, "primary", _is_primary(table, early_limit(native)))
    return table


def _ranges(store: ActivationStore) -> dict[int, str]:
    """Name the ranges of queries by their largest prefix.

    The last prefix before the reference is left out, since up to it the range is "all".
    """
    early = early_limit(store)
    names = {p: "early" if p == early else f"up to {p}" for p in store.prefixes[:-2]}
    return names | {store.prefixes[-1]: "all"}


def _layer_choices(
    store: ActivationStore, sink_reading: Sequence[tuple[int, int]]
) -> dict[str, NDArray[np.intp]]:
    layers = np.arange(store.n_layers)
    choices = {"all": layers}
    thirds = np.array_split(layers, 3)
    if len(thirds[-1]):
        names = ("first third", "middle third", "last third")
        choices |= dict(zip(names, thirds, strict=True))
    reading = np.bincount([layer for layer, _ in sink_reading], minlength=store.n_layers)
    if (2 * reading >= store.n_heads).any():
        choices["sink-reading"] = np.flatnonzero(2 * reading >= store.n_heads)
    return choices


def _all_pseudo_values(
    store: ActivationStore, items: NDArray[np.intp], ranges: dict[int, str]
) -> dict[str, Array]:
    """Compute the pseudo-values of each metric: (item, range, layer, offset).

    They are NaN at offsets that a window hides.
    """
    shape = len(items), len(ranges), store.n_layers, len(store.offsets)
    values = {metric: np.full(shape, np.nan) for metric in METRICS}
    for layer in range(store.n_layers):
        effects = channel_effects(store, layer).take(items)
        kept = [store.offsets.index(offset) for offset in effects.offsets]
        for r, up_to in enumerate(ranges):
            for metric, each in _pseudo_values(effects.up_to(up_to)).items():
                values[metric][:, r, layer, kept] = each
    return values


def _pseudo_values(effects: ChannelEffects) -> dict[str, Array]:
    """Compute the pseudo-values of each metric, averaged over heads: (item, offset)."""
    without_one = 1.0 - np.eye(effects.n_items)
    found = {}
    for metric, part in (("V_R", effects.residual), ("V_S", effects.sink)):
        whole = position_covariance(part, part).mean(0)
        found[metric] = pseudo_values(whole, position_covariance(part, part, without_one).mean(1))
    early = effects.residual[:, :-1]
    others = (early.sum(0) - early) / (len(early) - 1)
    whole = np.abs(early.mean(0)).mean((0, 1))
    found["mean |R|"] = pseudo_values(whole, np.abs(others).mean((1, 2)))
    return found


def _specifications(
    pair: tuple[dict[str, Array], dict[str, Array]],
    ranges: dict[int, str],
    choices: dict[str, NDArray[np.intp]],
    offsets: tuple[int, ...],
    level: float,
) -> Iterable[dict[str, Any]]:
    """Yield the rows of one treatment, from the pseudo-values without and with it."""
    columns = {str(offset): [d] for d, offset in enumerate(offsets)}
    columns["all"] = list(range(len(offsets)))
    for metric in METRICS:
        before, after = (values[metric] for values in pair)
        for r, (up_to, positions) in enumerate(ranges.items()):
            for name, layers in choices.items():
                for offset, column in columns.items():
                    cell = (slice(None), r, layers[:, None], column)
                    yield {
                        "positions": positions,
                        "up_to": up_to,
                        "offsets": offset,
                        "layers": name,
                        "metric": metric,
                    } | _removed(_mean(before[cell]), _mean(after[cell]), level)


def _mean(values: Array) -> Array:
    """Average each item over the offsets that a layer has, then over the layers that have any."""
    there = ~np.isnan(values)
    count = there.sum(-1)
    by_layer = np.where(there, values, 0.0).sum(-1) / np.maximum(count, 1)
    kept = by_layer[:, (count > 0).all(0)]
    return kept.mean(1) if kept.size else np.full(len(values), np.nan)


def _removed(before: Array, after: Array, level: float) -> dict[str, Any]:
    """Return the fraction removed with Fieller's limits; NaN if there is nothing to remove."""
    if np.isnan(before).any() or before.mean() == 0:
        unknown = dict.fromkeys(("fraction_removed", "low", "high"), np.nan)
        return unknown | {"method": "undefined", "n": len(before)}
    interval = ratio_of_variances(before, after, level=level)
    return interval.row("fraction_removed")


def _is_primary(table: pd.DataFrame, early: int) -> pd.Series:
    """Mark the specification that was fixed beforehand."""
    return (
        (table["treatment"] == PRIMARY_TREATMENT)
        & (table["up_to"] == early)
        & (table["offsets"] == "all")
        & (table["layers"] == "all")
        & (table["metric"] == "V_R")
    )
