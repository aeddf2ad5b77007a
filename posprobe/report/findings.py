"""What each figure shows, in a sentence computed from the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.analysis import SINK_RATE, Analysis, way_of_writing
from posprobe.claims import SMALLEST
from posprobe.figures import one_design
from posprobe.report.words import (
    SMALLEST_EFFECT,
    bounds,
    number,
    percent,
    removed,
    seen,
    too_small,
    with_interval,
)

__all__ = [
    "bands",
    "channels",
    "conditions",
    "cut_sink",
    "denominator",
    "heads",
    "masks",
    "overall",
    "position0",
    "position_effects",
    "probes",
    "repeated",
    "replacement",
    "sinks",
]


def overall(analysis: Analysis) -> pd.Series:
    """The two channels over all layers and heads, shifted design first."""
    return one_design(analysis.tables["channels"]).iloc[0]


def conditions(analysis: Analysis) -> str:
    """What is the same in all conditions, and what changes."""
    table = analysis.tables["conditions"]
    sentences = []
    for name, what in (("V_M", "mask channel"), ("V_R", "residual channel")):
        there = sum(seen(row, name) for _, row in table.iterrows())
        low, high = number(float(table[name].min())), number(float(table[name].max()))
        sentences.append(
            f"The {what} is found in {there} of {len(table)} conditions ({name} between {low} and "
            f"{high} nats²)"
        )
    opposed, reinforcing = _related(table)
    sentences.append(
        f"The channels oppose each other in {opposed}, reinforce each other in {reinforcing}, and "
        f"neither, or too little to speak of, in {len(table) - opposed - reinforcing}"
    )
    replaced = analysis.tables.get("condition_replacement")
    if replaced is not None:
        parts = "; ".join(f"{row['condition']}, {removed(row)}" for _, row in replaced.iterrows())
        sentences.append(f"The mean embedding at position 0 removes at early queries: {parts}")
    return ". ".join(sentences) + "."


def _related(table: pd.DataFrame) -> tuple[int, int]:
    """In how many rows the channels oppose and reinforce each other, by more than is too small."""
    clear = table[[not too_small(row, "C_MR") for _, row in table.iterrows()]]
    counts = clear["relation"].value_counts()
    return int(counts.get("opposed", 0)), int(counts.get("reinforcing", 0))


def position_effects(analysis: Analysis) -> str:
    """T, M, R and S at the earliest position."""
    table = one_design(analysis.tables["position_effects"])
    rows = table[table["layer"] == "all"].sort_values("position")
    first, last = rows.iloc[0], rows.iloc[-1]
    if all(too_small(first, part, SMALLEST_EFFECT) for part in "TMR"):
        return (
            f"Moving a window from position {last['position']} to position {first['position']} "
            f"changes its log attention weight by less than {SMALLEST_EFFECT:g} nats. So little is "
            "not worth dividing into channels."
        )
    sink = (
        ""
        if too_small(first, "R", SMALLEST_EFFECT)
        else f"; the sink's part of that is {_by(first, 'S')}"
    )
    return (
        f"Moving a window from position {last['position']} to position {first['position']} "
        f"changes its log attention weight at a fixed offset by {with_interval(first, 'T')} nats. "
        f"The mask alone changes it by {_by(first, 'M')} and the residual stream by "
        f"{_by(first, 'R')}{sink}."
    )


def _by(row: pd.Series, part: str) -> str:
    """By how much a channel changes the log weight, if that is worth a number."""
    small = too_small(row, part, SMALLEST_EFFECT)
    return "too little to speak of" if small else with_interval(row, part)


def channels(analysis: Analysis) -> str:
    """The variances over all layers, and the layers by relation and status."""
    row = overall(analysis)
    table = one_design(analysis.tables["channels_by_layer"])
    if too_small(row, "V_T"):
        return (
            f"Averaged over layers, V_T is {with_interval(row, 'V_T')} nats², too small to speak "
            f"of (below {SMALLEST['nats^2']:g}). So little is not worth dividing into channels."
        )
    (opposed, reinforcing), n = _related(table), len(table)
    largest = table["layer"].iloc[table["V_R"].astype(float).argmax()]
    text = (
        f"Averaged over layers, V_T is {with_interval(row, 'V_T')}, V_M "
        f"{with_interval(row, 'V_M')} and V_R {with_interval(row, 'V_R')} nats². The channels "
        f"oppose each other in {opposed} of {n} layers and reinforce each other in {reinforcing}; "
        "in the others they do neither, or too little to speak of." + _undefined(table, "layers")
    )
    text += (
        f" V_R is too small to speak of (below {SMALLEST['nats^2']:g})."
        if too_small(row, "V_R")
        else f" V_R is largest at layer {largest}."
    )
    rest, first = analysis.intervals.get("layer_0_rest"), table[table["layer"] == 0]
    if rest is not None and len(first) and not too_small(row, "V_R"):
        text += (
            f" At layer 0 V_R is {with_interval(first.iloc[0], 'V_R')}; key 0's own score accounts "
            f"for all of R there but {number(rest.estimate)} nats."
        )
    if "precision" in analysis.tables:
        ratio = analysis.tables["precision"].groupby("scope", sort=False)["ratio"]
        low, high = ratio.min().iloc[0], ratio.max().iloc[0]
        text += (
            " Natural text measures the same with standard errors that are, head by head, "
            f"{low:.1f} to {high:.1f} times as large."
        )
    return text


def bands(analysis: Analysis) -> str:
    """Which bands carry the residual channel, and what of the mask channel is counting."""
    table = analysis.tables["bands"]
    table = table[table["layer"] == "all"]
    sentences = []
    whole = overall(analysis)
    for channel, name in (("R", "residual channel"), ("M", "mask channel")):
        if too_small(whole, f"V_{channel}"):
            sentences.append(f"The {name} is too small to speak of")
            continue
        rows = table[table["channel"] == channel]
        parts = ", ".join(f"{row['band']}: {_share(row)}" for _, row in rows.iterrows())
        sentences.append(f"Shares of the {name} by band of rotation, over all layers: {parts}")
    return ". ".join(sentences) + "."


def _share(row: pd.Series) -> str:
    return "undefined" if row["status"] != "ok" else with_interval(row, "share")


def heads(analysis: Analysis) -> str:
    """How many heads have a residual channel, all considered together."""
    table = one_design(analysis.tables["channels_by_head"])
    alpha = 1 - analysis.level
    total, residual = (
        sum(row[f"{name}_p_adjusted"] < alpha and not too_small(row, name) for _, row in rows)
        for name, rows in ((name, table.iterrows()) for name in ("V_T", "V_R"))
    )
    return (
        f"Attention changes with position in {total} of {len(table)} heads, and {residual} have a "
        f"residual channel (p < {alpha:.2g}, adjusted for all heads by max-T, and not too small to "
        f"speak of).{_undefined(table, 'heads')}{_offsets(analysis)}"
    )


def _undefined(table: pd.DataFrame, what: str) -> str:
    """How many rows have no shares; nothing if all have."""
    count = int((table["status"] != "ok").sum())
    if not count:
        return ""
    return f" Shares are undefined in {count} {what}, where V_T is not distinguishable from 0."


def _offsets(analysis: Analysis) -> str:
    """The residual channel at the nearest and the farthest offset, early queries."""
    table = analysis.tables.get("channels_by_offset")
    if table is None:
        return ""
    table = one_design(table)
    rows = table[(table["layer"] == "all") & (table["positions"] == "early")]
    rows = rows.sort_values("offset")
    if len(rows) < 2:
        return ""
    near, far = rows.iloc[0], rows.iloc[-1]
    return (
        " At early queries the residual stream changes log attention weights by "
        f"{with_interval(near, 'R')} nats at offset {near['offset']} and by "
        f"{with_interval(far, 'R')} at offset {far['offset']}; the mask changes them by "
        f"{with_interval(near, 'M')} at every offset."
    )


def probes(analysis: Analysis) -> str:
    """Where position is best read, and layer 0."""
    table = analysis.tables["probes"]
    table = table[table["estimand"] == "fixed_probe"]
    largest = table.iloc[int(table["high"].fillna(table["r2"]).argmax())]
    if largest["high"] < SMALLEST["R2"]:
        return (
            "Position cannot be read off any layer. The largest R² is "
            f"{largest['r2']:.3f} ({bounds(largest['low'], largest['high'])})."
        )
    parts = []
    for name, words in (("normalizer", "normalizers"), ("residual", "residual stream")):
        rows = table[table["features"] == name]
        best = rows.iloc[rows["r2"].argmax()]
        parts.append(
            f"from the {words} at layer {best['layer']} (R² {best['r2']:.2f}, "
            f"{bounds(best['low'], best['high'])}; mean error {best['mae']:.0f} tokens)"
        )
    text = (
        f"Position is best read {' and '.join(parts)}. The mean error of a "
        f"random guess is {table['mae_guess'].iloc[0]:.0f} tokens."
    )
    first = table[table["layer"] == 0].set_index("features")["r2"]
    if {"normalizer", "residual"} <= set(first.index):
        text += (
            f" At layer 0, whose residual stream is the embedding, R² is "
            f"{_r2(first['normalizer'])} from the normalizers and {_r2(first['residual'])} from "
            "the residual stream."
        )
    return text


def _r2(value: float) -> str:
    """An R2 with two decimals, and no minus in front of 0."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def denominator(analysis: Analysis) -> str:
    """P against P_fix, and what a fixed denominator inside the forward pass does."""
    table, mean = analysis.tables["fixed_denominator"], analysis.intervals["fixed_denominator"]
    clear = table[table["p_adjusted"] < 1 - analysis.level]
    difference = str(mean).replace("-", "−")
    if mean.unbounded:
        difference = f"{number(mean.estimate)} ({bounds(mean.low, mean.high)})"
    text = (
        "Probes read position from log attention weights with a mean R² of "
        f"{table['r2_attention'].mean():.2f} and from the scores alone with "
        f"{table['r2_scores'].mean():.2f}; the difference is {difference}. Layer by layer "
        "(adjusted by max-T), log attention weights do better in "
        f"{int((clear['difference'] > 0).sum())} of {len(table)} layers and worse in "
        f"{int((clear['difference'] < 0).sum())}."
    )
    forward = analysis.tables.get("fixed_forward")
    if forward is None or forward.empty:
        return text
    row = forward[forward["positions"] == "all"].iloc[0]
    if row["V_R_native"] < SMALLEST["nats^2"]:
        return text
    return (
        f"{text} Holding denominators fixed inside the forward pass, in layers {row['layers']}, "
        f"removes {removed(row)}. {row['caveat']}"
    )


