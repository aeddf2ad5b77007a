"""What a claim is, and how an interval becomes a verdict with its p-value."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from posprobe.channels import why_not_split
from posprobe.errors import Telling, fact_table
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = [
    "NEGLIGIBLE_R2",
    "SMALLEST",
    "Claim",
    "Judged",
    "Verdict",
    "above",
    "below",
    "below_everywhere",
    "counted",
    "found",
    "identity",
    "make_claim",
    "not_applicable",
    "nothing_to_remove",
    "split_needs",
    "within",
]

Verdict = Literal["supported", "contradicted", "inconclusive", "negligible", "not_applicable"]

# A probe below this R2 is said to tell nothing about position.
NEGLIGIBLE_R2 = 0.02
# The smallest effects that are worth a sentence, by unit, fixed beforehand. A standard deviation of
# 0.01 nats over positions changes attention weights by one percent; a twentieth of a whole; the R2
# above.
SMALLEST = {"nats^2": 1e-4, "1": 0.05, "R2": NEGLIGIBLE_R2}


@dataclass(frozen=True, kw_only=True, repr=False)
class Claim(Telling):
    """One sentence of the study, tested.

    Attributes
    ----------
    id : str
    statement : str
        What is claimed.
    estimate : float or None
    unit : str
    ci_low, ci_high : float or None
        None where there is no interval, or an unbounded one (`ci_method` says which).
    ci_level : float or None
    ci_method : str
    n : int or None
        Number of resampling units: sequences, or items of the shifted design.
    verdict : {"supported", "contradicted", "inconclusive", "negligible", "not_applicable"}
        By the claim's own interval.
    p_value : float or None
        1 - the level at which the interval would no longer give this verdict or, if it is
        inconclusive, would first give another. None where there is no such test: `p_note`.
    p_adjusted : float or None
        `p_value` adjusted for the other claims of the family, by Holm's method.
    p_note : str
        What the p-values do not count, or why there are none.
    verdict_adjusted : {"supported", "contradicted", "inconclusive", "negligible", "not_applicable"}
        `verdict`, if `p_adjusted` is below 1 - `ci_level` or there is no p-value, and inconclusive
        otherwise. Summaries count this one.
    family : str
        The question that the claim helps to answer, of `FAMILIES`.
    reference : float or None
        The study's own value.
    protocol : str
        How the number was made, or why the claim does not apply.
    condition : dict or None
        What the estimate is about: the `design` of the capture that it rests on, and its
        `position0`, `text` and `length` (tokens), see `posprobe.analysis.Condition`. None where a
        claim is about several models.
    scope : str
        In how many of the conditions tested the verdict is the same, and what it is in the others.
    conditions : tuple of dict
        The estimate, its limits and the verdict in each condition, the main one first.
    """

    id: str
    statement: str
    estimate: float | None = None
    unit: str = ""
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float | None = None
    ci_method: str = "none"
    n: int | None = None
    verdict: Verdict
    p_value: float | None = None
    p_adjusted: float | None = None
    p_note: str = ""
    verdict_adjusted: Verdict = "not_applicable"
    family: str = ""
    reference: float | None = None
    protocol: str
    condition: dict[str, Any] | None = None
    scope: str = ""
    conditions: tuple[dict[str, Any], ...] = ()

    def _line(self) -> str:
        return f"{self.id}, {self.verdict_adjusted}{self._number()}"

    def _number(self) -> str:
        if self.estimate is None:
            return ""
        limits = "" if self.ci_low is None else f" [{self.ci_low:.3g}, {self.ci_high:.3g}]"
        return f", {self.estimate:.3g}{limits} {self.unit}".rstrip()

    def _tables(self) -> dict[str, pd.DataFrame]:
        facts = {
            "verdict": self.verdict,
            "adjusted for the family": f"{self.verdict_adjusted} {self.p_note}".strip(),
            "p, adjusted p": f"{self.p_value}, {self.p_adjusted}",
            "n": self.n,
            "protocol": self.protocol,
            "scope": self.scope,
        }
        return {self.statement: fact_table({k: v for k, v in facts.items() if v not in (None, "")})}

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON: no NaN and no infinity."""
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }
        return plain | {"conditions": list(self.conditions)}


class Judged(NamedTuple):
    """What an interval says of a claim.

    Attributes
    ----------
    verdict : Verdict
    p_value : float or None
        1 - the level at which the interval would begin to say otherwise; None: `p_note` says why.
    p_note : str
    """

    verdict: Verdict
    p_value: float | None = None
    p_note: str = ""


