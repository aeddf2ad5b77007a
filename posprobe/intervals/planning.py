"""How many units a wanted width or power needs, from simulated studies of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level
from posprobe.intervals.interval import Interval

__all__ = ["Goal", "Studies", "next_size", "plan_size"]

STEP = np.sqrt(2)  # factor between sizes that are simulated
LARGEST = 100_000


@dataclass(frozen=True)
class Goal:
    """What a study is planned for.

    Parameters
    ----------
    precision : float
        Half of the interval's width over the size of the estimate; infinite if any will do.
    power : float
        Probability that the interval excludes 0.
    assurance : float
        Share of studies that are to reach the precision.
    level : float
        Nominal coverage of the interval.

    Raises
    ------
    DesignError
        If a field is out of range.
    """

    precision: float = 0.1
    power: float = 0.8
    assurance: float = 0.8
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the fields."""
        check_level(self.level)
        if not self.precision > 0:
            raise DesignError(f"precision={self.precision} must be above 0, e.g. 0.1")
        for name in ("power", "assurance"):
            if not 0 < getattr(self, name) < 1:
                raise DesignError(f"{name}={getattr(self, name)} must be between 0 and 1, e.g. 0.8")


@dataclass(frozen=True)
class Studies:
    """Intervals of simulated studies of one size.

    Attributes
    ----------
    estimate, low, high : ndarray of shape (R,)
        Of each study; limits are NaN where the interval is unbounded.
    """

    estimate: Array
    low: Array
    high: Array

    @property
    def precision(self) -> Array:
        """Half of each width over the size of the estimate; infinite where unbounded."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self.high - self.low) / 2 / np.abs(self.estimate)
        return np.where(np.isnan(found), np.inf, found)

    def row(self, n: int, goal: Goal) -> dict[str, float]:
        """Describe the studies as a row of a table.

        Parameters
        ----------
        n : int
            Units in each study.
        goal : Goal
            What is asked of them.

        Returns
        -------
        dict of str to float
            n; `precision`, which the share `assurance` of studies reaches; `reached`, the share
            that reaches the precision of the goal; and `power`, the share whose interval excludes
            0 on the side of the mean estimate.
        """
        # An order statistic, since numpy interpolates between a number and infinity to NaN.
        kept = np.sort(self.precision)[int(np.ceil(goal.assurance * len(self.precision))) - 1]
        side = self.low > 0 if self.estimate.mean() > 0 else self.high < 0
        return {
            "n": n,
            "precision": float(kept),
            "reached": float(np.mean(self.precision <= goal.precision)),
            "power": float(np.mean(side)),
        }


def next_size(interval: Interval, precision: float, largest: int) -> int:
    """How many units to have next, on the way to a precision.

    The width of an interval goes with the square root of the number of its units, so n units become
    n times the square of the precision that they have over the wanted one, and at most twice n.

    Parameters
    ----------
    interval : Interval
        Of the n units so far.
    precision : float
        Wanted: half of the width over the size of the estimate.
    largest : int
        Units that there can be.

    Returns
    -------
    int
        n itself if the precision is reached; else at least n + 2, up to `largest`.

    Examples
    --------
    >>> from posprobe.intervals import Interval, next_size
    >>> found = Interval(2.0, 1.7, 2.3, 0.95, "t", "mean", 40)
    >>> next_size(found, 0.15, 512), next_size(found, 0.12, 512), next_size(found, 0.01, 64)
    (40, 63, 64)
    """
    if interval.low is None or interval.high is None or not interval.estimate:
        return min(largest, 2 * interval.n)
    ratio = (interval.high - interval.low) / 2 / abs(interval.estimate) / precision
    if ratio <= 1:
        return interval.n
    wanted = max(interval.n + 2, int(np.ceil(interval.n * min(ratio**2, 2.0))))
    return min(largest, wanted)


def plan_size(
    simulate: Callable[[int], Studies], goal: Goal, *, least: int, largest: int = LARGEST
) -> tuple[dict[str, int | None], pd.DataFrame]:
    """Find how many units a precision and a power need.

    Studies are simulated at sizes that grow by a factor of sqrt(2), until both goals are reached;
    the sizes in between follow by interpolation over log(n).

    Parameters
    ----------
    simulate : callable
        From a number of units to `Studies` of that size.
    goal : Goal
        What is wanted.
    least, largest : int
        Smallest and largest size that is simulated.

    Returns
    -------
    needed : dict of str to (int or None)
        Smallest size for ``"precision"`` and for ``"power"``; `least` may be more than enough, and
        None means more than `largest`.
    table : pandas.DataFrame
        The rows of `Studies.row`, one for each simulated size.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.intervals import Goal, Studies, plan_size
    >>> def means(n):  # of n normal values with mean 1, standard deviation 1
    ...     mean = np.random.default_rng(n).normal(1, 1, (4000, n)).mean(1)
    ...     return Studies(mean, mean - 1.96 / np.sqrt(n), mean + 1.96 / np.sqrt(n))
    >>> needed, table = plan_size(means, Goal(precision=0.5, power=0.9), least=4)
    >>> 15 <= needed["precision"] <= 26, 10 <= needed["power"] <= 12
    (True, True)
    """
    rows = []
    n = least
    while True:
        rows.append(simulate(n).row(n, goal))
        found = rows[-1]
        done = found["precision"] <= goal.precision and found["power"] >= goal.power
        if done or n >= largest:
            break
        n = min(largest, int(np.ceil(n * STEP)))
    table = pd.DataFrame(rows)
    table = table.astype({"n": int})
    with np.errstate(divide="ignore"):
        widths = np.log(table["precision"].to_numpy() / goal.precision)
    sizes = table["n"].to_numpy()
    needed = {
        "precision": _crossing(sizes, -widths),
        "power": _crossing(sizes, table["power"].to_numpy() - goal.power),
    }
    return needed, table


def _crossing(sizes: NDArray[np.int64], margin: Array) -> int | None:
    """The smallest size at which the margin is 0 or more, by interpolation over log(n)."""
    reached = np.flatnonzero(margin >= 0)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0 or not np.isfinite(margin[at - 1]):
        return int(sizes[at])
    before, here = np.log(sizes[[at - 1, at]])
    part = -margin[at - 1] / (margin[at] - margin[at - 1])
    return int(np.ceil(np.exp(before + part * (here - before)) - 1e-9))