def sinks(analysis: Analysis) -> str:
    """How many heads sink, and what they write."""
    table, share = analysis.tables["sinks"], analysis.intervals["sink_heads"]
    rates = table["sink_rate"]
    text = (
        f"{percent(share.estimate)} of heads ({bounds(share.low, share.high, percents=True)}) "
        "give key 0 more than 0.3 of their attention on average. "
        f"{int((rates >= 0.95).sum())} of {len(table)} heads sink in almost every sequence, "
        f"{int((rates <= 0.05).sum())} in almost none."
    )
    natural, writing = analysis.files.natural, analysis.tables.get("sink_writing")
    if writing is not None:
        row = writing[(writing["quantity"] == "written") & (writing["heads"] == "ratio")].iloc[0]
        text += (
            f" Sink-reading heads (sink rate above {SINK_RATE:g} on the other half of the "
            f"sequences) write {row['estimate']:.1f} times as much of position 0 into the residual "
            f"stream as the others ({bounds(row['low'], row['high'])})."
            f"{'' if natural is None else way_of_writing(natural)}"
        )
    return text


def position0(analysis: Analysis) -> str:
    """Closure, norm and fingerprint of position 0."""
    table = analysis.tables["closed_system"]
    highest = table.iloc[table["norm"].argmax()]
    text = (
        f"Position 0 {_like_alone(table['difference'].max())}. Its norm is largest at depth "
        f"{int(highest['layer'])} ({number(float(highest['norm']))}"
    )
    later = highest["norm_later"]
    text += f"; later positions: {number(float(later))})" if np.isfinite(later) else ")"
    text += f", where {highest['dimensions']:.0f} dimensions make up 99% of its square."
    turned = table.iloc[table["cosine"].astype(float).argmin()]
    text += (
        f" Block {int(turned['layer']) - 1} turns it most (cosine {turned['cosine']:.2f})."
        if np.isfinite(turned["cosine"])
        else ""
    )
    spread = analysis.tables.get("fingerprint")
    if spread is not None:
        means = spread.groupby("stimulus", sort=False)["spread"].max()
        text += " Its trajectory varies between inputs by up to " + " and ".join(
            f"{number(float(value))} of its norm with {name}" for name, value in means.items()
        )
        text += "."
    return text


