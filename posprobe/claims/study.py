"""All claims about one model, in the order of the study's argument.

posprobe relies on the abstract of *Where does Absolute Position come from in decoder-only
Transformers?*; every protocol is its own. A claim needs an interval to be supported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from posprobe.analysis import Analysis, Files, condition_of
from posprobe.claims.channels import channel_claims, repeated_claims
from posprobe.claims.families import adjusted
from posprobe.claims.hypotheses import architecture_claims
from posprobe.claims.interventions import (
    denominator_claims,
    exact_claims,
    forwarding_claims,
    mask_claims,
)
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


class Group(NamedTuple):
    """Claims that are made together: their family, of `FAMILIES`, and the capture they are about.

    Attributes
    ----------
    family : str
    make : callable
        From an analysis to its claims.
    capture : callable
        From the files of the analysis to the capture whose condition the claims are about.
    """

    family: str
    make: Callable[[Analysis], list[Claim]]
    capture: Callable[[Files], ActivationStore | None]


GROUPS = (
    Group("channels", channel_claims, _shifted),
    Group("exact", repeated_claims, _repeated),
    Group("exact", exact_claims, _shifted),
    Group("probes", probe_claims, _natural),
    Group("probes", denominator_claims, _natural),
    Group("sinks", sink_claims, _natural),
    Group("sinks", forwarding_claims, _shifted),
    Group("position0", position0_claims, _shifted),
    Group("replacement", replacement_claims, _shifted),
    Group("masks", mask_claims, _shifted),
    Group("architectures", architecture_claims, lambda files: None),
)


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
    for group in GROUPS:
        store = group.capture(analysis.files)
        condition = None if store is None else _condition(store)
        claims += [
            dataclasses.replace(claim, family=group.family, condition=condition)
            for claim in group.make(analysis)
        ]
    return with_scope(adjusted(claims), analysis)


def _condition(store: ActivationStore) -> dict[str, Any]:
    """The condition of a capture and its design, as plain values."""
    return {"design": store.design, **condition_of(store)._asdict()}
