"""How much depends on the specification, what hiding key 0 removes, and other masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from posprobe.figures.style import (
    BOTH,
    MASK,
    OTHER,
    RESIDUAL,
    SINK,
    Panel,
    Tables,
    band,
    dots,
    fraction_span,
    legend_below,
    reference_line,
)

__all__ = ["PANELS"]

SPAN = (-1.0, 1.3)
METRIC_COLOURS = {"V_R": RESIDUAL, "V_S": SINK, "mean |R|": BOTH}
CHOICES = {
    "treatment": "treatment",
    "positions": "queries",
    "offsets": "offsets",
    "layers": "layers",
    "metric": "measure",
}


def specification(tables: Tables, ax: Axes) -> Axes:
    """Every specification in order of its estimate."""
    table = tables["specification"]
    table = table[table["fraction_removed"].notna()].sort_values("fraction_removed", kind="stable")
    table = table.assign(rank=np.arange(len(table)))
    bounded = table[table["low"].notna()]
    low, high = (bounded[end].astype(float).clip(*SPAN) for end in ("low", "high"))
    # drawn as an image: thousands of lines would make the page heavy
    ax.vlines(bounded["rank"], low, high, "#d4d4d4", lw=0.5, rasterized=True)
    for metric, colour in METRIC_COLOURS.items():
        rows = table[table["metric"] == metric]
        y = rows["fraction_removed"].astype(float).clip(*SPAN)
        ax.plot(rows["rank"], y, ".", ms=2.5, color=colour, rasterized=True)
        ax.plot([], [], "o", ms=5, color=colour, label=metric)
    chosen = table[table["primary"].astype(bool)]
    y = chosen["fraction_removed"].astype(float).clip(*SPAN)
    ax.plot(chosen["rank"], y, "*", ms=13, color="black", mec="white", label="primary", ls="none")
    ax.axhline(0, color="black", lw=0.7)
    reference_line(ax, 0.4, "the study: 40%")
    ax.set(title="How much depends on how it is measured?", ylim=SPAN, ylabel="fraction removed")
    ax.set_xlabel(f"{len(table)} specifications, in order")
    legend_below(ax, 4)
    return ax


def choices(tables: Tables, ax: Axes) -> Axes:
    """Fraction removed by each option of each choice: median and middle four fifths."""
    table = tables["specification"]
    table = table[table["fraction_removed"].notna()]
    labels, y = [], 0.0
    heights = []
    for column, name in CHOICES.items():
        for option, rows in table.groupby(column, sort=False):
            low, middle, high = np.quantile(rows["fraction_removed"].astype(float), (0.1, 0.5, 0.9))
            start, stop = np.clip((low, high), *SPAN)
            ax.hlines(y, start, stop, OTHER, lw=1.5)
            ax.plot(np.clip(middle, *SPAN), y, "o", ms=4, color=RESIDUAL)
            labels.append(f"{name}: {option}")
            heights.append(y)
            y += 1
        y += 0.6
    ax.set_yticks(heights, labels, fontsize=8.5)
    ax.axvline(0, color="black", lw=0.7)
    reference_line(ax, 0.4, "the study: 40%", upright=True)
    ax.set(title="Which choice matters?", xlim=SPAN, ylim=(y - 0.6, -1.6))
    ax.set_xlabel("fraction removed")
    return ax


def cuts(tables: Tables, ax: Axes) -> Axes:
    """Fraction of V_R removed by hiding key 0, by heads and by measure."""
    table = _cut_rows(tables["cut_sink"])
    names = list(dict.fromkeys(zip(table["heads"], table["n_heads_cut"], strict=True)))
    span = fraction_span(table)
    for measured, colour, shift in (
        ("heads left whole", RESIDUAL, -0.14),
        ("without key 0", SINK, 0.14),
    ):
        rows = table[table["measured"] == measured]
        at = [
            names.index(key) + shift for key in zip(rows["heads"], rows["n_heads_cut"], strict=True)
        ]
        dots(ax, rows, "fraction_removed", at, colour, measured, span)
    ax.set_yticks(range(len(names)), [f"{heads} ({count})" for heads, count in names])
    ax.axvline(0, color="black", lw=0.7)
    ax.set(title="How much does hiding key 0 remove?", ylim=(len(names) - 0.5, -0.5))
    ax.set(xlabel="fraction of V_R removed", xlim=span)
    legend_below(ax)
    return ax


def mask_layers(tables: Tables, ax: Axes) -> Axes:
    """V_R by layer, natively and under a sliding window."""
    table = tables["mask_layers"]
    table = table[(table["quantity"] == "V_R") & (table["mask"] != "no causal mask")]
    for name, rows in table.groupby("mask", sort=False):
        colour = OTHER if name == "native" else RESIDUAL
        band(ax, rows, "layer", "estimate", colour, str(name), limits=("low", "high"))
    ax.axhline(0, color="black", lw=0.7)
    ax.set(
        title="Does a sliding window let R grow with depth?", xlabel="layer", ylabel="V_R (nats²)"
    )
    legend_below(ax)
    return ax


def mask_probes(tables: Tables, ax: Axes) -> Axes:
    """R2 of position from the normalizers of a layer, with and without the causal mask."""
    table = tables["mask_probes"]
    for name, label, colour in (
        ("native", "causal mask", MASK),
        ("masked", "no mask", OTHER),
    ):
        ends = f"r2_{name}_low", f"r2_{name}_high"
        band(ax, table, "layer", f"r2_{name}", colour, label, limits=ends)
    ax.axhline(0, color="black", lw=0.7)
    ax.set(title="Do normalizers need the mask?", xlabel="layer", ylabel="R² out of fold")
    legend_below(ax)
    return ax


def _cut_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["positions"] == "all"]


def _cut_height(table: pd.DataFrame) -> float:
    return 1.7 + 0.42 * len(_cut_rows(table)[["heads", "n_heads_cut"]].drop_duplicates())


def _choices_height(table: pd.DataFrame) -> float:
    return 1.4 + 0.19 * sum(table[column].nunique() + 0.6 for column in CHOICES)


PANELS = {
    "specification": Panel(
        "specification",
        specification,
        "Every specification, in order of its estimate. Grey: {level} Fieller intervals, not "
        "adjusted for their number; unbounded ones are not drawn. Only the star is a test.",
        height=3.8,
    ),
    "specification_choices": Panel(
        "specification",
        choices,
        "Dot: median over all specifications with that option. Line: from the 10th to the 90th "
        "percentile of specifications; it is not a confidence interval.",
        height=_choices_height,
    ),
    "cut_sink": Panel(
        "cut_sink",
        cuts,
        "Key 0 is hidden from some heads (their number in brackets); all positions. Orange: in "
        "the heads left whole. Pink: in all heads, with key 0 left out of every denominator. Bars: "
        "{level} Fieller intervals.",
        height=_cut_height,
    ),
    "mask_layers": Panel(
        "mask_layers",
        mask_layers,
        "Residual channel by layer, mean over heads and offsets, all positions, the same windows. "
        "Bands: {level} intervals, layer by layer.",
    ),
    "mask_probes": Panel(
        "mask_probes",
        mask_probes,
        "Position read from the normalizers of a layer's heads, natural text, the same sequences. "
        "Bands: {level} intervals of the probes as fitted.",
    ),
}
