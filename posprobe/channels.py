"""The two channels of every layer and head: variances, shares and intervals, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.effects import ChannelEffects, channel_effects, early_limit
from posprobe.errors import DesignError
from posprobe.intervals import (
    Interval,
    bootstrap_limits,
    cluster_weights,
    fieller_ratio,
    max_t,
    pseudo_values,
)
from posprobe.store import ActivationStore

__all__ = [
    "Decomposition",
    "Variances",
    "decompose",
    "gather_variances",
    "shares",
    "variance_table",
]

Array = NDArray[np.float64]
N_RESAMPLES = 1000
MAX_UNITS = 200
QUANTITIES = ("V_T", "V_M", "V_R", "C_MR", "V_S")
EFFECTS = {"T": "total", "M": "mask", "R": "residual"}


@dataclass(frozen=True)
class Variances:
    """Variances of position effects with their resampled values, for L layers of H heads.

    Attributes
    ----------
    estimate : dict of str to array of shape (L, H)
        V_T, V_M, V_R, C_MR and V_S, in squared nats.
    bootstrap : dict of str to array of shape (B, L, H)
        The same in each bootstrap sample of items; one set of weights for all layers and heads.
    pseudo : dict of str to array of shape (N, L, H)
        Jackknife pseudo-values, item by item.
    """

    estimate: dict[str, Array]
    bootstrap: dict[str, Array]
    pseudo: dict[str, Array]

    @property
    def n_items(self) -> int:
        """N, the number of resampling units."""
        return len(self.pseudo["V_T"])

    def limits(self, name: str, level: float) -> tuple[Array, Array]:
        """Bootstrap limits of one quantity for every layer and head: two arrays (L, H)."""
        return bootstrap_limits(
            self.bootstrap[name], self.estimate[name], n=self.n_items, level=level
        )

    def mean(self, axis: tuple[int, ...]) -> Variances:
        """Average over layers (0) and heads (1), with size 1 left in their place."""

        def average(parts: dict[str, Array], ahead: int) -> dict[str, Array]:
            over = tuple(a + ahead for a in axis)
            return {k: v.mean(over, keepdims=True) for k, v in parts.items()}

        return Variances(
            average(self.estimate, 0), average(self.bootstrap, 1), average(self.pseudo, 1)
        )

    def heads(self, kept: NDArray[np.bool_]) -> Variances:
        """Some of the heads only, (H,)."""
        parts = (self.estimate, self.bootstrap, self.pseudo)
        return Variances(*({k: v[..., kept] for k, v in part.items()} for part in parts))


def gather_variances(
    effects: Iterable[ChannelEffects], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Variances:
    """Estimate, bootstrap and jackknife the variances of all layers with shared weights.

    Parameters
    ----------
    effects : iterable of ChannelEffects
        One per layer, of the same items.
    n_resamples, seed : int
        Bootstrap samples of items.

    Raises
    ------
    DesignError
        With fewer than three items: without one of them, pairs must be left.
    """
    parts: dict[str, dict[str, list[Array]]] = {}
    weights = leave_one_out = None
    for layer in effects:
        if weights is None:
            if layer.n_items < 3:
                raise DesignError(
                    f"intervals of position effects need at least 3 items, not {layer.n_items}; "
                    "capture with a larger --n"
                )
            weights = cluster_weights(layer.n_items, n_resamples, seed).astype(float)
            # a sample that drew one item only has no pair of different items
            weights = weights[(weights > 0).sum(1) > 1]
            leave_one_out = 1.0 - np.eye(layer.n_items)
        estimate = layer.variances()
        resampled, without = layer.variances(weights), layer.variances(leave_one_out)
        for name in QUANTITIES:
            into = parts.setdefault(name, {"estimate": [], "bootstrap": [], "pseudo": []})
            into["estimate"].append(estimate[name])
            into["bootstrap"].append(resampled[name])
            into["pseudo"].append(pseudo_values(estimate[name], without[name]))
    return Variances(
        {k: np.stack(v["estimate"]) for k, v in parts.items()},
        {k: np.stack(v["bootstrap"], 1) for k, v in parts.items()},
        {k: np.stack(v["pseudo"], 1) for k, v in parts.items()},
    )


def shares(variances: Variances, layer: int, head: int, level: float) -> dict[str, Interval]:
    """Shares of the mask and the residual channel in V_T, which add to 1, by Fieller's method.

    Returns
    -------
    dict of str to Interval
        `mask`: (V_M + C)/V_T, `residual`: (V_R + C)/V_T; unbounded where V_T is not
        distinguishable from 0. Below 0 where the channels oppose each other. Empty where the
        estimate of V_T is not above 0: noise may put it even significantly below.
    """
    if variances.estimate["V_T"][layer, head] <= 0:
        return {}
    psi = {name: values[:, layer, head] for name, values in variances.pseudo.items()}
    parts = {"mask": psi["V_M"] + psi["C_MR"], "residual": psi["V_R"] + psi["C_MR"]}
    return {
        name: fieller_ratio(
            psi["V_T"], part, quantity="ratio", level=level, estimand=f"share of the {name} channel"
        )
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class Decomposition:
    """Where the position effects of one file come from.

    Attributes
    ----------
    by_head, by_layer, overall : pandas.DataFrame
        One row per layer and head, per layer (mean over heads), and one for the mean over all.
        Columns: V_T, V_M, V_R, C_MR, V_S with `_low` and `_high`; `share_mask`, `share_residual`
        with their limits; `status` ("ok", or "undefined" where V_T is not distinguishable from 0,
        and no share is given); `relation` of the channels. Squared nats.
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
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
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
    those whose key at the largest offset is inside it: M holds no score at an offset, so that it is
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
    level : float
    n_resamples, seed : int

    Returns
    -------
    Decomposition

    Raises
    ------
    DesignError
        If the file lacks a quantity, or has fewer than two items.

    Examples
    --------
    ::

        result = posprobe.decompose(posprobe.ActivationStore("shifted.h5"))
        result.overall[["V_T", "V_M", "V_R", "share_mask", "share_residual"]]
    """
    layers = range(store.n_layers)
    effects = [channel_effects(store, layer, max_units=MAX_UNITS) for layer in layers]
    if up_to is not None:
        effects = [layer.up_to(up_to) for layer in effects]
        if len(effects[0].positions) < 2:
            raise DesignError(f"no position up to {up_to}; the first is {store.prefixes[0]}")
    variances = gather_variances(effects, n_resamples=n_resamples, seed=seed)
    names = list(range(store.n_layers)), list(range(store.n_heads))
    return Decomposition(
        by_head=variance_table(variances, *names, level),
        by_layer=variance_table(variances.mean((1,)), names[0], ["all"], level),
        overall=variance_table(variances.mean((0, 1)), ["all"], ["all"], level),
        positions=_positions(effects, level, n_resamples, seed),
        variances=variances,
        by_offset=_offsets(store, level, n_resamples, seed) if by_offset else None,
    )


def variance_table(
    variances: Variances, layers: list[Any], heads: list[Any], level: float
) -> pd.DataFrame:
    """Variances, shares and their limits, one row per cell; columns as in `Decomposition`.

    Parameters
    ----------
    variances : Variances
    layers, heads : list
        Names of the cells along both axes.
    level : float

    Returns
    -------
    pandas.DataFrame
    """
    labels = {
        "layer": np.repeat(np.asarray(layers, dtype=object), len(heads)),
        "head": np.tile(np.asarray(heads, dtype=object), len(layers)),
    }
    table = pd.DataFrame(labels | _estimates(variances, level))
    if len(table) > 1:
        for name in ("V_T", "V_R"):
            table[f"{name}_p_adjusted"] = _adjusted_p(variances, name)
    return pd.concat([table, _described(variances, level)], axis=1)


def _estimates(variances: Variances, level: float) -> dict[str, Array]:
    """Every variance and its limits, cell by cell."""
    columns: dict[str, Array] = {}
    for name in QUANTITIES:
        low, high = variances.limits(name, level)
        columns |= {
            name: variances.estimate[name].ravel(),
            f"{name}_low": low.ravel(),
            f"{name}_high": high.ravel(),
        }
    return columns


def _adjusted_p(variances: Variances, name: str) -> Array:
    """P-values of all cells by max-T; NaN where a variance is exactly 0 whatever is drawn."""
    draws = variances.bootstrap[name].reshape(len(variances.bootstrap[name]), -1)
    varies = np.ptp(draws, axis=0) > 0
    p_values = np.full(len(varies), np.nan)
    if varies.any():
        estimate = variances.estimate[name].ravel()[varies]
        p_values[varies] = max_t(estimate, draws[:, varies], n=variances.n_items).p_value
    return p_values


def _described(variances: Variances, level: float) -> pd.DataFrame:
    """Shares, their status, and the relation of the channels in words, cell by cell."""
    rows = []
    low, high = variances.limits("C_MR", level)
    for layer, head in np.ndindex(low.shape):
        parts = shares(variances, layer, head, level)
        defined = bool(parts) and not any(interval.unbounded for interval in parts.values())
        row: dict[str, Any] = {"status": "ok" if defined else "undefined"}
        for name in ("mask", "residual"):
            keys = (f"share_{name}", f"share_{name}_low", f"share_{name}_high")
            part = parts[name] if defined else None
            bounds = (part.estimate, part.low, part.high) if part else (np.nan,) * 3
            row |= dict(zip(keys, bounds, strict=True))
        opposed, reinforcing = high[layer, head] < 0, low[layer, head] > 0
        word = "reinforcing" if reinforcing else "not distinguishable"
        rows.append(row | {"relation": "opposed" if opposed else word})
    return pd.DataFrame(rows)


def _ranges(effects: list[ChannelEffects], early: int) -> dict[str, list[ChannelEffects]]:
    """The effects by range of queries; ranges without a position beside the reference are left."""
    ranges = {
        "early": [layer.up_to(early) for layer in effects],
        "late": [layer.beyond(early) for layer in effects],
        "all": effects,
    }
    return {name: part for name, part in ranges.items() if len(part[0].positions) > 1}


def _offsets(store: ActivationStore, level: float, n_resamples: int, seed: int) -> pd.DataFrame:
    """Heads and their mean at each offset, one range of queries after the other."""
    effects = [
        channel_effects(store, layer, same_rows=True, max_units=MAX_UNITS)
        for layer in range(store.n_layers)
    ]
    tables, tested = [], []
    for name, layers in _ranges(effects, early_limit(store)).items():
        each = [layer.by_offset() for layer in layers]
        parts = [gather_variances([layer], n_resamples=n_resamples, seed=seed) for layer in each]
        cells = _side_by_side(parts)
        offsets = np.concatenate([np.tile(x.offsets, x.total.shape[2]) for x in layers])
        head_counts = [(k, x.total.shape[2], len(x.offsets)) for k, x in enumerate(layers)]
        labels = pd.DataFrame(
            [
                (k, head)
                for k, heads, count in head_counts
                for head in np.repeat(range(heads), count)
            ],
            columns=["layer", "head"],
        ).assign(offset=offsets)
        means = {
            part: np.concatenate([getattr(x, key)[:, :-1].mean((1, 3)) for x in each], 1)
            for part, key in EFFECTS.items()
        }
        groups = [(labels, cells, means)]
        for offset in np.unique(offsets):
            at = offsets == offset
            label = pd.DataFrame([("all", "all", offset)], columns=list(labels))
            over = {k: v[:, at].mean(1, keepdims=True) for k, v in means.items()}
            groups.append((label, cells.heads(at).mean((1,)), over))
        tested.append(cells)
        for label, variances, values in groups:
            columns = _mean_effects(values, level, n_resamples, seed)
            columns |= _estimates(variances, level)
            described = _described(variances, level)
            tables.append(
                pd.concat([label, pd.DataFrame(columns), described], axis=1).assign(positions=name)
            )
    table = pd.concat(tables, ignore_index=True)
    heads = (table["layer"] != "all").to_numpy()
    for name in ("V_T", "V_R"):
        table.loc[heads, f"{name}_p_adjusted"] = _adjusted_p(_side_by_side(tested), name)
    return table[["positions", *(name for name in table if name != "positions")]].drop(
        columns=["V_S", "V_S_low", "V_S_high"]
    )


def _side_by_side(parts: list[Variances]) -> Variances:
    """Variances of the same items as those of one layer."""

    def joined(of: str) -> dict[str, Array]:
        return {k: np.concatenate([getattr(p, of)[k] for p in parts], -1) for k in QUANTITIES}

    return Variances(joined("estimate"), joined("bootstrap"), joined("pseudo"))


def _mean_effects(
    effects: dict[str, Array], level: float, n_resamples: int, seed: int
) -> dict[str, Array]:
    """T, M and R, items x cells, averaged over items, with limits."""
    columns: dict[str, Array] = {}
    for name, values in effects.items():
        n = len(values)
        replicates = cluster_weights(n, n_resamples, seed) @ values / n
        low, high = bootstrap_limits(replicates, values.mean(0), n=n, level=level)
        columns |= {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
    return columns


def _positions(
    effects: list[ChannelEffects], level: float, n_resamples: int, seed: int
) -> pd.DataFrame:
    """Mean effects at each position, layer by layer and over all layers."""
    weights = cluster_weights(effects[0].n_items, n_resamples, seed).astype(float)
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
                replicate[part], estimate[part], n=effects[0].n_items, level=level
            )
            table[part], table[f"{part}_low"], table[f"{part}_high"] = estimate[part], low, high
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
