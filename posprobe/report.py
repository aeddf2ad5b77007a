"""Claims, tables and figures as one folder that can be sent to a colleague."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from posprobe.analysis import Analysis
from posprobe.claims import Claim
from posprobe.errors import StoreError
from posprobe.figures import PANELS, draw, to_svg
from posprobe.sections import GLOSSARY, SECTIONS, Section, summary
from posprobe.store import ActivationStore

__all__ = ["write_report"]

VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive",
    "not_applicable": "not applicable",
}


def write_report(analysis: Analysis, claims: Iterable[Claim], folder: str | Path) -> Path:
    """Write report.html, claims.json, tables/*.csv and figures/*.svg.

    The same analysis gives the same bytes. Each file is written under another name and moved, so
    that none looks whole that is not.

    Parameters
    ----------
    analysis : Analysis
    claims : iterable of Claim
    folder : str or Path
        Made if it does not exist.

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
    texts = {
        "claims.json": json.dumps([claim.asdict() for claim in claims], indent=1) + "\n",
        **{f"tables/{name}.csv": t.to_csv(index=False) for name, t in analysis.tables.items()},
        **{f"figures/{name}.svg": svg for name, svg in drawings.items()},
        "report.html": _page(analysis, claims, drawings),
    }
    try:
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
        ) from error
    return folder / "report.html"


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
    drawings = {}
    for section in SECTIONS:
        for name in section.figures:
            figure = draw(name, analysis.tables)
            if figure is not None:
                drawings[name] = to_svg(figure, name)
    return drawings


def _page(analysis: Analysis, claims: list[Claim], drawings: dict[str, str]) -> str:
    source = files("posprobe").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    store = analysis.files.all()[0]
    return environment.from_string(source).render(
        model=_model(store),
        summary=summary(analysis, claims),
        claims=[(claim, VERDICTS[claim.verdict], _interval(claim)) for claim in claims],
        sections=[_section(section, analysis, drawings) for section in SECTIONS],
        checks=analysis.tables["checks"],
        glossary=GLOSSARY,
        level=analysis.level,
    )


def _section(section: Section, analysis: Analysis, drawings: dict[str, str]) -> dict[str, Any]:
    level = f"{analysis.level:.0%}"
    shown = [
        (drawings[name], PANELS[name].caption.format(level=level))
        for name in section.figures
        if name in drawings
    ]
    return {
        "title": section.title,
        "figures": shown,
        "finding": section.finding(analysis) if shown else "",
        "protocol": section.protocol,
        "missing": section.needs,
    }


def _interval(claim: Claim) -> str:
    """The interval as it is read: two bounds, the word unbounded, or nothing."""
    if claim.estimate is None:
        return ""
    if claim.ci_low is None or claim.ci_high is None:
        return f"{_number(claim.estimate)} (unbounded)"
    return f"{_number(claim.estimate)} [{_number(claim.ci_low)}, {_number(claim.ci_high)}]"


def _number(value: Any) -> str:
    """Three significant digits, without exponents where they can be avoided."""
    if isinstance(value, str) or value is None:
        return value or ""
    if pd.isna(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _model(store: ActivationStore) -> dict[str, Any]:
    """What the report says of the model, from the file's header alone."""
    header = store.header
    config = header.config
    quantization = str(config.get("posprobe_quantization", "none"))
    small = 12 * header.n_layers * header.width**2 < 1e9
    bits = next((digit for digit in quantization if digit.isdigit()), None)
    words = [
        f"{bits}-bit quantised ({quantization})" if bits and quantization != "none" else "",
        "small" if small else "",
    ]
    return {
        "name": store.model,
        "kind": " ".join(word for word in words if word),
        "layers": header.n_layers,
        "heads": header.n_heads,
        "width": header.width,
        "type": config.get("model_type", "unknown"),
        "variant": header.variant,
        "rope": json.dumps(config.get("rope_parameters") or "none"),
        "digest": header.weights_digest,
        "seed": header.seed,
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(header.versions.items())),
    }
