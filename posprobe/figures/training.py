"""One model through its training: channels, sinks and probes against the step."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

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
    legend_below,
    reference_line,
)

__all__ = ["PANELS"]

LINES = {
    "V_M": ("mask channel V_M", MASK),
    "V_R": ("residual channel V_R", RESIDUAL),
    "C_MR": ("covariance C of both", OTHER),
    "sink_attention": ("attention to key 0, strongest head", SINK),
    "sink_rate": ("share of heads that sink", OTHER),
    "probe": ("R² of probes for position", BOTH),
}
FRACTIONS = ("sink_attention", "sink_rate", "probe")
SPAN = (-1.5, 2.5)
MARKS = 8  # at most one more label on the axis of steps


def changes(tables: Tables, ax: Axes) -> Axes:
    """How much of its change from the first step to the last each quantity has made."""
    ends = tables["half_way"].dropna(subset=["step"])
    table = tables["curves"].copy()
    for _, row in ends.iterrows():
        rows = table["quantity"] == row["quantity"]
        parts = ["estimate", "low", "high"]
        scaled = (table.loc[rows, parts].astype(float) - row["first"]) / (
            row["last"] - row["first"]
        )
        table.loc[rows, parts] = scaled.clip(*SPAN)
    _curves(table, tuple(ends["quantity"]), ax)
    ax.axhline(1, color="black", lw=0.7)
    reference_line(ax, 0.5, "half")
    ax.set_ylabel("share of the change made")
    ax.set_title("When does what change?")
    return ax


def one_channel(tables: Tables, ax: Axes, quantity: str) -> Axes:
    """One variance at every step."""
    _curves(tables["curves"], (quantity,), ax)
    ax.set_ylabel("variance over positions (nats²)")
    ax.set_title(f"How does the {LINES[quantity][0]} change?")
    return ax


def fractions(tables: Tables, ax: Axes) -> Axes:
    """Sinks and probes at every step."""
    _curves(tables["curves"], FRACTIONS, ax)
    ax.set_ylabel("attention, share of heads, R²")
    ax.set_title("When do sinks come, and a code for position?")
    return ax


def _curves(table: pd.DataFrame, quantities: tuple[str, ...], ax: Axes) -> None:
    for quantity in quantities:
        rows = table[table["quantity"] == quantity].sort_values("step")
        label, colour = LINES[quantity]
        if len(rows):
            rows = rows.assign(place=np.log2(1 + rows["step"].astype(float)))
            band(ax, rows, "place", "estimate", colour, label, ("low", "high"), marker="o", ms=3)
    ax.axhline(0, color="black", lw=0.7)
    _step_axis(ax, table["step"])
    legend_below(ax)


def half_way(tables: Tables, ax: Axes) -> Axes:
    """The step at which each quantity has made half of its change."""
    rows = tables["half_way"].dropna(subset=["step"])
    along = rows.assign(**{k: np.log2(1 + rows[k].astype(float)) for k in ("step", "low", "high")})
    for height, (_, row) in enumerate(along.iterrows()):
        dots(ax, pd.DataFrame([row]), "step", [height], LINES[row["quantity"]][1])
    ax.set_yticks(range(len(rows)), [LINES[name][0] for name in rows["quantity"]])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    _step_axis(ax, tables["curves"]["step"])
    ax.set_title("Which comes first?")
    return ax


def _step_axis(ax: Axes, steps: Any) -> None:
    """Steps along log2(1 + step); those are marked that leave each other room."""
    known = np.unique(np.asarray(steps, int))
    places = np.log2(1.0 + known)
    gap = (places[-1] - places[0]) / MARKS
    marked = [len(known) - 1]
    for k in range(len(known) - 2, -1, -1):
        if places[marked[-1]] - places[k] >= gap:
            marked.append(k)
    ax.xaxis.set_major_locator(FixedLocator(places[marked].tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{known[k]:,}" for k in marked])
    ax.set_xlim(places[0] - 0.2, places[-1] + 0.2)
    ax.set_xlabel("training step (along log(1 + step))")


BAND = "Bands: {level} limits that cover a whole curve at once, over the items of this one run."
PANELS: dict[str, Panel] = {
    "training_changes": Panel(
        "half_way",
        changes,
        "0 is the value at the first step, 1 that at the last. " + BAND,
    ),
    **{
        f"training_{quantity}": Panel("curves", partial(one_channel, quantity=quantity), BAND)
        for quantity in ("V_M", "V_R", "C_MR")
    },
    "training_fractions": Panel("curves", fractions, BAND, quantities=FRACTIONS),
    "half_way": Panel(
        "half_way",
        half_way,
        "The first step at which a curve has made half of its change from the first step to the "
        "last. Bars: {level} intervals over items or sequences of this one run.",
        height=lambda table: 1.3 + 0.4 * len(table),
    ),
}
