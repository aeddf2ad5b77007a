"""The answer in plain English, from claims and tables."""

from __future__ import annotations

import pandas as pd

from posprobe.analysis import Analysis, n_units
from posprobe.claims import SMALLEST, Claim
from posprobe.figures import NEGATIVE_SHARE, one_design
from posprobe.report.findings import overall
from posprobe.report.words import (
    VERDICTS,
    bounds,
    percent,
    seen,
    too_small,
    with_interval,
)

__all__ = ["opening", "summary"]

RELATIONS = {
    "opposed": "The two channels oppose each other: one takes back part of what the other does.",
    "reinforcing": "The two channels reinforce each other.",
    "not distinguishable": "These data do not tell whether the two channels oppose or reinforce "
    "each other.",
}
RELATED = {
    "opposed": "oppose each other",
    "reinforcing": "reinforce each other",
    "not distinguishable": "can neither be said to oppose nor to reinforce each other",
}


NO_ANSWER = "These files do not tell which channel carries absolute position in attention."
AS_EVERYWHERE = (
    "That is the mask alone: the later a query, the more keys share its attention, as in any "
    "causal model, trained or not. What the residual stream adds is too small to speak of."
)


def opening(analysis: Analysis) -> list[str]:
    """The answer in three short sentences or fewer, beside the picture.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    list of str
    """
    if "channels" not in analysis.tables:
        return [NO_ANSWER]
    row = overall(analysis)
    if too_small(row, "V_T"):
        first = (
            "There is little to see: attention in this model hardly changes with absolute position "
            f"({SMALLEST['nats^2']:g} nats² would be worth a sentence)."
        )
        return [first, _condition(analysis, row)]
    if not seen(row, "V_T"):
        return [
            "We find no evidence that attention in this model depends on absolute position.",
            _condition(analysis, row),
        ]
    second = AS_EVERYWHERE if too_small(row, "V_R") else _carried(analysis, row)
    return [_moved(analysis), second, _condition(analysis, row)]


def _condition(analysis: Analysis, row: pd.Series) -> str:
    """What stands at position 0, and whether other conditions say the same."""
    store = analysis.files.shifted or analysis.files.natural
    assert store is not None
    first = "a BOS" if store.has_bos else "a token of the text, no BOS,"
    measured = f"Measured with {first} at position 0, on {n_units(store)} items"
    table = analysis.tables.get("conditions")
    if table is None or too_small(row, "V_R"):
        return f"{measured}."
    same = int((table["relation"] == row["relation"]).sum())
    return f"{measured}; the channels relate alike in {same} of {len(table)} conditions."


def summary(analysis: Analysis, claims: list[Claim]) -> str:
    """What carries absolute position, how much, whether the channels oppose, and how sure.

    Parameters
    ----------
    analysis : Analysis
    claims : list of Claim

    Returns
    -------
    str
        One paragraph, which says so where the files do not contain the answer.
    """
    named = {claim.id: claim for claim in claims}
    parts = _channels(analysis) if "channels" in analysis.tables else [NO_ANSWER]
    parts += [_replaced(named.get("bos_replacement")), _sure(analysis, claims)]
    return " ".join(part for part in parts if part)


def _channels(analysis: Analysis) -> list[str]:
    row = overall(analysis)
    held = "with content held fixed" if row["stimulus"] == "shifted" else "in natural text"
    if too_small(row, "V_T"):
        return [
            f"{_used(analysis)} attention in this model hardly changes with absolute position, "
            f"{held}: the variance of its effect is {with_interval(row, 'V_T')} nats², too small "
            "to speak of."
        ]
    if row["V_T_low"] > 0:
        first = (
            f"{_used(analysis)} attention in this model depends on absolute position, {held}. "
            f"{_moved(analysis)}"
        )
    else:
        first = (
            f"{_used(analysis)} we find no evidence that attention in this model depends on "
            "absolute position, "
            f"{held}: the variance of its effect is {with_interval(row, 'V_T')} nats²."
        )
    if row["status"] == "ok":
        negative = min(row["share_mask"], row["share_residual"]) < 0
        shared = (
            f"The mask's share of the variance is {with_interval(row, 'share_mask', percents=True)}"
            f", the residual stream's {with_interval(row, 'share_residual', percents=True)}"
            + (f"; {NEGATIVE_SHARE}." if negative else ".")
        )
    else:
        shared = "Shares are undefined because V_T is not distinguishable from 0."
    return [
        first,
        _carried(analysis, row),
        "" if too_small(row, "C_MR") else RELATIONS[row["relation"]],
        shared,
        *_elsewhere(analysis),
    ]


def _used(analysis: Analysis) -> str:
    """The condition that the answer is about: what is at position 0, and who put it there."""
    store = analysis.files.shifted or analysis.files.natural
    assert store is not None
    policy = store.header.stimulus.get("bos")
    if policy == "native":
        first = "its own BOS" if store.has_bos else "a token of the text, and no BOS,"
        return f"Used as its tokenizer has it, with {first} at position 0,"
    return f"With {'a forced' if store.has_bos else 'no'} BOS at position 0,"


