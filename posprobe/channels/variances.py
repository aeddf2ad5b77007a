"""Variances of position effects, their shares and their intervals, head by head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.channels.effects import ChannelEffects
from posprobe.errors import DesignError
from posprobe.intervals import (
    Array,
    Inference,
    Interval,
    bootstrap_limits,
    fieller_ratio,
    max_t,
    pseudo_values,
)

__all__ = [
    "Variances",
    "adjusted_p",
    "gather_variances",
    "shares",
    "variance_columns",
    "variance_table",
]

VARIANCES = ("V_T", "V_M", "V_R", "C_MR", "V_S")


@dataclass(frozen=True)
class Variances:
    """Variances of position effects with their resampled values, for L layers of H heads.

    Attributes
    ----------
    estimate : dict of str to array of shape (L, H)
        V_T, V_M, V_R, C_MR and V_S, in squared nats.
    bootstrap : dict of str to array of shape (B, L, H)
        The same in each bootstrap sample of items (B of them, or none); one set of weights for all
        layers and heads.
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

    def layers(self, kept: NDArray[np.bool_]) -> Variances:
        """Some of the layers only, (L,)."""
        parts = (self.estimate, self.bootstrap, self.pseudo)
        return Variances(*({k: v[..., kept, :] for k, v in part.items()} for part in parts))

    @classmethod
    def side_by_side(cls, parts: list[Variances]) -> Variances:
        """Variances of the same items, as those of one layer with all their heads."""

        def joined(of: str) -> dict[str, Array]:
            return {k: np.concatenate([getattr(p, of)[k] for p in parts], -1) for k in VARIANCES}

        return cls(joined("estimate"), joined("bootstrap"), joined("pseudo"))


def gather_variances(
    effects: Iterable[ChannelEffects], inference: Inference | None = None
) -> Variances:
    """Estimate, bootstrap and jackknife the variances of all layers with shared weights.

    Parameters
    ----------
    effects : iterable of ChannelEffects
        One per layer, of the same items.
    inference : Inference or None
        Number and seed of the bootstrap samples of items; None: the jackknife alone.

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
            weights = np.empty((0, layer.n_items))
            if inference is not None:
                weights = inference.weights(layer.n_items)
                # a sample that drew one item only has no pair of different items
                weights = weights[(weights > 0).sum(1) > 1]
            leave_one_out = 1.0 - np.eye(layer.n_items)
        estimate = layer.variances()
        resampled, without = layer.variances(weights), layer.variances(leave_one_out)
        for name in VARIANCES:
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
        distinguishable from 0. Below 0 where -C exceeds the channel's own variance. Empty where the
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
    table = pd.concat([pd.DataFrame(labels), variance_columns(variances, level)], axis=1)
    if len(table) > 1:
        for name in ("V_T", "V_R"):
            table[f"{name}_p_adjusted"] = adjusted_p(variances, name)
    return table


def variance_columns(variances: Variances, level: float) -> pd.DataFrame:
    """Variances, shares, their limits, status and relation, one row per cell."""
    columns: dict[str, Array] = {}
    for name in VARIANCES:
        low, high = variances.limits(name, level)
        columns |= {
            name: variances.estimate[name].ravel(),
            f"{name}_low": low.ravel(),
            f"{name}_high": high.ravel(),
        }
    return pd.concat([pd.DataFrame(columns), _described(variances, level)], axis=1)


def adjusted_p(variances: Variances, name: str) -> Array:
    """P-values of all cells by max-T; NaN where a variance is the same whatever is drawn."""
    draws = variances.bootstrap[name].reshape(len(variances.bootstrap[name]), -1)
    varies = np.ptp(draws, axis=0) > 1e-10 * np.abs(draws).max(axis=0)
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
