"""Variances of position effects and their shares, with intervals, for every head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.channels.effects import ChannelEffects
from posprobe.errors import DesignError, Telling
from posprobe.intervals import (
    STUDENTIZED,
    Array,
    Inference,
    Interval,
    fieller_limits,
    fieller_ratio,
    max_t,
    pseudo_values,
    studentized_limits,
    studentized_p,
)

__all__ = [
    "Variances",
    "adjusted_p",
    "check_items",
    "gather_variances",
    "paired_weights",
    "resampled",
    "shares",
    "variance_columns",
    "variance_table",
]

VARIANCES = ("V_T", "V_M", "V_R", "C_MR", "V_S")
BLOCK = 2**20  # numbers in one block of resampled sums
ROUNDING = 1e-13


@dataclass(frozen=True, repr=False)
class Variances(Telling):
    r"""Variances of position effects and what their intervals need, for L layers of H heads.

    Every variance, and every mean or difference of variances, is a mean over pairs of different
    items, so the products of all pairs give the estimate, its value in any bootstrap sample, and
    the standard error there. With :math:`k_{nm}` the product of items n and m, 0 for n = m, and
    weights :math:`w` that sum to N,

    .. math::

        V(w) = \frac{\sum_{nm} w_n w_m k_{nm}}{N^2 - \sum_n w_n^2}, \qquad
        se(w)^2 = \frac{N (N - 1)}{(N - 2)^2} \sum_n w_n
            \left(\frac{2 (\sum_m k_{nm} w_m - V (N - w_n))}{N^2 - \sum_n w_n^2}\right)^2 .

    With all weights 1, :math:`se` is the standard error of the jackknife.

    Attributes
    ----------
    products : dict of str to ndarray of shape (L, H, N, N)
        For V_T, V_M, V_R, C_MR and V_S: the covariance over positions of the effects of each pair
        of items, averaged over offsets, in squared nats. The diagonal is 0.
    weights : ndarray of shape (B, N)
        Bootstrap samples of items, the same for all layers and heads. B is 0 if no bootstrap was
        asked for.
    """

    products: dict[str, Array]
    weights: Array

    def _line(self) -> str:
        layers, heads = next(iter(self.products.values())).shape[:2]
        return (
            f"{', '.join(self.products)} (nats^2) of {self.n_items} items, {layers} layers of "
            f"{heads} heads, {len(self.weights)} bootstrap samples"
        )

    @property
    def n_items(self) -> int:
        """The number N of resampling units."""
        return self.weights.shape[1]

    @cached_property
    def _kept(self) -> dict[str, tuple[Array, Array]]:
        return {}

    @cached_property
    def estimate(self) -> dict[str, Array]:
        """The estimates: by name, ndarray of shape (L, H)."""
        pairs = self.n_items * (self.n_items - 1)
        return {name: k.sum((-1, -2)) / pairs for name, k in self.products.items()}

    @cached_property
    def pseudo(self) -> dict[str, Array]:
        """Jackknife pseudo-values of each item: by name, ndarray of shape (N, L, H)."""
        pairs = (self.n_items - 1) * (self.n_items - 2)
        return {
            name: pseudo_values(
                self.estimate[name],
                np.moveaxis(k.sum((-1, -2), keepdims=True)[..., 0] - 2 * k.sum(-1), -1, 0) / pairs,
            )
            for name, k in self.products.items()
        }

    def replicates(self, name: str) -> tuple[Array, Array]:
        """Estimate one variance and its standard error in each bootstrap sample, once.

        Parameters
        ----------
        name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
            The variance.

        Returns
        -------
        draws, errors : ndarray of shape (B, L, H)
            In squared nats.
        """
        if name in self._kept:
            return self._kept[name]
        products = self.products[name]
        cells, which = _distinct(products.reshape(-1, *products.shape[-2:]))
        draws, errors = np.empty((2, len(self.weights), len(cells)))
        size = max(1, BLOCK // max(1, self.weights.size))
        for at in range(0, len(cells), size):
            part = np.s_[:, at : at + size]
            draws[part], errors[part] = resampled(cells[at : at + size], self.weights)
        shape = (-1, *products.shape[:2])
        self._kept[name] = draws[:, which].reshape(shape), errors[:, which].reshape(shape)
        return self._kept[name]

    def flat(self, name: str) -> tuple[Array, Array]:
        """Return the estimate and the bootstrap draws of a variance: (L H,), (B, L H)."""
        draws = self.replicates(name)[0]
        return self.estimate[name].ravel(), draws.reshape(len(draws), -1)

    def limits(self, name: str, level: float) -> tuple[Array, Array]:
        """Compute the limits of the studentised bootstrap of one variance.

        Parameters
        ----------
        name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
            The variance.
        level : float
            Nominal coverage.

        Returns
        -------
        low, high : ndarray of shape (L, H)
            In squared nats; see `posprobe.intervals.studentized_limits`.
        """
        return studentized_limits(
            *self.replicates(name),
            self.estimate[name],
            self._error(name),
            n=self.n_items,
            level=level,
        )

    def _error(self, name: str) -> Array:
        return np.asarray(self.pseudo[name].std(0, ddof=1) / np.sqrt(self.n_items))

    def interval(self, name: str, level: float, estimand: str = "") -> Interval:
        """Compute the interval of one variance of a single cell, by `limits`.

        Parameters
        ----------
        name : {"V_T", "V_M", "V_R", "C_MR", "V_S"}
            The variance.
        level : float
            Nominal coverage.
        estimand : str
            What is estimated; by default `name`.

        Returns
        -------
        Interval
            In squared nats.
        """
        low, high = (float(limit.item()) for limit in self.limits(name, level))
        row = {name: self.estimate[name].item(), "low": low, "high": high}
        found = Interval.of_row(
            row, name, level=level, method=STUDENTIZED, n=self.n_items, estimand=estimand
        )
        draws, errors = (values.ravel() for values in self.replicates(name))
        return dataclasses.replace(
            found,
            test=partial(
                studentized_p,
                replicates=draws,
                errors=errors,
                estimate=found.estimate,
                error=self._error(name).item(),
                n=self.n_items,
            ),
        )

    def mean(self, axis: tuple[int, ...]) -> Variances:
        """Average over layers (0) and/or heads (1); averaged axes keep size 1."""
        return self._with(lambda k: k.mean(axis, keepdims=True))

    def heads(self, kept: NDArray[np.bool_]) -> Variances:
        """Keep the heads where the mask `kept` of shape (H,) is True."""
        return self._with(lambda k: k[:, kept])

    def layers(self, kept: NDArray[np.bool_]) -> Variances:
        """Keep the layers where the mask `kept` of shape (L,) is True."""
        return self._with(lambda k: k[kept])

    def less(self, other: Variances) -> Variances:
        """Subtract the variances of the same items under another condition."""
        return Variances({k: v - other.products[k] for k, v in self.products.items()}, self.weights)

    @classmethod
    def side_by_side(cls, parts: list[Variances]) -> Variances:
        """Concatenate variances of the same items along the axis of heads."""
        products = {k: np.concatenate([p.products[k] for p in parts], 1) for k in VARIANCES}
        return cls(products, parts[0].weights)

    def _with(self, change: Callable[[Array], Array]) -> Variances:
        return Variances({k: change(v) for k, v in self.products.items()}, self.weights)


def _distinct(cells: Array) -> tuple[Array, NDArray[np.intp]]:
    """Return cells that differ from the one before, and which of them each cell is.

    The mask effect is the same at all offsets that are averaged over the same rows.
    """
    new = np.ones(len(cells), dtype=bool)
    new[1:] = (cells[1:] != cells[:-1]).any((1, 2))
    return cells[new], np.cumsum(new) - 1


def resampled(products: Array, weights: Array) -> tuple[Array, Array]:
    """Compute a variance and its standard error in samples of items, by the equations above.

    Parameters
    ----------
    products : ndarray of shape (cells, N, N)
        Products of pairs of items, with 0 on the diagonal.
    weights : ndarray of shape (B, N)
        How often each item is in each sample. All samples have the same number of items, not
        necessarily N, and at least two that differ.

    Returns
    -------
    value, error : ndarray of shape (B, cells)
        In squared nats.
    """
    n = weights[:1].sum()
    pairs = n**2 - (weights**2).sum(1)
    near = weights @ products  # (cells, B, N): sum_m w_m k_nm
    total = np.einsum("cbn,bn->cb", near, weights)
    squared_weights = np.einsum("cbn,bn->cb", near, weights**2)
    squares = np.einsum("cbn,bn->cb", np.square(near, out=near), weights)
    value = total / pairs
    own = (weights * (n - weights) ** 2).sum(1)
    spread = squares - 2 * value * (n * total - squared_weights) + value**2 * own
    spread[spread <= ROUNDING * squares] = 0  # what rounding leaves of items that are all alike
    return value.T, (2 * np.sqrt(n * (n - 1) * spread) / ((n - 2) * pairs)).T


def gather_variances(
    effects: Iterable[ChannelEffects], inference: Inference | None = None
) -> Variances:
    """Multiply the effects of all pairs of items, for all layers with the same weights.

    Parameters
    ----------
    effects : iterable of ChannelEffects
        The effects of each layer, for the same items.
    inference : Inference or None
        Number and seed of the bootstrap samples of items. If None, there are no such samples, and
        only what rests on the jackknife can be asked for.

    Returns
    -------
    Variances
        Its products take 40 L H N^2 bytes.

    Raises
    ------
    DesignError
        If there are fewer than three items: the jackknife leaves one out, and the variances need
        two.
    """
    parts: dict[str, list[Array]] = {name: [] for name in VARIANCES}
    n = 0
    for layer in effects:
        n = layer.n_items
        check_items(n)
        for name, products in layer.products().items():
            parts[name].append(products)
    weights = np.empty((0, n)) if inference is None else paired_weights(inference, n)
    return Variances({name: np.stack(each) for name, each in parts.items()}, weights)


def check_items(n: int) -> None:
    """Refuse too few items: the jackknife leaves one out, and the variances need two."""
    if n < 3:
        raise DesignError(
            f"intervals of position effects need at least 3 items, not {n}; capture with a larger "
            "--n"
        )


def paired_weights(inference: Inference, n: int) -> Array:
    """Return those bootstrap samples of n items that have a pair of different items."""
    weights = inference.weights(n)
    return weights[(weights > 0).sum(1) > 1]


def shares(variances: Variances, layer: int, head: int, level: float) -> dict[str, Interval]:
    r"""Estimate the shares of the two channels in V_T, with Fieller's intervals.

    .. math:: \mathrm{mask} = (V_M + C_{MR}) / V_T, \qquad \mathrm{residual} = (V_R + C_{MR}) / V_T

    The two shares add to 1. A share is negative if :math:`-C_{MR}` exceeds the channel's own
    variance.

    Parameters
    ----------
    variances : Variances
        The variances.
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
        The variances, with bootstrap samples.
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
            table[f"{name}_p_adjusted"] = adjusted_p(*variances.flat(name), variances.n_items)
    return table


