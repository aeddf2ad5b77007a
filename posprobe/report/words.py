"""Numbers for readers: few digits, a true minus sign, unbounded intervals in words."""

from __future__ import annotations

import math

import pandas as pd

from posprobe.claims import SMALLEST

__all__ = [
    "SMALLEST_EFFECT",
    "VERDICTS",
    "bounds",
    "number",
    "percent",
    "removed",
    "seen",
    "set_apart",
    "too_small",
    "with_interval",
]

SMALLEST_EFFECT = math.sqrt(SMALLEST["nats^2"])  # of an effect, in nats
SMALL, LARGE = 1e-3, 1000.0
MOST_DECIMALS = 4
VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive",
    "negligible": "negligible",
    "not_applicable": "not applicable",
}


def number(value: object) -> str:
    """Three significant digits, an exponent for small numbers, '' for None and NaN."""
    if value is None or isinstance(value, str | bool):
        return str(value or "")
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    if abs(value) >= LARGE:
        return f"{value:,.0f}".replace("-", "−")
    if value and abs(value) < SMALL:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def set_apart(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say once what is the same in all rows of a table, and leave it out of the table.

    Examples
    --------
    >>> same, rest = set_apart(pd.DataFrame({"file": ["a", "b"], "sink_rate": [0.5, 0.5]}))
    >>> same, list(rest)
    ('The same in all of them: sink rate 0.5.', ['file'])
    """
    same = [
        name
        for name in map(str, table)
        if len(table) > 1 and table[name].nunique(dropna=False) == 1
    ]
    if not same:
        return "", table
    said = "; ".join(f"{name.replace('_', ' ')} {number(table[name].iloc[0])}" for name in same)
    return f"The same in all of them: {said}.", table.drop(columns=same)


def too_small(row: pd.Series, name: str, smallest: float = SMALLEST["nats^2"]) -> bool:
    """Whether the whole interval of a number is nearer to 0 than the smallest worth a sentence."""
    return bool(max(-row[f"{name}_low"], row[f"{name}_high"]) < smallest)


def seen(row: pd.Series, name: str) -> bool:
    """Whether a variance is above 0, by its interval, and large enough to speak of."""
    return bool(row[f"{name}_low"] > 0) and not too_small(row, name)


def percent(value: float) -> str:
    """A share or fraction in percent."""
    return f"{value:.0%}".replace("-", "−").replace("−0%", "0%")


def bounds(low: float | None, high: float | None, *, percents: bool = False) -> str:
    """An interval as "low to high"; an unbounded one is named."""
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return "interval unbounded"
    if percents:
        return f"{percent(float(low))} to {percent(float(high))}"
    return " to ".join(_fixed(float(limit), _decimals(low, high)) for limit in (low, high))


def removed(row: pd.Series) -> str:
    """A fraction removed with its interval; where V_R grows, by how much or how many fold."""
    value, low, high = (row[name] for name in ("fraction_removed", "low", "high"))
    if -1 <= value < 0:
        return f"nothing: V_R grows by {percent(-value)} ({bounds(-high, -low, percents=True)})"
    if value >= 0:
        return f"{percent(value)} of V_R ({bounds(low, high, percents=True)})"
    grown = bounds(low, high) if pd.isna(low) else bounds(1 - high, 1 - low)
    return f"nothing: V_R grows {1 - value:.1f}-fold ({grown})"


def with_interval(row: pd.Series, name: str, *, percents: bool = False) -> str:
    """An estimate of a table with its interval in brackets."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    shown = percent(value) if percents else _fixed(value, _decimals(low, high))
    return f"{shown} ({bounds(low, high, percents=percents)})"


def _decimals(low: float, high: float) -> int | None:
    """Decimals that show two digits of the interval's width; None where these are too many."""
    width = float(high) - float(low)
    digits = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 2
    return digits if digits <= MOST_DECIMALS else None


def _fixed(value: float, decimals: int | None) -> str:
    if decimals is None:
        return number(value)
    return f"{value:.{decimals}f}".replace("-", "−")
