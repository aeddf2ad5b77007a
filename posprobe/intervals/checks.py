"""Input checks shared by all intervals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posprobe.errors import DesignError, PosprobeWarning
from posprobe.intervals.arrays import Array

__all__ = [
    "LEAST_RESAMPLES",
    "check_level",
    "check_pairs",
    "check_replicates",
    "check_resamples",
    "check_units",
    "common_length",
]

LEAST_RESAMPLES = 10
FEW_RESAMPLES = 100


def check_level(level: float) -> None:
    """Raise unless the level is strictly between 0 and 1."""
    if not 0 < level < 1:
        raise DesignError(f"level={level} must be between 0 and 1, e.g. 0.95")


def check_units(n: int, what: str) -> None:
    """Raise if there are fewer than two independent units."""
    if n < 2:
        raise DesignError(f"{what}: n={n} independent unit(s), at least 2 are needed")


def check_resamples(count: int, name: str = "n_resamples", *, few: int = FEW_RESAMPLES) -> None:
    """Refuse too few bootstrap samples for an interval, and warn of few.

    Parameters
    ----------
    count : int
        Number of bootstrap samples.
    name : str
        Name of the argument, for the message.
    few : int
        Number below which limits depend noticeably on the seed.

    Raises
    ------
    DesignError
        If there are fewer than 10.

    Warns
    -----
    PosprobeWarning
        If there are fewer than `few`.
    """
    if count < LEAST_RESAMPLES:
        raise DesignError(
            f"{name}={count} is too few for an interval: ask for {LEAST_RESAMPLES} or more"
        )
    if count < few:
        warnings.warn(
            f"{name}={count}: with fewer than {few} bootstrap samples, limits depend on the seed; "
            "ask for more",
            PosprobeWarning,
            stacklevel=3,
        )


def check_replicates(
    replicates: ArrayLike, center: Array, what: str = "bootstrap replicates"
) -> Array:
    """Return the replicates (B, ...) as floats; they and the estimate (...) must be finite."""
    draws = np.asarray(replicates, dtype=np.float64)
    if draws.ndim != center.ndim + 1 or draws.shape[1:] != center.shape:
        raise DesignError(
            f"{what} have shape {draws.shape}, the estimate {center.shape}: they must have one "
            "more axis, in front"
        )
    if len(draws) < 2:
        raise DesignError(f"there are {len(draws)} {what}: at least 2 are needed")
    lost = int(np.sum(~np.isfinite(draws)))
    if lost or not np.all(np.isfinite(center)):
        raise DesignError(f"{lost} of {draws.size} {what}, or the estimate itself, are not finite")
    return draws


def check_pairs(baseline: ArrayLike, treated: ArrayLike) -> tuple[Array, Array]:
    """Return both samples as floats, each finite and of shape (n,), with at least two items."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (baseline, treated))
    check_units(common_length(a, b), "paired ratio")
    for name, x in (("baseline", a), ("treated", b)):
        if x.ndim != 1:
            raise DesignError(f"{name} has shape {x.shape}: give one value for each item")
        if not np.all(np.isfinite(x)):
            raise DesignError(f"{name} has {np.sum(~np.isfinite(x))} values that are not finite")
    return a, b


def common_length(*samples: NDArray[Any]) -> int:
    """Return the common length of paired samples."""
    lengths = {len(sample) for sample in samples}
    if len(lengths) != 1:
        raise DesignError(f"paired samples have lengths {sorted(lengths)}: pair them by item")
    return lengths.pop()
