"""Claims about the two channels: their variances, their shares, and one repeated token."""

from __future__ import annotations

import pandas as pd

from posprobe.analysis import Analysis, floor, limit, listed, planned_items, shifted_design
from posprobe.channels import why_not_split
from posprobe.claims.verdicts import (
    Claim,
    above,
    below_everywhere,
    found,
    identity,
    make_claim,
    not_applicable,
    split_needs,
)
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = ["channel_claims", "repeated_claims"]

OTHER_CHANNEL = {"mask": "residual stream", "residual": "mask"}  # which has the rest


def channel_claims(analysis: Analysis) -> list[Claim]:
    """V_T, V_M, V_R and C_MR against 0, and the share of each channel."""
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
        reason = split_needs(store, "shifted")
        everything = statements | {f"share_{k}": _share_statement(k) for k in OTHER_CHANNEL}
        return [not_applicable(name, text, reason) for name, text in everything.items()]
    row = table[table["stimulus"] == "shifted"].iloc[0]
    protocol = (
        f"{shifted_design(store)} Mean over {store.n_layers} layers, {store.n_heads} heads and "
        f"offsets {listed(store.offsets)}. Variance over positions by a U-statistic over pairs of "
        "different items."
    )
    planned = planned_items(store)
    protocol += f" {planned}" * bool(planned)
    quantities = dict(zip(statements, ("V_T", "V_M", "V_R", "C_MR"), strict=True))
    claims = []
    for name, text in statements.items():
        variance = quantities[name]
        interval = analysis.intervals[variance]
        judged = found(interval, "nats^2", floor(store, variance))
        reached = _reached(interval, store)
        claims.append(make_claim(name, text, interval, "nats^2", judged, protocol + reached))
    return [*claims, *_share_claims(analysis, row["status"] == "ok", protocol)]


def _reached(interval: Interval, store: ActivationStore) -> str:
    """The precision of the variance that the number of windows was planned for; else nothing."""
    if store.header.stimulus.get("precision", {}).get("quantity") != interval.estimand:
        return ""
    if interval.low is None or interval.high is None:
        return " Its interval is unbounded."
    half = (interval.high - interval.low) / 2
    return f" Half of its interval is {half / abs(interval.estimate):.3g} of its estimate."


def _share_statement(channel: str) -> str:
    return (
        f"The {channel} channel accounts for a positive share of the effect of position (the "
        f"{OTHER_CHANNEL[channel]} has the rest: the two shares add to 1, and one is negative only "
        "where -C_MR exceeds its channel's own variance)."
    )


def _share_claims(analysis: Analysis, defined: bool, protocol: str) -> list[Claim]:
    claims = []
    for channel in OTHER_CHANNEL:
        name, statement = f"share_{channel}", _share_statement(channel)
        small = found(analysis.intervals["V_T"], "nats^2").verdict == "negligible"
        if small or not defined:
            why = "too small to speak of" if small else "not distinguishable from 0"
            reason = f"undefined: the total effect V_T is {why}"
            claims.append(not_applicable(name, statement, reason))
            continue
        interval = analysis.intervals[name]
        text = f"{protocol} Share (V + C)/V_T with Fieller's interval on jackknife pseudo-values."
        claims.append(make_claim(name, statement, interval, "1", found(interval, "1"), text))
    return claims


def repeated_claims(analysis: Analysis) -> list[Claim]:
    """With one token repeated the residual channel is closed; a BOS opens it."""
    bounds = {name: limit(name, analysis.files) for name in ("mask_isolated", "residual_opened")}
    closed = (
        "With one token repeated, all hidden states are equal and only the mask is left: the "
        f"residual channel is 0 (|R| < {bounds['mask_isolated'].value:g} nats everywhere)."
    )
    opened = "A BOS in front of the repeated token opens the residual channel (|R| > 0)."
    pairs = (
        ("mask_isolated", closed, analysis.files.repeated),
        ("residual_opened", opened, analysis.files.bos_repeated),
    )
    claims = []
    for name, statement, store in pairs:
        if store is None or why_not_split(store):
            claims.append(not_applicable(name, statement, split_needs(store, "repeated")))
            continue
        if store.learned_sinks:
            claims.append(not_applicable(name, statement, _learned_sinks(store)))
            continue
        table = analysis.tables["repeated"]
        kind = "repeated" if name == "mask_isolated" else "bos_repeated"
        residual, mask = table.loc[table["stimulus"] == kind, ["residual", "mask"]].max()
        interval = analysis.intervals[kind]
        judged = (
            below_everywhere(interval, bounds[name].value, residual)
            if name == "mask_isolated"
            else identity(above(interval, bounds[name].value))
        )
        protocol = (
            f"{store.n_items} tokens, each repeated to {store.length} tokens; positions "
            f"{listed(store.prefixes)}, window of {store.window} rows. Largest |R| over layers, "
            f"heads, offsets and positions, averaged over items; in any item |R| is at most "
            f"{residual:.3g} and |M| {mask:.3g} nats. {bounds[name].source}"
        )
        claims.append(make_claim(name, statement, interval, "nats", judged, protocol))
    return claims


def _learned_sinks(store: ActivationStore) -> str:
    """Why hidden states differ between the positions of one repeated token."""
    return (
        f"{store.path.name}: a learned sink is in the denominators of {len(store.learned_sinks)} "
        f"of {store.n_layers} layers, so attention over the keys sums to less than 1, by an amount "
        "that depends on their number. The hidden states of a repeated token are not equal then"
    )
