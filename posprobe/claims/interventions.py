"""Claims about the mechanism: sink-reading heads that write and forward, and the denominator."""

from __future__ import annotations

import pandas as pd

from posprobe.analysis import (
    NO_MASK,
    SINK_RATE,
    Analysis,
    cut_key,
    floor,
    limit,
    listed,
    mask_name,
    shifted_design,
    way_of_writing,
)
from posprobe.claims.verdicts import (
    NEGLIGIBLE_R2,
    Claim,
    Judged,
    above,
    below,
    below_everywhere,
    found,
    identity,
    make_claim,
    not_applicable,
    nothing_to_remove,
    split_needs,
)
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = [
    "WHY_LAYER_0",
    "denominator_claims",
    "exact_claims",
    "forwarding_claims",
    "mask_claims",
]

WHY_LAYER_0 = (
    "Key 0 stays where it is while the window moves away from it: the distance between them "
    "changes, and with it the rotation of key 0's score. That change is S."
)
MEASURED = "heads left whole"
EVERYWHERE = "without key 0"
CHOSEN = (
    f"Sink-reading heads (sink rate > {SINK_RATE:g}) were chosen on one half of the natural "
    "sequences; one mean over these heads is tested, so their number needs no correction."
)


def exact_claims(analysis: Analysis) -> list[Claim]:
    """What must hold exactly at layer 0, where the residual stream is the embedding."""
    return [_layer_0(analysis), _offsets_only(analysis)]


def forwarding_claims(analysis: Analysis) -> list[Claim]:
    """Whether the heads that read position 0 write it and forward position."""
    return [_writing(analysis), *_cuts(analysis)]


def denominator_claims(analysis: Analysis) -> list[Claim]:
    """Whether probes read position from the denominator of stored patterns."""
    return [_patterns(analysis)]


def mask_claims(analysis: Analysis) -> list[Claim]:
    """What is left of both channels under another mask."""
    return [*_masks(analysis), _unmasked(analysis)]


def _layer_0(analysis: Analysis) -> Claim:
    name = "layer_0_residual"
    bound = limit(name, analysis.files)
    statement = (
        "At layer 0, where the residual stream is the embedding, only key 0's own score opens "
        f"the residual channel (|R - S| < {bound.value:g} nats everywhere)."
    )
    store, interval = analysis.files.shifted, analysis.intervals.get("layer_0_rest")
    table = analysis.tables.get("channels_by_layer")
    if store is None or interval is None or table is None:
        return not_applicable(name, statement, split_needs(store, "shifted"))
    row = table[(table["stimulus"] == "shifted") & (table["layer"] == 0)].iloc[0]
    largest = _largest(analysis, "layer_0_rest")
    protocol = (
        f"{shifted_design(store)} {WHY_LAYER_0} V_R of layer 0 is {row['V_R']:.3g} "
        f"[{row['V_R_low']:.3g}, {row['V_R_high']:.3g}] nats^2. Largest |R - S| over heads, "
        f"offsets and positions, averaged over items; at most {largest:.3g} in any item. "
        f"{bound.source}"
    )
    judged = below_everywhere(interval, bound.value, largest)
    return make_claim(name, statement, interval, "nats", judged, protocol)


def _offsets_only(analysis: Analysis) -> Claim:
    name = "offsets_only"
    bound = limit(name, analysis.files)
    statement = (
        "The position encoding depends on offsets only: shifting all positions alike leaves the "
        f"score of the same two tokens as it is (within {bound.value:g} standard deviations "
        "everywhere)."
    )
    store, interval = analysis.files.shifted, analysis.intervals.get("scores_moved")
    if store is None or interval is None:
        return not_applicable(name, statement, split_needs(store, "shifted"))
    largest = _largest(analysis, "scores_moved")
    protocol = (
        f"{shifted_design(store)} Layer 0, whose queries and keys are those of the tokens: scores "
        f"within the window at offsets {listed(store.offsets)}, before any mask. Largest change "
        "against the reference over heads, rows, offsets and positions, relative to the standard "
        f"deviation of the item's scores there, averaged over items; at most {largest:.3g} in any "
        f"item. Rotations in float32 leave rounding that grows with position. {bound.source}"
    )
    judged = below_everywhere(interval, bound.value, largest)
    return make_claim(name, statement, interval, "1", judged, protocol)


