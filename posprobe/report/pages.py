"""What all pages share: templates, claims as rows, figures inlined, files written whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from posprobe.claims import Claim
from posprobe.errors import StoreError, noting, shown
from posprobe.report.words import (
    VERDICTS,
    claim_interval,
    hangs,
    number,
    p_values,
    untested,
)

__all__ = ["as_csv", "claim_rows", "inline_svg", "output_folder", "render", "write_files"]


@contextlib.contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder that can be written, before any work is done; remove it if it stays empty.

    An interruption gets a note that there is no report, or none that is new.
    """
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
        with noting(f"{folder} has no new report; run the same command again"):
            yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # rmdir fails where something was written
            for path in new:
                path.rmdir()
        raise


METHODS = {
    "t": "cluster bootstrap, estimate ± t × standard error",
    "Student t": "Student's t over units",
    "studentised": "studentised cluster bootstrap",
    "fieller": "Fieller's",
}
SHOWN_UNITS = {"1": "", "nats^2": "nats²", "R2": "R²"}


def write_files(folder: Path, texts: Mapping[str, str]) -> Path:
    """Write texts to a folder: all under temporary names, which they then lose in order.

    report.html comes last, and an old one is set aside first, so a folder with a report holds all
    of it. Where a name cannot be taken, the old report comes back.

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
    page, aside = folder / "report.html", folder / ".report.html.old"
    try:
        with contextlib.ExitStack() as unused:
            written = {name: _write(folder / name, text, unused) for name, text in texts.items()}
            if page.exists():
                page.rename(aside)
                unused.callback(_put_back, aside, page)
            for name, temporary in written.items():
                os.replace(temporary, folder / name)
        for path in (*folder.glob("tables/*.csv"), *folder.glob("figures/*.svg")):
            if f"{path.parent.name}/{path.name}" not in texts:
                path.unlink()
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
        ) from error
    return page


def render(template: str, **values: Any) -> str:
    """Fill in one of the package's templates; a missing value is an error.

    Text is `shown` and escaped: names of models and files come from anywhere.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("posprobe.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,  # not of Markup
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(**values)


def as_csv(table: pd.DataFrame) -> str:
    """A table as CSV whose text is `shown`, and is never a formula to a spreadsheet.

    Examples
    --------
    >>> print(as_csv(pd.DataFrame({"model": ["=1+1", "a"], "V_R": [-0.5, 0.25]})))
    model,V_R
    '=1+1,-0.5
    a,0.25
    """
    words = table.select_dtypes(exclude=["number", "bool"])
    return table.assign(**words.map(_cell)).to_csv(index=False)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(("=", "+", "-", "@")) else "") + shown(value)


def _write(path: Path, text: str, unused: contextlib.ExitStack) -> Path:
    """Write a text under a temporary name, which is removed in the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    unused.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    temporary.chmod(0o644)
    return temporary


def _put_back(aside: Path, page: Path) -> None:
    if page.exists():
        aside.unlink()
    else:
        aside.rename(page)


def claim_rows(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Claims as the page's table shows them."""
    claims = list(claims)
    tests = Counter(claim.family for claim in claims if claim.p_adjusted is not None)
    return [_claim_row(claim, tests[claim.family]) for claim in claims]


def _claim_row(claim: Claim, tests: int) -> dict[str, Any]:
    """A claim of a family of so many tests."""
    name, _, state = claim.ci_method.partition(": ")
    how = f" Interval: {METHODS.get(name, name)}{', ' * bool(state)}{state}."
    method = "" if claim.ci_method == "none" else how
    return {
        "id": claim.id,
        "kind": claim.verdict_adjusted,
        "verdict": VERDICTS[claim.verdict_adjusted],
        "hangs": hangs(claim, tests),
        "p": p_values(claim),
        "statement": claim.statement,
        "interval": claim_interval(claim),
        "unit": SHOWN_UNITS.get(claim.unit, claim.unit),
        "n": "" if claim.n is None else str(claim.n),
        "reference": number(claim.reference),
        "scope": claim.scope,
        "protocol": claim.protocol
        + ("" if claim.ci_method == "none" else method)
        + untested(claim),
    }


def inline_svg(svg: str) -> str:
    """An SVG for the page: as wide as its container, one image to a screen reader."""
    start, rest = svg.split(">", 1)
    kept = [word for word in start.split() if not word.startswith(("width=", "height="))]
    return f'{" ".join(kept)} role="img">{rest}'
