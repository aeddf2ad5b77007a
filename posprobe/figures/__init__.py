"""Table in, Axes out: one panel for each thing to see, and each a figure of its own.

Panels are small, so a page can lay them out side by side or below each other. Colours mean the
same everywhere, see `posprobe.figures.style`. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import TypeVar

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from posprobe.errors import DesignError
from posprobe.figures import (
    architectures,
    bands,
    channels,
    conditions,
    interventions,
    position0,
    probes,
    training,
)
from posprobe.figures.channels import NEGATIVE_SHARE
from posprobe.figures.style import STYLE, Panel, Tables, one_design

__all__ = [
    "COMPARISON_PANELS",
    "EVERY_PANEL",
    "NEGATIVE_SHARE",
    "PANELS",
    "TRAINING_PANELS",
    "Tables",
    "draw",
    "one_design",
    "to_png",
    "to_svg",
]

PANELS: dict[str, Panel] = (
    channels.PANELS
    | bands.PANELS
    | probes.PANELS
    | position0.PANELS
    | interventions.PANELS
    | conditions.PANELS
)
COMPARISON_PANELS: dict[str, Panel] = architectures.PANELS
TRAINING_PANELS: dict[str, Panel] = training.PANELS
EVERY_PANEL = PANELS | COMPARISON_PANELS | TRAINING_PANELS
Canvas = TypeVar("Canvas", FigureCanvasAgg, FigureCanvasSVG)
UNUSED_IDS = re.compile(r' id="[A-Za-z]+[A-Za-z0-9.]*_\d+"')


def draw(name: str, tables: Tables) -> Figure | None:
    """Draw one panel.

    Parameters
    ----------
    name : str
        A name in `PANELS`, `COMPARISON_PANELS` or `TRAINING_PANELS`.
    tables : dict of str to pandas.DataFrame
        As in `posprobe.analysis.Analysis`, or in `Comparison` or `Training` of
        `posprobe.comparison`.

    Returns
    -------
    matplotlib.figure.Figure or None
        None where its table is missing.

    Raises
    ------
    DesignError
        For a name that is in none.
    """
    if name not in EVERY_PANEL:
        raise DesignError(f"no figure is called {name!r}: choose from {', '.join(EVERY_PANEL)}")
    panel = EVERY_PANEL[name]
    if not panel.available(tables):
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=panel.inches(tables), layout="constrained")
        ax = panel.draw(_Literal(tables), figure.subplots())
        figure.suptitle(ax.get_title(loc="left"), x=0.01, ha="left", size=10.5, weight="bold")
        ax.set_title("", loc="left")
    return figure


class _Literal(Tables):
    """Tables whose names matplotlib draws as they are: dollar signs would enclose mathematics."""

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table without dollar signs; only those that are drawn are searched for them."""
        return _escaped(super().__getitem__(name))


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    words = table.select_dtypes(exclude=["number", "bool"])
    if not any("$" in "".join(map(str, column.unique())) for _, column in words.items()):
        return table  # in most: looking for what to replace takes longer than drawing
    return table.replace(r"\$", r"\\$", regex=True)


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, at 200 dots per inch; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure

    Returns
    -------
    bytes
        Without date and program name.
    """
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE), _drawn_once(figure, FigureCanvasAgg, dpi=200) as canvas:
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """A figure as SVG text; the same figure and name give the same text.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Makes identifiers differ between figures, so one page can contain several.

    Returns
    -------
    str
        An ``<svg>`` element without date, program name or XML prolog.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    style = STYLE | {"svg.hashsalt": f"posprobe {name}", "svg.id": name}
    with mpl.rc_context(style), _drawn_once(figure, FigureCanvasSVG, figure.dpi) as canvas:
        canvas.print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    return UNUSED_IDS.sub("", text[text.index("<svg") :])


@contextlib.contextmanager
def _drawn_once(figure: Figure, kind: type[Canvas], dpi: float) -> Iterator[Canvas]:
    """Lend a figure a canvas, which lays it out as it draws it; `savefig` draws it twice."""
    canvas, own_dpi = figure.canvas, figure.dpi
    figure.set_dpi(dpi)
    try:
        yield kind(figure)
    finally:
        figure.set_canvas(canvas)
        figure.set_dpi(own_dpi)
