"""Position effects, the two channels by layer and head, and what the shifted design gains."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from posprobe.figures.style import (
    MASK,
    OTHER,
    RESIDUAL,
    SINK,
    TOTAL,
    Panel,
    Tables,
    band,
    legend_below,
    light_to,
    one_design,
    position_axis,
    reference_line,
)

__all__ = ["NEGATIVE_SHARE", "PANELS", "heatmap", "map_height"]

NEGATIVE_SHARE = "a share is negative only where −C exceeds the channel's own variance"
EFFECT_LINES = {
    "T": ("total T", TOTAL),
    "M": ("mask M", MASK),
    "R": ("residual stream R", RESIDUAL),
    "S": ("sink's part of R", SINK),
}
THIRDS = ("first third", "middle third", "last third")
SHARE_LIMITS = (-1.5, 2.5)


def position_effects(tables: Tables, ax: Axes) -> Axes:
    """T, M, R and S against position, mean over layers."""
    table = one_design(tables["position_effects"])
    rows = table[table["layer"] == "all"]
    for part, (name, colour) in EFFECT_LINES.items():
        dashes = "--" if part == "S" else "-"
        band(ax, rows, "position", part, colour, name, marker="o", ms=3.5, ls=dashes)
    ax.axhline(0, color="black", lw=0.7)
    position_axis(ax, rows["position"])
    ax.set(title="How does attention change with position?", ylabel="change (nats)")
    legend_below(ax)
    return ax


def effects_by_depth(tables: Tables, ax: Axes, third: int) -> Axes:
    """T, M and R in one third of the layers: every layer thin, their mean thick."""
    table = one_design(tables["position_effects"])
    table = table[table["layer"] != "all"]
    layers = [list(part) for part in np.array_split(sorted(table["layer"].unique()), 3)][third]
    rows = table[table["layer"].isin(layers)]
    for part, (name, colour) in list(EFFECT_LINES.items())[:3]:
        curves = rows.pivot(index="position", columns="layer", values=part).astype(float)
        ax.plot(curves.index, curves, color=colour, lw=0.6, alpha=0.4)
        ax.plot(curves.index, curves.mean(axis=1), color=colour, lw=2.4, label=name)
    ax.axhline(0, color="black", lw=0.7)
    position_axis(ax, table["position"])
    values = table[["T", "M", "R"]].to_numpy(dtype=float)
    edge = 0.05 * float(np.ptp(values)) or 1.0
    span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    ax.set(ylim=(values.min() - edge, values.max() + edge), ylabel="change (nats)")
    ax.set_title(f"{THIRDS[third].capitalize()}: {span}")
    legend_below(ax, 3)
    return ax


def channels(tables: Tables, ax: Axes, design: str) -> Axes:
    """V_T, V_M, V_R and their covariance by layer."""
    table = tables["channels_by_layer"]
    parts = {
        "V_T": ("total V_T", TOTAL, "-"),
        "V_M": ("mask V_M", MASK, "-"),
        "V_R": ("residual stream V_R", RESIDUAL, "-"),
        "C_MR": ("covariance C of both", OTHER, "--"),
    }
    rows = table[table["stimulus"] == design]
    for part, (name, colour, line) in parts.items():
        band(ax, rows, "layer", part, colour, name, ls=line)
    ax.axhline(0, color="black", lw=0.7)
    if rows["layer_type"].nunique() > 1:
        mark_full_layers(ax, rows)
    low = float(table[["V_R_low", "C_MR_low"]].min().min())
    high = float(table[["V_T_high", "V_M_high"]].max().max())
    ax.set(ylim=(1.05 * min(low, 0.0), 1.05 * high), xlabel="layer", ylabel="variance (nats²)")
    ax.set_title(f"Which channel, layer by layer? ({design} design)")
    legend_below(ax)
    return ax


def mark_full_layers(ax: Axes, rows: pd.DataFrame) -> None:
    """Shade the layers with full attention, where others have a sliding window."""
    full = rows.loc[rows["layer_type"] == "full", "layer"].astype(float)
    for k, layer in enumerate(full):
        label = "full attention (others: sliding window)" if k == 0 else None
        ax.axvspan(layer - 0.5, layer + 0.5, facecolor="#ececec", lw=0, zorder=0, label=label)


def balance_of_variance(tables: Tables, ax: Axes) -> Axes:
    """V_M, V_R and 2 C as steps that add up to V_T, each with its interval."""
    row = one_design(tables["channels"]).iloc[0]
    parts = (
        ("mask V_M", "V_M", 1, MASK),
        ("residual V_R", "V_R", 1, RESIDUAL),
        ("both, 2 C", "C_MR", 2, OTHER),
        ("total V_T", "V_T", 1, TOTAL),
    )
    start = 0.0
    for k, (_, name, times, colour) in enumerate(parts):
        size, low, high = (times * float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        begin = 0.0 if name == "V_T" else start
        ax.barh(k, size, left=begin, height=0.62, color=colour, alpha=0.5)
        ax.hlines(k, begin + low, begin + high, "black", lw=1.2)
        ax.vlines((begin + low, begin + high), k - 0.12, k + 0.12, "black", lw=1.2)
        start = begin + size
    ax.axvline(0, color="black", lw=0.7)
    ax.set_yticks(range(len(parts)), [label for label, *_ in parts])
    ax.set(ylim=(len(parts) - 0.5, -0.5), xlabel="variance over positions (nats²)")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(visible=False, axis="y")
    ax.set_title("What adds up to the effect of position?")
    return ax


def shares(tables: Tables, ax: Axes) -> Axes:
    """Shares of the two channels by layer, where they are defined."""
    table = one_design(tables["channels_by_layer"])
    defined = table[table["status"] == "ok"]
    for name, colour, shift in (("mask", MASK, -0.15), ("residual", RESIDUAL, 0.15)):
        y, low, high = (
            defined[f"share_{name}{end}"].astype(float) for end in ("", "_low", "_high")
        )
        x = defined["layer"].astype(float) + shift
        ax.vlines(x, low.clip(*SHARE_LIMITS), high.clip(*SHARE_LIMITS), colour, lw=1.2)
        ax.plot(x, y, "o", ms=3.5, color=colour, label=f"{name} share")
    undefined = table.loc[table["status"] != "ok", "layer"].astype(float)
    for k, layer in enumerate(undefined):
        ax.axvspan(
            layer - 0.5, layer + 0.5, facecolor="#efefef", edgecolor="#d0d0d0", hatch="////",
            lw=0, label=f"undefined ({len(undefined)} of {len(table)} layers)" if k == 0 else None,
        )  # fmt: skip
    ax.axhline(0, color="black", lw=0.7)
    ax.axhline(1, color="black", lw=0.7)
    ax.set(ylim=SHARE_LIMITS, xlim=(-0.7, len(table) - 0.3), xlabel="layer", ylabel="share of V_T")
    ax.set_title("What share does each channel have?")
    legend_below(ax, 3)
    return ax


def by_offset(tables: Tables, ax: Axes) -> Axes:
    """T, M and R of early queries at each offset, mean over layers and heads."""
    table = one_design(tables["channels_by_offset"])
    rows = table[(table["layer"] == "all") & (table["positions"] == "early")]
    for name, label, colour in (
        ("T", "total T", TOTAL),
        ("M", "mask M", MASK),
        ("R", "residual stream R", RESIDUAL),
    ):
        band(ax, rows, "offset", name, colour, label, marker="o", ms=4)
    offsets = sorted(rows["offset"].unique())
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(offsets))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(offset) for offset in offsets])
    ax.axhline(0, color="black", lw=0.7)
    ax.set(title="Does it matter how far back the key is?", ylabel="change from latest (nats)")
    ax.set_xlabel("offset (tokens back)")
    legend_below(ax, 3)
    return ax


def _grid(tables: Tables, value: str) -> pd.DataFrame:
    table = one_design(tables["channels_by_head"])
    table = table.astype({"layer": int, "head": int, value: float})
    return table.pivot(index="layer", columns="head", values=value)


def heatmap(ax: Axes, grid: pd.DataFrame, title: str, label: str, **colours: Any) -> Axes:
    """One cell per layer and head, layer 0 at the bottom; cells without a number stay grey."""
    ax.set_facecolor("#d9d9d9")
    ax.grid(False)
    bar = {"label": label, "extend": colours.pop("extend", "neither"), "pad": 0.03}
    steps = {"xticklabels": _step(grid.shape[1]), "yticklabels": _step(grid.shape[0])}
    sns.heatmap(grid, ax=ax, cbar_kws=bar, **steps, **colours)
    ax.invert_yaxis()
    ax.set(title=title, xlabel="head", ylabel="layer")
    ax.tick_params(rotation=0)
    return ax


def _step(count: int) -> int:
    return max(1, round(count / 10))


def heads(tables: Tables, ax: Axes, value: str) -> Axes:
    """V_M or V_R of every head, both on one scale."""
    name, colour = {"V_M": ("mask", MASK), "V_R": ("residual stream", RESIDUAL)}[value]
    both = np.concatenate([_grid(tables, part).to_numpy().ravel() for part in ("V_M", "V_R")])
    top = float(np.quantile(both, 0.98))
    label = f"{value} (nats²)"
    title = f"Which heads does the {name} move?"
    scale = {"vmin": 0.0, "vmax": top if top > 0 else 1.0, "extend": "max"}
    return heatmap(ax, _grid(tables, value), title, label, cmap=light_to(colour), **scale)


def head_shares(tables: Tables, ax: Axes) -> Axes:
    """The residual stream's share of every head where it is defined."""
    colours = sns.blend_palette([MASK, "#f7f7f7", RESIDUAL], as_cmap=True)
    return heatmap(
        ax, _grid(tables, "share_residual"), "Which channel moves which head?",
        "share of the residual stream", cmap=colours, vmin=-0.5, vmax=1.5, extend="both",
    )  # fmt: skip


