"""Claims as the page shows them: what was found first, then what that says of the claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from posprobe.claims import FAMILIES, Claim
from posprobe.intervals import Interval
from posprobe.report.words import SMALL, VERDICTS, number

__all__ = ["ADJUSTED", "claim_interval", "claim_rows", "p_value", "p_values", "questions", "tally"]

ADJUSTED = (
    "A p-value is 1 − the level at which the interval would no longer give the verdict. In "
    "brackets it is adjusted for all tests of the same question, by Holm's method, and verdicts "
    "follow the adjusted ones; intervals are not adjusted. Identities are judged against rounding "
    "and have no p-value."
)
METHODS = {
    "t": "cluster bootstrap, estimate ± t × standard error",
    "Student t": "Student's t over units",
    "studentised": "studentised cluster bootstrap",
    "fieller": "Fieller's",
}
SHOWN_UNITS = {"1": "", "nats^2": "nats²", "R2": "R²"}
# What was found where a claim is contradicted, so that the verdict never stands alone.
INSTEAD = {
    "channels_add": "the channels oppose each other",
    "share_mask": "the mask's share is negative",
    "share_residual": "the residual stream's share is negative",
    "mask_isolated": "R is not 0",
    "residual_opened": "R stays as small as rounding",
    "layer_0_residual": "more than key 0's score changes at layer 0",
    "offsets_only": "scores move with position by themselves",
    "probe_normalizer": "probes do worse than a constant guess",
    "probe_residual": "probes do worse than a constant guess",
    "residual_at_layer_0": "position can be read from the embedding",
    "normalizer_on_patterns": "probes read position better without the denominator",
    "sinks_write": "sink-reading heads write less of it than the others",
    "sinks_forward": "the residual channel grows",
    "sinks_forward_specifically": "the residual channel grows, or random heads remove more",
    "sink_hidden_everywhere": "the residual channel grows",
    "closed_system": "position 0 differs from a run on its token alone",
    "fingerprint_constant": "the fingerprint differs between inputs",
    "fingerprint_varies": "the fingerprint is the same in all inputs",
    "mask_removed": "the mask channel stays open",
    "window_closes_mask": "the mask channel stays open",
    "window_growth": "the residual channel grows less with depth than natively",
    "normalizer_without_mask": "position can be read without the mask",
}
# What the causal mask and relative positions give any model, trained or not.
UNTRAINED = {
    "position_in_attention", "mask_channel", "share_mask", "mask_isolated", "residual_opened",
    "layer_0_residual", "offsets_only", "probe_normalizer", "residual_at_layer_0",
    "normalizer_on_patterns", "closed_system", "fingerprint_constant", "fingerprint_varies",
    "mask_removed", "window_closes_mask",
}  # fmt: skip
STATES = {
    "inconclusive": "undecided",
    "negligible": "too small to speak of",
    "not_applicable": "not tested",
}


def questions(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Claims by the question that they answer, with the question's verdicts in words."""
    claims = list(claims)
    rows = claim_rows(claims)
    parts: dict[str, list[int]] = {}
    for at, claim in enumerate(claims):
        parts.setdefault(claim.family, []).append(at)
    return [
        {
            "name": family,
            "title": FAMILIES[family],
            "claims": [rows[at] for at in members],
            "tally": tally(claims[at] for at in members),
            "instead": "; ".join(
                rows[at]["found"] for at in members if rows[at]["kind"] == "contradicted"
            ),
        }
        for family, members in parts.items()
    ]


def tally(claims: Iterable[Claim]) -> list[tuple[str, str]]:
    """How many claims have which verdict: kinds, and words such as "3 supported"."""
    counts = Counter(str(claim.verdict_adjusted) for claim in claims)
    return [(kind, f"{counts[kind]} {word}") for kind, word in VERDICTS.items() if counts[kind]]


def claim_rows(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Claims as the page's tables show them."""
    claims = list(claims)
    tests = Counter(claim.family for claim in claims if claim.p_adjusted is not None)
    return [_row(claim, tests[claim.family]) for claim in claims]


def _row(claim: Claim, tests: int) -> dict[str, Any]:
    """A claim of a family of so many tests."""
    name, _, state = claim.ci_method.partition(": ")
    how = f" Interval: {METHODS.get(name, name)}{', ' * bool(state)}{state}."
    method = "" if claim.ci_method == "none" else how
    return {
        "id": claim.id,
        "kind": claim.verdict_adjusted,
        "verdict": VERDICTS[claim.verdict_adjusted],
        "found": _found(claim),
        "hangs": _hangs(claim, tests),
        "p": p_values(claim),
        "statement": claim.statement,
        "untrained": claim.verdict_adjusted == "supported" and claim.id in UNTRAINED,
        "interval": claim_interval(claim),
        "unit": SHOWN_UNITS.get(claim.unit, claim.unit),
        "n": "" if claim.n is None else str(claim.n),
        "reference": number(claim.reference),
        "scope": claim.scope,
        "protocol": claim.protocol + method + _untested(claim),
    }


def _found(claim: Claim) -> str:
    """What was found, in words, where that is not what the claim says."""
    if claim.verdict_adjusted != "contradicted":
        return STATES.get(claim.verdict_adjusted, "")
    if claim.reference is not None and claim.estimate is not None:
        if claim.estimate < 0:
            return "it grows instead"
        return f"{'less' if claim.estimate < claim.reference else 'more'} than that is removed"
    if claim.id.startswith(("H1", "H2")):
        return "the difference has the other sign"
    return INSTEAD.get(claim.id, "the interval lies elsewhere")


def p_value(value: float) -> str:
    """A p-value with two digits; small ones only by their size."""
    return "< 0.001" if value < SMALL else f"{value:.2g}"


def p_values(claim: Claim) -> str:
    """The p-value of a claim and, in brackets, the adjusted one; nothing where it has none."""
    if claim.p_value is None:
        return ""
    more = "" if claim.p_adjusted is None else f" ({p_value(claim.p_adjusted)})"
    return p_value(claim.p_value) + more


def _untested(claim: Claim) -> str:
    """Why a claim has no p-value, or no adjusted one."""
    if not claim.p_note:
        return ""
    return f" {'No p-value' if claim.p_value is None else 'P-value'}: {claim.p_note}."


def _hangs(claim: Claim, tests: int) -> str:
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