def _like_alone(difference: float) -> str:
    """How position 0 compares with a run on its token alone."""
    if not difference:
        return "is bit-identical at every depth to a run on its token alone"
    return (
        "differs from a run on its token alone by at most "
        f"{number(float(difference))} of its norm at any depth"
    )


def repeated(analysis: Analysis) -> str:
    """Largest effects with the residual channel closed, and opened by a BOS."""
    largest = analysis.tables["repeated"].groupby("stimulus", sort=False)[["mask", "residual"]]
    names = {"repeated": "With one token repeated", "bos_repeated": "behind a BOS"}
    parts = [
        f"{names[str(kind)]} the largest |M| is {number(float(row['mask']))} nats and the largest "
        f"|R| {number(float(row['residual']))}"
        for kind, row in largest.max().iterrows()
    ]
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def replacement(analysis: Analysis) -> str:
    """Fraction removed at early queries by each treatment, and the whole curve."""
    table = analysis.tables["replacement"]
    early = table[table["positions"] == "early"]
    native_v = float(early["V_R_native"].max())
    if native_v < SMALLEST["nats^2"]:
        return (
            f"There is nothing to remove. Natively V_R at early queries is {number(native_v)} "
            f"nats², too small to speak of (below {SMALLEST['nats^2']:g})."
        )
    primary = early["primary"].astype(bool)
    lead = [
        f"At early queries the primary replacement ({row['treatment']}) removes {removed(row)}."
        for _, row in early[primary].iterrows()
    ]
    others = [f"{row['treatment']} {removed(row)}" for _, row in early[~primary].iterrows()]
    text = " ".join([*lead, f"Other replacements: {'; '.join(others)}."] if others else lead)
    rates = table.drop_duplicates("treatment").set_index("treatment")["sink_rate_replaced"]
    native = float(table["sink_rate_native"].iloc[0])
    after = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items())
    text += f" Share of heads that sink: native {percent(native)}, {after}."
    curve = analysis.tables.get("specification")
    if curve is None or curve.empty:
        return text
    estimates = curve["fraction_removed"].dropna()
    bounded = curve[curve["low"].notna()]
    holding = int(((bounded["low"] <= 0.4) & (bounded["high"] >= 0.4)).sum())
    middle = [percent(share) for share in estimates.quantile([0.1, 0.5, 0.9])]
    return (
        f"{text} Over {len(curve)} specifications the median is {middle[1]} (10th to 90th "
        f"percentile: {middle[0]} to {middle[2]}); {len(bounded)} have a bounded interval, and "
        f"{holding} of these contain the study's 40%."
    )


