"""What a claim is, and how an interval becomes a verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from posprobe.channels import why_not_split
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = [
    "NEGLIGIBLE_R2",
    "SMALLEST",
    "Claim",
    "Verdict",
    "above",
    "below",
    "below_everywhere",
    "found",
    "make_claim",
    "not_applicable",
    "split_needs",
]

Verdict = Literal["supported", "contradicted", "inconclusive", "negligible", "not_applicable"]

# A probe below this R2 is said to tell nothing about position.
NEGLIGIBLE_R2 = 0.02
# The smallest effects that are worth a sentence, by unit, fixed beforehand. A standard deviation of
# 0.01 nats over positions changes attention weights by one percent; a twentieth of a whole; the R2
# above.
SMALLEST = {"nats^2": 1e-4, "1": 0.05, "R2": NEGLIGIBLE_R2}


@dataclass(frozen=True, kw_only=True)
class Claim:
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
    reference: float | None = None
    protocol: str
    condition: dict[str, Any] | None = None
    scope: str = ""
    conditions: tuple[dict[str, Any], ...] = ()

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON: no NaN and no infinity."""
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }
        return plain | {"conditions": list(self.conditions)}


def above(interval: Interval, bound: float) -> Verdict:
    """Supported where the whole interval is above `bound`, contradicted where it is below."""
    if interval.low is None or interval.high is None:
        return "inconclusive"
    if interval.low > bound:
        return "supported"
    return "contradicted" if interval.high < bound else "inconclusive"


def below(interval: Interval, bound: float) -> Verdict:
    """Supported where the whole interval is below `bound`, contradicted where it is above."""
    opposite: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}
    verdict = above(interval, bound)
    return opposite.get(verdict, verdict)


def below_everywhere(interval: Interval, bound: float, largest: float) -> Verdict:
    """As `below`, and never supported where `largest`, of all items, is not below `bound`."""
    verdict = below(interval, bound)
    return "inconclusive" if verdict == "supported" and not largest < bound else verdict


def found(interval: Interval, unit: str, floor: float = 0.0) -> Verdict:
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
    Verdict
        "negligible" where the whole interval is nearer to 0 than the smallest effect of its unit:
        at most an effect that is not worth a sentence, whether or not the interval contains 0.

    Examples
    --------
    >>> small, clear = (Interval(v, v / 2, 2 * v, 0.95, "t", "V_R", 30) for v in (1e-6, 1e-2))
    >>> found(small, "nats^2"), found(clear, "nats^2")
    ('negligible', 'supported')
    """
    low, high = interval.low, interval.high
    if low is not None and high is not None and max(-low, high) < SMALLEST[unit]:
        return "negligible"
    verdict = above(interval, 0.0)
    if verdict == "supported" and above(interval, floor) != "supported":
        return "inconclusive"
    return verdict


def make_claim(
    name: str,
    statement: str,
    interval: Interval,
    unit: str,
    verdict: Verdict,
    protocol: str,
    reference: float | None = None,
) -> Claim:
    """A claim with its interval and verdict."""
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
        verdict=verdict,
        reference=reference,
        protocol=protocol,
    )


def not_applicable(name: str, statement: str, reason: str) -> Claim:
    """A claim that these files cannot test, with the reason as its protocol."""
    return Claim(id=name, statement=statement, verdict="not_applicable", protocol=reason)


def split_needs(store: ActivationStore | None, design: str) -> str:
    """Why a claim about both channels cannot be tested on a file, or without one."""
    reason = None if store is None else why_not_split(store)
    if store is None or reason is None:
        return f"needs a capture of the {design} design (--design {design}) with all scores"
    return f"{store.path.name} {reason}"
