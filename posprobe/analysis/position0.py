"""Measure whether position 0 is closed, and how much it differs between inputs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.analysis.sinks import Array
from posprobe.intervals import Inference, Interval, mean_interval
from posprobe.store import ActivationStore

__all__ = ["closed_system_table", "closure", "fingerprint_spread"]


def closed_system_table(store: ActivationStore) -> pd.DataFrame:
    r"""Compare the trajectory of position 0 with that of a run on its token alone.

    Parameters
    ----------
    store : ActivationStore
        A capture with the residual stream :math:`h_0` at position 0 and that of the run alone.

    Returns
    -------
    pandas.DataFrame
        One row for each layer, and one for the output of the last. `norm` is the median of
        :math:`\lVert h_0 \rVert` over sequences, and `norm_later` the median norm at the other
        stored positions (NaN if there are none). `difference` is the largest
        :math:`\lVert h_0 - h_0^{alone}\rVert / \lVert h_0^{alone}\rVert` of a sequence. `cosine`
        is the median cosine with the layer before (NaN at the first). `dimensions` is the smallest
        number of dimensions with 99% of the squared norm (median), which is very small if
        activations are massive.
    """
    rows = []
    before = None
    for layer in range(store.n_layers + 1):
        together, alone = (
            store.read(name, layer).astype(float) for name in ("position0", "position0_alone")
        )
        rows.append(
            {
                "layer": layer,
                "norm": float(np.median(np.linalg.norm(together, axis=-1))),
                "norm_later": _later_norm(store, layer),
                "difference": float(_relative(together - alone, alone).max()),
                "cosine": np.nan if before is None else _cosine(before, together),
                "dimensions": _dimensions(together),
            }
        )
        before = together
    return pd.DataFrame(rows)


def _dimensions(vectors: Array, part: float = 0.99) -> float:
    """Count the dimensions needed for `part` of the squared norm; median over rows."""
    held = np.cumsum(np.sort(vectors**2, axis=-1)[:, ::-1], axis=-1)
    return float(np.median((held < part * held[:, -1:]).sum(-1) + 1))


def _cosine(a: Array, b: Array) -> float:
    """Return the median cosine of paired rows; NaN if a row is 0."""
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    if (sizes == 0).any():
        return float("nan")
    return float(np.median((a * b).sum(-1) / sizes))


def closure(store: ActivationStore, *, inference: Inference = Inference()) -> Interval:
    """Estimate how far position 0 differs from a run on its token alone.

    The estimand is the mean over sequences of the largest relative difference over layers, which is
    0 if position 0 is closed. The interval is Student's.
    """
    pairs = ((store.read("position0", k), store.read("position0_alone", k)) for k in _layers(store))
    worst = np.max([_relative(a.astype(float) - b, b.astype(float)) for a, b in pairs], axis=0)
    return mean_interval(
        worst, estimand="relative difference to a length-1 run", level=inference.level
    )


def fingerprint_spread(
    store: ActivationStore, *, inference: Inference = Inference()
) -> tuple[Interval, pd.DataFrame]:
    """Estimate how much position 0 differs between inputs, relative to its norm.

    Parameters
    ----------
    store : ActivationStore
        A capture with the residual stream at position 0.
    inference : Inference
        Level of the interval.

    Returns
    -------
    interval : Interval
        Mean over inputs of the largest distance over layers to the mean input.
    table : pandas.DataFrame
        layer and spread, the mean distance at that layer.
    """
    first = np.unique(store.item, return_index=True)[1]
    distances = []
    for layer in _layers(store):
        h0 = store.read("position0", layer)[first].astype(float)
        mean = h0.mean(0)
        distances.append(_relative(h0 - mean, mean))
    table = pd.DataFrame({"layer": _layers(store), "spread": np.mean(distances, axis=1)})
    worst = np.max(distances, axis=0)
    interval = mean_interval(
        worst, estimand="relative spread of position 0 over inputs", level=inference.level
    )
    return interval, table


def _layers(store: ActivationStore) -> range:
    return range(store.n_layers + 1)


def _relative(difference: Array, reference: Array) -> Array:
    size = np.linalg.norm(reference, axis=-1)
    if (size == 0).any():  # a zero embedding enters the first block
        return np.linalg.norm(difference, axis=-1)
    return np.linalg.norm(difference, axis=-1) / size


def _later_norm(store: ActivationStore, layer: int) -> float:
    if "residual" not in store.header.quantities:
        return float("nan")
    if layer not in (store.header.residual_layers or ()):
        return float("nan")
    later = store.residual_positions > 0
    norms = np.linalg.norm(store.residual(layer).astype(np.float32, copy=False), axis=-1)
    return float(np.median(norms[later])) if later.any() else float("nan")
