"""What each figure shows, in a sentence computed from the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from posprobe.analysis import SINK_RATE, Analysis
from posprobe.figures import one_design
from posprobe.report.words import bounds, number, percent, removed, with_interval

__all__ = [
    "channels",
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


def position_effects(analysis: Analysis) -> str:
    """T, M, R and S at the earliest position."""
    table = one_design(analysis.tables["position_effects"])
    rows = table[table["layer"] == "all"].sort_values("position")
    first, last = rows.iloc[0], rows.iloc[-1]
    verb = "rises" if first["T"] > 0 else "falls"
    return (
        f"Moved from {last['position']} tokens deep to {first['position']}, a window's log "
        f"attention weight at a fixed offset {verb} by {with_interval(first, 'T')} nats. The mask "
        f"alone would change it by {with_interval(first, 'M')}, the residual stream by "
        f"{with_interval(first, 'R')}, of which the sink {with_interval(first, 'S')}."
    )


def channels(analysis: Analysis) -> str:
    """The variances over all layers, and the layers by relation and status."""
    row = overall(analysis)
    table = one_design(analysis.tables["channels_by_layer"])
    relation, n = table["relation"].value_counts(), len(table)
    undefined = int((table["status"] != "ok").sum())
    largest = table["layer"].iloc[table["V_R"].astype(float).argmax()]
    text = (
        f"Over all layers V_T is {with_interval(row, 'V_T')}, V_M {with_interval(row, 'V_M')} and "
        f"V_R {with_interval(row, 'V_R')} nats². The channels oppose each other in "
        f"{relation.get('opposed', 0)} of {n} layers and reinforce each other in "
        f"{relation.get('reinforcing', 0)}; in {undefined} the total is not distinguishable from "
        f"0, and shares are undefined. The residual channel is largest at layer {largest}."
    )
    rest, first = analysis.intervals.get("layer_0_rest"), table[table["layer"] == 0]
    if rest is not None and len(first):
        text += (
            f" At layer 0 V_R is {with_interval(first.iloc[0], 'V_R')}; but for "
            f"{number(rest.estimate)} nats, R is key 0's own score there."
        )
    if "precision" in analysis.tables:
        ratio = analysis.tables["precision"].groupby("scope", sort=False)["ratio"]
        low, high = ratio.min().iloc[0], ratio.max().iloc[0]
        text += (
            " Head by head, natural text measures the same with standard errors "
            f"{low:.1f} to {high:.1f} times as large."
        )
    return text


def heads(analysis: Analysis) -> str:
    """How many heads have a residual channel, all considered together."""
    table = one_design(analysis.tables["channels_by_head"])
    alpha = 1 - analysis.level
    total, residual = (int((table[f"{name}_p_adjusted"] < alpha).sum()) for name in ("V_T", "V_R"))
    undefined = int((table["status"] != "ok").sum())
    return (
        f"Of {len(table)} heads, {total} change with position and {residual} have a residual "
        f"channel, with all heads considered together (max-T, adjusted p < {alpha:.2g}). In "
        f"{undefined} heads shares are undefined.{_offsets(analysis)}"
    )


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
        f" At early queries the residual stream changes attention {near['offset']} token back by "
        f"{with_interval(near, 'R')} nats and {far['offset']} tokens back by "
        f"{with_interval(far, 'R')}; the mask's {with_interval(near, 'M')} is the same at all."
    )


def probes(analysis: Analysis) -> str:
    """Where position is best read, and layer 0."""
    table = analysis.tables["probes"]
    table = table[table["estimand"] == "fixed_probe"]
    parts = []
    for name, words in (("normalizer", "normalizers"), ("residual", "residual stream")):
        rows = table[table["features"] == name]
        best = rows.iloc[rows["r2"].argmax()]
        parts.append(
            f"from the {words} at layer {best['layer']} (R² {best['r2']:.2f}, "
            f"{bounds(best['low'], best['high'])}; off by {best['mae']:.0f} tokens)"
        )
    text = (
        f"Position is best read {' and '.join(parts)}. A random guess is off by "
        f"{table['mae_guess'].iloc[0]:.0f} tokens."
    )
    first = table[table["layer"] == 0].set_index("features")["r2"]
    if {"normalizer", "residual"} <= set(first.index):
        text += (
            f" At layer 0, whose residual stream is the embedding, R² is "
            f"{first['normalizer']:.2f} from the normalizers and {first['residual']:.2f} from the "
            "residual stream."
        )
    return text


def denominator(analysis: Analysis) -> str:
    """P against P_fix, and what a fixed denominator inside the forward pass does."""
    table, mean = analysis.tables["fixed_denominator"], analysis.intervals["fixed_denominator"]
    clear = table[table["p_adjusted"] < 1 - analysis.level]
    text = (
        f"Attention patterns tell position with a mean R² of {table['r2_attention'].mean():.2f}, "
        f"the scores alone with {table['r2_scores'].mean():.2f}; the difference is {mean}. Layer "
        f"by layer (adjusted by max-T) patterns tell more in "
        f"{int((clear['difference'] > 0).sum())} of {len(table)} and less in "
        f"{int((clear['difference'] < 0).sum())}."
    )
    forward = analysis.tables.get("fixed_forward")
    if forward is None or forward.empty:
        return text.replace("-", "−") if mean.estimate < 0 else text
    row = forward[forward["positions"] == "all"].iloc[0]
    return (
        f"{text} With denominators held fixed inside the forward pass, in layers {row['layers']}, "
        f"V_R loses {removed(row)}. {row['caveat']}"
    )


def sinks(analysis: Analysis) -> str:
    """How many heads sink, and what they write."""
    table, share = analysis.tables["sinks"], analysis.intervals["sink_heads"]
    rates = table["sink_rate"]
    text = (
        f"{percent(share.estimate)} of heads ({bounds(share.low, share.high, percents=True)}) "
        f"give key 0 more than 0.3 of their attention on average. Heads differ: "
        f"{int((rates >= 0.95).sum())} of {len(table)} sink in almost every sequence, "
        f"{int((rates <= 0.05).sum())} in almost none."
    )
    writing = analysis.tables.get("sink_writing")
    if writing is not None:
        row = writing[(writing["quantity"] == "written") & (writing["heads"] == "ratio")].iloc[0]
        text += (
            f" Sink-reading heads (sink rate above {SINK_RATE:g} on the other half of the "
            f"sequences) write {row['estimate']:.1f} times as much of position 0 into the residual "
            f"stream as the others ({bounds(row['low'], row['high'])})."
        )
    return text


def position0(analysis: Analysis) -> str:
    """Closure, norm and fingerprint of position 0."""
    table = analysis.tables["closed_system"]
    highest = table.iloc[table["norm"].argmax()]
    text = (
        f"Position 0 differs from a run on its token alone {_at_most(table['difference'].max())}, "
        "at any depth. Its norm is "
        f"largest at depth {int(highest['layer'])} ({highest['norm']:,.0f}"
    )
    later = highest["norm_later"]
    text += f"; later positions: {later:,.0f})" if np.isfinite(later) else ")"
    text += f", where {highest['dimensions']:.0f} dimensions hold 99% of its square."
    turned = table.iloc[table["cosine"].astype(float).argmin()]
    text += (
        f" It is turned most by block {int(turned['layer']) - 1} (cosine {turned['cosine']:.2f})."
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


def _at_most(difference: float) -> str:
    return f"by at most {number(float(difference))} of its norm" if difference else "in no bit"


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
    primary = early["primary"].astype(bool)
    lead = [
        f"Of V_R at early queries the primary replacement ({row['treatment']}) removes "
        f"{removed(row)}."
        for _, row in early[primary].iterrows()
    ]
    others = [f"{row['treatment']} {removed(row)}" for _, row in early[~primary].iterrows()]
    text = " ".join([*lead, f"Other replacements: {'; '.join(others)}."] if others else lead)
    rates = table.drop_duplicates("treatment").set_index("treatment")["sink_rate_replaced"]
    native = float(table["sink_rate_native"].iloc[0])
    after = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items())
    text += f" Heads that sink: native {percent(native)}, {after}."
    curve = analysis.tables.get("specification")
    if curve is None or curve.empty:
        return text
    estimates = curve["fraction_removed"].dropna()
    bounded = curve[curve["low"].notna()]
    holding = int(((bounded["low"] <= 0.4) & (bounded["high"] >= 0.4)).sum())
    middle = [percent(share) for share in estimates.quantile([0.1, 0.5, 0.9])]
    return (
        f"{text} Over {len(curve)} specifications the median is {middle[1]} (middle four fifths: "
        f"{middle[0]} to {middle[2]}); {len(bounded)} have a bounded interval, and {holding} of "
        "these hold the study's 40%."
    )


def cut_sink(analysis: Analysis) -> str:
    """Fraction of V_R removed in heads left whole, or without key 0 where none is."""
    table = analysis.tables["cut_sink"]
    table = table[table["positions"] == "all"]
    parts = []
    for (heads_cut, count), rows in table.groupby(["heads", "n_heads_cut"], sort=False):
        whole = rows[rows["measured"] == "heads left whole"]
        row = (whole if len(whole) else rows).iloc[0]
        parts.append((f"{heads_cut} ({count})", row))
    parts.sort(key=lambda part: not part[1]["heads"].endswith("sink-reading"))
    (name, row), *others = parts
    text = f"Of V_R {_where(row)}, hiding key 0 from {name} heads removes {removed(row)}."
    if others:
        listed = "; ".join(f"{name} {removed(row)}, {_where(row)}" for name, row in others)
        text += f" Hidden from others: {listed}."
    return text


def _where(row: pd.Series) -> str:
    """Where the rest is measured."""
    return {
        "heads left whole": "in the heads left whole",
        "without key 0": "among the other keys",
    }[row["measured"]]


def masks(analysis: Analysis) -> str:
    """What is closed and what is left under each mask, and what normalizers still tell."""
    parts = []
    for (mask, positions), rows in analysis.tables["masks"].groupby(
        ["mask", "positions"], sort=False
    ):
        values = rows.set_index("quantity")
        left = pd.Series(
            {f"V{end}": values.loc["V_T", f"changed{end}"] for end in ("", "_low", "_high")}
        )
        where = "" if positions == "all" else f", {positions}"
        parts.append(
            f"{mask}{where}: largest |M| {number(float(values['largest_M'].iloc[0]))} nats, V_T "
            f"{with_interval(left, 'V')} nats² (natively {values['native']['V_T']:.3f})"
        )
    text = f"{'; '.join(parts)}."
    probes_ = analysis.tables.get("mask_probes")
    if probes_ is not None:
        first = probes_.iloc[0]
        text += (
            f" From the normalizers of layer 0 position is read with R² {first['r2_native']:.2f} "
            f"under the mask, {first['r2_masked']:.2f} without; on average over layers "
            f"{probes_['r2_native'].mean():.2f} and {probes_['r2_masked'].mean():.2f}."
        )
    return text[0].upper() + text[1:]