def _elsewhere(analysis: Analysis) -> list[str]:
    """Which of these sentences change in other conditions, and to what."""
    table = analysis.tables.get("conditions")
    if table is None:
        return []
    main, others = table.iloc[0], table.iloc[1:]
    changed = [
        f"the two channels {RELATED[str(relation)]} with {_named(rows)}"
        for relation, rows in others.groupby("relation", sort=False)
        if relation != main["relation"]
    ]
    changed += _removed_elsewhere(analysis, str(main["condition"]))
    if not changed:
        return [
            "The relation of the channels, and the direction of what replacing position 0 does, "
            f"are the same in each of the {len(table)} conditions tried; sizes and other verdicts "
            "may differ."
        ]
    return [f"This depends on the condition: {'; '.join(changed)}."]


def _named(rows: pd.DataFrame) -> str:
    return " and with ".join(rows["condition"])


def _removed_elsewhere(analysis: Analysis, main: str) -> list[str]:
    """Conditions in which the mean embedding does something else to the residual channel."""
    table = analysis.tables.get("condition_replacement")
    if table is None or main not in set(table["condition"]):
        return []
    numbers = table[["fraction_removed", "low", "high"]]
    does = numbers.apply(lambda row: _removal(*row), axis=1)
    natively = does[table["condition"] == main].iloc[0]
    return [
        f"the mean embedding at position 0 {what} the residual channel with {_named(rows)}"
        for what, rows in table.groupby(does, sort=False)
        if what != natively
    ]


def _removal(fraction: float, low: float, high: float) -> str:
    """What the mean embedding does to the residual channel, as a verb; NaN limits: unbounded."""
    if pd.isna(low) or low <= 0 <= high:
        return "has no clear effect on"
    return "removes part of" if fraction > 0 else "enlarges"


def _carried(analysis: Analysis, row: pd.Series) -> str:
    """Which channels are found to carry position, and what each does by itself."""
    found = [seen(row, part) for part in ("V_M", "V_R")]
    which = {
        (True, True): "Both channels carry it",
        (True, False): "Only the causal mask is found to carry it",
        (False, True): "Only the residual stream is found to carry it",
        (False, False): "Neither channel is found to carry it",
    }[found[0], found[1]]
    first, _ = _ends(analysis)
    return (
        f"{which}: the causal mask's denominator alone {_does(first, 'M')} nats, and the residual "
        f"stream {_does(first, 'R')} nats."
    )


def _moved(analysis: Analysis) -> str:
    first, last = _ends(analysis)
    what = "Moving the same text" if first["stimulus"] == "shifted" else "Moving"
    moved = f"{what} from position {last['position']} to {first['position']}"
    if first["T_low"] <= 0 <= first["T_high"]:
        return (
            f"{moved} neither clearly raises nor clearly lowers attention at a fixed distance "
            f"({with_interval(first, 'T')} nats)."
        )
    does, size = ("raises", first) if first["T"] > 0 else ("lowers", _negated(first, "T"))
    return f"{moved} {does} log attention at a fixed distance by {with_interval(size, 'T')} nats."


def _ends(analysis: Analysis) -> tuple[pd.Series, pd.Series]:
    table = one_design(analysis.tables["position_effects"])
    rows = table[table["layer"] == "all"].sort_values("position")
    return rows.iloc[0], rows.iloc[-1]


def _does(row: pd.Series, part: str) -> str:
    """What a channel does to the log weight; "changes" where its direction is not clear."""
    if row[f"{part}_low"] <= 0 <= row[f"{part}_high"]:
        return f"changes it by {with_interval(row, part)}"
    if row[part] > 0:
        return f"adds {with_interval(row, part)}"
    return f"takes away {with_interval(_negated(row, part), part)}"


def _negated(row: pd.Series, part: str) -> pd.Series:
    """The same effect with the other sign."""
    value, low, high = (row[f"{part}{end}"] for end in ("", "_low", "_high"))
    return pd.Series({part: -value, f"{part}_low": -high, f"{part}_high": -low})


def _replaced(claim: Claim | None) -> str:
    if claim is None or claim.estimate is None:
        return ""
    within = bounds(claim.ci_low, claim.ci_high, percents=True)
    start = "Replacing the embedding at position 0 by the mean embedding"
    if claim.ci_low is None or claim.ci_high is None:
        return f"{start} removes an unknown part of the residual channel ({within})."
    agrees = claim.ci_low <= (claim.reference or 0.0) <= claim.ci_high
    does = _removal(claim.estimate, claim.ci_low, claim.ci_high)
    return (
        f"{start} {does} the residual channel at early queries (fraction removed: "
        f"{percent(claim.estimate)}, {within}); the study's 40% is "
        f"{'inside' if agrees else 'outside'} that interval."
    )


def _sure(analysis: Analysis, claims: list[Claim]) -> str:
    counts = pd.Series([claim.verdict_adjusted for claim in claims]).value_counts()
    tally = ", ".join(f"{counts[v]} {name}" for v, name in VERDICTS.items() if v in counts)
    store = analysis.files.shifted or analysis.files.natural
    units = "" if store is None else f" over {len(set(store.item.tolist()))} items"
    brackets = f"Brackets give {analysis.inference.percent} intervals{units}."
    hang = sum(claim.verdict != claim.verdict_adjusted for claim in claims)
    hanging = f" ({hang} more by their own intervals alone)" if hang else ""
    return (
        f"{brackets} The verdicts on {len(claims)} claims, adjusted for those that answer the same "
        f"question: {tally}{hanging}."
    )
