"""Table in, figure out: one function per question of the report.

Colours mean the same everywhere: black the total, blue the mask and the normalizer, orange the
residual stream, green both together, grey what is compared with. Bands and bars are intervals at
the level of the tables.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["FIGURES", "draw", "to_svg"]

TOTAL, MASK, RESIDUAL, BOTH, OTHER = "#222222", "#0072b2", "#d55e00", "#009e73", "#8a8a8a"
STYLE = {
    **sns.axes_style("whitegrid"),
    "svg.hashsalt": "posprobe",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def position_effects(tables: dict[str, pd.DataFrame]) -> Figure:
    """T, M, R and S against position, over all layers and by thirds of depth."""
    table = tables["position_effects"]
    table = table[table["stimulus"] == _first_design(table)]
    layers = sorted(layer for layer in table["layer"].unique() if layer != "all")
    thirds = [list(part) for part in np.array_split(layers, 3) if len(part)]
    panels = {"all layers": ["all"]} | {f"layers {p[0]}-{p[-1]}": p for p in thirds}
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    names = {"T": "total", "M": "mask", "R": "residual", "S": "sink's part of residual"}
    colours = {"T": TOTAL, "M": MASK, "R": RESIDUAL, "S": OTHER}
    for ax, (title, members) in zip(axes, panels.items(), strict=True):
        rows = table[table["layer"].isin(members)]
        for part, name in names.items():
            mean = rows.groupby("position")[part].mean()
            style = "--" if part == "S" else "-"
            ax.plot(mean.index, mean, style, marker="o", ms=3, color=colours[part], label=name)
            if title == "all layers" and part != "S":
                low, high = (rows.set_index("position")[f"{part}_{end}"] for end in ("low", "high"))
                ax.fill_between(mean.index, low, high, color=colours[part], alpha=0.15, lw=0)
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=title, xscale="log", xlabel="tokens before the window")
    axes[0].set_ylabel("change of log attention\nweight (nats)")
    axes[0].legend(fontsize=8)
    return figure


def channels(tables: dict[str, pd.DataFrame]) -> Figure:
    """V_T, V_M, V_R and C_MR by layer, in each design."""
    table = tables["channels_by_layer"]
    designs = list(table["stimulus"].unique())
    figure = Figure(figsize=(5.5 * len(designs), 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(designs), sharey=True))
    parts = {
        "V_T": ("total", TOTAL),
        "V_M": ("mask", MASK),
        "V_R": ("residual", RESIDUAL),
        "C_MR": ("covariance of mask and residual", OTHER),
    }
    for ax, design in zip(axes, designs, strict=True):
        rows = table[table["stimulus"] == design]
        for part, (name, colour) in parts.items():
            _band(ax, rows, "layer", part, colour, name)
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=f"{design} design", xlabel="layer")
    axes[0].set_ylabel("variance over positions (nats²)")
    axes[0].legend(fontsize=8)
    return figure


def shares(tables: dict[str, pd.DataFrame]) -> Figure:
    """Shares of the two channels by layer, where they are defined."""
    table = tables["channels_by_layer"]
    table = table[table["stimulus"] == _first_design(table)]
    defined = table[table["status"] == "ok"]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    ax = figure.subplots()
    for name, colour, shift in (("mask", MASK, -0.12), ("residual", RESIDUAL, 0.12)):
        y = defined[f"share_{name}"].astype(float)
        low, high = (defined[f"share_{name}_{end}"].astype(float) for end in ("low", "high"))
        x = defined["layer"].astype(float) + shift
        reach = np.abs(np.vstack([y - low, high - y]))
        ax.errorbar(x, y, reach, fmt="o", ms=4, color=colour, elinewidth=1, label=name)
    undefined = table.loc[table["status"] != "ok", "layer"]
    for layer in undefined:
        ax.axvspan(layer - 0.5, layer + 0.5, color="#eeeeee", lw=0)
    ax.axhline(0, color="black", lw=0.6)
    ax.set(ylim=(-1.5, 2.5), xlabel="layer", ylabel="share of V_T")
    ax.set_title(f"shares of the channels; grey: undefined ({len(undefined)} of {len(table)})")
    ax.legend(fontsize=8)
    return figure


def heads(tables: dict[str, pd.DataFrame]) -> Figure:
    """V_M, V_R and attention to key 0 of every head."""
    table = tables["channels_by_head"]
    table = table[table["stimulus"] == _first_design(table)]
    maps = [("V_M (nats²)", table, "V_M", "Blues"), ("V_R (nats²)", table, "V_R", "Oranges")]
    if "sinks" in tables:
        maps.append(("mean attention to key 0", tables["sinks"], "attention", "Greys"))
    figure = Figure(figsize=(3.6 * len(maps), 4.6), layout="constrained")
    axes = figure.subplots(1, len(maps))
    for ax, (title, rows, value, colours) in zip(axes, maps, strict=True):
        grid = rows.astype({value: float}).pivot(index="layer", columns="head", values=value)
        top = float(np.quantile(grid, 0.99))
        sns.heatmap(grid, ax=ax, cmap=colours, vmin=0, vmax=top, cbar_kws={"shrink": 0.6})
        ax.set(title=title, xlabel="head", ylabel="layer")
        ax.invert_yaxis()
    return figure


def probes(tables: dict[str, pd.DataFrame]) -> Figure:
    """R2 and mean absolute error of the position probes by layer."""
    table = tables["probes"]
    names = list(table["features"].unique())
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in names:
        colour = {"normalizer": MASK, "residual": RESIDUAL}.get(name, BOTH)
        rows = table[table["features"] == name]
        fixed = rows[rows["estimand"] == "fixed_probe"]
        _band(left, fixed, "layer", "r2", colour, name, limits=("low", "high"))
        refit = rows[rows["estimand"] == "refit"]
        reach = np.vstack([refit["r2"] - refit["low"], refit["high"] - refit["r2"]])
        left.errorbar(refit["layer"], refit["r2"], reach, fmt="none", ecolor=colour, capsize=3)
        right.plot(fixed["layer"], fixed["mae"], color=colour, label=name)
    guess = float(table["mae_guess"].iloc[0])
    right.axhline(guess, color=OTHER, ls="--", label="random guess")
    left.axhline(0, color="black", lw=0.6)
    left.set(title="R² out of fold (bars: refit)", xlabel="layer", ylabel="R²")
    right.set(title="mean absolute error", xlabel="layer", ylabel="tokens", ylim=(0, None))
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def partition(tables: dict[str, pd.DataFrame]) -> Figure:
    """Unique and shared parts of R2 by layer."""
    table = tables["partition"]
    table = table[table["estimand"] == "fixed_probe"]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    ax = figure.subplots()
    for quantity, group, colour, name in (
        ("unique", "normalizer", MASK, "normalizer only"),
        ("unique", "residual", RESIDUAL, "residual stream only"),
        ("shared", None, BOTH, "shared (negative: suppression)"),
    ):
        rows = table[table["quantity"] == quantity]
        rows = rows if group is None else rows[rows["group"] == group]
        _band(ax, rows, "layer", "estimate", colour, name, limits=("low", "high"))
    ax.axhline(0, color="black", lw=0.6)
    ax.set(title="what each carries alone, and both share", xlabel="layer", ylabel="part of R²")
    ax.legend(fontsize=8)
    return figure


def position0(tables: dict[str, pd.DataFrame]) -> Figure:
    """Norm of position 0, its difference to a length-1 run, and its spread over inputs."""
    closed = tables["closed_system"]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    norm, difference, spread = figure.subplots(1, 3)
    norm.plot(closed["layer"], closed["norm"], color=TOTAL, label="position 0")
    norm.plot(closed["layer"], closed["norm_later"], color=OTHER, label="later positions")
    norm.set(title="norm of the residual stream", yscale="log", xlabel="depth")
    norm.legend(fontsize=8)
    floor = 1e-9
    difference.plot(closed["layer"], closed["difference"].clip(lower=floor), color=TOTAL)
    difference.axhline(1e-4, color=OTHER, ls="--")
    difference.set(title="position 0 against a length-1 run", yscale="log", ylim=(floor, 1))
    difference.set(xlabel="depth", ylabel="largest relative difference")
    for (name, rows), colour in zip(
        tables.get("fingerprint", pd.DataFrame({"stimulus": []})).groupby("stimulus", sort=False),
        (RESIDUAL, MASK),
        strict=False,
    ):
        spread.plot(rows["layer"], rows["spread"].clip(lower=floor), color=colour, label=name)
    spread.set(title="spread of position 0 over inputs", yscale="log", xlabel="depth")
    spread.set_ylabel("relative to its norm")
    spread.legend(fontsize=8)
    return figure


def repeated(tables: dict[str, pd.DataFrame]) -> Figure:
    """Largest residual and mask effect of a repeated token, by layer."""
    table = tables["repeated"]
    kinds = list(table["stimulus"].unique())
    figure = Figure(figsize=(5.2 * len(kinds), 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    titles = {"repeated": "one token repeated", "bos_repeated": "the same behind a BOS"}
    for ax, kind in zip(axes, kinds, strict=True):
        rows = table[table["stimulus"] == kind].groupby("layer")[["mask", "residual"]].max()
        ax.plot(rows.index, rows["mask"], color=MASK, label="largest |M|")
        ax.plot(rows.index, rows["residual"].clip(lower=1e-8), color=RESIDUAL, label="largest |R|")
        ax.axhline(1e-4, color=OTHER, ls="--", label="1e-4 nats")
        ax.set(title=titles[kind], yscale="log", xlabel="layer")
    axes[0].set_ylabel("nats")
    axes[0].legend(fontsize=8)
    return figure


def replacement(tables: dict[str, pd.DataFrame]) -> Figure:
    """Fraction of the residual channel that each replacement of position 0 removes."""
    table = tables["replacement"].reset_index(drop=True)
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(table)), layout="constrained")
    ax = figure.subplots()
    for y, row in table.iterrows():
        colour = RESIDUAL if row["primary"] else OTHER
        if pd.notna(row["low"]):
            ax.plot([row["low"], row["high"]], [y, y], color=colour)
            ax.plot(row["fraction_removed"], y, "o", color=colour)
        else:
            ax.annotate("unbounded", (0, y), va="center", color=colour)
    labels = [
        f"{r.treatment}, {r.positions}" + (" (primary)" if r.primary else "")
        for r in table.itertuples()
    ]
    ax.set_yticks(range(len(table)), labels)
    ax.axvline(0, color="black", lw=0.6)
    ax.axvline(0.4, color=MASK, ls="--")
    ax.annotate("the study: 40%", (0.4, -0.6), color=MASK, fontsize=8, ha="center")
    ax.set(xlabel="fraction of V_R removed", ylim=(len(table) - 0.5, -0.9))
    return figure


FIGURES: dict[str, tuple[Callable[[dict[str, pd.DataFrame]], Figure], str]] = {
    "position_effects": (position_effects, "position_effects"),
    "channels": (channels, "channels_by_layer"),
    "shares": (shares, "channels_by_layer"),
    "heads": (heads, "channels_by_head"),
    "probes": (probes, "probes"),
    "partition": (partition, "partition"),
    "position0": (position0, "closed_system"),
    "repeated": (repeated, "repeated"),
    "replacement": (replacement, "replacement"),
}


def draw(name: str, tables: dict[str, pd.DataFrame]) -> Figure | None:
    """Draw one of `FIGURES`, or None where its table is missing."""
    function, needed = FIGURES[name]
    if needed not in tables:
        return None
    with mpl.rc_context(STYLE):
        return function(tables)


def to_svg(figure: Figure) -> str:
    """A figure as SVG text; the same figure gives the same text."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _band(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    name: str,
    limits: tuple[str, str] | None = None,
) -> None:
    low, high = limits or (f"{y}_low", f"{y}_high")
    along = rows[x].astype(float)
    ax.plot(along, rows[y].astype(float), color=colour, label=name)
    ax.fill_between(
        along, rows[low].astype(float), rows[high].astype(float), color=colour, alpha=0.15, lw=0
    )


def _first_design(table: pd.DataFrame) -> str:
    """The shifted design where there is one: content is held fixed there."""
    designs = list(table["stimulus"].unique())
    return "shifted" if "shifted" in designs else str(designs[0])
