"""Each claim of the study as a test: estimate, interval, verdict, protocol.

The study is *Where does Absolute Position come from in decoder-only Transformers?*; only the claims
of its abstract are known here, so that every protocol below is posprobe's own. No claim is called
supported without an interval.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from posprobe.analysis import Analysis
from posprobe.analysis.replacement import PRIMARY
from posprobe.intervals import Interval
from posprobe.isolation_claims import isolation_claims
from posprobe.store import ActivationStore
from posprobe.verdicts import (
    Claim,
    Verdict,
    above,
    below,
    below_everywhere,
    first_token,
    listed,
    make_claim,
    n_items,
    n_units,
    not_applicable,
    row_interval,
    shifted_design,
)

__all__ = ["Claim", "Verdict", "make_claims"]

TOLERANCE = 1e-4
NEGLIGIBLE_R2 = 0.02
REMOVED_IN_STUDY = 0.40
MARGIN = 0.20
CHANNELS = {"mask": "residual stream", "residual": "mask"}  # each with what makes the rest


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
        _channel_claims,
        _isolation_claims,
        _probe_claims,
        _sink_claims,
        _position0_claims,
        _replacement_claims,
        isolation_claims,
        _architecture_claims,
    ]
    return [claim for make in makers for claim in make(analysis)]


def _channel_claims(analysis: Analysis) -> list[Claim]:
    statements = {
        "position_in_attention": "Attention distinguishes absolute position: at a fixed offset and "
        "fixed content, log attention weights change with position (V_T > 0).",
        "mask_channel": "The causal mask's softmax denominator carries absolute position "
        "(V_M > 0).",
        "residual_channel": "The residual stream carries absolute position (V_R > 0).",
        "channels_add": "Our own question: the two channels reinforce each other (C_MR > 0).",
    }
    store, table = analysis.files.shifted, analysis.tables.get("channels", pd.DataFrame())
    if store is None or "shifted" not in set(table.get("stimulus", ())):
        reason = "needs a capture of the shifted design (--design shifted) with all scores"
        everything = statements | {f"share_{k}": _share_statement(k) for k in CHANNELS}
        return [not_applicable(name, text, reason) for name, text in everything.items()]
    row = table[table["stimulus"] == "shifted"].iloc[0]
    protocol = (
        f"{shifted_design(store)} Mean over {store.n_layers} layers, {store.n_heads} heads and "
        f"offsets {listed(store.offsets)}. Variance over positions by a U-statistic over pairs of "
        "different items."
    )
    quantities = dict(zip(statements, ("V_T", "V_M", "V_R", "C_MR"), strict=True))
    claims = []
    for name, text in statements.items():
        interval = row_interval(row, quantities[name], store, analysis.level)
        claims.append(make_claim(name, text, interval, "nats^2", above(interval, 0.0), protocol))
    return [*claims, *_share_claims(row, store, protocol, analysis.level)]


def _share_statement(channel: str) -> str:
    return (
        f"The {channel} channel accounts for a positive share of the effect of position (the rest "
        f"is the {CHANNELS[channel]}'s; shares add to 1, and one is negative where the channels "
        "oppose each other)."
    )


def _share_claims(
    row: pd.Series, store: ActivationStore, protocol: str, level: float
) -> list[Claim]:
    claims = []
    for channel in CHANNELS:
        name, statement = f"share_{channel}", _share_statement(channel)
        if row["status"] != "ok":
            reason = "undefined: the total effect V_T is not distinguishable from 0"
            claims.append(not_applicable(name, statement, reason))
            continue
        interval = Interval(
            float(row[name]),
            float(row[f"{name}_low"]),
            float(row[f"{name}_high"]),
            level,
            "fieller",
            f"share of the {channel} channel in V_T",
            n_units(store),
        )
        text = f"{protocol} Share (V + C)/V_T with Fieller's interval on jackknife pseudo-values."
        claims.append(make_claim(name, statement, interval, "1", above(interval, 0.0), text))
    return claims


def _isolation_claims(analysis: Analysis) -> list[Claim]:
    closed = (
        "With one token repeated, and so all hidden states equal, nothing but the mask is left: "
        f"the residual channel is 0 (|R| < {TOLERANCE:g} nats everywhere)."
    )
    opened = "A BOS in front of the repeated token opens the residual channel (|R| > 0)."
    pairs = (
        ("mask_isolated", closed, analysis.files.repeated),
        ("residual_opened", opened, analysis.files.bos_repeated),
    )
    claims = []
    for name, statement, store in pairs:
        if store is None:
            reason = "needs a capture of the repeated design (--design repeated)"
            claims.append(not_applicable(name, statement, reason))
            continue
        table = analysis.tables["repeated"]
        kind = "repeated" if name == "mask_isolated" else "bos_repeated"
        residual, mask = table.loc[table["stimulus"] == kind, ["residual", "mask"]].max()
        interval = analysis.intervals[kind]
        verdict = (
            below_everywhere(interval, TOLERANCE, residual)
            if name == "mask_isolated"
            else above(interval, TOLERANCE)
        )
        protocol = (
            f"{n_items(store)} tokens, each repeated to {store.length} tokens; positions "
            f"{listed(store.prefixes)}, window of {store.window} rows. Largest |R| over layers, "
            f"heads, offsets and positions, averaged over items; in any item |R| is at most "
            f"{residual:.3g} and |M| {mask:.3g} nats."
        )
        claims.append(make_claim(name, statement, interval, "nats", verdict, protocol))
    return claims


def _probe_claims(analysis: Analysis) -> list[Claim]:
    names = {
        "probe_normalizer": "Position can be read from the log-normalizers of one layer "
        "(mean R2 over layers > 0).",
        "probe_residual": "Position can be read from the residual stream entering a layer "
        "(mean R2 over layers > 0).",
        "residual_at_layer_0": "At layer 0, where the residual stream is the embedding, it tells "
        f"nothing about position (R2 < {NEGLIGIBLE_R2}).",
    }
    store = analysis.files.natural
    if store is None or "probes" not in analysis.tables:
        reason = "needs a capture of the natural design with the residual stream"
        return [not_applicable(name, text, reason) for name, text in names.items()]
    protocol = (
        f"{n_items(store)} natural sequences of {store.length} tokens without position 0; ridge, "
        "5 folds by sequence, penalty chosen on the same folds; R2 out of fold. The interval is "
        "that of the probes as fitted (cluster bootstrap of their scores, percentiles)."
    )
    probes = analysis.tables["probes"]
    fixed = probes[probes["estimand"] == "fixed_probe"]
    claims = []
    for features in ("normalizer", "residual"):
        name = f"probe_{features}"
        interval = analysis.intervals[name]
        claims.append(make_claim(name, names[name], interval, "R2", above(interval, 0.0), protocol))
    name = "residual_at_layer_0"
    first = fixed[(fixed["layer"] == 0) & (fixed["features"] == "residual")]
    if first.empty:
        reason = "needs a natural capture that keeps the residual stream of layer 0"
        return [*claims, not_applicable(name, names[name], reason)]
    row = first.iloc[0]
    interval = Interval(
        row["r2"], row["low"], row["high"], row["level"], row["method"], "R2", int(row["n"])
    )
    verdict = below(interval, NEGLIGIBLE_R2)
    return [*claims, make_claim(name, names[name], interval, "R2", verdict, protocol)]


def _sink_claims(analysis: Analysis) -> list[Claim]:
    statement = "There are sink-reading heads: heads whose mean attention to key 0 is > 0.3."
    store = analysis.files.natural
    if store is None:
        return [not_applicable("sink_heads", statement, "needs a natural capture")]
    interval = analysis.intervals["sink_heads"]
    protocol = (
        f"{n_items(store)} natural sequences of {store.length} tokens, "
        f"{first_token(store)} at position 0. Share of all {store.n_layers * store.n_heads} heads "
        "whose attention to key 0, averaged over queries and sequences, is strictly > 0.3."
    )
    return [make_claim("sink_heads", statement, interval, "1", above(interval, 0.0), protocol)]


def _position0_claims(analysis: Analysis) -> list[Claim]:
    claims = []
    natural, shifted = analysis.files.natural, analysis.files.shifted
    statement = (
        "Position 0 is a closed system: its activations equal those of a run on its token alone "
        f"(relative difference < {TOLERANCE:g})."
    )
    if natural is None:
        claims.append(not_applicable("closed_system", statement, "needs a natural capture"))
    else:
        interval = analysis.intervals["closure"]
        protocol = (
            f"{natural.n_sequences} sequences; largest relative difference over "
            f"{natural.n_layers + 1} depths, averaged over sequences."
        )
        verdict = below(interval, TOLERANCE)
        claims.append(make_claim("closed_system", statement, interval, "1", verdict, protocol))
    statement = "Behind a fixed first token, position 0 leaves the same fingerprint in every input."
    if shifted is None or len(np.unique(shifted.tokens[:, 0])) > 1:
        reason = "needs a capture with the same token at position 0 throughout (--bos force)"
        claims.append(not_applicable("fingerprint_constant", statement, reason))
    else:
        interval = analysis.intervals["fingerprint_bos"]
        protocol = f"{_fingerprint(shifted)} First token: {first_token(shifted)}."
        verdict = below(interval, TOLERANCE)
        claims.append(
            make_claim("fingerprint_constant", statement, interval, "1", verdict, protocol)
        )
    statement = "Without a fixed first token the fingerprint varies with the input."
    if natural is None or len(np.unique(natural.tokens[:, 0])) == 1:
        reason = "needs a natural capture whose sequences begin with different tokens (--bos none)"
        claims.append(not_applicable("fingerprint_varies", statement, reason))
    else:
        interval = analysis.intervals["fingerprint_text"]
        protocol = f"{_fingerprint(natural)} First token: {first_token(natural)}."
        verdict = above(interval, TOLERANCE)
        claims.append(make_claim("fingerprint_varies", statement, interval, "1", verdict, protocol))
    return claims


def _replacement_claims(analysis: Analysis) -> list[Claim]:
    statement = (
        "Replacing the BOS embedding removes 40% of the residual-stream component at early queries."
    )
    store = analysis.files.shifted
    table = analysis.tables.get("replacement")
    primary = None if table is None else table[table["primary"]]
    if store is None or primary is None or primary.empty:
        reason = f"needs the shifted design captured with --position0 native and {PRIMARY}"
        return [not_applicable("bos_replacement", statement, reason)]
    row = primary.iloc[0]
    bounded = pd.notna(row["low"])
    interval = Interval(
        float(row["fraction_removed"]),
        float(row["low"]) if bounded else None,
        float(row["high"]) if bounded else None,
        analysis.level,
        "fieller",
        "fraction of V_R removed",
        int(row["n"]),
    )
    protocol = (
        f"{shifted_design(store)} Primary specification, fixed beforehand: the embedding at "
        f"position 0 ({first_token(store)}) replaced by the mean embedding; "
        "1 - V_R(replaced)/V_R(native) over "
        f"prefixes up to {int(row['up_to'])} against {store.prefixes[-1]} tokens, mean over "
        f"layers, heads and offsets {listed(store.offsets)}; items paired. Heads that sink: "
        f"{row['sink_rate_native']:.0%} native, {row['sink_rate_replaced']:.0%} replaced. "
        f"Supported if the whole interval is within {MARGIN:g} of {REMOVED_IN_STUDY:g}, "
        "contradicted if it lies outside. The study's own protocol is not known."
    )
    return [
        make_claim(
            "bos_replacement",
            statement,
            interval,
            "1",
            _agrees(interval, REMOVED_IN_STUDY),
            protocol,
            REMOVED_IN_STUDY,
        )
    ]


def _agrees(interval: Interval, value: float) -> Verdict:
    """Supported where the whole interval is within `MARGIN` of `value`, contradicted where none."""
    verdicts = above(interval, value - MARGIN), below(interval, value + MARGIN)
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if set(verdicts) == {"supported"} else "inconclusive"


def _architecture_claims(analysis: Analysis) -> list[Claim]:
    reason = (
        "a claim about architectures: one model cannot test it; compare files of several models "
        "per architecture (posprobe compare)"
    )
    statements = {
        "both_in_all": "Both components appear in all three architectures.",
        "ntk_suppresses": "NTK scaling suppresses the residual-stream component.",
        "window_accumulates": "Sliding-window attention lets the residual component accumulate "
        "with depth.",
        "standard_between": "Standard RoPE sits between the two.",
    }
    return [not_applicable(name, text, reason) for name, text in statements.items()]


def _fingerprint(store: ActivationStore) -> str:
    return (
        f"{n_items(store)} inputs; largest distance over depths to the mean input, relative to "
        "its norm, averaged over inputs."
    )