def _largest(analysis: Analysis, name: str) -> float:
    """The largest value of any item behind a number of the table `layer_0`."""
    return float(analysis.tables["layer_0"].set_index("name")["largest"][name])


def _writing(analysis: Analysis) -> Claim:
    name = "sinks_write"
    statement = (
        "Sink-reading heads write the activation at position 0 into the residual stream: more of "
        "it than the other heads do (ratio > 1)."
    )
    store, table = analysis.files.natural, analysis.tables.get("sink_writing")
    if store is None or table is None:
        reason = (
            "needs a natural capture of a model that has sink-reading heads and others, with a "
            "known output projection"
        )
        return not_applicable(name, statement, reason)
    row = table[(table["quantity"] == "written") & (table["heads"] == "ratio")].iloc[0]
    counts = table[table["quantity"] == "written"].set_index("heads")["n_heads"]
    interval = analysis.intervals["sink_writing"]
    protocol = (
        f"Norm of A_i0 v_0 W_O, averaged over queries and heads: {counts['sink-reading']} "
        f"sink-reading heads against {counts['other']} others, on the {int(row['n'])} sequences "
        f"that did not choose them. {CHOSEN} {_how(interval)} on sequences.{way_of_writing(store)}"
    )
    return make_claim(name, statement, interval, "1", above(interval, 1.0), protocol)


def _cuts(analysis: Analysis) -> list[Claim]:
    statements = {
        "sinks_forward": "Sink-reading heads forward position: hiding key 0 from them alone "
        "removes part of the residual channel in the heads left whole.",
        "sinks_forward_specifically": "Sink-reading heads forward more position than other heads: "
        "hiding key 0 from them removes part of the residual channel, more than hiding it from as "
        "many random other heads.",
        "sink_hidden_everywhere": "Hiding key 0 from all heads removes part of the residual "
        "channel.",
    }
    store, table = analysis.files.shifted, analysis.tables.get("cut_sink")
    if store is None or table is None:
        reason = "needs shifted captures with key 0 hidden (--cut-sink, or posprobe audit --full)"
        return [not_applicable(name, text, reason) for name, text in statements.items()]
    matched = _matched(table)
    cuts = {
        "sinks_forward": (matched, MEASURED),
        "sinks_forward_specifically": (f"{matched} minus random", MEASURED),
        "sink_hidden_everywhere": ("all", EVERYWHERE),
    }
    claims: list[Claim] = []
    for name, text in statements.items():
        heads, measured = cuts[name]
        row, interval = (
            _row(table, heads, measured),
            analysis.intervals.get(cut_key(heads, measured)),
        )
        if row is None or interval is None:
            reason = "no such heads were cut, or no head was left whole to measure"
            claims.append(not_applicable(name, text, reason))
            continue
        nothing = nothing_to_remove(row["V_R_native"])
        if nothing is not None:
            claims.append(not_applicable(name, text, nothing))
            continue
        judged = found(interval, "1")
        if name == "sinks_forward_specifically" and judged.verdict == "supported":
            judged = _both(claims[0], judged)  # where nothing is removed, nothing was forwarded
        protocol = _cut_protocol(analysis, store, table, row)
        claims.append(make_claim(name, text, interval, "1", judged, protocol))
    return claims


def _both(first: Claim, second: Judged) -> Judged:
    """The verdict on a claim of two parts, the second of which is supported."""
    known = [p for p in (first.p_value, second.p_value) if p is not None]
    return Judged(first.verdict, max(known) if len(known) == 2 else None, second.p_note)


def _matched(table: pd.DataFrame) -> str:
    """The sink-reading condition that random draws are compared with."""
    compared = table.loc[table["heads"].str.endswith(" minus random"), "heads"]
    if len(compared):
        return str(compared.iloc[0]).removesuffix(" minus random")
    return "sink-reading" if (table["heads"] == "sink-reading").any() else "some sink-reading"


