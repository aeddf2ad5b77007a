"""Numbers as they are read: few digits, a minus sign, an interval or a word where there is none."""

from __future__ import annotations

import math

import pandas as pd

from posprobe.claims import Claim
from posprobe.intervals import Interval

__all__ = ["VERDICTS", "bounds", "claim_interval", "number", "percent", "with_interval"]

SMALL = 1e-3
VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive",
    "not_applicable": "not applicable",
}


def number(value: object) -> str:
    """Three significant digits; small ones with an exponent; nothing for what is not there."""
    if value is None or isinstance(value, str | bool):
        return str(value or "")
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    if value and abs(value) < SMALL:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def percent(value: float) -> str:
    """A share or fraction in percent."""
    return f"{value:.0%}".replace("-", "−").replace("−0%", "0%")


def bounds(low: float | None, high: float | None, *, percents: bool = False) -> str:
    """An interval in words, unbounded ones by name."""
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return "interval unbounded"
    write = percent if percents else number
    return f"{write(float(low))} to {write(float(high))}"


def with_interval(row: pd.Series, name: str, *, percents: bool = False) -> str:
    """An estimate of a table with its interval in brackets."""
    write = percent if percents else number
    within = bounds(row[f"{name}_low"], row[f"{name}_high"], percents=percents)
    return f"{write(float(row[name]))} ({within})"


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
