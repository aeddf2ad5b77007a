"""What linear probes read position from, and what is left without the denominator."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes

from posprobe.figures.style import (
    BOTH,
    MASK,
    OTHER,
    RESIDUAL,
    TOTAL,
    Panel,
    Tables,
    band,
    legend_below,
    reference_line,
)

__all__ = ["PANELS"]

GROUPS = {"normalizer": ("normalizer N", MASK), "residual": ("residual stream R", RESIDUAL)}
JOINT = ("both J", BOTH)


def r2(tables: Tables, ax: Axes) -> Axes:
    """R2 of the position probes by layer."""
    table = tables["probes"]
    for k, name in enumerate(table["features"].unique()):
        label, colour = GROUPS.get(name, JOINT)
        rows = table[table["features"] == name]
        fixed = rows[rows["estimand"] == "fixed_probe"]
        band(ax, fixed, "layer", "r2", colour, label, limits=("low", "high"))
        refit = rows[rows["estimand"] == "refit"]
        low, middle, high = (refit[column].astype(float) for column in ("low", "r2", "high"))
        reach = np.vstack([(middle - low).clip(lower=0), (high - middle).clip(lower=0)])
        along = refit["layer"].astype(float) + 0.15 * (k - 1)
        ax.errorbar(along, middle, reach, fmt="o", ms=3, color=colour, capsize=2.5, elinewidth=1)
    ax.axhline(0, color="black", lw=0.7)
    ax.set(title="Can position be read off one layer?", xlabel="layer", ylabel="R² out of fold")
    legend_below(ax, 3)
    return ax


def error(tables: Tables, ax: Axes) -> Axes:
    """Mean absolute error by layer, against a random guess."""
    table = tables["probes"]
    table = table[table["estimand"] == "fixed_probe"]
    for name, rows in table.groupby("features", sort=False):
        label, colour = GROUPS.get(str(name), JOINT)
        ax.plot(rows["layer"].astype(float), rows["mae"].astype(float), color=colour, label=label)
    reference_line(ax, float(table["mae_guess"].iloc[0]), "a random guess")
    ax.set(title="By how many tokens do probes err?", xlabel="layer", ylim=(0, None))
    ax.set_ylabel("mean absolute error (tokens)")
    legend_below(ax, 3)
    return ax


def partition(tables: Tables, ax: Axes, parts: str) -> Axes:
    """Unique and shared parts of R2, or Shapley values, by layer."""
    table = tables["partition"]
    table = table[table["estimand"] == "fixed_probe"]
    if parts == "shared":
        title = "What does each tell alone, and what do both?"
        lines = [
            ("unique", "normalizer", MASK, "normalizer only"),
            ("unique", "residual", RESIDUAL, "residual stream only"),
            ("shared", "normalizer+residual", BOTH, "shared"),
        ]
    else:
        title = "How is the joint R² divided?"
        lines = [
            ("shapley", "normalizer", MASK, "normalizer"),
            ("shapley", "residual", RESIDUAL, "residual stream"),
        ]
    for quantity, group, colour, label in lines:
        rows = table[(table["quantity"] == quantity) & (table["group"] == group)]
        band(ax, rows, "layer", "estimate", colour, label, limits=("low", "high"))
    ax.axhline(0, color="black", lw=0.7)
    ax.set(title=title, xlabel="layer", ylabel="part of R²")
    legend_below(ax, 3)
    return ax


def denominator(tables: Tables, ax: Axes) -> Axes:
    """R2 from log attention weights, and from the scores alone."""
    table = tables["fixed_denominator"]
    band(ax, table, "layer", "r2_attention", TOTAL, "log attention weights P")
    band(ax, table, "layer", "r2_scores", OTHER, "scores alone P_fix")
    band(ax, table, "layer", "difference", MASK, "difference", ls="--")
    ax.axhline(0, color="black", lw=0.7)
    ax.set(title="Does position come from the denominator?", xlabel="layer")
    ax.set_ylabel("R² out of fold")
    legend_below(ax, 2)
    return ax


PANELS = {
    "probes": Panel(
        "probes",
        r2,
        "Bands: {level} intervals of these probes, held fixed (fixed_probe). Bars, at a few "
        "layers: {level} intervals of the average probe at this number of sequences (refit).",
    ),
    "probes_error": Panel(
        "probes",
        error,
        "Point estimates, out of fold. A random guess: a position drawn uniformly.",
    ),
    "partition": Panel(
        "partition",
        partial(partition, parts="shared"),
        "Bands: {level} intervals, fixed_probe. A negative shared part is suppression: each makes "
        "the other more useful.",
    ),
    "partition_shapley": Panel(
        "partition",
        partial(partition, parts="shapley"),
        "Shapley values: the two add to the joint R². Bands: {level} intervals, fixed_probe.",
    ),
    "fixed_denominator": Panel(
        "fixed_denominator",
        denominator,
        "Both probes see the same offsets, rows and folds. Bands: {level} intervals, fixed_probe.",
        height=3.8,
    ),
}