def within(interval: Interval, low: float = -math.inf, high: float = math.inf) -> Judged:
    """Whether the estimand lies between two bounds, by an interval wholly inside or outside.

    Parameters
    ----------
    interval : Interval
    low, high : float
        In the unit of the estimate.

    Returns
    -------
    Judged
        Supported if the whole interval lies between the bounds, contradicted if the whole interval
        lies outside. The p-value is that of the bound beyond which the estimate lies; of an
        estimate between both bounds it is the larger one.

    Examples
    --------
    >>> from posprobe.intervals import mean_interval
    >>> interval = mean_interval([2.0, 3.0, 4.0, 3.0, 2.0, 4.0], estimand="mean")
    >>> within(interval, 0, 3.5)
    Judged(verdict='inconclusive', p_value=0.22..., p_note='')
    """
    beyond = low if interval.estimate < low else high if interval.estimate > high else None
    ends = [end for end in (low, high) if math.isfinite(end)] if beyond is None else [beyond]
    p_values = [interval.p_value(end) for end in ends]
    known = [p for p in p_values if p is not None]
    p_value = max(known) if len(known) == len(p_values) else None
    return Judged(_inside(interval, low, high), p_value, "" if known else _untested(interval))


def _inside(interval: Interval, low: float, high: float) -> Verdict:
    if interval.low is None or interval.high is None:
        return "inconclusive"
    if low < interval.low and interval.high < high:
        return "supported"
    return "contradicted" if interval.high < low or interval.low > high else "inconclusive"


def _untested(interval: Interval) -> str:
    """Why an interval has no p-value."""
    if interval.unbounded:
        return "no interval"
    return "the same in all units" if interval.low == interval.high else "no test"


def above(interval: Interval, bound: float) -> Judged:
    """Supported where the whole interval is above `bound`, contradicted where it is below."""
    return within(interval, low=bound)


def below(interval: Interval, bound: float) -> Judged:
    """Supported where the whole interval is below `bound`, contradicted where it is above."""
    return within(interval, high=bound)


def identity(judged: Judged) -> Judged:
    """The same verdict on what holds exactly, up to rounding: there is nothing to adjust."""
    return Judged(judged.verdict, None, "an identity, judged against rounding")


def below_everywhere(interval: Interval, bound: float, largest: float) -> Judged:
    """An identity: as `below`, and never supported where `largest`, of all items, is not below."""
    verdict = below(interval, bound).verdict
    kept = verdict != "supported" or largest < bound
    return identity(Judged(verdict if kept else "inconclusive"))


def found(interval: Interval, unit: str, floor: float = 0.0) -> Judged:
    """As `above` 0, unless all of the interval is too small to speak of, or is rounding.

    Parameters
    ----------
    interval : Interval
    unit : str
        Of `SMALLEST`.
    floor : float
        The size of rounding, which supports nothing.

    Returns
    -------
    Judged
        "negligible" where the whole interval is nearer to 0 than the smallest effect of its unit:
        at most an effect that is not worth a sentence, whether or not the interval contains 0.

    Examples
    --------
    >>> small, clear = (Interval(v, v / 2, 2 * v, 0.95, "t", "V_R", 30) for v in (1e-6, 1e-2))
    >>> found(small, "nats^2").verdict, found(clear, "nats^2").verdict
    ('negligible', 'supported')
    """
    small = within(interval, -SMALLEST[unit], SMALLEST[unit])
    if small.verdict == "supported":
        return small._replace(verdict="negligible")
    if 0 < interval.estimate <= floor:
        return Judged("inconclusive", None, "no larger than its rounding")
    return above(interval, floor if interval.estimate > 0 else 0.0)


def make_claim(
    name: str,
    statement: str,
    interval: Interval,
    unit: str,
    judged: Judged,
    protocol: str,
    reference: float | None = None,
) -> Claim:
    """A claim with its interval, its verdict and its p-value."""
    return Claim(
        id=name,
        statement=statement,
        estimate=interval.estimate,
        unit=unit,
        ci_low=interval.low,
        ci_high=interval.high,
        ci_level=interval.level,
        ci_method=interval.how,
        n=interval.n,
        verdict=judged.verdict,
        verdict_adjusted=judged.verdict,
        p_value=judged.p_value,
        p_note=judged.p_note,
        reference=reference,
        protocol=protocol,
    )


def counted(claim: Claim, p_adjusted: float) -> Claim:
    """The claim with its adjusted p-value, and the verdict that is left of its own."""
    decided = claim.ci_level is not None and p_adjusted < 1 - claim.ci_level
    verdict = claim.verdict if decided else "inconclusive"
    return dataclasses.replace(claim, p_adjusted=p_adjusted, verdict_adjusted=verdict)


def not_applicable(name: str, statement: str, reason: str) -> Claim:
    """A claim that these files cannot test, with the reason as its protocol."""
    return Claim(id=name, statement=statement, verdict="not_applicable", protocol=reason)


def nothing_to_remove(native: float) -> str | None:
    """Why no fraction of a variance (squared nats) is worth a sentence; None where one is."""
    if native >= SMALLEST["nats^2"]:
        return None
    return (
        f"nothing to remove: natively V_R is {native:.1e} nats^2, below the smallest effect worth "
        f"a sentence ({SMALLEST['nats^2']:g})"
    )


def split_needs(store: ActivationStore | None, design: str) -> str:
    """Why a claim about both channels cannot be tested on a file, or without one."""
    reason = None if store is None else why_not_split(store)
    if store is None or reason is None:
        return f"needs a capture of the {design} design (--design {design}) with all scores"
    return f"{store.path.name} {reason}"
