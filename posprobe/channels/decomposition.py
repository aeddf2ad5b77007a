"""Tables of the two channels of one file, by head, layer, position, offset and range of queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
from posprobe.errors import DesignError, Telling, changed
from posprobe.intervals import Array, Inference, studentized_means
from posprobe.store import ActivationStore, opened

__all__ = ["MAX_UNITS", "Decomposition", "decompose"]

MAX_UNITS = 200
SPLIT = ("V_T", "V_M", "V_R", "C_MR")
EFFECTS = {"T": "total", "M": "mask", "R": "residual"}


@dataclass(frozen=True, repr=False)
class Decomposition(Telling):
    """The result of `decompose`: the position effects of one file, split into two channels.

    Attributes
    ----------
    by_head, by_layer, overall : pandas.DataFrame
        `by_head` has one row for each layer and head, `by_layer` one for each layer (the mean over
        heads), and `overall` a single row (the mean over layers and heads). The columns are V_T,
        V_M, V_R, C_MR and V_S in squared nats, and `share_mask` and `share_residual` without unit,
        all with their `_low` and `_high`. `status` is "ok", or "undefined" if V_T is not
        distinguishable from 0 and shares are left out. `relation` says whether the channels are
        "opposed", "reinforcing" or "not distinguishable". `layer_type` is "full" or "window(W)".
    positions : pandas.DataFrame
        T, M, R and S in nats at each position, with limits: for each layer, and for the mean over
        layers (layer "all").
    variances : Variances
        The estimates and resampled values from which the tables are made.
    by_offset : pandas.DataFrame or None
        One row for each range of queries (`positions`: "early", "late", "all"), layer, head and
        offset, and one for the mean over layers and heads (both "all"). None unless it was
        requested; see `decompose`.
    """

    by_head: pd.DataFrame
    by_layer: pd.DataFrame
    overall: pd.DataFrame
    positions: pd.DataFrame
    variances: Variances
    by_offset: pd.DataFrame | None = None

    def _line(self) -> str:
        row = self.overall.iloc[0]
        sizes = ", ".join(f"{name} {row[name]:.3g}" for name in ("V_T", "V_M", "V_R"))
        return (
            f"{self.variances.n_items} items, {len(self.by_layer)} layers; {sizes} nats^2, "
            f"channels {row['relation']}"
        )

    def _tables(self) -> dict[str, pd.DataFrame]:
        named = ["V_T", "V_M", "V_R", "C_MR", "share_mask", "share_residual"]
        limits = [f"{name}{end}" for name in ("V_M", "V_R") for end in ("", "_low", "_high")]
        return {
            "overall: mean over layers and heads (nats^2; shares without unit)": self.overall[
                [*named, "relation"]
            ],
            "by_layer: mean over heads (nats^2)": self.by_layer[["layer", *limits, "relation"]],
        }


def decompose(
    store: ActivationStore | str | Path,
    *,
    up_to: int | None = None,
    by_offset: bool = False,
    inference: Inference = Inference(),
    **changes: Any,
) -> Decomposition:
    r"""Split the effect of position on attention into mask and residual channel, with intervals.

    The estimand of each variance is the variance over positions of the mean effect in the
    population from which the items of the file were drawn. The unit of resampling is the item: a
    window in the shifted design, a sequence in the others. Limits are those of the studentised
    bootstrap, `posprobe.intervals.studentized_limits`; shares have Fieller's limits, from jackknife
    pseudo-values. To bound memory, neighbouring items are pooled into 200 units if there are more
    than 200 items, and these units are resampled.

    The tables by head, by layer and overall average each variance over offsets, and their shares
    are ratios of these averages. The table by offset gives, with P positions in the range,

    .. math::

        \bar{T_d} = \frac{1}{P - 1} \sum_{p \ne \mathrm{ref}} E_n\, T_{n d}(p), \qquad
        V_{T,d} = \mathrm{Var}_p\, E_n\, T_{n d}(p)

    and likewise for M and R. T is observed; only its division into M and R depends on how the mask
    is shrunk. In this table all offsets are averaged over the same rows of the window, those whose
    key at the largest offset lies in the window. M depends on no score at a fixed offset, so it is
    then the same at all offsets, and offsets differ by their scores alone. The other tables
    average each offset over all rows whose key at that offset lies in the window.

    Parameters
    ----------
    store : ActivationStore, str or Path
        A capture with all scores, or its file.
    up_to : int or None
        Use only positions up to this one, and the reference. By default all positions are used.
    by_offset : bool
        Also build the table by offset and by range of queries: "early" (prefixes up to an eighth
        of the length, and the reference), "late" (the others) and "all". Its columns are T, M and R
        in nats with limits; the variances, shares, `status` and `relation` of the other tables; and
        `V_T_p_adjusted` and `V_R_p_adjusted`, adjusted by max-T over all heads, ranges and offsets
        together (NaN in the rows of means). Limits are not simultaneous.
    inference : Inference
        Level, number of bootstrap samples and seed.
    **changes
        Fields of `inference` to replace, for instance ``level=0.9`` or ``seed=1``.

    Returns
    -------
    Decomposition

    Raises
    ------
    DesignError
        If the file lacks a quantity, has fewer than three items or has no position up to `up_to`,
        or if the scores of its model move with position by themselves.

    Examples
    --------
    ::

        result = posprobe.decompose("shifted.h5")
        result.overall[["V_T", "V_M", "V_R", "share_mask", "share_residual"]]
    """
    inference = changed(inference, changes)
    with opened(store) as own:
        return _decompose(own, up_to, by_offset, inference)


def _decompose(
    store: ActivationStore, up_to: int | None, by_offset: bool, inference: Inference
) -> Decomposition:
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
    """Return the effects by range of queries, for ranges with more than the reference position."""
    ranges = {
        "early": [layer.up_to(early) for layer in effects],
        "late": [layer.beyond(early) for layer in effects],
        "all": effects,
    }
    return {name: part for name, part in ranges.items() if len(part[0].positions) > 1}


def _offsets(store: ActivationStore, inference: Inference) -> pd.DataFrame:
    """Return the table by offset: heads and their mean, one range of queries after the other."""
    effects = [
        channel_effects(store, layer, same_rows=True, max_units=MAX_UNITS)
        for layer in range(store.n_layers)
    ]
    tables: list[pd.DataFrame] = []
    tested: dict[str, list[tuple[Array, Array]]] = {"V_T": [], "V_R": []}
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
                variance_columns(cells, inference.level, SPLIT),
            )
            tables.append(pd.concat([label, *columns], axis=1).assign(positions=name))
        for quantity, parts in tested.items():
            parts.append(variances.flat(quantity))
    table = pd.concat(tables, ignore_index=True)
    heads = (table["layer"] != "all").to_numpy()
    for quantity, parts in tested.items():
        estimates, draws = (np.concatenate(whole, axis=-1) for whole in zip(*parts, strict=True))
        table.loc[heads, f"{quantity}_p_adjusted"] = adjusted_p(
            estimates, draws, effects[0].n_items
        )
    return table[["positions", *table.columns.drop("positions")]]


def _cells(layers: list[ChannelEffects]) -> pd.DataFrame:
    """Return the layer, head and offset of each cell; the offset varies fastest."""
    rows = [
        (k, head, offset)
        for k, layer in enumerate(layers)
        for head in range(layer.total.shape[2])
        for offset in layer.offsets
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "offset"])


def _mean_effects(effects: dict[str, Array], inference: Inference) -> pd.DataFrame:
    """Return the means of T, M and R over items, with limits; each effect is (item, cell)."""
    columns: dict[str, Array] = {}
    for name, values in effects.items():
        low, high = studentized_means(values, inference.weights(len(values)), level=inference.level)
        columns |= {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(columns)


def _positions(effects: list[ChannelEffects], inference: Inference) -> pd.DataFrame:
    """Return the mean effects at each position with limits, by layer and over all layers."""
    parts = EFFECTS | {"S": "sink"}
    names = [*range(len(effects)), "all"]
    each = [{k: getattr(e, v).mean((2, 3)) for k, v in parts.items()} for e in effects]
    each.append({k: np.mean([one[k] for one in each], axis=0) for k in parts})
    tables = []
    for name, values in zip(names, each, strict=True):
        labels = pd.DataFrame({"layer": name, "position": effects[0].positions})
        tables.append(pd.concat([labels, _mean_effects(values, inference)], axis=1))
    return pd.concat(tables, ignore_index=True)
