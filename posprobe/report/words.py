"""Numbers for readers: few digits, a true minus sign, unbounded intervals in words."""

from __future__ import annotations

import math

import pandas as pd

from posprobe.claims import Claim
from posprobe.intervals import Interval

__all__ = [
    "ADJUSTED",
    "VERDICTS",
    "bounds",
    "claim_interval",
    "hangs",
    "number",
    "p_value",
    "p_values",
    "percent",
    "removed",
    "untested",
    "with_interval",
]

SMALL, LARGE = 1e-3, 1000.0
MOST_DECIMALS = 4
VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive",
    "negligible": "negligible",
    "not_applicable": "not applicable",
}


ADJUSTED = (
    "A p-value is 1 − the level at which the interval would no longer give the verdict. In "
    "brackets it is adjusted for all tests of the same question, by Holm's method, and verdicts "
    "follow the adjusted ones; intervals are not adjusted. Identities are judged against rounding "
    "and have no p-value."
)


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
    """A fraction removed with its interval, or the factor by which V_R more than doubles."""
    value, low, high = (row[name] for name in ("fraction_removed", "low", "high"))
    if value >= -1:
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


def p_value(value: float) -> str:
    """A p-value with two digits; small ones only by their size."""
    return "< 0.001" if value < SMALL else f"{value:.2g}"


def p_values(claim: Claim) -> str:
    """The p-value of a claim and, in brackets, the adjusted one; nothing where it has none."""
    if claim.p_value is None:
        return ""
    more = "" if claim.p_adjusted is None else f" ({p_value(claim.p_adjusted)})"
    return p_value(claim.p_value) + more


def untested(claim: Claim) -> str:
    """Why a claim has no p-value, or no adjusted one."""
    if not claim.p_note:
        return ""
    return f" {'No p-value' if claim.p_value is None else 'P-value'}: {claim.p_note}."


def hangs(claim: Claim, tests: int) -> str:
    """That a verdict does not survive adjustment; nothing where it does."""
    if claim.verdict == claim.verdict_adjusted:
        return ""
    own = VERDICTS[claim.verdict]
    return (
        f"{own[0].upper()}{own[1:]} by its own interval, not after adjustment for the {tests} "
        "tests of this question."
    )


def claim_interval(claim: Claim) -> str:
    """Estimate and interval of a claim, or nothing where it was not tested."""
    if claim.estimate is None:
        return ""
    if claim.ci_low is None or claim.ci_high is None or claim.ci_level is None:
        return f"{number(claim.estimate)} (interval unbounded)"
    if max(abs(x) for x in (claim.estimate, claim.ci_low, claim.ci_high)) < SMALL:
        limits = f"{number(claim.ci_low)}, {number(claim.ci_high)}"
        return f"{number(claim.estimate)} [{limits}]"
    interval = Interval(
        claim.estimate,
        claim.ci_low,
        claim.ci_high,
        claim.ci_level,
        claim.ci_method,
        claim.id,
        claim.n or 0,
    )
    return str(interval).replace("-", "−")
