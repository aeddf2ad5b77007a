"""The answer in plain English, from claims and tables."""

from __future__ import annotations

import pandas as pd

from posprobe.analysis import Analysis
from posprobe.claims import Claim
from posprobe.sections.findings import one_design, overall
from posprobe.sections.words import VERDICTS, bounds, percent, with_interval

__all__ = ["summary"]

RELATIONS = {
    "opposed": "The two channels oppose each other: the residual stream takes back part of what "
    "the mask does.",
    "reinforcing": "The two channels reinforce each other.",
    "not distinguishable": "Whether the two channels oppose or reinforce each other cannot be told "
    "from these data.",
}


def summary(analysis: Analysis, claims: list[Claim]) -> str:
    """What carries absolute position, how much, whether the channels oppose, and how sure.

    Parameters
    ----------
    analysis : Analysis
    claims : list of Claim

    Returns
    -------
    str
        A paragraph; it says so where the files do not hold the answer.
    """
    named = {claim.id: claim for claim in claims}
    if "channels" in analysis.tables:
        parts = [*_channels(analysis)]
    else:
        parts = ["These files do not tell which channel carries absolute position in attention."]
    parts += [_replaced(named.get("bos_replacement")), _sure(analysis, claims)]
    return " ".join(part for part in parts if part)


def _channels(analysis: Analysis) -> list[str]:
    row = overall(analysis)
    fixed = row["stimulus"] == "shifted"
    held = "with content held fixed" if fixed else "in natural text, content left to vary"
    if row["V_T_low"] <= 0:
        first = (
            "Attention of this model does not change with absolute position beyond what chance "
            f"allows, {held}: V_T is {with_interval(row, 'V_T')} nats²."
        )
    else:
        first = f"Attention of this model depends on absolute position, {held}. {_moved(analysis)}"
    channels = {"causal mask's denominator": "V_M", "residual stream": "V_R"}
    carried = [name for name, part in channels.items() if row[f"{part}_low"] > 0]
    size = f"V_M {with_interval(row, 'V_M')}, V_R {with_interval(row, 'V_R')} nats²"
    which = {
        2: f"Both channels carry it: {size}.",
        1: f"Only the {''.join(carried)} is seen to carry it: {size}.",
        0: f"Neither channel is seen to carry it: {size}.",
    }[len(carried)]
    if row["status"] == "ok":
        shared = (
            f"The mask's share of the variance is {with_interval(row, 'share_mask', percents=True)}"
            f", the residual stream's {with_interval(row, 'share_residual', percents=True)}."
        )
    else:
        shared = "Shares are undefined: the total is not distinguishable from 0."
    return [first, which, RELATIONS[row["relation"]], shared]


def _moved(analysis: Analysis) -> str:
    table = one_design(analysis.tables["position_effects"])
    rows = table[table["layer"] == "all"].sort_values("position")
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"From {last['position']} tokens deep to {first['position']}, log attention weights at a "
        f"fixed offset change by {with_interval(first, 'T')} nats on average: the mask alone would "
        f"make {with_interval(first, 'M')}, the residual stream makes {with_interval(first, 'R')}."
    )


def _replaced(claim: Claim | None) -> str:
    if claim is None or claim.estimate is None:
        return ""
    within = bounds(claim.ci_low, claim.ci_high, percents=True)
    start = "Replacing the embedding at position 0 by the mean embedding"
    if claim.ci_low is None or claim.ci_high is None:
        return f"{start} removes an unknown part of the residual channel ({within})."
    agrees = claim.ci_low <= (claim.reference or 0.0) <= claim.ci_high
    does = (
        "removes no measurable part"
        if claim.ci_low <= 0 <= claim.ci_high
        else f"{'removes' if claim.estimate > 0 else 'adds'} {percent(abs(claim.estimate))}"
    )
    return (
        f"{start} {does} of the residual channel at early queries ({percent(claim.estimate)}, "
        f"{within}); the study's 40% is {'inside' if agrees else 'outside'} that interval."
    )


def _sure(analysis: Analysis, claims: list[Claim]) -> str:
    counts = pd.Series([claim.verdict for claim in claims]).value_counts()
    tally = ", ".join(f"{counts[v]} {name}" for v, name in VERDICTS.items() if v in counts)
    store = analysis.files.shifted or analysis.files.natural
    units = "" if store is None else f" over {len(set(store.item.tolist()))} items"
    brackets = f"Brackets are {percent(analysis.level)} intervals{units}."
    return f"{brackets} Of {len(claims)} claims: {tally}."
