"""Claims about position 0: who reads it, whether it is closed, and what replacing it removes."""

from __future__ import annotations

import numpy as np

from posprobe.analysis import (
    NO_MASK,
    PRIMARY_TREATMENT,
    Analysis,
    first_token,
    kept,
    limit,
    listed,
    mask_name,
    shifted_design,
)
from posprobe.channels import why_not_split
from posprobe.claims.verdicts import (
    Claim,
    Judged,
    above,
    below,
    found,
    identity,
    make_claim,
    not_applicable,
    nothing_to_remove,
    split_needs,
    within,
)
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = ["agrees_with_study", "position0_claims", "replacement_claims", "sink_claims"]

REMOVED_IN_STUDY = 0.40
MARGIN = 0.20


def sink_claims(analysis: Analysis) -> list[Claim]:
    """Whether some heads attend to a sink."""
    statement = "Some heads read an attention sink: their mean attention to key 0 is > 0.3."
    store, interval = analysis.files.natural, analysis.intervals.get("sink_heads")
    if store is None or interval is None:
        needs = "needs a natural capture with normalizer and sink_score"
        return [not_applicable("sink_heads", statement, needs)]
    protocol = (
        f"{store.n_items} natural sequences of {store.length} tokens, "
        f"{first_token(store)} at position 0. Share of all {store.n_layers * store.n_heads} heads "
        "whose attention to key 0, averaged over queries and sequences, is strictly > 0.3."
    )
    return [make_claim("sink_heads", statement, interval, "1", found(interval, "1"), protocol)]


def position0_claims(analysis: Analysis) -> list[Claim]:
    """Whether position 0 is a closed system with a fingerprint of its token."""
    natural, alike = analysis.files.natural, analysis.files.behind_one_token
    return [
        _closed_system(analysis, natural),
        _fingerprint_constant(analysis, alike),
        _fingerprint_varies(analysis, natural),
    ]


def _closed_system(analysis: Analysis, store: ActivationStore | None) -> Claim:
    name, bound = "closed_system", limit("closed_system", analysis.files)
    statement = (
        "Position 0 is a closed system: its activations equal those of a run on its token alone "
        f"(relative difference < {bound.value:g})."
    )
    interval = analysis.intervals.get("closure")
    if store is None or interval is None:
        needs = "needs a natural capture with position0 and position0_alone"
        return not_applicable(name, statement, needs)
    if mask_name(store) == NO_MASK:
        return not_applicable(name, statement, _sees_all(store))
    protocol = (
        f"{store.n_sequences} sequences; largest relative difference over "
        f"{store.n_layers + 1} depths, averaged over sequences. {bound.source}"
    )
    judged = identity(below(interval, bound.value))
    return make_claim(name, statement, interval, "1", judged, protocol)


def _fingerprint_constant(analysis: Analysis, store: ActivationStore | None) -> Claim:
    name, bound = "fingerprint_constant", limit("fingerprint_constant", analysis.files)
    statement = "Behind a fixed first token, position 0 leaves the same fingerprint in every input."
    interval = analysis.intervals.get("fingerprint_bos")
    if store is None or interval is None:
        reason = (
            "needs a shifted capture of position0 with the same token there throughout "
            "(--bos force)"
        )
        return not_applicable(name, statement, reason)
    if mask_name(store) == NO_MASK:
        return not_applicable(name, statement, _sees_all(store))
    protocol = f"{_fingerprint(store)} First token: {first_token(store)}. {bound.source}"
    judged = identity(below(interval, bound.value))
    return make_claim(name, statement, interval, "1", judged, protocol)


def _fingerprint_varies(analysis: Analysis, store: ActivationStore | None) -> Claim:
    name, bound = "fingerprint_varies", limit("fingerprint_varies", analysis.files)
    statement = "Without a fixed first token the fingerprint varies with the input."
    interval = analysis.intervals.get("fingerprint_text")
    if store is None or interval is None or len(np.unique(store.tokens[:, 0])) == 1:
        reason = (
            "needs a natural capture of position0 whose sequences begin with different tokens "
            "(--bos none)"
        )
        return not_applicable(name, statement, reason)
    protocol = f"{_fingerprint(store)} First token: {first_token(store)}. {bound.source}"
    judged = identity(above(interval, bound.value))
    return make_claim(name, statement, interval, "1", judged, protocol)


def _sees_all(store: ActivationStore) -> str:
    """Why position 0 is open."""
    return (
        f"{store.path.name} was captured without a causal mask, so position 0 sees the tokens "
        "after it"
    )


def replacement_claims(analysis: Analysis) -> list[Claim]:
    """How much of the residual channel is removed by replacing position 0."""
    statement = (
        "Replacing the BOS embedding removes 40% of the residual-stream component at early queries."
    )
    store = analysis.files.shifted
    table = analysis.tables.get("replacement")
    primary = None if table is None else table[table["primary"]]
    if store is None or primary is None or primary.empty:
        reason = (
            f"needs the shifted design captured with --position0 native and {PRIMARY_TREATMENT}"
        )
        if store is not None and why_not_split(store):
            reason = split_needs(store, "shifted")
        return [not_applicable("bos_replacement", statement, reason)]
    row = primary.iloc[0]
    nothing = nothing_to_remove(row["V_R_native"])
    if nothing is not None:
        return [not_applicable("bos_replacement", statement, nothing)]
    interval = analysis.intervals["replacement"]
    protocol = (
        f"{shifted_design(store)} Primary specification, fixed beforehand: the mean embedding "
        f"replaces that of {first_token(store)}; 1 - V_R(replaced)/V_R(native) over prefixes up to "
        f"{int(row['up_to'])} against {store.prefixes[-1]} tokens, mean over layers, heads and "
        f"offsets {listed(store.offsets)}; items paired. Share of heads that sink: "
        f"{row['sink_rate_native']:.0%} native, {row['sink_rate_replaced']:.0%} replaced. "
        f"Supported if the whole interval is within {MARGIN:g} of {REMOVED_IN_STUDY:g}, "
        "contradicted if it lies outside. The study's own protocol is not known."
        f"{_kept(analysis)}"
    )
    return [
        make_claim(
            "bos_replacement",
            statement,
            interval,
            "1",
            agrees_with_study(interval),
            protocol,
            REMOVED_IN_STUDY,
        )
    ]


def _kept(analysis: Analysis) -> str:
    """What the primary replacement leaves at position 0."""
    replaced = analysis.files.replaced
    primary = (s for s in replaced if s.header.position0_treatment == PRIMARY_TREATMENT)
    return next(map(kept, primary), "")


def agrees_with_study(interval: Interval) -> Judged:
    """Supported if the whole interval is within .2 of the study's .4, contradicted if outside."""
    return within(interval, REMOVED_IN_STUDY - MARGIN, REMOVED_IN_STUDY + MARGIN)


def _fingerprint(store: ActivationStore) -> str:
    return (
        f"{store.n_items} inputs; largest distance over depths to the mean input, relative to "
        "its norm, averaged over inputs."
    )
