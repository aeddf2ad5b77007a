"""One visual language for all figures: colours, bands, bars and what a panel is.

Colours mean the same everywhere and are told apart with any colour vision (Okabe and Ito): black
the total, blue the mask and its normalizer, orange the residual stream, green both together, pink
key 0, grey what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

__all__ = [
    "BOTH",
    "MASK",
    "OTHER",
    "RESIDUAL",
    "SINK",
    "STYLE",
    "TOTAL",
    "Panel",
    "Tables",
    "band",
    "dots",
    "fraction_span",
    "legend_below",
    "light_to",
    "one_design",
    "position_axis",
    "reference_line",
]

Tables = dict[str, pd.DataFrame]
TOTAL, MASK, RESIDUAL, BOTH = "#222222", "#0072b2", "#d55e00", "#009e73"
SINK, OTHER = "#b0569a", "#858585"
NOTE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
STYLE: dict[str, Any] = {
    **sns.axes_style("whitegrid"),
    "svg.fonttype": "none",
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#bbbbbb",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#ececec",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Panel:
    """One figure: what it needs, how it is drawn, and how to read it.

    Attributes
    ----------
    needs : str
        The table without which it cannot be drawn.
    draw : callable
        Takes the tables and empty Axes; returns the same Axes, drawn.
    caption : str
        What lines, bands and bars are; ``{level}`` is replaced by the level of the intervals.
    stimulus : str or None
        A stimulus that the table must contain.
    quantities : tuple of str
        Quantities of which the table must contain one.
    n_layers : int
        The least number of layers that the table must have.
    height : callable or float
        Inches, or a function from the table to inches.
    """

    needs: str
    draw: Callable[[Tables, Axes], Axes]
    caption: str
    stimulus: str | None = None
    quantities: tuple[str, ...] = ()
    n_layers: int = 0
    height: Callable[[pd.DataFrame], float] | float = 3.6

    def available(self, tables: Tables) -> bool:
        """Whether the tables contain what is drawn."""
        table = tables.get(self.needs)
        if table is None or table.empty:
            return False
        if self.quantities and not table["quantity"].isin(self.quantities).any():
            return False
        if self.n_layers and len({*table["layer"]} - {"all"}) < self.n_layers:
            return False
        return self.stimulus is None or self.stimulus in set(table["stimulus"])

    def inches(self, tables: Tables) -> tuple[float, float]:
        """Size of the figure, narrow enough to be read on a phone."""
        height = self.height(tables[self.needs]) if callable(self.height) else self.height
        return 5.0, height


def one_design(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the shifted design, which holds content fixed; without it, of the first design."""
    designs = list(table["stimulus"].unique())
    return table[table["stimulus"] == ("shifted" if "shifted" in designs else designs[0])]


def band(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    label: str,
    limits: tuple[str, str] | None = None,
    **line: Any,
) -> None:
    """A line with its interval as a band; the limits are `y`_low and `y`_high unless named."""
    low, high = limits or (f"{y}_low", f"{y}_high")
    along, middle, below, above = (rows[name].astype(float) for name in (x, y, low, high))
    ax.plot(along, middle, color=colour, label=label, **line)
    ax.fill_between(along, below, above, color=colour, alpha=0.18, lw=0)


def dots(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    heights: Any,
    colour: str,
    label: str | None = None,
    span: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Estimates with horizontal bars from `low` to `high`, cut off at the edges of `span`.

    An unbounded interval, and an estimate outside the span, are written in words.
    """
    heights = np.asarray(heights, dtype=float)
    values = rows[x].astype(float).to_numpy()
    low, high = (rows[end].astype(float).to_numpy() for end in ("low", "high"))
    bounded = ~np.isnan(low)
    inside = bounded & (values >= span[0]) & (values <= span[1])
    bars = bounded & (high >= span[0]) & (low <= span[1])
    ax.hlines(heights[bars], low[bars].clip(*span), high[bars].clip(*span), colour, lw=1.6)
    ax.plot(values[inside], heights[inside], "o", ms=5, color=colour, label=label)
    for height, value, known in zip(heights, values, bounded, strict=True):
        if known and span[0] <= value <= span[1]:
            continue
        words = f"outside: {value:.1f}".replace("-", "−") if known else "interval unbounded"
        ax.text(
            0.02, height, words, color=colour, va="center", fontsize=8.5,
            transform=ax.get_yaxis_transform(),
        )  # fmt: skip


def fraction_span(rows: pd.DataFrame) -> tuple[float, float]:
    """Limits of an axis from 0 to 1, wider where intervals are, but within −1.5 and 1.5."""
    low, high = float(rows["low"].min()), float(rows["high"].max())
    return max(min(-0.2, low) - 0.05, -1.5), min(max(1.0, high) + 0.05, 1.5)


def legend_below(ax: Axes, ncols: int = 2) -> None:
    """A legend that covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles, labels, loc="outside lower center", ncols=ncols)


def reference_line(ax: Axes, value: float, text: str, *, upright: bool = False) -> None:
    """A dashed line with its label."""
    if upright:
        ax.axvline(value, color=OTHER, ls="--", lw=1.1)
        ax.annotate(
            text, (value, 1.0), (2, -2), xycoords=ax.get_xaxis_transform(), va="top",
            textcoords="offset points", color="#555555", fontsize=8.5, bbox=NOTE,
        )  # fmt: skip
        return
    ax.axhline(value, color=OTHER, ls="--", lw=1.1)
    ax.annotate(
        text, (1.0, value), (-2, 2), xycoords=ax.get_yaxis_transform(), ha="right",
        textcoords="offset points", color="#555555", fontsize=8.5, bbox=NOTE,
    )  # fmt: skip


def position_axis(ax: Axes, positions: Any) -> None:
    """Positions on a logarithmic axis, marked where something was measured."""
    marked = sorted({float(position) for position in positions})
    if marked[0] > 0:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(marked))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{position:g}" for position in marked])
    ax.set_xlabel("position of the window (tokens ahead of it)")


def light_to(colour: str) -> Any:
    """A colour map from nearly white to a colour."""
    return sns.blend_palette(["#fafafa", colour], as_cmap=True)
