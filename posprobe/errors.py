"""The errors of posprobe. A message says what was wrong, with which name, and what to do next."""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "DesignError",
    "ModelError",
    "PosprobeError",
    "StimulusError",
    "StoreError",
]


class PosprobeError(ValueError):
    """The user's input cannot be used as it is; the message is one line that names it.

    The command line prints the message without a traceback and exits with status 2.
    """


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
