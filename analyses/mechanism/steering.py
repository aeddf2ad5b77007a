"""The stream moved along position, against moving the text by as many tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from mechanism.findings import Finding
from mechanism.measuring import Blocks, captured, loss_gained, losses
from tqdm.auto import tqdm

from posprobe.channels import channel_effects
from posprobe.intervals import Interval, fieller_ratio, pseudo_values
from posprobe.models import NO_INTERVENTION, ObservableModel, StreamEdit
from posprobe.report.words import with_interval
from posprobe.store import ActivationStore
from posprobe.workflows.edits import erase_random, move_position

START, STOP = 33, 97  # prefixes, between which the text is moved


def steered_table(
    model: ObservableModel, native: ActivationStore, natural: Path, files: Path, n: int
) -> pd.DataFrame:
    """How much of the text's move the steered stream makes, and the loss; a control likewise."""
    before, rows = losses(model, native, NO_INTERVENTION, n), []
    for what, edit in tqdm(steers(model, natural).items(), desc="steered"):
        with model.editing(edit):
            store = captured(model, files / f"steered_{what}.h5", n)
            gained = loss_gained(losses(model, native, NO_INTERVENTION, n), before)
        pair = steered_and_moved(native, store, n, edit.layer)
        made = share_made(*pair)
        low, high = np.array([made.low, made.high], float)
        row = {"steered": what, "made": made.estimate, "made_low": low, "made_high": high}
        rows.append(row | {"alignment": alignment(*pair)} | gained)
    return pd.DataFrame(rows).assign(layer=Blocks.of(model).edited, start=START, stop=STOP)


def steers(model: ObservableModel, natural: Path) -> dict[str, StreamEdit]:
    """As far along position as the text moves, and as far in a random direction."""
    block = Blocks.of(model).edited
    forward = move_position(model, natural, block, START, STOP)
    direction = erase_random(model, natural, block).outward[0]
    assert forward.shift is not None
    shift = direction * np.linalg.norm(forward.shift) / np.linalg.norm(direction)
    return {"position": forward, "random": replace(forward, what="random shift", shift=shift)}


def steered_and_moved(
    native: ActivationStore, store: ActivationStore, n: int, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of log attention weights at the early position, by item: (n, layer and head).

    Layers are those from `first` on. One change is the steered stream's. The other is that of R
    when the text is moved, which is what the stream does to a weight under one mask.
    """
    layers = range(first, native.n_layers)
    steered, moved = [], []
    for layer in layers:
        effects = channel_effects(native, layer).take(np.arange(n))
        at = [int(np.flatnonzero(effects.positions == place)[0]) for place in (START, STOP)]
        moved.append((effects.residual[:, at[1]] - effects.residual[:, at[0]]).mean(-1))
        steered.append(log_weights(store, layer, n) - log_weights(native, layer, n))
    return np.concatenate(steered, 1), np.concatenate(moved, 1)


def log_weights(store: ActivationStore, layer: int, n: int) -> np.ndarray:
    """Mean log attention weight over offsets and those rows whose key is in the window."""
    rows = np.flatnonzero((store.prefix_length == START) & (store.item < n))
    rows = rows[np.argsort(store.item[rows])]
    scores = store.read("offset_score", layer)[rows].astype(float)
    weights = scores - store.normalizer(layer)[rows][..., None]
    inside = np.arange(store.window)[:, None] >= np.array(store.offsets)
    means = [weights[..., k][:, inside[:, k]].mean(1) for k in range(len(store.offsets))]
    return np.mean(means, axis=0)


def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values of the mean product of two changes over pairs of different items."""
    n = len(x)
    k = x @ y.T / x.shape[1]
    np.fill_diagonal(k, 0)
    estimate = k.sum() / (n * (n - 1))
    left_out = (k.sum() - k.sum(0) - k.sum(1)) / ((n - 1) * (n - 2))
    return pseudo_values(estimate, left_out)


def share_made(steered: np.ndarray, moved: np.ndarray) -> Interval:
    """The slope of the steered change on that of the moved text, free of items' own content."""
    pair = products(moved, moved), products(steered, moved)
    return fieller_ratio(*pair, quantity="ratio", estimand="share of the text's move")


def alignment(steered: np.ndarray, moved: np.ndarray) -> float:
    """The cosine of the two changes over heads; NaN where one has no size."""
    cross, own, other = (
        float(products(x, y).mean())
        for x, y in ((steered, moved), (steered, steered), (moved, moved))
    )
    return cross / np.sqrt(own * other) if own > 0 and other > 0 else float("nan")


def steering_finding(table: pd.DataFrame) -> Finding:
    """Whether the steered stream moves attention as the moved text does."""
    own, control = (table[table["steered"] == what].iloc[0] for what in ("position", "random"))
    more = own["made_low"] > max(0.0, control["made_high"])
    wrong = own["made_high"] < 0
    verdict = "supported" if more else "contradicted" if wrong else "undecided"
    return Finding(
        "Moving the stream along position moves attention as moving the text does",
        verdict,
        f"share {with_interval(own, 'made')}",
        f"Moved at block {own['layer']} as from token {START} to {STOP}, log attention weights of "
        f"the blocks from there on make {with_interval(own, 'made')} of the change that the text's "
        "own move makes by the residual channel; moved as far in a random direction "
        f"{with_interval(control, 'made')}.",
    )


def steering_lines(table: pd.DataFrame) -> list[str]:
    """What each shift makes of the text's move."""
    lines = [f"## Moved along position at block {table['layer'].iloc[0]}", ""]
    lines += [
        "Share made: slope of the steered change on the change of R between the two prefixes, over "
        "heads of the blocks from there on and pairs of different items; 1 if steering does what "
        "moving does. Alignment: the cosine of the two.",
        "",
        "| moved along | share made | alignment | loss gained |",
        "|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        cells = [with_interval(row, "made"), f"{row['alignment']:.2f}", with_interval(row, "loss")]
        lines.append(f"| {row['steered']} | " + " | ".join(cells) + " |")
    return [*lines, ""]