def variance_columns(
    variances: Variances, level: float, names: tuple[str, ...] = VARIANCES
) -> pd.DataFrame:
    """Return variances, shares, their limits, status and relation, one row for each cell."""
    columns: dict[str, Array] = {}
    for name in names:
        low, high = variances.limits(name, level)
        columns |= {
            name: variances.estimate[name].ravel(),
            f"{name}_low": low.ravel(),
            f"{name}_high": high.ravel(),
        }
    table = pd.DataFrame(columns)
    return pd.concat([table, _described(variances, table, level)], axis=1)


def adjusted_p(estimates: Array, draws: Array, n: int) -> Array:
    """Return max-T p-values of cells, NaN where a variance is the same in all replicates.

    Parameters
    ----------
    estimates, draws : ndarray of shape (cells,), (B, cells)
        A variance, in the data and in bootstrap samples that are the same for all cells.
    n : int
        Number of items.
    """
    varies = np.ptp(draws, axis=0) > 1e-10 * np.abs(draws).max(axis=0)
    p_values = np.full(len(varies), np.nan)
    if varies.any():
        p_values[varies] = max_t(estimates[varies], draws[:, varies], n=n).p_value
    return p_values


def _described(variances: Variances, table: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return the shares, their status and the relation of the channels, one row for each cell."""
    psi = {name: each.reshape(len(each), -1) for name, each in variances.pseudo.items()}
    whole, both = psi["V_T"], psi["C_MR"]
    columns: dict[str, Array] = {}
    defined = variances.estimate["V_T"].ravel() > 0
    for name, own in (("mask", psi["V_M"]), ("residual", psi["V_R"])):
        with np.errstate(divide="ignore", invalid="ignore"):  # a V_T of exactly 0
            low, high = fieller_limits(whole, own + both, level=level)
            share = (own + both).mean(0) / whole.mean(0)
        columns |= {f"share_{name}": share, f"share_{name}_low": low, f"share_{name}_high": high}
        defined &= ~np.isnan(low)
    found = pd.DataFrame(columns).where(pd.Series(defined))
    found.insert(0, "status", np.where(defined, "ok", "undefined"))
    reinforcing = np.where(table["C_MR_low"] > 0, "reinforcing", "not distinguishable")
    found["relation"] = np.where(table["C_MR_high"] < 0, "opposed", reinforcing)
    return found
