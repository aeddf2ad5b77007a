"""Claims, tables and figures as one folder that can be sent to a colleague."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from posprobe.analysis import Analysis
from posprobe.claims import Claim
from posprobe.errors import StoreError
from posprobe.figures import PANELS, draw, to_svg
from posprobe.sections import (
    GLOSSARY,
    LIMITS,
    SECTIONS,
    Section,
    commands,
    kind,
    model_facts,
    summary,
)
from posprobe.sections.words import VERDICTS, claim_interval, number

__all__ = ["claim_row", "inline_svg", "render", "write_files", "write_report"]

METHODS = {
    "t": "cluster bootstrap, estimate ± t × standard error",
    "Student t": "Student's, over clusters",
    "percentile": "cluster bootstrap, percentiles",
    "fieller": "Fieller's",
}
UNITS = {"1": "", "nats^2": "nats²", "R2": "R²"}


def write_report(
    analysis: Analysis, claims: Iterable[Claim], folder: str | Path, *, title: str | None = None
) -> Path:
    """Write report.html, claims.json, tables/*.csv and figures/*.svg.

    The same analysis gives the same bytes. Each file is written under another name and moved, so
    that none looks whole that is not; report.html comes last. Other .csv and .svg files in tables/
    and figures/, which an earlier run left there, are deleted: they belong to another report.

    Parameters
    ----------
    analysis : Analysis
    claims : iterable of Claim
    folder : str or Path
        Made if it does not exist.
    title : str or None
        Of the page. None: the study's question, of this model.

    Returns
    -------
    Path
        Of report.html, which is self-contained.

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
        **{f"tables/{name}.csv": t.to_csv(index=False) for name, t in analysis.tables.items()},
        **{f"figures/{name}.svg": svg for name, svg in drawings.items()},
        "report.html": _page(analysis, claims, drawings, title),
    }
    return write_files(folder, texts)


def write_files(folder: Path, texts: Mapping[str, str]) -> Path:
    """Write texts by their names in a folder, in order, each whole or not at all.

    Parameters
    ----------
    folder : Path
    texts : mapping of str to str
        Relative path to text; report.html last.

    Returns
    -------
    Path
        Of report.html.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    try:
        for name, text in texts.items():
            _write(folder / name, text)
        for path in (*folder.glob("tables/*.csv"), *folder.glob("figures/*.svg")):
            if f"{path.parent.name}/{path.name}" not in texts:
                path.unlink()
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
        ) from error
    return folder / "report.html"


def render(template: str, **values: Any) -> str:
    """Fill in one of the package's templates; what it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("posprobe"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(**values)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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
        claims=[claim_row(claim) for claim in claims],
        sections=[_section(section, analysis, drawings) for section in there],
        missing=[section for section in SECTIONS if section not in there],
        checks=analysis.tables["checks"],
        facts=model_facts(analysis),
        limits=LIMITS,
        glossary=GLOSSARY,
        commands=commands(analysis),
        level=f"{analysis.level:.0%}",
    )


def claim_row(claim: Claim) -> dict[str, Any]:
    """A claim as a table of the page shows it."""
    name, _, state = claim.ci_method.partition(": ")
    method = f" Interval: {METHODS.get(name, name)}{', ' * bool(state)}{state}."
    return {
        "id": claim.id,
        "kind": claim.verdict,
        "verdict": VERDICTS[claim.verdict],
        "statement": claim.statement,
        "interval": claim_interval(claim),
        "unit": UNITS.get(claim.unit, claim.unit),
        "n": "" if claim.n is None else str(claim.n),
        "reference": number(claim.reference),
        "protocol": claim.protocol + ("" if name == "none" else method),
    }


def _section(section: Section, analysis: Analysis, drawings: dict[str, str]) -> dict[str, Any]:
    level = f"{analysis.level:.0%}"
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


def inline_svg(svg: str) -> str:
    """An SVG for the page: as wide as its place, and read as one picture."""
    start, rest = svg.split(">", 1)
    kept = [word for word in start.split() if not word.startswith(("width=", "height="))]
    return f'{" ".join(kept)} role="img">{rest}'