def _row(table: pd.DataFrame, heads: str, measured: str) -> pd.Series | None:
    rows = table[
        (table["heads"] == heads) & (table["measured"] == measured) & (table["positions"] == "all")
    ]
    return None if rows.empty else rows.iloc[0]


def _cut_protocol(
    analysis: Analysis, store: ActivationStore, table: pd.DataFrame, row: pd.Series
) -> str:
    """How one row of the table was made, followed by the same fraction in other conditions."""
    heads = str(row["heads"]).removesuffix(" minus random")
    checked = table.loc[table["heads"] == heads, "attention_left"].max()
    others = "; ".join(_other_conditions(table, row, analysis.level))
    return (
        f"{shifted_design(store)} The first {int(row['n'])} windows again with key 0 hidden from "
        f"{int(row['n_heads_cut'])} heads ({row['heads']}); 1 - V_R(cut)/V_R(native) over all "
        f"positions, {row['measured']} ({int(row['n_heads_measured'])} heads, those of layers "
        f"before the first cut included), items paired. {'' if heads == 'all' else CHOSEN + ' '}"
        f"Largest mean attention to key 0 left in a cut head: {checked:.1g}. Heads that do not "
        "see key 0 have position 1 as their first key, which may take over its role."
        + (f" Other conditions: {others}." if others else "")
    )


def _other_conditions(table: pd.DataFrame, row: pd.Series, level: float) -> list[str]:
    """The same heads by the other measure, and the other conditions by the same measure."""
    shown = table[(table["positions"] == "all") & ~table["heads"].str.endswith(" minus random")]
    return [
        f"{other['heads']} ({int(other['n_heads_cut'])} heads), {other['measured']}, "
        f"{_fraction(other, level)}"
        for _, other in shown.iterrows()
        if (other["heads"] == row["heads"]) != (other["measured"] == row["measured"])
    ]


def _patterns(analysis: Analysis) -> Claim:
    name = "normalizer_on_patterns"
    statement = (
        "Taking the denominator out of attention patterns takes position out of them: probes "
        "read it better from log attention weights than from the scores alone (mean R2 over "
        "layers, P - P_fix > 0)."
    )
    store, interval = analysis.files.natural, analysis.intervals.get("fixed_denominator")
    if store is None or interval is None:
        reason = "needs a natural capture of 5 sequences or more with scores at offsets"
        return not_applicable(name, statement, reason)
    table = analysis.tables["fixed_denominator"]
    clear = table[table["p_adjusted"] < 1 - analysis.level]
    protocol = (
        f"{store.n_items} natural sequences of {store.length} tokens; ridge on log weights and on "
        f"scores at offsets {listed(store.offsets)} of all heads of a layer, same rows and folds; "
        "probes as fitted, one set of bootstrap weights for both and all layers. Layer by layer, "
        f"adjusted by max-T: P is above P_fix in {int((clear['difference'] > 0).sum())} of "
        f"{len(table)} layers and below in {int((clear['difference'] < 0).sum())}."
    )
    return make_claim(name, statement, interval, "R2", found(interval, "R2"), protocol)


