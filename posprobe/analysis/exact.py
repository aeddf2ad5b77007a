"""Check what must hold exactly, at layer 0 and with one token repeated."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.channels import channel_effects, score_shift
from posprobe.intervals import Inference, Interval, mean_interval
from posprobe.store import ActivationStore

__all__ = ["layer_0_table", "repeated_table"]


def layer_0_table(
    store: ActivationStore, inference: Inference = Inference()
) -> tuple[pd.DataFrame, dict[str, Interval]]:
    """Estimate the effects that must be 0 at layer 0, where the residual stream is the embedding.

    Each is the largest absolute value of an item, averaged over items. The intervals are keyed by
    the names in the table.
    """
    effects = channel_effects(store, 0)
    largest = {
        "layer_0_rest": np.abs(effects.residual - effects.sink).max((1, 2, 3)),
        "scores_moved": score_shift(store, 0),
    }
    what = {
        "layer_0_rest": "largest |R - S|, nats",
        "scores_moved": "largest change of a score at a fixed offset, relative to their spread",
    }
    found = {
        k: mean_interval(v, estimand=what[k], level=inference.level) for k, v in largest.items()
    }
    rows = [
        {"name": k, "quantity": what[k], "estimate": i.estimate}
        | i.limits()
        | {"largest": float(largest[k].max()), "n": i.n}
        for k, i in found.items()
    ]
    return pd.DataFrame(rows), found


def repeated_table(
    store: ActivationStore, inference: Inference = Inference()
) -> tuple[pd.DataFrame, Interval]:
    """Find the largest absolute residual and mask effect at each layer and position, in nats.

    The interval is that of the largest |R| of an item, averaged over items.
    """
    rows, largest = [], []
    for layer in range(store.n_layers):
        effects = channel_effects(store, layer)
        residual, mask = np.abs(effects.residual), np.abs(effects.mask)
        largest.append(residual.max((1, 2, 3)))
        for p, position in enumerate(effects.positions[:-1]):
            rows.append(
                {
                    "layer": layer,
                    "position": int(position),
                    "residual": float(residual[:, p].max()),
                    "mask": float(mask[:, p].max()),
                }
            )
    interval = mean_interval(np.max(largest, axis=0), estimand="largest |R|", level=inference.level)
    return pd.DataFrame(rows), interval
