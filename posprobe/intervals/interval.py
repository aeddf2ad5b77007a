"""A confidence interval with its estimate and estimand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import floor, isfinite, isnan, log10, nan
from typing import TYPE_CHECKING, Any

from posprobe.errors import DesignError, as_html, fact_table
from posprobe.intervals.checks import check_level

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, which may be unbounded.

    Parameters
    ----------
    estimate : float
        The point estimate. BCa and basic intervals need not contain it.
    low, high : float or None
        Limits in the unit of the estimate. Both are None if the confidence set is unbounded.
    level : float
        Nominal coverage, between 0 and 1.
    method : str
        Name of the method that found the limits.
    estimand : str
        What is estimated: ``"refit"``, ``"fixed_probe"``, ``"fraction removed"``, ...
    n : int
        Number of independent units (sequences or items).
    test : callable or None
        The test whose inversion the interval is: from a value to its two-sided p-value, NaN where
        nothing varies. See `p_value`.

    Raises
    ------
    DesignError
        If a field is out of range, or if only one limit is given.

    Examples
    --------
    >>> from posprobe.intervals import Interval
    >>> interval = Interval(0.4, 0.31, 0.52, 0.95, "fieller", "fraction removed", 30)
    >>> print(interval)
    0.40 [0.31, 0.52]
    >>> interval.excludes(0), interval.excludes(0.5)
    (True, False)
    >>> print(Interval(0.4, None, None, 0.95, "fieller", "fraction removed", 30))
    0.40 (95% CI unbounded)
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    method: str
    estimand: str
    n: int
    test: Callable[[float], float] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_level(self.level)
        if not isfinite(self.estimate):
            raise DesignError(f"the estimate of {self.estimand!r} is {self.estimate}: not a number")
        if self.n < 1:
            raise DesignError(f"the interval of {self.estimand!r} rests on n={self.n} units")
        if self.low is None and self.high is None:
            return
        if self.low is None or self.high is None:
            raise DesignError(
                f"the interval of {self.estimand!r} has one limit, low={self.low}, "
                f"high={self.high}: give both, or None for both where it is unbounded"
            )
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= self.high):
            raise DesignError(
                f"the limits of {self.estimand!r} are [{self.low}, {self.high}]: they must be "
                "finite and in order; give None for both where the interval is unbounded"
            )

    def _repr_html_(self) -> str:
        facts = {
            "estimand": self.estimand,
            "level": f"{100 * self.level:g}%",
            "method": self.how,
            "n": self.n,
        }
        return as_html(str(self), {"": fact_table(facts)})

    @property
    def unbounded(self) -> bool:
        """Whether the confidence set is unbounded."""
        return self.low is None

    def excludes(self, value: float) -> bool:
        """Return whether `value` lies outside the interval; an unbounded interval excludes none."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high

    def p_value(self, value: float) -> float | None:
        """Return 1 - the highest level at which this interval would exclude a value.

        Parameters
        ----------
        value : float
            In the unit of the estimate.

        Returns
        -------
        float or None
            The two-sided p-value of the test whose inversion the interval is: below 1 - `level`
            where the interval excludes the value, and only there. None where the interval was made
            without a test, or nothing varies between units.

        Examples
        --------
        >>> from posprobe.intervals import mean_interval
        >>> interval = mean_interval([2.0, 3.0, 4.0, 3.0, 2.0, 4.0], estimand="mean")
        >>> round(interval.p_value(interval.low), 6), round(interval.p_value(1.0), 4)
        (0.05, 0.0028)
        """
        found = nan if self.test is None else self.test(value)
        return None if isnan(found) else found

    @property
    def how(self) -> str:
        """The method, marked if unbounded: ``"fieller"`` or ``"fieller: unbounded"``."""
        return self.method + (": unbounded" if self.unbounded else "")

    def limits(self, name: str = "") -> dict[str, float]:
        """Return both limits as columns of a table, NaN if the interval is unbounded.

        Parameters
        ----------
        name : str
            Prefix of the columns: ``NAME_low`` and ``NAME_high``. By default the columns are
            ``low`` and ``high``.

        Returns
        -------
        dict of str to float
        """
        ends = {"low": self.low, "high": self.high}
        ahead = f"{name}_" if name else ""
        return {ahead + end: nan if value is None else value for end, value in ends.items()}

    @classmethod
    def of_row(
        cls,
        row: pd.Series | Mapping[str, Any],
        name: str,
        *,
        level: float,
        method: str,
        n: int,
        limits: str = "",
        estimand: str = "",
    ) -> Interval:
        """Rebuild an interval from a row of a table; it is unbounded if its limits are NaN.

        Parameters
        ----------
        row : pandas.Series or mapping of str to values
            The row, with the estimate and both limits.
        name : str
            Column of the estimate.
        level, method, n
            As in the class.
        limits : str
            Prefix of the columns of the limits, as in `limits`.
        estimand : str
            What is estimated; by default the name of the column.

        Returns
        -------
        Interval

        Examples
        --------
        >>> from posprobe.intervals import Interval
        >>> row = {"V_R": 0.4, "V_R_low": 0.3, "V_R_high": 0.5}
        >>> print(Interval.of_row(row, "V_R", limits="V_R", level=0.95, method="t", n=9))
        0.40 [0.30, 0.50]
        """
        ahead = f"{limits}_" if limits else ""
        low, high = (float(row[f"{ahead}{end}"]) for end in ("low", "high"))
        bounded = not (isnan(low) or isnan(high))
        return cls(
            estimate=float(row[name]),
            low=low if bounded else None,
            high=high if bounded else None,
            level=level,
            method=method,
            estimand=estimand or name,
            n=n,
        )

    def row(self, name: str = "estimate") -> dict[str, Any]:
        """Return the interval as one row of a table.

        Parameters
        ----------
        name : str
            Column of the estimate.

        Returns
        -------
        dict of str to object
            `name`, low, high (both NaN if unbounded), method and n.

        Examples
        --------
        >>> from posprobe.intervals import Interval
        >>> Interval(0.4, None, None, 0.95, "fieller", "fraction removed", 30).row("removed")
        {'removed': 0.4, 'low': nan, 'high': nan, 'method': 'fieller: unbounded', 'n': 30}
        """
        return {name: self.estimate} | self.limits() | {"method": self.how, "n": self.n}

    def asdict(self) -> dict[str, Any]:
        """Return all fields but the test by name, ready for JSON or a table."""
        return {name: value for name, value in asdict(self).items() if name != "test"}

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            digits = _decimals(abs(self.estimate))
            return f"{self.estimate:.{digits}f} ({100 * self.level:g}% CI unbounded)"
        digits = _decimals(self.high - self.low)
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def _decimals(width: float) -> int:
    """Return the number of decimals that shows two significant digits of `width`."""
    return max(0, 1 - floor(log10(width))) if width > 0 else 2
