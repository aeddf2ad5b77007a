"""H1 to H3 across architectures as claims, with the answers that the comparison page opens with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from posprobe.analysis import Analysis, floor, listed, shifted_design
from posprobe.architectures import Contrast, ContrastResult
from posprobe.claims.verdicts import (
    Claim,
    Verdict,
    above,
    counted,
    found,
    make_claim,
    not_applicable,
)
from posprobe.comparison import PRIMARY_VALUE, RELATIVE, VALUES, Comparison

__all__ = ["HYPOTHESES", "Answer", "answers", "architecture_claims", "hypothesis_claims"]

HYPOTHESES = {
    "H1": "The residual channel is ordered NTK < standard < sliding window.",
    "H2": "Under a sliding window the residual channel grows with depth, and faster than under "
    "the other architectures.",
    "H3": "Both channels are present in every architecture.",
}
LACKING = "needs files of ntk, of window, and of standard (or rope)"
NO_ADJUSTMENT = "not adjusted: H3 needs all of its parts"
VALUE_UNITS = {"V_R": "nats^2", RELATIVE: "1"}


@dataclass(frozen=True)
class Answer:
    """What a comparison says of one hypothesis.

    Attributes
    ----------
    hypothesis : str
        H1, H2 or H3.
    value : str
        What it was tested on.
    statement : str
    verdict : {"supported", "contradicted", "inconclusive", "not_applicable"}
        Supported where all its parts are, contradicted where one of them is.
    because : str
        The parts that decided.
    """

    hypothesis: str
    value: str
    statement: str
    verdict: Verdict
    because: str


def hypothesis_claims(comparison: Comparison) -> list[Claim]:
    """Test H1 and H2 by the planned contrasts, H3 model by model.

    The contrasts on one value are a family, whose p-values are adjusted by Holm's method. H3 is
    supported only where every model's own interval over items is above 0. All of them must be, so
    adjusting them for their number is not needed.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    list of Claim
        The same comparison gives the same list.
    """
    claims = []
    for value in (PRIMARY_VALUE, RELATIVE):
        planned = comparison.contrasts.get(value, ())
        claims += [_contrast_claim(one, value, comparison) for one in planned]
        if not planned:
            claims.append(_not_tested("H1", value, _lacking(comparison, value)))
    if not any(
        one.contrast.response == "slope" for one in comparison.contrasts.get(PRIMARY_VALUE, ())
    ):
        claims.append(_not_tested("H2", PRIMARY_VALUE, _lacking(comparison, PRIMARY_VALUE)))
    return claims + _presence_claims(comparison)


def _not_tested(hypothesis: str, value: str, reason: str) -> Claim:
    statement = f"{hypothesis}: {HYPOTHESES[hypothesis]} Tested on the {VALUES[value]}."
    none = not_applicable(f"{hypothesis}_{value}", statement, reason)
    return dataclasses.replace(none, family=value)


def _lacking(comparison: Comparison, value: str) -> str:
    one_layer = comparison.tables["models"]["n_layers"].max() == 1
    if comparison.contrasts.get(value):
        return "one layer was measured: no slope over depth" if one_layer else LACKING
    if value not in comparison.contrasts:
        return "undefined: V_R + V_M is not above 0 in every model"
    return LACKING


def _contrast_claim(one: ContrastResult, value: str, comparison: Comparison) -> Claim:
    name = re.sub(r"\W+", "_", f"{one.contrast.name}_{value}")
    statement = _says(one.contrast, value)
    if one.interval.unbounded:
        reason = f"no test: {one.interval.method}"
        return dataclasses.replace(not_applicable(name, statement, reason), family=value)
    judged = above(one.interval, 0.0)._replace(p_value=one.p_value, p_note="")
    protocol = _protocol(comparison, one, value)
    claim = make_claim(name, statement, one.interval, VALUE_UNITS[value], judged, protocol)
    return counted(dataclasses.replace(claim, family=value), one.p_holm)


def _says(contrast: Contrast, value: str) -> str:
    more = " and ".join(name for name, weight in contrast.weights.items() if weight > 0)
    less = " and ".join(name for name, weight in contrast.weights.items() if weight < 0)
    what = f"{value}, the {VALUES[value]}," if value == PRIMARY_VALUE else f"the {VALUES[value]},"
    if contrast.response == "intercept":
        return f"{contrast.name[:2]}: {what} is larger under {more} than under {less}."
    faster = f", and faster than under {less}" if less else ""
    return f"{contrast.name[:2]}: {what} grows with depth under {more}{faster}."


def _protocol(comparison: Comparison, one: ContrastResult, value: str) -> str:
    stimulus = shifted_design(comparison.lineup.members[0].shifted)
    shown = "values averaged over layers" if value == RELATIVE else "values at mean depth"
    slopes = "changes from the first layer to the last"
    what = {"intercept": shown, "slope": slopes}[one.contrast.response]
    if comparison.lineup.paired:
        unit = (
            "Variants of one checkpoint, paired over the items that they share: the interval is "
            "about this model on other items of the text, and does not test architectures."
        )
    elif "blocks" in one.interval.method:
        unit = "The contrast is taken within each block, and blocks are the unit."
    else:
        unit = "Models are the unit, and each architecture has the spread of its own models."
    mixed = "" if one.mixed is None else f" Mixed model: {one.mixed}."
    return f"{stimulus} Contrast of {what}. {unit}{mixed}"


def _presence_claims(comparison: Comparison) -> list[Claim]:
    """One claim per architecture and channel: the channel is present in all of its models."""
    table = comparison.tables["models"]
    stores = {member.name: member.shifted for member in comparison.lineup.members}
    claims = []
    for architecture, rows in table.groupby("architecture", sort=False):
        if any(stores[model].header.variant == "no_causal" for model in rows["model"]):
            continue
        for channel, value in (("mask", "V_M"), ("residual", "V_R")):
            worst = rows.iloc[rows[f"{value}_low"].argmin()]
            interval = comparison.intervals[str(worst["model"]), value]
            name = re.sub(r"\W+", "_", f"H3_{channel}_{architecture}").strip("_")
            statement = f"H3: the {channel} channel is present under {architecture} ({value} > 0)."
            if len(rows) > 1:
                statement = statement[:-1] + f", in each of {len(rows)} models."
            store = stores[str(worst["model"])]
            protocol = (
                f"{shifted_design(store)} Mean over {store.n_layers} layers, {store.n_heads} heads "
                f"and offsets {listed(store.offsets)}. The interval is that of {worst['model']}, "
                "whose lower limit is the lowest."
            )
            judged = found(interval, "nats^2", floor(store, value))
            claim = make_claim(name, statement, interval, "nats^2", judged, protocol)
            claims.append(dataclasses.replace(claim, family="presence", p_note=NO_ADJUSTMENT))
    return claims


def answers(comparison: Comparison, claims: Sequence[Claim]) -> list[Answer]:
    """What the claims say of each hypothesis.

    Parameters
    ----------
    comparison : Comparison
    claims : sequence of Claim
        From `hypothesis_claims`.

    Returns
    -------
    list of Answer
        H1 on V_R and on V_R/(V_R + V_M), H2, H3.
    """
    found = []
    for hypothesis, value in (
        ("H1", PRIMARY_VALUE),
        ("H1", RELATIVE),
        ("H2", PRIMARY_VALUE),
        ("H3", ""),
    ):
        parts = [
            claim
            for claim in claims
            if claim.id.startswith(hypothesis) and claim.id.endswith(value)
        ]
        if hypothesis == "H1" and len(parts) > 1:  # the trend follows from the steps
            parts = [claim for claim in parts if "_step_" in claim.id]
        shown = {"": "V_M and V_R", RELATIVE: "V_R/(V_R + V_M)"}.get(value, value)
        found.append(
            Answer(hypothesis, shown, HYPOTHESES[hypothesis], _verdict(parts), _because(parts))
        )
    return found


def _verdict(parts: Sequence[Claim]) -> Verdict:
    verdicts = {claim.verdict_adjusted for claim in parts}
    if not verdicts or verdicts == {"not_applicable"}:
        return "not_applicable"
    if verdicts & {"contradicted", "negligible"}:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "inconclusive"


def _because(parts: Sequence[Claim]) -> str:
    if not parts:
        return "no architecture with a causal mask was given"
    if all(claim.verdict == "not_applicable" for claim in parts):
        return parts[0].protocol
    counts = pd.Series([claim.verdict_adjusted for claim in parts]).value_counts()
    return ", ".join(f"{n} of {len(parts)} parts {verdict}" for verdict, n in counts.items())


def architecture_claims(analysis: Analysis) -> list[Claim]:
    """H1 to H3 in the report on one model, which cannot test them."""
    reason = (
        "one model cannot test a claim about architectures; compare files of several models of "
        "each architecture (posprobe compare)"
    )
    statements = {
        "both_in_all": "Both components appear in all three architectures.",
        "ntk_suppresses": "NTK scaling suppresses the residual-stream component.",
        "window_accumulates": "Sliding-window attention lets the residual component accumulate "
        "with depth.",
        "standard_between": "Standard RoPE sits between the two.",
    }
    return [not_applicable(name, text, reason) for name, text in statements.items()]
