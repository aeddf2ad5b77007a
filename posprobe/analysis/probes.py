"""Tables of position probes and variance partitions, for every layer of a stored file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from posprobe.channels import MAX_UNITS
from posprobe.errors import DesignError
from posprobe.intervals import Array, Inference, Interval, in_processes
from posprobe.probes import (
    Block,
    ClusterGram,
    Estimand,
    VariancePartition,
    feature_blocks,
    features,
    guess_error,
    replicate_interval,
)
from posprobe.store import ActivationStore

__all__ = ["REFIT_LAYERS", "Probes", "probe_layers", "spread_layers"]

REFIT_LAYERS = 5
FIXED: Estimand = "fixed_probe"


def spread_layers(n_layers: int, count: int) -> list[int]:
    """Return `count` layers, spread evenly from the first to the last."""
    return sorted({int(x) for x in np.linspace(0, n_layers - 1, count).round()})


class Probes(NamedTuple):
    """Probes and partitions of every layer.

    Attributes
    ----------
    probes : pandas.DataFrame
        layer, features, n_features, r2, low, high, estimand, method, mae and mae_guess (mean
        absolute errors of the probe and of a constant guess, in tokens), n (units).
    partition : pandas.DataFrame
        layer, quantity, group, estimate, low, high (parts of R2), estimand, method, n_features, n.
    mean : dict of str to Interval
        Mean R2 over layers of the probes as fitted, by features.
    layer_0 : dict of str to Interval
        R2 of those of layer 0, by features; empty where that layer is not probed.
    """

    probes: pd.DataFrame
    partition: pd.DataFrame
    mean: dict[str, Interval]
    layer_0: dict[str, Interval]


def probe_layers(
    store: ActivationStore,
    *,
    layers: Iterable[int] | None = None,
    refit_layers: Iterable[int] | None = None,
    inference: Inference = Inference(),
) -> Probes:
    """Probe position from normalizers (N), residual stream (R) and both (J), layer by layer.

    The probes are ridge regressions with folds by sequence; position 0 is left out. Every layer
    gets an interval of the R2 of the probe as fitted (`fixed_probe`). The layers in `refit_layers`
    also get one of the mean R2 of probes fitted to this number of sequences (`refit`), which costs
    a hundred times as much.

    To bound memory, neighbouring sequences are pooled into 200 units if there are more than 200.
    Folds and bootstrap then treat each unit as a whole.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design with normalizers and residual stream.
    layers : iterable of int or None
        Layers to probe; by default all whose residual stream was kept.
    refit_layers : iterable of int or None
        Layers with a `refit` interval; by default five, spread evenly.
    inference : Inference
        Level, numbers of bootstrap samples, seed and number of processes.

    Returns
    -------
    Probes

    Raises
    ------
    DesignError
        If the file has fewer than five sequences, which is the number of folds, or if it keeps the
        residual stream of no requested layer.
    """
    if store.n_items < 5:
        raise DesignError(
            f"{store.path.name} has {store.n_items} sequences; probes need 5 folds, "
            "so capture with a larger --n"
        )
    kept = set(store.header.residual_layers or ())
    chosen = [k for k in range(store.n_layers) if k in kept] if layers is None else list(layers)
    if not chosen:
        raise DesignError(
            f"{store.path.name} does not keep the residual stream of the layers that were asked "
            "for; capture it with residual_layers"
        )
    spread = spread_layers(store.n_layers, REFIT_LAYERS)
    refit = set(spread if refit_layers is None else refit_layers)
    n_groups = min(store.n_items, MAX_UNITS)
    weights: dict[Estimand, Array] = {
        FIXED: inference.weights(n_groups),
        "refit": inference.refit_weights(n_groups),
    }
    # Layers with refits take longest, so they come first.
    order = sorted(chosen, key=lambda layer: (layer not in refit, layer))
    calls = [
        (store, layer, weights if layer in refit else {FIXED: weights[FIXED]}, inference.level)
        for layer in order
    ]
    found = dict(zip(order, in_processes(_probe_layer, calls, inference.n_jobs), strict=True))
    each = [found[layer] for layer in chosen]
    table = pd.concat([one.probes for one in each], ignore_index=True)
    means = [
        _mean_r2(table, found, layers, what, inference.level)
        for layers, what in (
            (chosen, "mean R2 over layers"),
            ([layer for layer in chosen if layer == 0], "R2 at layer 0"),
        )
    ]
    return Probes(table, pd.concat([one.partition for one in each], ignore_index=True), *means)


class _Layer(NamedTuple):
    """Probes and partition of one layer, and bootstrap draws of R2 as fitted, by features."""

    probes: pd.DataFrame
    partition: pd.DataFrame
    draws: dict[str, Array]


def _probe_layer(
    store: ActivationStore, layer: int, weights: dict[Estimand, Array], level: float
) -> _Layer:
    """Probe one layer, with the intervals whose bootstrap weights are given."""
    model, y = _fit(store, layer, keep_gram="refit" in weights)
    table = pd.concat(
        [model.intervals(kind, level=level, weights=each) for kind, each in weights.items()]
    ).drop(columns="mc_se")  # always 0, since two groups need no sampling of orders
    table.insert(0, "layer", layer)
    is_r2 = table["quantity"] == "R2"
    r2 = table[is_r2].rename(columns={"estimate": "r2", "group": "features"})
    names = r2["features"].unique()
    mae = dict(zip(names, model.mae_, strict=True))
    r2 = r2.assign(mae=r2["features"].map(mae), mae_guess=guess_error(y))
    replicates = model.replicates(FIXED, weights=weights[FIXED])
    draws = dict(zip(names, replicates.T[: len(names)], strict=True))
    return _Layer(r2.drop(columns="quantity"), table[~is_r2], draws)


def _fit(store: ActivationStore, layer: int, keep_gram: bool) -> tuple[VariancePartition, Array]:
    """Fit the models of a layer; return them and the positions that they were fitted to."""
    items = np.unique(store.item)
    if len(items) <= MAX_UNITS:
        X, y, groups, feature_groups = features(store, layer)
        model = VariancePartition(feature_groups, keep_gram=keep_gram)
        return model.fit(X, y, groups=groups), y

    def blocks() -> Iterator[Block]:
        for block in feature_blocks(store, layer):
            units = np.searchsorted(items, block.groups) * MAX_UNITS // len(items)
            yield block.X, block.y, units

    model = VariancePartition(next(feature_blocks(store, layer)).feature_groups)
    model.fit_gram(ClusterGram.from_blocks(blocks()), verify=blocks())
    positions = store.residual_positions
    return model, positions[positions > 0].astype(float)


def _mean_r2(
    probes: pd.DataFrame,
    found: dict[int, _Layer],
    layers: list[int],
    what: str,
    level: float,
) -> dict[str, Interval]:
    """Average R2 over layers, by features; the replicates of all layers share their weights."""
    fixed = probes[(probes["estimand"] == FIXED) & probes["layer"].isin(layers)]
    means = {}
    for name, rows in fixed.groupby("features", sort=False):
        mean = replicate_interval(
            float(rows["r2"].mean()),
            np.mean([found[layer].draws[str(name)] for layer in layers], axis=0),
            int(rows["n"].iloc[0]),
            FIXED,
            level,
        )
        means[str(name)] = dataclasses.replace(mean, estimand=f"{what}, fixed probe")
    return means
