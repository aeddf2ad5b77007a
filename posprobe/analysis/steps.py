"""Define one step of an analysis: what it needs from the files, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from posprobe.analysis.files import Files
from posprobe.channels import why_not_split
from posprobe.intervals import Inference, Interval
from posprobe.store import ActivationStore

__all__ = ["Found", "Step", "given", "holds", "is_split", "titled"]


class Found(NamedTuple):
    """Tables by file name, and the single numbers on which claims are based."""

    tables: dict[str, pd.DataFrame] = {}  # noqa: RUF012 - a default of a NamedTuple is never changed
    intervals: dict[str, Interval] = {}  # noqa: RUF012

    def joined(self, other: Found) -> Found:
        """Combine two results; a table that is in both gets the rows of both."""
        tables = dict(self.tables)
        for name, table in other.tables.items():
            tables[name] = pd.concat([tables[name], table]) if name in tables else table
        return Found(tables, self.intervals | other.intervals)


class Step(NamedTuple):
    """One step of an analysis.

    Attributes
    ----------
    name : str
        Name of the step, as a progress bar shows it.
    possible : callable
        Takes the files, and returns whether they contain what the step needs.
    make : callable
        Takes the files and the inference settings, and returns what was found.
    divided : bool
        Whether it divides its own work among processes, rather than being the work of one.
    """

    name: str
    possible: Callable[[Files], bool]
    make: Callable[[Files, Inference], Found]
    divided: bool = False


def given(store: ActivationStore | None) -> ActivationStore:
    """Return a file that `Step.possible` has found to exist."""
    assert store is not None
    return store


def holds(store: ActivationStore | None, *quantities: str) -> bool:
    """Return whether there is a file, and it has all these quantities."""
    return store is not None and set(quantities) <= set(store.header.quantities)


def is_split(store: ActivationStore | None) -> bool:
    """Return whether there is a file, and its effects can be split into two channels."""
    return store is not None and why_not_split(store) is None


def titled(table: pd.DataFrame, stimulus: str) -> pd.DataFrame:
    """Return the table with a first column that names the stimulus of its rows."""
    table = table.copy()
    table.insert(0, "stimulus", stimulus)
    return table
