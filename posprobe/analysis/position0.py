"""Position 0: whether it is a closed system, and what fingerprint its token leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.analysis.sinks import Array
from posprobe.intervals import Inference, Interval, mean_interval
from posprobe.store import ActivationStore

__all__ = ["closed_system_table", "closure", "fingerprint_spread"]


def closed_system_table(store: ActivationStore) -> pd.DataFrame:
    r"""Compare the trajectory of position 0 with that of a run on its token alone.

    Returns
    -------
    pandas.DataFrame
        Per layer: `norm` of :math:`h_0` (median over sequences), `norm_later` of the other stored
        positions (NaN where they were not kept), `difference`, the largest over sequences of
        :math:`\lVert h_0 - h_0^{alone}\rVert / \lVert h_0^{alone}\rVert`, `cosine` with the
        layer before (median; NaN at the first), and `dimensions`, the fewest that hold 99% of the
        squared norm (median): very few where activations are massive.
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
    """Fewest dimensions that hold `part` of the squared norm, median over rows."""
    held = np.cumsum(np.sort(vectors**2, axis=-1)[:, ::-1], axis=-1)
    return float(np.median((held < part * held[:, -1:]).sum(-1) + 1))


def _cosine(a: Array, b: Array) -> float:
    """Median cosine of paired rows; NaN where one of them is 0."""
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    if (sizes == 0).any():
        return float("nan")
    return float(np.median((a * b).sum(-1) / sizes))


def closure(store: ActivationStore, *, inference: Inference = Inference()) -> Interval:
    """Largest relative difference over layers between position 0 and a length-1 run, per sequence.

    The mean over sequences with its t interval; 0 if position 0 is a closed system.
    """
    pairs = ((store.read("position0", k), store.read("position0_alone", k)) for k in _layers(store))
    worst = np.max([_relative(a.astype(float) - b, b.astype(float)) for a, b in pairs], axis=0)
    return mean_interval(
        worst, estimand="relative difference to a length-1 run", level=inference.level
    )


def fingerprint_spread(
    store: ActivationStore, *, inference: Inference = Inference()
) -> tuple[Interval, pd.DataFrame]:
    """How much the trajectory of position 0 differs between inputs, relative to its norm.

    Returns
    -------
    interval : Interval
        Mean over inputs of the largest distance over layers to the mean input.
    table : pandas.DataFrame
        layer, spread: the mean distance at each layer.
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
    if (size == 0).any():  # the zero embedding entering the first block
        return np.linalg.norm(difference, axis=-1)
    return np.linalg.norm(difference, axis=-1) / size


def _later_norm(store: ActivationStore, layer: int) -> float:
    if "residual" not in store.header.quantities:
        return float("nan")
    if layer not in (store.header.residual_layers or ()):
        return float("nan")
    later = store.residual_positions > 0
    norms = np.linalg.norm(store.residual(layer).astype(np.float32), axis=-1)
    return float(np.median(norms[later])) if later.any() else float("nan")
