"""Position 0: who attends to it, whether it is closed, and what replacing it removes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from posprobe.figures.channels import heatmap, map_height
from posprobe.figures.style import (
    MASK,
    OTHER,
    RESIDUAL,
    SINK,
    TOTAL,
    Panel,
    Tables,
    dots,
    fraction_span,
    legend_below,
    light_to,
    reference_line,
)

__all__ = ["PANELS"]

FLOOR = 1e-9


def sinks(tables: Tables, ax: Axes) -> Axes:
    """Mean attention to key 0 of every head."""
    table = tables["sinks"].astype({"layer": int, "head": int})
    grid = table.pivot(index="layer", columns="head", values="attention")
    title = "Which heads attend to key 0?"
    return heatmap(ax, grid, title, "mean attention", cmap=light_to(SINK), vmin=0.0, vmax=1.0)


def sink_rates(tables: Tables, ax: Axes) -> Axes:
    """The number of heads by sink rate."""
    rates = tables["sinks"]["sink_rate"].astype(float)
    ax.hist(rates, bins=20, range=(0.0, 1.0), color=SINK, edgecolor="white", lw=0.6)
    ax.set(title="How many heads sink?", xlim=(0, 1), ylabel="heads")
    ax.set_xlabel("sink rate: share of sequences with attention > 0.3")
    return ax


def writing(tables: Tables, ax: Axes) -> Axes:
    """What sink-reading and other heads write of position 0 into the residual stream."""
    table = tables["sink_writing"]
    relative = table[table["quantity"] != "written"]
    shown = relative if len(relative) else table
    shown = shown[shown["heads"] != "ratio"].reset_index(drop=True)
    dots(ax, shown, "estimate", range(len(shown)), SINK)
    ax.set_yticks(
        range(len(shown)), [f"{r.heads}\n({r.n_heads} heads)" for r in shown.itertuples()]
    )
    unit = "norm, relative to the residual stream" if len(relative) else "norm"
    ax.set(title="What do heads write of position 0?", xlabel=unit, ylim=(len(shown) - 0.5, -0.5))
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    return ax


def norms(tables: Tables, ax: Axes) -> Axes:
    """Norm of position 0 and of later positions along the depth."""
    table = tables["closed_system"]
    ax.plot(table["layer"], table["norm"], color=SINK, label="position 0")
    if table["norm_later"].notna().any():
        ax.plot(table["layer"], table["norm_later"], color=OTHER, label="later positions")
    ax.set(
        title="How does the norm of position 0 change?",
        yscale="log",
        xlabel="depth (blocks passed)",
    )
    ax.set_ylabel("median norm")
    legend_below(ax)
    return ax


def cosines(tables: Tables, ax: Axes) -> Axes:
    """Cosine of position 0 with itself a block earlier: 1 where a block keeps its direction."""
    table = tables["closed_system"]
    ax.plot(table["layer"], table["cosine"].astype(float), color=SINK, marker="o", ms=3)
    ax.axhline(0, color="black", lw=0.7)
    low = min(0.0, float(table["cosine"].min()))
    ax.set(title="Which blocks turn position 0?", ylim=(1.08 * low - 0.02, 1.05))
    ax.set(xlabel="depth (blocks passed)", ylabel="cosine with the previous depth")
    return ax


def dimensions(tables: Tables, ax: Axes) -> Axes:
    """How many dimensions position 0 fills at each depth."""
    table = tables["closed_system"]
    ax.plot(table["layer"], table["dimensions"].astype(float), color=SINK, marker="o", ms=3)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(title="How many dimensions does position 0 fill?", ylim=(0.8, None))
    ax.set(xlabel="depth (blocks passed)", ylabel="dimensions for 99% of the norm²")
    return ax


def closure(tables: Tables, ax: Axes) -> Axes:
    """Difference between position 0 and a run on its token alone."""
    table = tables["closed_system"]
    ax.plot(table["layer"], table["difference"].clip(lower=FLOOR), color=SINK)
    if (bound := _limit(tables, "closed_system")) is not None:
        reference_line(ax, bound, f"limit {bound:g}")
    ax.set(title="Does position 0 depend on what follows?", yscale="log", ylim=(FLOOR / 2, 1))
    ax.set(xlabel="depth (blocks passed)", ylabel="largest relative difference")
    return ax


def fingerprint(tables: Tables, ax: Axes) -> Axes:
    """Spread of position 0 over inputs that begin with one token, or with many."""
    colours = {"one first token": SINK, "many first tokens": OTHER}
    for name, rows in tables["fingerprint"].groupby("stimulus", sort=False):
        size = rows["spread"].clip(lower=FLOOR)
        ax.plot(rows["layer"], size, color=colours.get(str(name), TOTAL), label=name)
    ax.set(title="Is its fingerprint the same in every input?", yscale="log")
    ax.set(ylim=(FLOOR / 2, None), xlabel="depth (blocks passed)", ylabel="relative spread")
    legend_below(ax)
    return ax


def repeated(tables: Tables, ax: Axes, kind: str) -> Axes:
    """Largest mask and residual effect of a repeated token, by layer."""
    table = tables["repeated"]
    title = {"repeated": "One token repeated", "bos_repeated": "One token repeated behind a BOS"}[
        kind
    ]
    rows = table[table["stimulus"] == kind].groupby("layer")[["mask", "residual"]].max()
    rows = rows.clip(lower=FLOOR)
    ax.plot(rows.index, rows["mask"], color=MASK, label="largest |M|")
    ax.plot(rows.index, rows["residual"], color=RESIDUAL, label="largest |R|")
    high = float(table[["mask", "residual"]].max().max())
    claim = {"repeated": "mask_isolated", "bos_repeated": "residual_opened"}[kind]
    if (bound := _limit(tables, claim)) is not None:
        reference_line(ax, bound, f"limit {bound:g} nats")
        high = max(high, bound)
    ax.set(title=title, yscale="log", ylim=(FLOOR / 2, 5 * max(high, FLOOR)))
    ax.set(xlabel="layer", ylabel="nats")
    legend_below(ax)
    return ax


def _limit(tables: Tables, claim: str) -> float | None:
    """Up to where an identity counts as kept; None where no table says so."""
    if "limits" not in tables:
        return None
    table = tables["limits"]
    value = table.loc[table["claim"] == claim, "value"]
    return float(value.iloc[0]) if len(value) else None


def replacement(tables: Tables, ax: Axes) -> Axes:
    """Fraction of the residual channel that each replacement of position 0 removes."""
    table = tables["replacement"].reset_index(drop=True)
    primary = table["primary"].astype(bool)
    span = fraction_span(table)
    for rows, colour in ((table[primary], RESIDUAL), (table[~primary], OTHER)):
        dots(ax, rows, "fraction_removed", rows.index, colour, span=span)
    labels = [
        f"{r.treatment}, {r.positions}" + (" (primary)" if r.primary else "")
        for r in table.itertuples()
    ]
    ax.set_yticks(range(len(table)), labels)
    ax.axvline(0, color="black", lw=0.7)
    reference_line(ax, 0.4, "the study: 40%", upright=True)
    ax.set(title="How much does each replacement remove?", ylim=(len(table) - 0.5, -1.2))
    ax.set(xlabel="fraction of V_R removed", xlim=span)
    return ax


def sinks_replaced(tables: Tables, ax: Axes) -> Axes:
    """Sink rates before and after each replacement."""
    table = tables["replacement"].drop_duplicates("treatment").reset_index(drop=True)
    y = np.arange(len(table))
    before, after = (
        table[f"sink_rate_{end}"].astype(float).to_numpy() for end in ("native", "replaced")
    )
    ax.hlines(y, before, after, "#bbbbbb", lw=2.5)
    ax.plot(before, y, "o", ms=7, mfc="white", color=OTHER, label="native")
    ax.plot(after, y, "o", ms=5, color=SINK, label="replaced")
    ax.set_yticks(y, table["treatment"])
    ax.set(title="Do the sinks survive the replacement?", xlim=(-0.02, 1.02))
    ax.set(xlabel="sink rate, all heads", ylim=(len(table) - 0.5, -0.5))
    legend_below(ax)
    return ax


def _rows_height(table: pd.DataFrame) -> float:
    return 1.3 + 0.3 * len(table)


def _treatments_height(table: pd.DataFrame) -> float:
    return 1.7 + 0.3 * table["treatment"].nunique()


PANELS = {
    "sinks": Panel(
        "sinks",
        sinks,
        "Attention to key 0, averaged over queries and sequences. One cell per layer and head; "
        "intervals are in tables/sinks.csv.",
        height=map_height,
    ),
    "sink_rates": Panel(
        "sinks",
        sink_rates,
        "Heads by their sink rate (Gu et al. 2024). No interval: these heads are counted on these "
        "sequences.",
    ),
    "sink_writing": Panel(
        "sink_writing",
        writing,
        "Norm of what a head writes of position 0's value, mean over heads; heads chosen on one "
        "half of the sequences, measured on the other. Bars: {level} intervals.",
        height=2.2,
    ),
    "position0_norm": Panel(
        "closed_system",
        norms,
        "Norm of the residual stream, median over sequences. No interval: a description.",
    ),
    "position0_cosine": Panel(
        "closed_system",
        cosines,
        "Cosine between position 0 before and after each block, median over sequences. At 1 the "
        "block keeps its direction. No interval: a description.",
    ),
    "position0_dimensions": Panel(
        "closed_system",
        dimensions,
        "Fewest dimensions of the residual stream that make up 99% of position 0's squared norm, "
        "median over sequences; very few where activations are massive. No interval: a "
        "description.",
    ),
    "position0_closure": Panel(
        "closed_system",
        closure,
        "Difference of position 0 between its sequence and a run on its token alone, largest over "
        "sequences. Exactly 0 is drawn at the lower edge.",
    ),
    "position0_fingerprint": Panel(
        "fingerprint",
        fingerprint,
        "Mean distance of an input's position 0 from the mean over inputs, relative to its norm. "
        "Exactly 0 is drawn at the lower edge.",
    ),
    **{
        kind: Panel(
            "repeated",
            partial(repeated, kind=kind),
            "Largest over items, positions, heads and offsets. No interval: it is a maximum. "
            "Exactly 0 is drawn at the lower edge.",
            stimulus=kind,
        )
        for kind in ("repeated", "bos_repeated")
    },
    "replacement": Panel(
        "replacement",
        replacement,
        "Dots: fraction removed, by treatment and range of queries. Bars: {level} Fieller "
        "intervals. Orange: the primary specification, fixed beforehand.",
        height=_rows_height,
    ),
    "replacement_sinks": Panel(
        "replacement",
        sinks_replaced,
        "Share of sequences and heads with mean attention to key 0 above 0.3. No interval: a "
        "description.",
        height=_treatments_height,
    ),
}