def cut_sink(analysis: Analysis) -> str:
    """Fraction of V_R removed in the heads left whole or, if all were cut, without key 0."""
    table = analysis.tables["cut_sink"]
    table = table[table["positions"] == "all"]
    native = float(table["V_R_native"].max())
    if native < SMALLEST["nats^2"]:
        return (
            f"There is nothing to remove. Natively V_R is {number(native)} nats², too small to "
            f"speak of (below {SMALLEST['nats^2']:g})."
        )
    parts = []
    for (heads_cut, count), rows in table.groupby(["heads", "n_heads_cut"], sort=False):
        whole = rows[rows["measured"] == "heads left whole"]
        row = (whole if len(whole) else rows).iloc[0]
        parts.append((f"{heads_cut} heads ({count})", row))
    parts.sort(key=lambda part: not part[1]["heads"].endswith("sink-reading"))
    (name, row), *others = parts
    text = f"Hiding key 0 from {name} removes {removed(row)}, measured {_where(row)}."
    if others:
        listed = "; ".join(f"{name} {removed(row)}, {_where(row)}" for name, row in others)
        text += f" The same for other heads: {listed}."
    return text


def _where(row: pd.Series) -> str:
    """Where the fraction removed is measured."""
    return {
        "heads left whole": "in the heads left whole",
        "without key 0": "among the other keys",
    }[row["measured"]]


def masks(analysis: Analysis) -> str:
    """The largest M and what is left of V_T under each mask; position from normalizers."""
    parts = []
    for (mask, positions), rows in analysis.tables["masks"].groupby(
        ["mask", "positions"], sort=False
    ):
        values = rows.set_index("quantity")
        left = pd.Series(
            {f"V{end}": values.loc["V_T", f"changed{end}"] for end in ("", "_low", "_high")}
        )
        where = "" if positions == "all" else f", {positions}"
        name = f"{mask}{where}"
        parts.append(
            f"{name[0].upper()}{name[1:]}: largest |M| "
            f"{number(float(values['largest_M'].iloc[0]))} nats, V_T {with_interval(left, 'V')} "
            f"nats² (natively {values['native']['V_T']:.3f})"
        )
    text = f"{'. '.join(parts)}."
    probes_ = analysis.tables.get("mask_probes")
    if probes_ is not None:
        first = probes_.iloc[0]
        text += (
            f" Probes read position from the normalizers of layer 0 with R² "
            f"{first['r2_native']:.2f} under the mask and {first['r2_masked']:.2f} without it; "
            f"averaged over layers, R² is {probes_['r2_native'].mean():.2f} and "
            f"{probes_['r2_masked'].mean():.2f}."
        )
    return text
