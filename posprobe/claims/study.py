"""All claims about one model, in the order of the study's argument.

posprobe relies on the abstract of *Where does Absolute Position come from in decoder-only
Transformers?*; every protocol is its own. A claim needs an interval to be supported.
"""

from __future__ import annotations

from collections.abc import Callable

from posprobe.analysis import Analysis
from posprobe.claims.channels import channel_claims, repeated_claims
from posprobe.claims.hypotheses import architecture_claims
from posprobe.claims.interventions import intervention_claims
from posprobe.claims.position0 import position0_claims, replacement_claims, sink_claims
from posprobe.claims.probes import probe_claims
from posprobe.claims.scope import with_scope
from posprobe.claims.verdicts import Claim

__all__ = ["make_claims"]


def make_claims(analysis: Analysis) -> list[Claim]:
    """Test every claim that the analysis has the tables for; the others say what they lack.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    list of Claim
        In the order of the study's argument; the same analysis gives the same list.
    """
    makers: list[Callable[[Analysis], list[Claim]]] = [
        channel_claims,
        repeated_claims,
        probe_claims,
        sink_claims,
        position0_claims,
        replacement_claims,
        intervention_claims,
        architecture_claims,
    ]
    return with_scope([claim for make in makers for claim in make(analysis)], analysis)
