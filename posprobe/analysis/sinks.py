"""Measure attention to key 0, head by head."""

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
    """Average attention to key 0 over the stored queries: (sequence, head), from 0 to 1.

    In the shifted design only the sequences with the longest prefix are used. A query from which a
    window or an intervention hides key 0 counts as 0.
    """
    late = store.prefix_length == store.prefix_length.max()
    weight = store.read("sink_score", layer)[late] - store.normalizer(layer)[late]
    limit = store.layer_window[layer] or np.inf
    # Hide before exp, since the score of a hidden key may exceed the normalizer by any amount.
    seen = (store.positions[late, :, None] < limit) & ~cut_heads(store, layer)
    return np.exp(np.where(seen, weight, -np.inf), dtype=np.float64).mean(1)


def sink_table(
    store: ActivationStore,
    *,
    threshold: float = SINK_THRESHOLD,
    inference: Inference = Inference(),
) -> pd.DataFrame:
    """Estimate the sink rate of every head and its mean attention to key 0.

    The sink rate is the share of sequences whose mean attention to key 0 is above the threshold.

    Parameters
    ----------
    store : ActivationStore
        A capture with sink scores and normalizers.
    threshold : float
        Attention above which a head counts as attending to the sink in a sequence.
    inference : Inference
        Level, number of bootstrap samples and seed.

    Returns
    -------
    pandas.DataFrame
        layer, head, sink_rate, attention (mean over sequences), attention_low, attention_high
        (cluster bootstrap).

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
    """Estimate the share of heads whose mean attention to key 0 is above a threshold.

    Parameters
    ----------
    store : ActivationStore
        A capture with sink scores and normalizers.
    threshold : float
        Mean attention over sequences above which a head counts.
    inference : Inference
        Level, number of bootstrap samples of sequences, and seed.

    Returns
    -------
    Interval
        Without unit, from 0 to 1.
    """
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
    """Return bootstrap means over sequences: (B, ...)."""
    return np.tensordot(inference.weights(len(values)), values, 1) / len(values)
