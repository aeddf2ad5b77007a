"""A finding: what was claimed, the verdict, the number that it rests on, and the words."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One claim about one model, as both pages say it."""

    claim: str
    verdict: str
    number: str
    words: str

    def line(self) -> str:
        """The finding in the list of its model's page."""
        return f"- **{self.claim}: {self.verdict}.** {self.words}"
