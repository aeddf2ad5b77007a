"""The two channels of every layer and head: variances, shares and intervals, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.effects import ChannelEffects, channel_effects
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

__all__ = ["Decomposition", "Variances", "decompose", "gather_variances", "shares"]

Array = NDArray[np.float64]
N_RESAMPLES = 1000
QUANTITIES = ("V_T", "V_M", "V_R", "C_MR", "V_S")


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
    """

    by_head: pd.DataFrame
    by_layer: pd.DataFrame
    overall: pd.DataFrame
    positions: pd.DataFrame
    variances: Variances


def decompose(
    store: ActivationStore,
    *,
    up_to: int | None = None,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Decomposition:
    """Split the effect of position on attention into mask and residual channel, with intervals.

    The estimand is the variance over positions of the mean effect, in the population of items from
    which the file's were drawn; the unit of resampling is the item (a window in the shifted design,
    a sequence elsewhere). Limits are cluster bootstrap, estimate plus and minus t times standard
    error; shares have Fieller's limits on jackknife pseudo-values.

    Parameters
    ----------
    store : ActivationStore
    up_to : int or None
        Only positions up to this one, and the reference (early queries).
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
    effects = [channel_effects(store, layer) for layer in range(store.n_layers)]
    if up_to is not None:
        effects = [layer.up_to(up_to) for layer in effects]
        if len(effects[0].positions) < 2:
            raise DesignError(f"no position up to {up_to}; the first is {store.prefixes[0]}")
    variances = gather_variances(effects, n_resamples=n_resamples, seed=seed)
    names = list(range(store.n_layers)), list(range(store.n_heads))
    return Decomposition(
        by_head=_table(variances, *names, level),
        by_layer=_table(variances.mean((1,)), names[0], ["all"], level),
        overall=_table(variances.mean((0, 1)), ["all"], ["all"], level),
        positions=_positions(effects, level, n_resamples, seed),
        variances=variances,
    )


def _table(variances: Variances, layers: list[Any], heads: list[Any], level: float) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "layer": np.repeat(np.asarray(layers, dtype=object), len(heads)),
        "head": np.tile(np.asarray(heads, dtype=object), len(layers)),
    }
    for name in QUANTITIES:
        low, high = variances.limits(name, level)
        columns |= {
            name: variances.estimate[name].ravel(),
            f"{name}_low": low.ravel(),
            f"{name}_high": high.ravel(),
        }
    table = pd.DataFrame(columns)
    if len(table) > 1:
        for name in ("V_T", "V_R"):
            table[f"{name}_p_adjusted"] = _adjusted_p(variances, name)
    cells = [(row, head) for row in range(len(layers)) for head in range(len(heads))]
    described = [_describe(variances, *cell, level) for cell in cells]
    return pd.concat([table, pd.DataFrame(described)], axis=1)


def _adjusted_p(variances: Variances, name: str) -> Array:
    """P-values of all cells by max-T; NaN where a variance is exactly 0 whatever is drawn."""
    draws = variances.bootstrap[name].reshape(len(variances.bootstrap[name]), -1)
    varies = np.ptp(draws, axis=0) > 0
    p_values = np.full(len(varies), np.nan)
    if varies.any():
        estimate = variances.estimate[name].ravel()[varies]
        p_values[varies] = max_t(estimate, draws[:, varies], n=variances.n_items).p_value
    return p_values


def _describe(variances: Variances, layer: int, head: int, level: float) -> dict[str, Any]:
    """Shares, their status, and the relation of the channels in words."""
    parts = shares(variances, layer, head, level)
    defined = bool(parts) and not any(interval.unbounded for interval in parts.values())
    row: dict[str, Any] = {"status": "ok" if defined else "undefined"}
    for name in ("mask", "residual"):
        keys = (f"share_{name}", f"share_{name}_low", f"share_{name}_high")
        part = parts[name] if defined else None
        bounds = (part.estimate, part.low, part.high) if part else (np.nan,) * 3
        row |= dict(zip(keys, bounds, strict=True))
    low, high = (limit[layer, head] for limit in variances.limits("C_MR", level))
    row["relation"] = "opposed" if high < 0 else "reinforcing" if low > 0 else "not distinguishable"
    return row


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
