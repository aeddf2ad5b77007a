"""One step of an analysis: what it needs of the files, and the tables that it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from posprobe.analysis.files import Files
from posprobe.channels import why_not_split
from posprobe.intervals import Inference, Interval
from posprobe.store import ActivationStore

__all__ = ["Found", "Step", "given", "is_split", "titled"]


class Found(NamedTuple):
    """Tables by file name, and the single numbers that claims rest on."""

    tables: dict[str, pd.DataFrame] = {}  # noqa: RUF012 - a default of a NamedTuple is never changed
    intervals: dict[str, Interval] = {}  # noqa: RUF012

    def joined(self, other: Found) -> Found:
        """Both; a table that both have gets the rows of both."""
        tables = dict(self.tables)
        for name, table in other.tables.items():
            tables[name] = pd.concat([tables[name], table]) if name in tables else table
        return Found(tables, self.intervals | other.intervals)


class Step(NamedTuple):
    """One kind of table.

    Attributes
    ----------
    name : str
        What a progress bar says meanwhile.
    possible : callable
        Whether the files hold what it needs.
    make : callable
        Files and inference to what was found.
    """

    name: str
    possible: Callable[[Files], bool]
    make: Callable[[Files, Inference], Found]


def given(store: ActivationStore | None) -> ActivationStore:
    """The file that `Step.possible` has found to be there."""
    assert store is not None
    return store


def is_split(store: ActivationStore | None) -> bool:
    """Whether a file is there whose effects can be split into two channels."""
    return store is not None and why_not_split(store) is None


def titled(table: pd.DataFrame, stimulus: str) -> pd.DataFrame:
    """The table with a first column that says which stimulus its rows are of."""
    table = table.copy()
    table.insert(0, "stimulus", stimulus)
    return table
