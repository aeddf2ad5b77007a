"""From intervals to verdicts: each claim of the study as a test.

verdicts       what a claim is, and how an interval becomes a verdict
study          all claims about one model, in order
channels       the two channels, their shares, one repeated token
probes         what linear probes read
position0      who reads position 0, whether it is closed, what replacing it removes
interventions  what changed attention shows: fixed denominators, cut sinks, other masks
families       which claims answer one question, and their p-values adjusted for each other
scope          in which conditions a claim holds
hypotheses     H1 to H3 across architectures
"""

from posprobe.claims.families import FAMILIES
from posprobe.claims.hypotheses import Answer, answers, hypothesis_claims
from posprobe.claims.interventions import WHY_LAYER_0
from posprobe.claims.study import make_claims
from posprobe.claims.verdicts import SMALLEST, Claim

__all__ = [
    "FAMILIES",
    "SMALLEST",
    "WHY_LAYER_0",
    "Answer",
    "Claim",
    "answers",
    "hypothesis_claims",
    "make_claims",
]
