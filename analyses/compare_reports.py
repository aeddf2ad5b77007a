"""Compare two folders of reports, table by table and claim by claim, and say what differs.

A report is a folder with a folder `tables`. Everything else in it (figures, report.html, summaries)
is made from its tables and from the claims in its JSON files, so these are what is compared.

- A row is known by the columns ahead of its first decimal column, and by its number among rows that
  agree in these.
- Text and whole numbers agree exactly. Decimals in a sentence are rounded copies of numbers in the
  tables, and are compared there.
- Decimals agree within a relative or an absolute tolerance: captures that are run anew differ in
  the rounding of float32. Three kinds of number carry more of it, and have tolerances of their own
  (`KINDS`): shares, whose denominator may be close to 0; effects that are 0 but for rounding; and
  p-values counted over resamples, where one count may change: they also agree where both are above
  0.05, because the order of variances that are 0 but for rounding is arbitrary.

Run it with ``python analyses/compare_reports.py OLD NEW``; ``make reports`` runs the analyses again
and then this. The exit status is 0 where all reports are the same, and 1 where one differs.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pandas as pd

DECIMAL = re.compile(r"[-−]?\d+(\.\d+([eE][-+−]?\d+)?|[eE][-+−]?\d+)")
SHOWN = 20
ABSENT = "absent"
# The longest table, which the scripts write and the repository leaves out.
NOT_COMMITTED = "channels_by_offset.csv"
Cells = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Tolerance:
    """How far a decimal may move.

    Attributes
    ----------
    relative, absolute : float
        By as much of the old value, or by as much in its own unit.
    clear : float
        Values above it on both sides agree.
    """

    relative: float = 1e-4
    absolute: float = 1e-5
    clear: float = math.inf

    def agree(self, old: Any, new: Any) -> bool:
        """Whether two values say the same."""
        if isinstance(old, str) and isinstance(new, str):
            return DECIMAL.sub("#", old) == DECIMAL.sub("#", new)
        if not (isinstance(old, float) and isinstance(new, float)):
            return type(old) is type(new) and old == new
        if math.isnan(old) or math.isnan(new):
            return math.isnan(old) and math.isnan(new)
        if min(old, new) > self.clear:
            return True
        return abs(new - old) <= max(self.absolute, self.relative * abs(old))


USUAL = Tolerance()
KINDS = {
    r"p_adjusted$": Tolerance(0, 0.01, clear=0.05),
    r"share_(mask|residual)": Tolerance(5e-3, 1e-5),
    r"tables/(repeated|layer_0)\.csv|mask_isolated": Tolerance(1e-4, 1e-4),
}


def tolerance_of(where: str) -> Tolerance:
    """The tolerance of a value, by the file, row and column where it stands."""
    return next((kind for name, kind in KINDS.items() if re.search(name, where)), USUAL)


@dataclass(frozen=True)
class Difference:
    """One value that is not the same: where it stands, what it was, and what it is."""

    file: str
    row: str
    column: str
    old: Any
    new: Any

    @property
    def where(self) -> str:
        """File, row and column, as far as there are any."""
        return ": ".join(part for part in (self.file, self.row, self.column) if part)

    def __str__(self) -> str:
        """One line."""
        moved = ""
        if isinstance(self.old, float) and isinstance(self.new, float) and self.old:
            moved = f" (relative difference {(self.new - self.old) / abs(self.old):+.2g})"
        old, new = (textwrap.shorten(str(v), 100, placeholder=" ...") for v in (self.old, self.new))
        return f"{self.where}: {old} -> {new}{moved}"


def read_table(path: Path) -> Cells:
    """Cells of a CSV file by row and column; a row by its labels, which are no cells."""
    table = pd.read_csv(path)
    labels = list(takewhile(lambda name: not is_decimal(table[name]), table.columns))
    names = [
        ", ".join(f"{name}={value}" for name, value in zip(labels, row, strict=True))
        for row in table[labels].itertuples(index=False)
    ]
    again = pd.Series(names, dtype=object).groupby(names).cumcount() if names else []
    rows = [f"{name} [{k}]" if k else name for name, k in zip(names, again, strict=True)]
    return {
        (row, column): value
        for column in table.columns[len(labels) :]
        for row, value in zip(rows, table[column].tolist(), strict=True)
    }


def is_decimal(column: pd.Series) -> bool:
    """Whether a column holds decimals, and so no labels."""
    return pd.api.types.is_float_dtype(column)


def read_json(path: Path) -> Cells:
    """Values of a JSON file by claim (or other element of a list) and field."""
    return dict(flatten(json.loads(path.read_text(encoding="utf-8"))))


def flatten(value: Any, row: str = "", column: str = "") -> Iterator[tuple[tuple[str, str], Any]]:
    """Every plain value in nested lists and mappings; elements of lists by their id or number."""
    if isinstance(value, list):
        for k, one in enumerate(value):
            name = one.get("id", k) if isinstance(one, dict) else k
            yield from flatten(one, " ".join(filter(None, (row, column, str(name)))))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from flatten(one, row, f"{column}.{name}" if column else name)
    else:
        yield (row, column), value


def compare_files(name: str, old: Path, new: Path) -> list[Difference]:
    """What differs between two files of one name, row by row."""
    read = read_table if is_table(old) else read_json
    before, after = read(old), read(new)
    rows = [dict.fromkeys(row for row, _ in cells) for cells in (before, after)]
    found = [Difference(name, row, "", "a row", ABSENT) for row in rows[0] if row not in rows[1]]
    found += [Difference(name, row, "", ABSENT, "a row") for row in rows[1] if row not in rows[0]]
    for row, column in dict.fromkeys([*before, *after]):
        if row in rows[0] and row in rows[1]:
            values = [cells.get((row, column), ABSENT) for cells in (before, after)]
            one = Difference(name, row, column, *values)
            if not tolerance_of(one.where).agree(*values):
                found.append(one)
    return found


def list_reports(folder: Path) -> list[str]:
    """Names of all reports under a folder."""
    return sorted(tables.parent.relative_to(folder).as_posix() for tables in folder.rglob("tables"))


def is_table(path: Path) -> bool:
    """Whether a file of a report is a table; the others are JSON."""
    return path.parent.name == "tables"


def list_files(report: Path) -> dict[str, Path]:
    """The tables, compressed or not, and the claims of a report, by name."""
    paths = [*sorted(report.glob("*.json")), *sorted(report.glob("tables/*.csv*"))]
    paths = [path for path in paths if path.name != NOT_COMMITTED]
    return {path.relative_to(report).as_posix(): path for path in paths}


def compare_reports(old: Path, new: Path) -> tuple[str, list[Difference]]:
    """What one report holds, in words, and what differs in the other."""
    before, after = list_files(old), list_files(new)
    found = [Difference(name, "", "", "a file", ABSENT) for name in before if name not in after]
    found += [Difference(name, "", "", ABSENT, "a file") for name in after if name not in before]
    for name in before:
        if name in after:
            found += compare_files(name, before[name], after[name])
    rows = [len(pd.read_csv(path)) for path in before.values() if is_table(path)]
    return f"{len(rows)} tables, {sum(rows):,} rows", found


def describe(report: str, size: str, found: list[Difference], limit: int) -> str:
    """One line on a report, and one on each difference."""
    if not found:
        return f"{report}: {size}: the same"
    files = sorted({one.file for one in found})
    lines = [f"{report}: {size}: differs in {len(found)} places of {', '.join(files)}"]
    lines += [f"  {one}" for one in found[:limit]]
    if len(found) > limit:
        lines.append(f"  and {len(found) - limit} more: --show {len(found)} prints all")
    return "\n".join(lines)


@click.command(help=__doc__.splitlines()[0])
@click.argument("old", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("new", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--leave-out", multiple=True, help="A report, or a folder of them, to skip.")
@click.option("--show", default=SHOWN, show_default=True, help="Differences printed per report.")
def main(old: Path, new: Path, leave_out: tuple[str, ...], show: int) -> None:
    """Compare every report of OLD with the one of the same name in NEW."""
    found = [*list_reports(old), *list_reports(new)]
    names = [
        name
        for name in dict.fromkeys(found)
        if not any(f"{name}/".startswith(f"{left}/") for left in leave_out)
    ]
    if not names:
        raise click.UsageError(f"no report under {old} or {new}: a report is a folder with tables")
    same = True
    for name in names:
        size, differences = compare_reports(old / name, new / name)
        print(describe(name, size, differences, show), flush=True)
        same = same and not differences
    print(f"Tolerance: {USUAL.relative:g} of a number, or {USUAL.absolute:g}; KINDS has the rest.")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
