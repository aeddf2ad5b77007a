"""The report on one model: claims, tables and figures as one folder to send to a colleague."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posprobe.analysis import Analysis
from posprobe.claims import Claim
from posprobe.figures import PANELS, draw, to_svg
from posprobe.report.facts import commands, kind, model_facts
from posprobe.report.glossary import GLOSSARY, LIMITS
from posprobe.report.pages import as_csv, claim_rows, inline_svg, render, write_files
from posprobe.report.sections import SECTIONS, Section
from posprobe.report.summary import summary
from posprobe.report.words import ADJUSTED

__all__ = ["write_report"]


def write_report(
    analysis: Analysis, claims: Iterable[Claim], folder: str | Path, *, title: str | None = None
) -> Path:
    """Write report.html, claims.json, tables/*.csv and figures/*.svg.

    The same analysis gives the same bytes. Each file is written under a temporary name and then
    moved, so a file that is there is complete; report.html comes last. Other .csv and .svg files in
    tables/ and figures/ are deleted: an earlier run left them, and they belong to its report.

    Parameters
    ----------
    analysis : Analysis
    claims : iterable of Claim
    folder : str or Path
        Made if it does not exist.
    title : str or None
        Title of the page; None: the study's question, asked of this model.

    Returns
    -------
    Path
        The path of report.html, which is self-contained.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    folder, claims = Path(folder), list(claims)
    drawings = _drawings(analysis)
    plain = json.dumps([claim.asdict() for claim in claims], indent=1, allow_nan=False)
    texts = {
        "claims.json": plain + "\n",
        **{f"tables/{name}.csv": as_csv(t) for name, t in analysis.tables.items()},
        **{f"figures/{name}.svg": svg for name, svg in drawings.items()},
        "report.html": _page(analysis, claims, drawings, title),
    }
    return write_files(folder, texts)


def _drawings(analysis: Analysis) -> dict[str, str]:
    """SVG of every figure that the tables allow."""
    drawings = {}
    for section in SECTIONS:
        for name in section.figures:
            figure = draw(name, analysis.tables)
            if figure is not None:
                drawings[name] = to_svg(figure, name)
    return drawings


def _page(
    analysis: Analysis, claims: list[Claim], drawings: dict[str, str], title: str | None
) -> str:
    header = analysis.files.all()[0].header
    there = [section for section in SECTIONS if section.needs in analysis.tables]
    return render(
        "report.html.j2",
        title=title or f"Where does absolute position come from in {header.model}?",
        header=header,
        kind=kind(header),
        summary=summary(analysis, claims),
        claims=claim_rows(claims),
        adjusted=ADJUSTED,
        sections=[_section(section, analysis, drawings) for section in there],
        missing=[section for section in SECTIONS if section not in there],
        checks=analysis.tables["checks"],
        facts=model_facts(analysis),
        limits=LIMITS,
        glossary=GLOSSARY,
        commands=commands(analysis),
        level=analysis.inference.percent,
    )


def _section(section: Section, analysis: Analysis, drawings: dict[str, str]) -> dict[str, Any]:
    level = analysis.inference.percent
    headline, _, finding = section.finding(analysis).removesuffix(".").partition(". ")
    figures = [
        {"svg": inline_svg(drawings[name]), "caption": PANELS[name].caption.format(level=level)}
        for name in section.figures
        if name in drawings
    ]
    return {
        "name": section.name,
        "title": section.title,
        "figures": figures,
        "headline": headline + ".",
        "finding": finding,
        "protocol": section.protocol(analysis),
    }
