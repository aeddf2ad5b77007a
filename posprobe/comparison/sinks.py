"""Tables without tests of several models: sinks, replacement of position 0, checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from posprobe.analysis import (
    check,
    closed_system_table,
    held_back_half,
    replacement_table,
    share_of_sink_heads,
)
from posprobe.comparison.lineup import Lineup
from posprobe.intervals import Inference, mean_interval
from posprobe.store import ActivationStore

__all__ = ["checks_by_file", "replacement_by_member", "sinks_by_member"]


def sinks_by_member(lineup: Lineup, *, inference: Inference = Inference()) -> pd.DataFrame:
    """Attention to key 0 in every model whose natural capture is there.

    By the usual criterion a head sinks if its attention to key 0, averaged over all queries, is
    above 0.3. Under a sliding window late queries do not see key 0, so heads cannot meet it in
    sequences longer than three sliding windows. The table therefore also has the mean over the
    first queries, from 1 up to the shortest sliding window of any model, for the head where it is
    largest (chosen on one half of the sequences, measured on the other).

    Parameters
    ----------
    lineup : Lineup
    inference : Inference

    Returns
    -------
    DataFrame
        architecture, model, sequences; sink_heads (share of heads above 0.3) with limits;
        strongest (layer:head), attention (first queries) with limits, even (the same if attention
        were spread evenly), queries (how many are averaged); norm_ratio (norm of position 0 over
        that of later positions, largest over layers). Limits by cluster bootstrap of sequences.
    """
    stores = [m.files.natural for m in lineup.members if m.files.natural is not None]
    windows = [w for store in stores for w in store.layer_window if w]
    until = min([*windows, *(store.length for store in stores)], default=0)
    rows = []
    for member in lineup.members:
        natural = member.files.natural
        if natural is None or natural.n_items < 4:
            continue
        usual = share_of_sink_heads(natural, inference=inference)
        rows.append(
            {
                "architecture": member.architecture,
                "model": member.name,
                "sequences": natural.n_sequences,
                "sink_heads": usual.estimate,
                **usual.limits("sink_heads"),
                **_early_attention(natural, until, inference.level),
                "norm_ratio": _norm_ratio(natural),
            }
        )
    return pd.DataFrame(rows)


def _early_attention(store: ActivationStore, until: int, level: float) -> dict[str, Any]:
    chosen = held_back_half(store)
    rows = (store.positions[0] >= 1) & (store.positions[0] < until)
    attention = np.stack(
        [
            np.exp(
                store.read("sink_score", layer)[:, rows].astype(float)
                - store.normalizer(layer)[:, rows]
            ).mean(1)
            for layer in range(store.n_layers)
        ],
        1,
    )
    layer, head = np.unravel_index(attention[chosen].mean(0).argmax(), attention.shape[1:])
    measured = attention[~chosen, layer, head]
    found = mean_interval(measured, estimand="attention to key 0", level=level)
    return {
        "strongest": f"{layer}:{head}",
        "attention": found.estimate,
        **found.limits("attention"),
        "even": float((1 / (1 + store.positions[0][rows])).mean()),
        "queries": int(rows.sum()),
    }


def _norm_ratio(store: ActivationStore) -> float:
    """Norm of position 0 over that of later positions, largest over layers; NaN unless kept."""
    if not {"position0", "position0_alone", "residual"} <= {*store.header.quantities}:
        return float("nan")
    table = closed_system_table(store)
    return float((table["norm"] / table["norm_later"]).max())


def replacement_by_member(lineup: Lineup, *, inference: Inference = Inference()) -> pd.DataFrame:
    """`posprobe.analysis.replacement_table` of every model with replaced captures."""
    tables = []
    for member in lineup.members:
        if not member.files.replaced:
            continue
        table, _ = replacement_table(member.shifted, member.files.replaced, inference=inference)
        table.insert(0, "model", member.name)
        table.insert(0, "architecture", member.architecture)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def checks_by_file(lineup: Lineup) -> pd.DataFrame:
    """Manipulation checks of every file of a lineup."""
    return pd.DataFrame(
        [
            {"architecture": member.architecture, "model": member.name}
            | check(store)
            | {"weights": store.header.weights_digest[:12]}
            for member in lineup.members
            for store in member.files.all()
        ]
    )
