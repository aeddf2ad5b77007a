"""What all pages share: templates, claims as rows, figures inlined, files written whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from posprobe.claims import Claim
from posprobe.errors import StoreError
from posprobe.report.words import VERDICTS, claim_interval, number

__all__ = ["claim_row", "inline_svg", "output_folder", "render", "write_files"]


@contextlib.contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder that can be written, before any work is done; remove it if it stays empty."""
    folder = Path(folder)
    probe = folder / ".writable"
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # rmdir fails where something was written
            for path in new:
                path.rmdir()
        raise


METHODS = {
    "t": "cluster bootstrap, estimate ± t × standard error",
    "Student t": "Student's t over units",
    "percentile": "cluster bootstrap, percentiles",
    "fieller": "Fieller's",
}
SHOWN_UNITS = {"1": "", "nats^2": "nats²", "R2": "R²"}


def write_files(folder: Path, texts: Mapping[str, str]) -> Path:
    """Write texts to a folder, in order, each whole or not at all.

    Parameters
    ----------
    folder : Path
    texts : mapping of str to str
        Relative path to text; report.html last.

    Returns
    -------
    Path
        The path of report.html.

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
    """Fill in one of the package's templates; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("posprobe.report"),
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


def claim_row(claim: Claim) -> dict[str, Any]:
    """A claim as the page's table shows it."""
    name, _, state = claim.ci_method.partition(": ")
    method = f" Interval: {METHODS.get(name, name)}{', ' * bool(state)}{state}."
    return {
        "id": claim.id,
        "kind": claim.verdict,
        "verdict": VERDICTS[claim.verdict],
        "statement": claim.statement,
        "interval": claim_interval(claim),
        "unit": SHOWN_UNITS.get(claim.unit, claim.unit),
        "n": "" if claim.n is None else str(claim.n),
        "reference": number(claim.reference),
        "scope": claim.scope,
        "protocol": claim.protocol + ("" if name == "none" else method),
    }


def inline_svg(svg: str) -> str:
    """An SVG for the page: as wide as its container, one image to a screen reader."""
    start, rest = svg.split(">", 1)
    kept = [word for word in start.split() if not word.startswith(("width=", "height="))]
    return f'{" ".join(kept)} role="img">{rest}'
