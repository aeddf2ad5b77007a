"""What the report says in words: a sentence and a protocol for every figure, and the glossary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from posprobe.analysis import Analysis
from posprobe.claims import Claim

__all__ = ["GLOSSARY", "SECTIONS", "Section", "summary"]


@dataclass(frozen=True)
class Section:
    """One question of the report.

    Attributes
    ----------
    title : str
    figures : tuple of str
        Names in `posprobe.figures.PANELS`.
    finding : callable
        Analysis to the sentence that the figures show.
    protocol : str
        How the numbers were made: estimand, unit, interval.
    needs : str
        The capture without which the section is empty.
    """

    title: str
    figures: tuple[str, ...]
    finding: Callable[[Analysis], str]
    protocol: str
    needs: str


def summary(analysis: Analysis, claims: list[Claim]) -> str:
    """The answer in plain English, from the tables."""
    parts = []
    if "channels" in analysis.tables:
        row = _overall(analysis)
        parts.append(_channel_sentence(row))
    by_id = {claim.id: claim for claim in claims}
    removed = by_id.get("bos_replacement")
    if removed is not None and removed.estimate is not None:
        parts.append(
            f"Replacing the embedding at position 0 removes {removed.estimate:.0%} of the residual "
            f"channel at early queries ({_bounds(removed)}); the study reports 40%."
        )
    counts = pd.Series([claim.verdict for claim in claims]).value_counts()
    tally = ", ".join(f"{counts[v]} {v.replace('_', ' ')}" for v in counts.index)
    parts.append(f"Of {len(claims)} claims: {tally}.")
    return " ".join(parts)


def _bounds(claim: Claim) -> str:
    if claim.ci_low is None or claim.ci_high is None:
        return "interval unbounded"
    return f"{claim.ci_level:.0%} interval {claim.ci_low:.0%} to {claim.ci_high:.0%}"


def _overall(analysis: Analysis) -> pd.Series:
    table = analysis.tables["channels"]
    shifted = table[table["stimulus"] == "shifted"]
    return (shifted if len(shifted) else table).iloc[0]


def _channel_sentence(row: pd.Series) -> str:
    if row["status"] != "ok":
        return (
            "Attention of this model does not change with absolute position beyond what chance "
            "allows, so that no channel can be given a share."
        )
    relation = {
        "opposed": "The two channels oppose each other: the residual stream takes back part of "
        "what the mask does.",
        "reinforcing": "The two channels reinforce each other.",
        "not distinguishable": "Whether they oppose or reinforce each other cannot be told.",
    }[row["relation"]]
    return (
        "Attention of this model depends on absolute position with content held fixed. The mask "
        f"channel has {row['share_mask']:.0%} of the effect's variance (interval "
        f"{row['share_mask_low']:.0%} to {row['share_mask_high']:.0%}), the residual channel "
        f"{row['share_residual']:.0%} ({row['share_residual_low']:.0%} to "
        f"{row['share_residual_high']:.0%}). {relation}"
    )


def _position_effects(analysis: Analysis) -> str:
    table = analysis.tables["position_effects"]
    design = "shifted" if "shifted" in set(table["stimulus"]) else table["stimulus"].iloc[0]
    rows = table[(table["stimulus"] == design) & (table["layer"] == "all")].sort_values("position")
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"From {last['position']} tokens of prefix to {first['position']}, the log attention "
        f"weight at a fixed offset changes by {first['T']:+.2f} nats ({first['T_low']:+.2f} to "
        f"{first['T_high']:+.2f}); the mask alone makes {first['M']:+.2f}, the residual stream "
        f"{first['R']:+.2f}, of which the sink {first['S']:+.2f}."
    )


def _channels(analysis: Analysis) -> str:
    table = analysis.tables["channels_by_layer"]
    table = table[table["stimulus"] == table["stimulus"].iloc[0]]
    opposed = int((table["relation"] == "opposed").sum())
    undefined = int((table["status"] != "ok").sum())
    return (
        f"The channels are opposed in {opposed} of {len(table)} layers; in {undefined} the total "
        "is not distinguishable from 0, and no share is given."
    )


def _heads(analysis: Analysis) -> str:
    table = analysis.tables["channels_by_head"]
    table = table[table["stimulus"] == table["stimulus"].iloc[0]]
    found = int((table["V_R_p_adjusted"] < 0.05).sum())
    return (
        f"{found} of {len(table)} heads have a residual channel that differs from 0 with all heads "
        "considered together (max-T)."
    )


def _probes(analysis: Analysis) -> str:
    table = analysis.tables["probes"]
    table = table[table["estimand"] == "fixed_probe"]
    n, r = (table[table["features"] == name] for name in ("normalizer", "residual"))
    best_n, best_r = n.loc[n["r2"].idxmax()], r.loc[r["r2"].idxmax()]
    return (
        f"Position is best read from the normalizers at layer {best_n['layer']} (R² "
        f"{best_n['r2']:.2f}, mean absolute error {best_n['mae']:.0f} tokens) and from the "
        f"residual stream at layer {best_r['layer']} (R² {best_r['r2']:.2f}, {best_r['mae']:.0f} "
        f"tokens); a random guess errs by {best_n['mae_guess']:.0f} tokens."
    )


def _position0(analysis: Analysis) -> str:
    worst = analysis.tables["closed_system"]["difference"].max()
    return (
        f"{_sinking(analysis)}Position 0 differs from a run on its token alone by at most "
        f"{worst:.1e} of its norm, at any depth."
    )


def _sinking(analysis: Analysis) -> str:
    if "sinks" not in analysis.tables:
        return ""
    attention = analysis.tables["sinks"]["attention"]
    return (
        f"{(attention > 0.3).sum()} of {len(attention)} heads give key 0 more than 0.3 of their "
        "attention. "
    )


def _repeated(analysis: Analysis) -> str:
    table = analysis.tables["repeated"]
    largest = table.groupby("stimulus", sort=False)[["mask", "residual"]].max()
    names = {"repeated": "With one token repeated", "bos_repeated": "behind a BOS"}
    return (
        "; ".join(
            f"{names[kind]} the largest |M| is {row['mask']:.2g} nats and the largest |R| "
            f"{row['residual']:.1e}"
            for kind, row in largest.iterrows()
        )
        + "."
    )


def _replacement(analysis: Analysis) -> str:
    table = analysis.tables["replacement"]
    parts = [
        f"{row.treatment}: {row.fraction_removed:.0%}"
        + ("" if pd.notna(row.low) else " (unbounded)")
        + f", heads that sink {row.sink_rate_native:.0%} to {row.sink_rate_replaced:.0%}"
        for row in table[table["positions"] == "early"].itertuples()
    ]
    return "Removed at early queries, by treatment: " + "; ".join(parts) + "."


def _specification(analysis: Analysis) -> str:
    table = analysis.tables["specification"]
    bounded = table[table["low"].notna()]
    held = int(((bounded["low"] <= 0.4) & (bounded["high"] >= 0.4)).sum())
    return (
        f"Of {len(table)} specifications {len(bounded)} have a bounded interval; {held} of these "
        f"hold the study's 40%. The estimates run from {bounded['fraction_removed'].min():.0%} to "
        f"{bounded['fraction_removed'].max():.0%}, with a median of "
        f"{bounded['fraction_removed'].median():.0%}."
    )


def _cut_sink(analysis: Analysis) -> str:
    table = analysis.tables["cut_sink"]
    early = table[(table["positions"] == "early") & (table["measured"] == "heads left whole")]
    parts = [
        f"{row.heads} ({row.n_heads_cut} heads): "
        + (
            f"{row.fraction_removed:.0%} ({row.low:.0%} to {row.high:.0%})"
            if pd.notna(row.low)
            else "unbounded"
        )
        for row in early.itertuples()
    ]
    return "Removed at early queries, in heads left whole: " + "; ".join(parts) + "."


def _fixed_denominator(analysis: Analysis) -> str:
    table = analysis.tables["fixed_denominator"]
    lower = int((table["difference_low"] > 0).sum())
    return (
        f"In {lower} of {len(table)} layers patterns tell more of position with their own "
        "denominator than with a fixed one (interval of the difference above 0); mean R² "
        f"{table['r2_attention'].mean():.2f} against {table['r2_scores'].mean():.2f}."
    )


def _precision(analysis: Analysis) -> str:
    ratio = analysis.tables["precision"]["ratio"]
    return (
        f"At equal n the natural design's standard errors are {ratio.min():.1f} to "
        f"{ratio.max():.1f} times those of the shifted design."
    )


SECTIONS = (
    Section(
        "How does attention change with absolute position, and which channel changes it?",
        ("position_effects", *(f"position_effects_{k}_third" for k in ("first", "middle", "last"))),
        _position_effects,
        "T(p) = a(p) - a(ref): log attention weight at a fixed offset (keys inside the window), "
        "the same window at position p against the latest. M(p) = -(z_mask(p) - z(ref)): the late "
        "row's normalizer if the row saw only the keys that position p shows. R = T - M. Mean over "
        "items, heads, offsets and rows. Unit: the item (a window with all its prefixes). Bands: "
        "cluster bootstrap of items, estimate ± t × standard error, pointwise.",
        "the shifted or natural design with all scores",
    ),
    Section(
        "How much is mask and how much residual stream, layer by layer?",
        ("channels_shifted", "channels_natural", "shares"),
        _channels,
        "V_T = V_M + V_R + 2 C_MR: variances over positions by a U-statistic over pairs of "
        "different items, unbiased by content noise, never clipped. Bands: cluster bootstrap of "
        "items, t. Shares (V + C)/V_T: Fieller on jackknife pseudo-values; undefined where V_T is "
        "not distinguishable from 0. Layers are not corrected for multiplicity.",
        "the shifted or natural design with all scores",
    ),
    Section(
        "Which heads?",
        ("heads_mask", "heads_residual", "heads_share"),
        _heads,
        "As above, head by head. Adjusted p-values (max-T over all heads, one set of bootstrap "
        "weights) are in tables/channels_by_head.csv.",
        "the shifted or natural design with all scores",
    ),
    Section(
        "Can position be read off?",
        ("probes", "probes_error", "partition", "partition_shapley"),
        _probes,
        "Ridge to the position; position 0 left out; 5 folds by sequence; penalty chosen on the "
        "same folds, one for each group in the joint model; R² out of fold. Residual vectors at "
        "unit root mean square. Bands: this probe held fixed, cluster bootstrap of sequence scores "
        "(percentiles). Bars: the average probe at this number of sequences, refit in each "
        "bootstrap sample, t. Unique and shared parts are contrasts of R² on the same folds.",
        "the natural design with the residual stream",
    ),
    Section(
        "Who attends to position 0, is it a closed system, and what does it leave?",
        (
            "sinks",
            "sink_rates",
            "sink_writing",
            "position0_norm",
            "position0_closure",
            "position0_fingerprint",
        ),
        _position0,
        "Norm: median over sequences. Difference: largest over sequences, relative to the norm of "
        "the length-1 run. Spread: mean distance of inputs to the mean input, relative to its "
        "norm, where all inputs begin with one token and where they begin with many.",
        "the natural design",
    ),
    Section(
        "With the residual channel closed, is the mask all that is left?",
        ("repeated", "bos_repeated"),
        _repeated,
        "One token repeated without a first token of its own: all hidden states are equal, so R "
        "must be 0 at every position, to float precision. Behind a BOS the residual channel "
        "is open.",
        "the repeated design",
    ),
    Section(
        "What does the embedding at position 0 carry?",
        ("replacement", "replacement_sinks"),
        _replacement,
        "The shifted stimulus again with another embedding at position 0, items paired. 1 - "
        "V_R(replaced)/V_R(native), mean over layers, heads and offsets; early: prefixes up to an "
        "eighth of the length, against the latest. Fieller's interval on jackknife pseudo-values. "
        "The primary specification was fixed beforehand; the study's own is not known.",
        "the shifted design with position 0 replaced (--position0 mean)",
    ),
    Section(
        "Does the answer depend on how one asks?",
        ("specification", "specification_choices"),
        _specification,
        "Every combination of replacement, range of queries, offsets, layers and metric; Fieller's "
        "interval for each, items paired. Intervals are cut at the edge of the picture; those that "
        "are unbounded are not drawn. The specifications share their data: they are no "
        "independent tests.",
        "the shifted design with position 0 replaced",
    ),
    Section(
        "What dies when heads cannot see key 0?",
        ("cut_sink",),
        _cut_sink,
        "The shifted stimulus again with key 0 hidden from all queries > 0 of some heads: the "
        "sink-reading ones (chosen on half of the natural sequences), as many random others, all. "
        "1 - V_R(cut)/V_R(native) over heads that no compared capture cuts, so that hiding key 0 "
        "is not itself counted. Fieller, items paired; early queries.",
        "a full audit (--full)",
    ),
    Section(
        "How much position is in the denominator of patterns?",
        ("fixed_denominator",),
        _fixed_denominator,
        "Ridge to the position from log attention weights at fixed offsets (P), and from the "
        "scores at the same offsets, which is attention under a constant denominator (P_fix); 5 "
        "folds by sequence; cluster bootstrap with shared weights. Scores may differ by a "
        "constant per query without any effect on attention, so that P_fix is about scores.",
        "the natural design with scores at offsets",
    ),
    Section(
        "What does holding content fixed gain?",
        ("precision",),
        _precision,
        "Standard errors over items of T(p), natural design against shifted, at equal numbers of "
        "items; bands: bootstrap of items.",
        "the natural and the shifted design with the same window",
    ),
)

GLOSSARY = {
    "normalizer": "z, the logarithm of the softmax denominator of a query, in nats.",
    "residual stream": "The vector of a token that enters a block; blocks read it and add to it.",
    "attention sink": "Key 0 where it draws a large share of attention.",
    "sink score": "The score of a query with key 0.",
    "sink rate": "Of a head: share of sequences whose attention to key 0, averaged over queries, "
    "is above 0.3 (Gu et al. 2024).",
    "sink-reading head": "A head whose mean attention to key 0 is above 0.3.",
    "position effect": "The mean over items of a quantity, as a function of position.",
    "mask channel (M)": "What the changing extent of the causal mask does to attention, alone.",
    "residual channel (R)": "Everything that the residual stream changed.",
    "share": "Part of the variance of the total effect; the two add to 1, and one is negative "
    "where the channels oppose each other.",
    "undefined": "The total is not distinguishable from 0, so that there is nothing to share.",
    "item": "What is resampled: a window with all its prefixes, or a sequence. Never a token.",
    "fixed_probe, refit": "Estimands: the R² of this probe, or of the average probe fitted on so "
    "many sequences.",
    "Fieller's interval": "The ratios that a paired t test does not reject; unbounded where the "
    "denominator is not distinguishable from 0.",
}
