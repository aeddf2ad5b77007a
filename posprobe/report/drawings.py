"""Figures of a page: drawn once, kept as SVG and PNG, and placed in the page with a caption."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from posprobe.figures import EVERY_PANEL, Tables, draw, to_png, to_svg
from posprobe.intervals import in_processes
from posprobe.report.pages import inline_svg

__all__ = ["Drawing", "drawings", "files", "placed"]


class Drawing(NamedTuple):
    """One figure.

    Attributes
    ----------
    title : str
    svg : str
    png : bytes
    """

    title: str
    svg: str
    png: bytes


def drawings(names: Iterable[str], tables: Tables, n_jobs: int = 1) -> dict[str, Drawing]:
    """Draw every figure that the tables allow, by name, in a number of processes."""
    every = list(names)
    drawn = in_processes(_drawing, ((name, tables) for name in every), n_jobs)
    return {name: one for name, one in zip(every, drawn, strict=True) if one is not None}


def _drawing(name: str, tables: Tables) -> Drawing | None:
    figure = draw(name, tables)
    if figure is None:
        return None
    png = to_png(figure)
    figure.set_layout_engine("none")  # the SVG keeps the places that the PNG has found
    return Drawing(figure.get_suptitle(), to_svg(figure, name), png)


def files(drawn: dict[str, Drawing]) -> dict[str, str | bytes]:
    """The files of figures, by their path in the folder of a report."""
    return {
        f"figures/{name}.{kind}": getattr(one, kind)
        for name, one in drawn.items()
        for kind in ("svg", "png")
    }


def placed(names: Iterable[str], drawn: dict[str, Drawing], level: str) -> list[dict[str, Any]]:
    """Figures for a template: the picture, and the caption with the level of its intervals."""
    return [
        {
            "svg": inline_svg(drawn[name].svg, drawn[name].title),
            "caption": EVERY_PANEL[name].caption.format(level=level),
        }
        for name in names
        if name in drawn
    ]
