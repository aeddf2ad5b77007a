"""All claims about one model, in the order of the study's argument.

posprobe relies on the abstract of *Where does Absolute Position come from in decoder-only
Transformers?*; every protocol is its own. A claim needs an interval to be supported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from posprobe.analysis import Analysis, Files, condition_of
from posprobe.claims.channels import channel_claims, repeated_claims
from posprobe.claims.hypotheses import architecture_claims
from posprobe.claims.interventions import intervention_claims
from posprobe.claims.position0 import position0_claims, replacement_claims, sink_claims
from posprobe.claims.probes import probe_claims
from posprobe.claims.scope import with_scope
from posprobe.claims.verdicts import Claim
from posprobe.store import ActivationStore

__all__ = ["make_claims"]


def _shifted(files: Files) -> ActivationStore | None:
    return files.shifted


def _natural(files: Files) -> ActivationStore | None:
    return files.natural or files.shifted


def _repeated(files: Files) -> ActivationStore | None:
    return files.bos_repeated or files.repeated


# What tests each group of claims, with the capture whose condition the group is about.
MAKERS: list[
    tuple[Callable[[Analysis], list[Claim]], Callable[[Files], ActivationStore | None]]
] = [
    (channel_claims, _shifted),
    (repeated_claims, _repeated),
    (probe_claims, _natural),
    (sink_claims, _natural),
    (position0_claims, _shifted),
    (replacement_claims, _shifted),
    (intervention_claims, _shifted),
    (architecture_claims, lambda files: None),
]


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
    claims = []
    for make, capture_of in MAKERS:
        store = capture_of(analysis.files)
        condition = None if store is None else _condition(store)
        claims += [dataclasses.replace(claim, condition=condition) for claim in make(analysis)]
    return with_scope(claims, analysis)


def _condition(store: ActivationStore) -> dict[str, Any]:
    """The condition of a capture and its design, as plain values."""
    return {"design": store.design, **condition_of(store)._asdict()}
