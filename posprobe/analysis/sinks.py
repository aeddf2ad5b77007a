"""Attention to key 0, head by head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.channels import cut_heads
from posprobe.intervals import (
    Array,
    Inference,
    Interval,
    bootstrap_interval,
    bootstrap_limits,
)
from posprobe.store import ActivationStore

__all__ = ["SINK_THRESHOLD", "Array", "share_of_sink_heads", "sink_attention", "sink_table"]

SINK_THRESHOLD = 0.3


def sink_attention(store: ActivationStore, layer: int) -> Array:
    """Attention to key 0, averaged over the stored queries: (sequence, head), from 0 to 1.

    In the shifted design only the sequences with the longest prefix are taken. Queries from whose
    sight a window or an intervention hides key 0 count as 0.
    """
    late = store.prefix_length == store.prefix_length.max()
    weight = store.read("sink_score", layer)[late] - store.normalizer(layer)[late]
    limit = store.layer_window[layer] or np.inf
    # hidden before exp: the score of a hidden key may exceed the normalizer by any amount
    seen = (store.positions[late, :, None] < limit) & ~cut_heads(store, layer)
    return np.exp(np.where(seen, weight, -np.inf), dtype=np.float64).mean(1)


def sink_table(
    store: ActivationStore,
    *,
    threshold: float = SINK_THRESHOLD,
    inference: Inference = Inference(),
) -> pd.DataFrame:
    """Sink rate of every head: share of sequences whose mean attention to key 0 is > threshold.

    Returns
    -------
    pandas.DataFrame
        layer, head, sink_rate, attention (mean over sequences) with cluster bootstrap limits.

    References
    ----------
    Gu et al. (2024), When attention sink emerges in language models, arXiv 2410.10781.
    """
    attention = np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)
    mean = attention.mean(0)
    low, high = bootstrap_limits(
        _means(attention, inference), mean, n=len(attention), level=inference.level
    )
    layers, heads = np.indices(mean.shape)
    return pd.DataFrame(
        {
            "layer": layers.ravel(),
            "head": heads.ravel(),
            "sink_rate": (attention > threshold).mean(0).ravel(),
            "attention": mean.ravel(),
            "attention_low": low.ravel(),
            "attention_high": high.ravel(),
        }
    )


def share_of_sink_heads(
    store: ActivationStore, *, threshold: float = SINK_THRESHOLD, inference: Inference = Inference()
) -> Interval:
    """Share of heads whose mean attention to key 0 is > threshold, by cluster bootstrap."""
    attention = np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)
    estimate = float((attention.mean(0) > threshold).mean())
    replicates = (_means(attention, inference) > threshold).mean((1, 2))
    return bootstrap_interval(
        replicates,
        estimate,
        n=len(attention),
        level=inference.level,
        estimand="share of heads that sink",
    )


def _means(values: Array, inference: Inference) -> Array:
    """Bootstrap means over sequences: (B, ...)."""
    return np.tensordot(inference.weights(len(values)), values, 1) / len(values)
