"""The report on one model: claims, tables and figures as one folder to send to a colleague."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posprobe.analysis import Analysis
from posprobe.claims import Claim
from posprobe.report.claim_rows import ADJUSTED, questions
from posprobe.report.drawings import Drawing, drawings, files, placed
from posprobe.report.facts import commands, kind, model_facts
from posprobe.report.glossary import GLOSSARY, LIMITS
from posprobe.report.head_map import head_map
from posprobe.report.pages import as_csv, render, write_files
from posprobe.report.sections import SECTIONS, Section
from posprobe.report.settings import settings_table
from posprobe.report.summary import opening, summary
from posprobe.report.words import set_apart

__all__ = ["write_report"]

OPENING = ("position_effects", "balance_of_variance")  # beside the answer
MAPPED = ("heads_mask", "heads_residual", "sinks")  # what the map of the heads shows


def write_report(
    analysis: Analysis, claims: Iterable[Claim], folder: str | Path, *, title: str | None = None
) -> Path:
    """Write report.html, claims.json, tables as CSV, and figures as SVG and PNG.

    The same analysis gives the same bytes. Each file is written under a temporary name and then
    moved, so a file that is there is complete; report.html comes last. Other .csv, .svg and .png
    files in tables/ and figures/ are deleted: an earlier run left them, for its own report.

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
    names = [name for section in SECTIONS for name in section.figures]
    drawn = drawings(names, analysis.tables, analysis.inference.n_jobs)
    plain = json.dumps([claim.asdict() for claim in claims], indent=1, allow_nan=False)
    texts = {
        "claims.json": plain + "\n",
        **{f"tables/{name}.csv": as_csv(t) for name, t in analysis.tables.items()},
        "tables/inference.csv": as_csv(settings_table(analysis.inference)),
        **files(drawn),
        "report.html": _page(analysis, claims, drawn, title),
    }
    return write_files(folder, texts)


def _page(
    analysis: Analysis, claims: list[Claim], drawn: dict[str, Drawing], title: str | None
) -> str:
    header = analysis.files.all()[0].header
    level = analysis.inference.percent
    there = [section for section in SECTIONS if section.needs in analysis.tables]
    heads = head_map(analysis)
    same, checks = set_apart(analysis.tables["checks"])
    left_out = {*OPENING, *(MAPPED if heads else ())}
    sentences, asked = opening(analysis), questions(claims)
    for question in asked:
        question["sections"] = [
            _section(section, analysis, {k: v for k, v in drawn.items() if k not in left_out})
            for section in there
            if section.family == question["name"]
        ]
        headlines = [section["headline"] for section in question["sections"]]
        question["answer"] = headlines[0] if headlines else "Not measured here."
        if question["name"] == "channels":
            question["answer"] = sentences[1 if len(sentences) > 2 else 0]
    return render(
        "report.html.j2",
        title=title or f"Where does absolute position come from in {header.model}?",
        header=header,
        kind=kind(header),
        opening=sentences,
        pictures=placed(OPENING, drawn, level),
        summary=summary(analysis, claims),
        questions=asked,
        heads=heads,
        adjusted=ADJUSTED,
        missing=[section for section in SECTIONS if section not in there],
        same=same,
        checks=checks,
        facts=model_facts(analysis),
        limits=LIMITS,
        glossary=GLOSSARY,
        commands=commands(analysis),
        level=level,
    )


def _section(section: Section, analysis: Analysis, drawn: dict[str, Drawing]) -> dict[str, Any]:
    headline, _, finding = section.finding(analysis).removesuffix(".").partition(". ")
    return {
        "name": section.name,
        "title": section.title,
        "figures": placed(section.figures, drawn, analysis.inference.percent),
        "headline": headline + ".",
        "finding": finding,
        "protocol": section.protocol(analysis),
    }