def _masks(analysis: Analysis) -> list[Claim]:
    bounds = {name: limit(name, analysis.files) for name in ("mask_removed", "window_closes_mask")}
    closed = {
        name: "closed (largest |M|, and difference of normalizers from those of the keys shown, < "
        f"{bound.value:g} nats)."
        for name, bound in bounds.items()
    }
    statements = {
        "mask_removed": f"Without the causal mask the mask channel is {closed['mask_removed']}",
        "window_closes_mask": "At positions past the length of a sliding window the mask channel "
        f"is {closed['window_closes_mask']}",
        "residual_behind_window": "At positions past the length of a sliding window, where only "
        "the residual stream can carry position, attention still depends on it (V_T > 0).",
        "window_growth": "A sliding window forced on this model makes the residual channel grow "
        "with depth (V_R of the last third of layers less that of the first, more than natively).",
    }
    keys = ("mask_closed", "window_closed", "window_left", "window_growth")
    units = ("nats", "nats", "nats^2", "nats^2")
    store, table = analysis.files.shifted, analysis.tables.get("masks")
    claims = []
    for (name, text), key, unit in zip(statements.items(), keys, units, strict=True):
        interval = analysis.intervals.get(key)
        if store is None or table is None or interval is None:
            reason = "needs shifted captures under another mask (posprobe audit --full)"
            claims.append(not_applicable(name, text, reason))
            continue
        protocol = f"{shifted_design(store)} {_mask_protocol(table, key)}"
        if name in bounds:
            protocol += f" {bounds[name].source}"
            judged = identity(below(interval, bounds[name].value))
        else:
            judged = _left_by_window(analysis, interval, "V_T" if key == "window_left" else "V_R")
        claims.append(make_claim(name, text, interval, unit, judged, protocol))
    return claims


def _left_by_window(analysis: Analysis, interval: Interval, quantity: str) -> Judged:
    """Whether what is left of a variance behind a window is more than its rounding."""
    windowed = [store for store in analysis.files.masks if mask_name(store) != NO_MASK]
    return found(interval, "nats^2", max(floor(store, quantity) for store in windowed))


def _mask_protocol(table: pd.DataFrame, key: str) -> str:
    """How a mask was changed, and what it removed."""
    bare = table["mask"] == NO_MASK
    rows = table[bare if key == "mask_closed" else ~bare]
    if key in ("window_closed", "window_left"):
        rows = rows[rows["positions"] != "all"]
    else:
        rows = rows[rows["positions"] == "all"]
    first = rows.iloc[0]
    removed = "; ".join(
        f"{row['quantity']} {row['native']:.3g} natively, {row['changed']:.3g} "
        f"[{row['changed_low']:.3g}, {row['changed_high']:.3g}] changed"
        for _, row in rows.iterrows()
    )
    text = (
        f"The first {int(first['n'])} windows again, in all layers with: {first['mask']}; "
        f"positions: {first['positions']}; items paired. Largest |M| {first['largest_M']:.2g}; the "
        "normalizers that the forward pass used differ from those of the keys shown, summed one "
        f"by one, by at most {first['mismatch']:.1g} nats. {removed} nats^2."
    )
    if key == "mask_closed":
        text += (
            " M is 0 because every query sees all keys of its sequence. Sequences are longer "
            "behind longer prefixes: V_R reflects sequence length, not the residual channel, so it "
            "is not compared."
        )
    return text


def _unmasked(analysis: Analysis) -> Claim:
    name = "normalizer_without_mask"
    statement = (
        "Without the causal mask position cannot be read from the normalizers of layer 0 (R2 < "
        f"{NEGLIGIBLE_R2})."
    )
    table = analysis.tables.get("mask_probes")
    interval = analysis.intervals.get("normalizer_unmasked")
    if table is None or interval is None:
        reason = (
            "needs natural captures of 5 sequences or more, with and without the causal mask "
            "(posprobe audit --full)"
        )
        return not_applicable(name, statement, reason)
    native = analysis.intervals["normalizer_masked"]
    protocol = (
        f"The first {interval.n} natural sequences with the causal mask and without it. Without it "
        "every query sees all keys, at distances that depend on its position. Ridge on the "
        "log-normalizers of layer 0, whose residual stream is the embedding; probes as fitted. "
        f"With the mask: {native}. Mean over all layers: {table['r2_native'].mean():.2f} with the "
        f"mask, {table['r2_masked'].mean():.2f} without it."
    )
    judged = below(interval, NEGLIGIBLE_R2)
    return make_claim(name, statement, interval, "R2", judged, protocol)


def _fraction(row: pd.Series, level: float) -> Interval:
    return Interval.of_row(row, "fraction_removed", level=level, method="fieller", n=int(row["n"]))


def _how(interval: Interval) -> str:
    return "Fieller's interval" + (", unbounded," if interval.unbounded else "")
