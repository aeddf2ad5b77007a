"""Shares of the channels by band of rotation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from posprobe.figures.style import (
    MASK,
    RESIDUAL,
    SINK,
    TOTAL,
    Panel,
    Tables,
    dots,
    legend_below,
)

__all__ = ["PANELS"]

CHANNELS = {
    "T": ("net effect", TOTAL),
    "M": ("mask", MASK),
    "R": ("residual", RESIDUAL),
    "S": ("sink's part", SINK),
}


def bands(tables: Tables, ax: Axes) -> Axes:
    """Share of each band in the variance of each channel, over all layers."""
    table = _overall(tables["bands"])
    names = list(table["band"].unique())
    for (channel, (label, colour)), shift in zip(
        CHANNELS.items(), (-0.27, -0.09, 0.09, 0.27), strict=True
    ):
        rows = table[(table["channel"] == channel) & (table["status"] == "ok")]
        heights = np.array([names.index(name) for name in rows["band"]]) + shift
        rows = rows.assign(low=rows["share_low"], high=rows["share_high"])
        dots(ax, rows, "share", heights, colour, label)
    ax.set_yticks(range(len(names)), names)
    ax.axvline(0, color="black", lw=0.7)
    ax.set(title="Which frequencies carry position?", ylim=(len(names) - 0.5, -0.5))
    ax.set_xlabel("share of the variance over positions")
    legend_below(ax, 4)
    return ax


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["layer"] == "all"]


PANELS = {
    "bands": Panel(
        "bands",
        bands,
        "Part of each band in a channel's variance, relative to that variance; mean over layers, "
        "heads and offsets. Shares of a channel add up to 1. Bars: {level} Fieller intervals.",
        height=lambda table: 1.6 + 0.6 * table["band"].nunique(),
    )
}
