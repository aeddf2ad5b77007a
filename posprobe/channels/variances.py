"""Variances of position effects and their shares, with intervals, for every head."""

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
    """Variances of position effects and their resampled values, for L layers of H heads.

    The keys of each dictionary are V_T, V_M, V_R, C_MR and V_S; values are in squared nats.

    Attributes
    ----------
    estimate : dict of str to ndarray of shape (L, H)
        The estimates.
    bootstrap : dict of str to ndarray of shape (B, L, H)
        The estimates in B bootstrap samples of items, with the same weights for all layers and
        heads. B is 0 if no bootstrap was asked for.
    pseudo : dict of str to ndarray of shape (N, L, H)
        Jackknife pseudo-values, one for each of N items.
    """

    estimate: dict[str, Array]
    bootstrap: dict[str, Array]
    pseudo: dict[str, Array]

    @property
    def n_items(self) -> int:
        """The number N of resampling units."""
        return len(self.pseudo["V_T"])

    def limits(self, name: str, level: float) -> tuple[Array, Array]:
        """Compute bootstrap t limits of one variance.

        Parameters
        ----------
        name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
            The variance.
        level : float
            Nominal coverage.

        Returns
        -------
        low, high : ndarray of shape (L, H)
            In squared nats.
        """
        return bootstrap_limits(
            self.bootstrap[name], self.estimate[name], n=self.n_items, level=level
        )

    def mean(self, axis: tuple[int, ...]) -> Variances:
        """Average over layers (0) and/or heads (1); averaged axes keep size 1."""

        def average(parts: dict[str, Array], ahead: int) -> dict[str, Array]:
            over = tuple(a + ahead for a in axis)
            return {k: v.mean(over, keepdims=True) for k, v in parts.items()}

        return Variances(
            average(self.estimate, 0), average(self.bootstrap, 1), average(self.pseudo, 1)
        )

    def heads(self, kept: NDArray[np.bool_]) -> Variances:
        """Keep the heads where the mask `kept` of shape (H,) is True."""
        parts = (self.estimate, self.bootstrap, self.pseudo)
        return Variances(*({k: v[..., kept] for k, v in part.items()} for part in parts))

    def layers(self, kept: NDArray[np.bool_]) -> Variances:
        """Keep the layers where the mask `kept` of shape (L,) is True."""
        parts = (self.estimate, self.bootstrap, self.pseudo)
        return Variances(*({k: v[..., kept, :] for k, v in part.items()} for part in parts))

    @classmethod
    def side_by_side(cls, parts: list[Variances]) -> Variances:
        """Concatenate variances of the same items along the axis of heads."""

        def joined(of: str) -> dict[str, Array]:
            return {k: np.concatenate([getattr(p, of)[k] for p in parts], -1) for k in VARIANCES}

        return cls(joined("estimate"), joined("bootstrap"), joined("pseudo"))


def gather_variances(
    effects: Iterable[ChannelEffects], inference: Inference | None = None
) -> Variances:
    """Estimate, bootstrap and jackknife the variances of all layers with the same weights.

    Parameters
    ----------
    effects : iterable of ChannelEffects
        The effects of each layer, for the same items.
    inference : Inference or None
        Number and seed of the bootstrap samples of items. If None, only the jackknife is run.

    Returns
    -------
    Variances

    Raises
    ------
    DesignError
        If there are fewer than three items: the jackknife leaves one out, and the variances need
        two.
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
                # A sample in which all draws are the same item has no pair of different items.
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
    r"""Estimate the shares of the two channels in V_T, with Fieller's intervals.

    .. math:: \mathrm{mask} = (V_M + C_{MR}) / V_T, \qquad \mathrm{residual} = (V_R + C_{MR}) / V_T

    The two shares add to 1. A share is negative if :math:`-C_{MR}` exceeds the channel's own
    variance.

    Parameters
    ----------
    variances : Variances
        The variances, with jackknife pseudo-values.
    layer, head : int
        Indices of one cell.
    level : float
        Nominal coverage.

    Returns
    -------
    dict of str to Interval
        The shares "mask" and "residual", without unit. They are unbounded if V_T is not
        distinguishable from 0. The dictionary is empty if the estimate of V_T is 0 or below, which
        noise can cause.
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
    """Tabulate variances and shares with their limits.

    Parameters
    ----------
    variances : Variances
        The variances, with bootstrap replicates and pseudo-values.
    layers, heads : list
        Names of the L layers and H heads.
    level : float
        Nominal coverage.

    Returns
    -------
    pandas.DataFrame
        One row for each layer and head, with the columns of `Decomposition.by_head` except
        `layer_type`. If there are several rows, the p-values of V_T and V_R are adjusted by max-T.
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
    """Return variances, shares, their limits, status and relation, one row for each cell."""
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
    """Return max-T p-values of all cells, NaN where a variance is the same in all replicates."""
    draws = variances.bootstrap[name].reshape(len(variances.bootstrap[name]), -1)
    varies = np.ptp(draws, axis=0) > 1e-10 * np.abs(draws).max(axis=0)
    p_values = np.full(len(varies), np.nan)
    if varies.any():
        estimate = variances.estimate[name].ravel()[varies]
        p_values[varies] = max_t(estimate, draws[:, varies], n=variances.n_items).p_value
    return p_values


def _described(variances: Variances, level: float) -> pd.DataFrame:
    """Return the shares, their status and the relation of the channels, one row for each cell."""
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
