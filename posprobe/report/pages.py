"""What all pages share: templates, claims as rows, figures inlined, files written whole."""

from __future__ import annotations

import contextlib
import html
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from posprobe.errors import StoreError, noting, shown
from posprobe.report.words import number

__all__ = ["as_csv", "inline_svg", "output_folder", "render", "write_files"]


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


# Colours of figures, and what style.css calls them.
THEMED = {
    "#ffffff": "paper", "#000000": "ink", "#262626": "ink", "#222222": "total", "#0072b2": "mask",
    "#d55e00": "residual", "#009e73": "both", "#b0569a": "sink", "#858585": "other",
    "#0173b2": "mask", "#029e73": "both", "#555555": "soft", "#ececec": "grid", "#bbbbbb": "axis",
    "#efefef": "shade", "#d0d0d0": "axis",
}  # fmt: skip
COLOUR = re.compile("|".join(THEMED))


def write_files(folder: Path, texts: Mapping[str, str | bytes]) -> Path:
    """Write files to a folder: all under temporary names, which they then lose in order.

    report.html comes last, and an old one is set aside first, so a folder with a report holds all
    of it. Where a name cannot be taken, the old report comes back.

    Parameters
    ----------
    folder : Path
    texts : mapping of str to str or bytes
        Relative path to content; report.html last.

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
        for path in (*folder.glob("tables/*.csv"), *folder.glob("figures/*.[sp][vn]g")):
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


def _write(path: Path, content: str | bytes, unused: contextlib.ExitStack) -> Path:
    """Write a file under a temporary name, which is removed in the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    unused.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
    temporary.chmod(0o644)
    return temporary


def _put_back(aside: Path, page: Path) -> None:
    if page.exists():
        aside.unlink()
    else:
        aside.rename(page)


def inline_svg(svg: str, label: str) -> str:
    """An SVG for the page: as wide as its container, one image to a screen reader.

    Its colours become those of the page, which are others in the dark (`style.css`).
    """
    start, rest = svg.split(">", 1)
    kept = [word for word in start.split() if not word.startswith(("width=", "height="))]
    label = html.escape(shown(label), quote=True)
    themed = COLOUR.sub(lambda found: f"var(--{THEMED[found[0]]})", rest)
    return f'{" ".join(kept)} role="img" aria-label="{label}">{themed}'
