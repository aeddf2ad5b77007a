"""The channels in several conditions, and what replacing position 0 removes in each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from posprobe.figures.style import (
    MASK,
    OTHER,
    RESIDUAL,
    SINK,
    Panel,
    Tables,
    dots,
    fraction_span,
    legend_below,
    reference_line,
)

__all__ = ["PANELS"]

VARIANCES = {"V_M": ("V_M", MASK), "V_R": ("V_R", RESIDUAL), "C_MR": ("C", OTHER)}


def conditions(tables: Tables, ax: Axes) -> Axes:
    """V_M, V_R and their covariance in each condition."""
    table = tables["conditions"]
    heights = np.arange(len(table))
    for (name, (label, colour)), shift in zip(VARIANCES.items(), (-0.2, 0.0, 0.2), strict=True):
        rows = _with_limits(table, name)
        dots(ax, rows, name, heights + shift, colour, label)
    ax.set_yticks(heights, table["condition"], fontsize=8.5)
    ax.axvline(0, color="black", lw=0.7)
    ax.set(title="Do the channels depend on the condition?", ylim=(len(table) - 0.5, -0.5))
    ax.set_xlabel("nats²")
    legend_below(ax, 3)
    return ax


def removed(tables: Tables, ax: Axes) -> Axes:
    """Fraction of V_R that the mean embedding at position 0 removes in each condition."""
    rows = tables["condition_replacement"]
    span = fraction_span(rows)
    dots(ax, rows, "fraction_removed", np.arange(len(rows)), SINK, span=span)
    ax.set_yticks(range(len(rows)), rows["condition"], fontsize=8.5)
    ax.axvline(0, color="black", lw=0.7)
    reference_line(ax, 0.4, "the study: 40%", upright=True)
    ax.set(title="What does replacing position 0 remove?", xlim=span, ylim=(len(rows) - 0.5, -0.8))
    ax.set_xlabel("fraction of V_R removed")
    return ax


def _with_limits(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.assign(low=table[f"{name}_low"], high=table[f"{name}_high"])


def _height(table: pd.DataFrame) -> float:
    return 1.6 + 0.42 * len(table)


PANELS = {
    "conditions": Panel(
        "conditions",
        conditions,
        "Mean over layers, heads and offsets. Bars: {level} intervals over items of that text. "
        "The first row is the main condition.",
        height=_height,
    ),
    "condition_replacement": Panel(
        "condition_replacement",
        removed,
        "The mean embedding at position 0, early queries. Bars: {level} Fieller intervals over "
        "items of that text, cut off at the edges.",
        height=_height,
    ),
}
