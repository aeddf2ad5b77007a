"""Where the sign of C_MR comes from: which layers, which heads, and how much of it is the sink's.

R = S + (R - S), where S is the part of R that the score of key 0 makes, so

    C_MR = C_MS + C_M(R-S),

and C_MR is a mean over heads, so it is also the sum of what heads with an attention sink and all
other heads contribute to that mean. Both splits are exact. Limits are Student's, over items, from
the jackknife pseudo-values of the U-statistics; a difference of two conditions pairs them by item.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from posprobe import ActivationStore
from posprobe.analysis import Files, condition_of
from posprobe.analysis.replacement import common_items
from posprobe.analysis.sinks import SINK_THRESHOLD, sink_attention
from posprobe.channels import ChannelEffects, channel_effects, position_covariance
from posprobe.intervals import mean_interval, pseudo_values

PARTS = ("C_MR", "C_MS", "C_M(R-S)", "C_MR of sink heads", "C_MR of other heads")


@dataclass(frozen=True)
class Parts:
    """Pseudo-values of each part in one condition: (item, layer), summed to a mean over heads."""

    store: ActivationStore
    values: dict[str, np.ndarray]

    def take(self, items: np.ndarray) -> dict[str, np.ndarray]:
        """Means over layers of some items: one value per item and part."""
        return {name: values[items].mean(1) for name, values in self.values.items()}


def measure(store: ActivationStore) -> Parts:
    """Split C_MR of every layer of one file."""
    layers = [_of_layer(store, layer) for layer in range(store.n_layers)]
    return Parts(store, {name: np.stack([one[name] for one in layers], 1) for name in PARTS})


def _of_layer(store: ActivationStore, layer: int) -> dict[str, np.ndarray]:
    """Pseudo-values of one layer: one per item."""
    effects = channel_effects(store, layer)
    sinks = sink_attention(store, layer).mean(0) > SINK_THRESHOLD
    whole, through_sink = (_covariance(effects, y) for y in (effects.residual, effects.sink))
    heads = len(sinks)
    return {
        "C_MR": whole.mean(1),
        "C_MS": through_sink.mean(1),
        "C_M(R-S)": (whole - through_sink).mean(1),
        "C_MR of sink heads": whole[:, sinks].sum(1) / heads,
        "C_MR of other heads": whole[:, ~sinks].sum(1) / heads,
    }


def _covariance(effects: ChannelEffects, other: np.ndarray) -> np.ndarray:
    """Pseudo-values of the covariance of M with another effect: (item, head)."""
    without_one = 1.0 - np.eye(effects.n_items)
    estimate = position_covariance(effects.mask, other).mean(-1)
    return pseudo_values(estimate, position_covariance(effects.mask, other, without_one).mean(-1))


def sign_tables(model: str, files: Files) -> dict[str, pd.DataFrame]:
    """C_MR and its parts in every condition of a model, by layer, and differences of conditions.

    Returns
    -------
    dict of str to pandas.DataFrame
        sign: one row for each condition and part, with limits over items; sign_by_layer: the
        estimates of each layer; sign_differences: with a BOS at
        position 0 less without, on the same text, paired by item.
    """
    every = [one.shifted for one in (files, *files.conditions) if one.shifted is not None]
    measured = [measure(store) for store in every]
    rows, layers = [], []
    for one in measured:
        named = {"model": model, **condition_of(one.store)._asdict()}
        items = np.arange(one.store.n_items)
        rows += [named | row for row in _rows(one.take(items))]
        for layer in range(one.store.n_layers):
            means = {name: float(values[:, layer].mean()) for name, values in one.values.items()}
            layers.append(named | {"layer": layer} | means)
    return {
        "sign": pd.DataFrame(rows),
        "sign_by_layer": pd.DataFrame(layers),
        "sign_differences": pd.DataFrame(_differences(model, measured)),
    }


def _rows(parts: dict[str, np.ndarray]) -> list[dict[str, object]]:
    return [
        {"part": name} | mean_interval(values, estimand=name).row("estimate")
        for name, values in parts.items()
    ]


def _differences(model: str, measured: list[Parts]) -> list[dict[str, object]]:
    """Conditions that differ in the token at position 0 alone: with BOS less without."""
    rows = []
    measured = sorted(measured, key=lambda one: one.store.has_bos)
    for one, other in combinations(measured, 2):
        first, second = condition_of(one.store), condition_of(other.store)
        if first[1:] != second[1:]:
            continue
        mine, theirs = common_items(one.store, other.store)
        before, after = one.take(mine), other.take(theirs)
        contrast = f"{second.position0} - {first.position0}"
        named = {"model": model, "text": first.text, "contrast": contrast}
        rows += [named | row for row in _rows({k: after[k] - before[k] for k in PARTS})]
    return rows
