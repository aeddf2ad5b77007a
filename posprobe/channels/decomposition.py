"""The two channels of one file as tables: by head, layer, position, offset and range of queries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from posprobe.channels.effects import ChannelEffects
from posprobe.channels.reading import channel_effects, early_limit
from posprobe.channels.variances import (
    Variances,
    adjusted_p,
    gather_variances,
    variance_columns,
    variance_table,
)
from posprobe.errors import DesignError
from posprobe.intervals import Array, Inference, bootstrap_limits
from posprobe.store import ActivationStore

__all__ = ["MAX_UNITS", "Decomposition", "decompose"]

MAX_UNITS = 200
EFFECTS = {"T": "total", "M": "mask", "R": "residual"}


@dataclass(frozen=True)
class Decomposition:
    """Where the position effects of one file come from.

    Attributes
    ----------
    by_head, by_layer, overall : pandas.DataFrame
        One row per layer and head, per layer (mean over heads), and one for the mean over all.
        Columns: V_T, V_M, V_R, C_MR, V_S with `_low` and `_high`; `share_mask`, `share_residual`
        with their limits; `status` ("ok", or "undefined" where V_T is not distinguishable from 0,
        and no share is given); `relation` of the channels. Squared nats. Layers have their
        `layer_type`: "full", or "window(W)".
    positions : pandas.DataFrame
        T, M, R and S in nats at each position, by layer and (layer "all") over all.
    variances : Variances
        What the tables were made from.
    by_offset : pandas.DataFrame or None
        Where asked for: one row per range of queries (`positions`: "early", "late", "all"), layer,
        head and offset, and (layer and head "all") the mean over all; see `decompose`.
    """

    by_head: pd.DataFrame
    by_layer: pd.DataFrame
    overall: pd.DataFrame
    positions: pd.DataFrame
    variances: Variances
    by_offset: pd.DataFrame | None = None


def decompose(
    store: ActivationStore,
    *,
    up_to: int | None = None,
    by_offset: bool = False,
    inference: Inference = Inference(),
    **changes: Any,
) -> Decomposition:
    r"""Split the effect of position on attention into mask and residual channel, with intervals.

    The estimand is the variance over positions of the mean effect, in the population of items from
    which the file's were drawn; the unit of resampling is the item (a window in the shifted design,
    a sequence elsewhere). Limits are cluster bootstrap, estimate plus and minus t times standard
    error; shares have Fieller's limits on jackknife pseudo-values. More than 200 items are pooled
    into 200 units of neighbouring ones, which are resampled as a whole; memory does not grow
    beyond that.

    Heads, layers and the whole have the mean over offsets of each variance, and shares of these
    means; not the variance of a mean. Offset by offset, with P positions in the range,

    .. math::

        \bar T_d = \frac{1}{P - 1} \sum_{p \ne \mathrm{ref}} E_n\, T_{n d}(p), \qquad
        V_{T,d} = \mathrm{Var}_p\, E_n\, T_{n d}(p)

    and the same of M and R: T is what is observed, and does not depend on how the mask is shrunk;
    only its division into M and R does. All offsets are averaged over the same rows of the window,
    those whose key at the largest offset is inside it: M holds no score at an offset, so it is
    the same at all of them, and what differs between offsets are scores. The other tables use, at
    each offset, all the rows that it has.

    Parameters
    ----------
    store : ActivationStore
    up_to : int or None
        Only positions up to this one, and the reference (early queries).
    by_offset : bool
        Also offset by offset and by range of queries: "early" (prefixes up to an eighth of the
        length, and the reference), "late" (the others) and "all". Columns: T, M, R (nats) with
        limits; V_T, V_M, V_R, C_MR, shares, `status` and `relation` as in the other tables;
        `V_T_p_adjusted` and `V_R_p_adjusted` (max-T over all rows of heads, ranges and offsets
        together; NaN in the means over all). Limits hold for each number by itself.
    inference : Inference
        Level, number of bootstrap samples and seed.
    **changes
        Fields of `inference` by themselves: ``level=0.9``, ``seed=1``, ...

    Returns
    -------
    Decomposition

    Raises
    ------
    DesignError
        If the file lacks a quantity, or has fewer than three items.

    Examples
    --------
    ::

        result = posprobe.decompose(posprobe.ActivationStore("shifted.h5"))
        result.overall[["V_T", "V_M", "V_R", "share_mask", "share_residual"]]
    """
    inference = dataclasses.replace(inference, **changes)
    layers = range(store.n_layers)
    effects = [channel_effects(store, layer, max_units=MAX_UNITS) for layer in layers]
    if up_to is not None:
        effects = [layer.up_to(up_to) for layer in effects]
        if len(effects[0].positions) < 2:
            raise DesignError(f"no position up to {up_to}; the first is {store.prefixes[0]}")
    variances = gather_variances(effects, inference)
    names = list(range(store.n_layers)), list(range(store.n_heads))
    by_head = variance_table(variances, *names, inference.level)
    by_layer = variance_table(variances.mean((1,)), names[0], ["all"], inference.level)
    for table in (by_head, by_layer):
        table.insert(1, "layer_type", [store.layer_types[layer] for layer in table["layer"]])
    return Decomposition(
        by_head=by_head,
        by_layer=by_layer,
        overall=variance_table(variances.mean((0, 1)), ["all"], ["all"], inference.level),
        positions=_positions(effects, inference),
        variances=variances,
        by_offset=_offsets(store, inference) if by_offset else None,
    )


def _ranges(effects: list[ChannelEffects], early: int) -> dict[str, list[ChannelEffects]]:
    """The effects by range of queries; ranges with no position but the reference are left out."""
    ranges = {
        "early": [layer.up_to(early) for layer in effects],
        "late": [layer.beyond(early) for layer in effects],
        "all": effects,
    }
    return {name: part for name, part in ranges.items() if len(part[0].positions) > 1}


def _offsets(store: ActivationStore, inference: Inference) -> pd.DataFrame:
    """Heads and their mean at each offset, one range of queries after the other."""
    effects = [
        channel_effects(store, layer, same_rows=True, max_units=MAX_UNITS)
        for layer in range(store.n_layers)
    ]
    tables, tested = [], []
    for name, layers in _ranges(effects, early_limit(store)).items():
        each = [layer.by_offset() for layer in layers]
        variances = Variances.side_by_side([gather_variances([layer], inference) for layer in each])
        means = {
            part: np.concatenate([getattr(layer, key)[:, :-1].mean((1, 3)) for layer in each], 1)
            for part, key in EFFECTS.items()
        }
        labels = _cells(layers)
        groups = [(labels, variances, means)]
        for offset in np.unique(labels["offset"]):
            at = (labels["offset"] == offset).to_numpy()
            label = pd.DataFrame([("all", "all", offset)], columns=list(labels))
            over = {part: values[:, at].mean(1, keepdims=True) for part, values in means.items()}
            groups.append((label, variances.heads(at).mean((1,)), over))
        for label, cells, values in groups:
            columns = (
                _mean_effects(values, inference),
                variance_columns(cells, inference.level),
            )
            tables.append(pd.concat([label, *columns], axis=1).assign(positions=name))
        tested.append(variances)
    table = pd.concat(tables, ignore_index=True)
    heads = (table["layer"] != "all").to_numpy()
    for name in ("V_T", "V_R"):
        table.loc[heads, f"{name}_p_adjusted"] = adjusted_p(Variances.side_by_side(tested), name)
    table = table.drop(columns=["V_S", "V_S_low", "V_S_high"])
    return table[["positions", *table.columns.drop("positions")]]


def _cells(layers: list[ChannelEffects]) -> pd.DataFrame:
    """Layer, head and offset of each cell, offsets fastest."""
    rows = [
        (k, head, offset)
        for k, layer in enumerate(layers)
        for head in range(layer.total.shape[2])
        for offset in layer.offsets
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "offset"])


def _mean_effects(effects: dict[str, Array], inference: Inference) -> pd.DataFrame:
    """T, M and R, items x cells, averaged over items, with limits."""
    columns: dict[str, Array] = {}
    for name, values in effects.items():
        n = len(values)
        replicates = inference.weights(n) @ values / n
        low, high = bootstrap_limits(replicates, values.mean(0), n=n, level=inference.level)
        columns |= {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(columns)


def _positions(effects: list[ChannelEffects], inference: Inference) -> pd.DataFrame:
    """Mean effects at each position, layer by layer and over all layers."""
    weights = inference.weights(effects[0].n_items)
    estimates = [layer.profile() for layer in effects]
    replicates = [layer.profile(weights) for layer in effects]
    names = [*range(len(effects)), "all"]
    for profiles in (estimates, replicates):
        profiles.append({k: np.mean([p[k] for p in profiles], axis=0) for k in profiles[0]})
    tables = []
    for name, estimate, replicate in zip(names, estimates, replicates, strict=True):
        table = pd.DataFrame({"layer": name, "position": effects[0].positions})
        for part in estimate:
            low, high = bootstrap_limits(
                replicate[part], estimate[part], n=effects[0].n_items, level=inference.level
            )
            table[part], table[f"{part}_low"], table[f"{part}_high"] = estimate[part], low, high
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
