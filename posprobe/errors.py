"""The errors of posprobe. A message says what was wrong, with which name, and what to do next."""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "DesignError",
    "ModelError",
    "PosprobeError",
    "StimulusError",
    "StoreError",
    "shown",
]


def shown(text: str) -> str:
    r"""Return text with an escape for every character that does not print.

    Control characters, line ends, marks that turn the direction of text, and halves of surrogate
    pairs: a terminal obeys some of them, and a page shows none.

    Examples
    --------
    >>> print(shown("a\x1b]0;b\nc"))
    a\x1b]0;b\nc
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class PosprobeError(ValueError):
    """The user's input cannot be used as it is; the message is one line that names it.

    The command line prints the message without a traceback and exits with status 2. Names and
    values in it may come from anywhere, so it is `shown`: one line that no terminal obeys.
    """

    def __str__(self) -> str:
        """The message, in one line."""
        return shown(super().__str__())


class ModelError(PosprobeError):
    """A model cannot be found, loaded, or observed."""


class StimulusError(PosprobeError):
    """A text, a length, or a first-token policy does not give usable token sequences."""


class StoreError(PosprobeError):
    """A file is not a complete posprobe file of a version that this release reads."""


class DesignError(PosprobeError):
    """The data do not allow the statistic that was asked for."""


class ClusterError(PosprobeError):
    """A cluster cannot be reached, or its workers cannot do what is asked of them."""