def precision(tables: Tables, ax: Axes) -> Axes:
    """Standard errors in natural text relative to those in the shifted design."""
    table = tables["precision"]
    for (scope, rows), colour in zip(
        table.groupby("scope", sort=False), (TOTAL, OTHER), strict=False
    ):
        label = "mean over heads" if scope == "mean over heads" else "head by head"
        band(ax, rows, "position", "ratio", colour, label, limits=("low", "high"), marker="o", ms=4)
    position_axis(ax, table["position"])
    high = float(table["high"].max())
    steps = [step for step in (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if step < 1.1 * high]
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator(steps))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels([f"{step:g}" for step in steps])
    reference_line(ax, 1.0, "equal")
    ax.set(title="What is gained by holding content fixed?", ylabel="standard error, ratio")
    legend_below(ax)
    return ax


def map_height(table: pd.DataFrame) -> float:
    """Inches for one row per layer."""
    layers = table.loc[table["layer"] != "all", "layer"].nunique()
    return float(np.clip(1.4 + 0.1 * layers, 2.6, 6.0))


MAP = "One cell per layer and head."
PANELS = {
    "position_effects": Panel(
        "position_effects",
        position_effects,
        "Change of the log attention weight at a fixed offset against the latest position; mean "
        "over layers, heads and offsets. Bands: {level} intervals, pointwise.",
        height=3.9,
    ),
    "balance_of_variance": Panel(
        "channels",
        balance_of_variance,
        "V_T = V_M + V_R + 2 C, mean over layers, heads and offsets: each bar begins where the one "
        "above it ends, and the last is their sum. Whiskers: {level} intervals.",
        height=3.0,
    ),
    **{
        f"position_effects_{name.replace(' ', '_')}": Panel(
            "position_effects",
            partial(effects_by_depth, third=k),
            "Thin lines: single layers. Thick: their mean. The intervals of every layer are in "
            "tables/position_effects.csv.",
            n_layers=3,
        )
        for k, name in enumerate(THIRDS)
    },
    **{
        f"channels_{design}": Panel(
            "channels_by_layer",
            partial(channels, design=design),
            f"{what} Mean over heads and offsets. Bands: {{level}} intervals, layer by layer. "
            "Where the covariance is negative, the channels oppose each other.",
            stimulus=design,
            height=3.9,
        )
        for design, what in {
            "shifted": "The same windows at every position.",
            "natural": "Different content at every position, as in any text.",
        }.items()
    },
    "shares": Panel(
        "channels_by_layer",
        shares,
        "Bars: {level} Fieller intervals, cut off at the edge of the figure. The two shares of a "
        f"layer add to 1; {NEGATIVE_SHARE}. Hatched: undefined, because V_T is not distinguishable "
        "from 0.",
    ),
    "precision": Panel(
        "precision",
        precision,
        "Standard error of T in natural text over that in the shifted design, at equal n. Bands: "
        "{level} intervals.",
    ),
    "channels_by_offset": Panel(
        "channels_by_offset",
        by_offset,
        "Effects at early queries (prefixes up to an eighth of the length), mean over layers and "
        "heads. All offsets are averaged over the same rows, so M is the same at every offset. "
        "Bands: {level} intervals.",
    ),
    "heads_mask": Panel(
        "channels_by_head",
        partial(heads, value="V_M"),
        f"{MAP} Both maps share one scale, which ends at the 98th percentile. Estimates below 0 "
        "are due to noise and look like 0.",
        height=map_height,
    ),
    "heads_residual": Panel(
        "channels_by_head",
        partial(heads, value="V_R"),
        f"{MAP} The scale is that of the mask's map.",
        height=map_height,
    ),
    "heads_share": Panel(
        "channels_by_head",
        head_shares,
        f"{MAP} Blue: 0 or less, the mask alone; {NEGATIVE_SHARE}. Orange: 1 or more, the "
        "residual stream alone. Grey: undefined, because V_T is not distinguishable from 0.",
        height=map_height,
    ),
}
