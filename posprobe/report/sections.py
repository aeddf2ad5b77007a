"""What the report says in words: a finding and a protocol for every question, and a glossary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posprobe.analysis import Analysis, first_token, listed
from posprobe.claims import WHY_LAYER_0
from posprobe.report import findings

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """One question of the report.

    Attributes
    ----------
    name : str
        Anchor in the page.
    title : str
        The question.
    needs : str
        The table without which there is nothing to say.
    figures : tuple of str
        Names in `posprobe.figures.PANELS`.
    finding : callable
        Analysis to the sentences that the figures show.
    estimand, unit, interval : str
        What is estimated, what is resampled, how the interval is made (``{level}``: its level).
    n : callable
        Analysis to the numbers that it rests on.
    note : str
        What else has to be known.
    missing : str
        The capture that would provide it.
    """

    name: str
    title: str
    needs: str
    figures: tuple[str, ...]
    finding: Callable[[Analysis], str]
    estimand: str
    unit: str
    interval: str
    n: Callable[[Analysis], str]
    missing: str
    note: str = ""

    def protocol(self, analysis: Analysis) -> list[tuple[str, str]]:
        """How the numbers were made, as terms and sentences."""
        how = analysis.inference
        terms = [
            ("Estimand", self.estimand),
            ("Unit", self.unit),
            ("Interval", self.interval.format(level=how.percent, refits=how.n_refits)),
            ("n", self.n(analysis)),
            ("Note", self.note),
        ]
        return [(term, text) for term, text in terms if text]


def _shifted(analysis: Analysis) -> str:
    store = analysis.files.shifted
    if store is None:
        return _natural(analysis)
    return (
        f"{store.n_items} windows of {store.window} tokens at positions {listed(store.prefixes)}, "
        f"{first_token(store)} at position 0; {store.n_layers} layers, {store.n_heads} heads, "
        f"offsets {listed(store.offsets)}."
    )


def _natural(analysis: Analysis) -> str:
    store = analysis.files.natural
    if store is None:
        return ""
    return (
        f"{store.n_items} sequences of {store.length} tokens, {first_token(store)} at position 0."
    )


def _both(analysis: Analysis) -> str:
    parts = {"Shifted": _shifted, "Natural": _natural}
    there = {
        name: text
        for name, text in parts.items()
        if getattr(analysis.files, name.lower()) is not None
    }
    return " ".join(f"{name}: {text(analysis)}" for name, text in there.items())


def _repeated(analysis: Analysis) -> str:
    store = analysis.files.repeated or analysis.files.bos_repeated
    if store is None:
        return ""
    return f"{store.n_items} tokens, each repeated to {store.length} tokens."


def _paired(table: str) -> Callable[[Analysis], str]:
    def describe(analysis: Analysis) -> str:
        pairs = int(analysis.tables[table]["n"].min())
        return f"{pairs} items in both captures. {_shifted(analysis)}"

    return describe


ITEM = "The item: a window with all its prefixes, or a sequence in the natural design."
SEQUENCE = "The sequence."
SCORES = "a shifted capture with all scores (posprobe capture MODEL --design shifted --bos force)"
NATURAL = "a natural capture (posprobe capture MODEL --design natural)"
SECTIONS = (
    Section(
        name="position",
        title="How does attention change with absolute position?",
        needs="position_effects",
        figures=(
            "position_effects",
            "position_effects_first_third",
            "position_effects_middle_third",
            "position_effects_last_third",
        ),
        finding=findings.position_effects,
        estimand="T(p) = a(p) − a(ref): change of the log attention weight at a fixed offset, for "
        "keys inside the window, between position p and the latest. M(p) = −(z_mask(p) − z(ref)): "
        "the late row's denominator, had the row seen only the keys that position p shows. "
        "R = T − M. S: the part of R made by key 0's score relative to the local mean.",
        unit=ITEM,
        interval="{level}. Cluster bootstrap of items, estimate ± t × standard error; pointwise.",
        n=_shifted,
        note="All are differences within one row: adding a constant to the scores of a query "
        "changes none of them.",
        missing=SCORES,
    ),
    Section(
        name="channels",
        title="How much is mask and how much residual stream, layer by layer?",
        needs="channels_by_layer",
        figures=("channels_shifted", "channels_natural", "shares", "precision"),
        finding=findings.channels,
        estimand="V_T = V_M + V_R + 2 C: variances over positions of T, M and R by a U-statistic "
        "over pairs of different items, free of content noise and never clipped. Shares: "
        "(V + C)/V_T.",
        unit=ITEM,
        interval="{level}. Variances: cluster bootstrap of items, t. Shares: Fieller on jackknife "
        "pseudo-values; undefined where V_T is not distinguishable from 0.",
        n=_both,
        note="Layers are not corrected for their number. In the natural design content differs "
        "between positions, which widens its intervals. At layer 0 the residual stream is the "
        "embedding and holds no position; a little R is open there all the same. "
        f"{WHY_LAYER_0}",
        missing=SCORES,
    ),
    Section(
        name="heads",
        title="Which heads?",
        needs="channels_by_head",
        figures=("heads_mask", "heads_residual", "heads_share", "channels_by_offset"),
        finding=findings.heads,
        estimand="V_M, V_R and shares as above, for each head by itself.",
        unit=ITEM,
        interval="Every head's intervals and adjusted p-values (max-T over all heads, one set of "
        "bootstrap weights) are in tables/channels_by_head.csv; offset by offset and by range of "
        "queries (adjusted over all of these at once) in tables/channels_by_offset.csv.",
        n=_shifted,
        note="Heads have the mean of the offsets' variances. Offset by offset all are averaged "
        "over the same rows of the window, so that M, which holds no score at an offset, is the "
        "same at all. T is what is observed, however the mask is shrunk; its division into M and R "
        "depends on that.",
        missing=SCORES,
    ),
    Section(
        name="probes",
        title="Can position be read off a layer?",
        needs="probes",
        figures=("probes", "probes_error", "partition", "partition_shapley"),
        finding=findings.probes,
        estimand="R² and mean absolute error, out of fold, of ridge probes for the position: from "
        "the log-normalizers of a layer's heads (N), from the residual stream that enters it (R), "
        "from both (J). Unique and shared parts are contrasts of R² on the same folds.",
        unit="The sequence, for folds and for resampling; position 0 is left out.",
        interval="{level}. fixed_probe: these probes held fixed, cluster bootstrap of sequence "
        "scores, percentiles. refit: the average probe at this n, fitted anew in each of "
        "{refits} bootstrap samples, t.",
        n=_natural,
        note="5 folds; the penalty is chosen on the same folds, one per group in the joint probe. "
        "A random guess among n positions is off by (n² − 1)/(3n) tokens.",
        missing=f"{NATURAL} that keeps the residual stream",
    ),
    Section(
        name="denominator",
        title="How much of the position in attention patterns is the denominator?",
        needs="fixed_denominator",
        figures=("fixed_denominator",),
        finding=findings.denominator,
        estimand="R² of ridge probes for the position from log attention weights at fixed offsets "
        "(P), from the scores at the same offsets (P_fix: attention under a constant "
        "denominator), and their difference.",
        unit=SEQUENCE,
        interval="{level}. fixed_probe: cluster bootstrap of sequence scores with one set of "
        "weights for both probes and all layers, percentiles.",
        n=_natural,
        note="A constant added to all scores of a query changes no attention, but P_fix sees it: "
        "P_fix is about scores.",
        missing=f"{NATURAL} of 5 sequences or more, with scores at offsets",
    ),
    Section(
        name="sinks",
        title="Which heads attend to position 0?",
        needs="sinks",
        figures=("sinks", "sink_rates", "sink_writing"),
        finding=findings.sinks,
        estimand="Attention to key 0, averaged over the queries of a sequence. Sink rate: share of "
        "sequences where it is above 0.3. Written: norm of A_i0 v_0 W_O.",
        unit=SEQUENCE,
        interval="{level}. Cluster bootstrap of sequences, t; ratio of what heads write: Fieller.",
        n=_natural,
        missing=NATURAL,
    ),
    Section(
        name="position0",
        title="Is position 0 a closed system, and what does it leave?",
        needs="closed_system",
        figures=(
            "position0_norm",
            "position0_cosine",
            "position0_dimensions",
            "position0_closure",
            "position0_fingerprint",
        ),
        finding=findings.position0,
        estimand="Difference of position 0 to a run on its token alone, relative to the norm of "
        "the latter. Spread: mean distance of an input's position 0 to the mean input's, relative "
        "to its norm.",
        unit="The sequence; items in the shifted design.",
        interval="None in these figures, which describe. The claims' are Student's t over units.",
        n=_both,
        missing=NATURAL,
    ),
    Section(
        name="repeated",
        title="With the residual channel closed, is the mask all that is left?",
        needs="repeated",
        figures=("repeated", "bos_repeated"),
        finding=findings.repeated,
        estimand="Largest |M| and |R| over items, positions, heads and offsets. One token repeated "
        "makes all hidden states equal, so that R must be 0 to float precision; a BOS in front "
        "opens the residual channel.",
        unit="The repeated token.",
        interval="None here: a largest value. The claim's: Student's t over tokens.",
        n=_repeated,
        missing="a capture of one repeated token (posprobe capture MODEL --design repeated)",
    ),
    Section(
        name="replacement",
        title="What does the embedding at position 0 carry?",
        needs="replacement",
        figures=(
            "replacement",
            "replacement_sinks",
            "specification",
            "specification_choices",
        ),
        finding=findings.replacement,
        estimand="1 − V_R(replaced)/V_R(native), mean over layers, heads and offsets. Early: "
        "prefixes up to an eighth of the length, against the latest.",
        unit="The item, paired: the same windows and prefixes, another embedding at position 0.",
        interval="{level}. Fieller on jackknife pseudo-values of the two U-statistics; unbounded "
        "where the native V_R is not distinguishable from 0.",
        n=_paired("replacement"),
        note="The primary specification (mean embedding, early queries) was fixed beforehand; the "
        "study's own is not known. Specifications share their data: they are no independent tests.",
        missing="shifted captures with position 0 native and replaced "
        "(posprobe capture MODEL --design shifted --bos force --position0 mean)",
    ),
    Section(
        name="cuts",
        title="What dies when heads cannot see key 0?",
        needs="cut_sink",
        figures=("cut_sink",),
        finding=findings.cut_sink,
        estimand="1 − V_R(cut)/V_R(native), over all positions: in the heads that no compared "
        "capture cuts, so that hiding key 0 is not itself counted; and in all heads with key 0 "
        "left out of every denominator, in the native run too.",
        unit="The item, paired.",
        interval="{level}. Fieller on jackknife pseudo-values, over items; random draws of heads "
        "are the draws that were made.",
        n=_paired("cut_sink"),
        note="Sink-reading heads were chosen on one half of the natural sequences.",
        missing="shifted captures with key 0 hidden (posprobe audit MODEL --full)",
    ),
    Section(
        name="masks",
        title="What is left under another mask?",
        needs="masks",
        figures=("mask_layers", "mask_probes"),
        finding=findings.masks,
        estimand="V_T, V_M and V_R as above, with no causal mask or with a window in every layer. "
        "Behind the window's length a row sees equally many keys at every position and no key 0: "
        "M = 0 and T = R. R² of ridge probes for the position from the normalizers.",
        unit="The item, paired; the sequence for the probes.",
        interval="{level}. Cluster bootstrap of items, t, layers not adjusted for their number; "
        "probes as fitted: percentiles.",
        n=_paired("masks"),
        note="The model was trained with its own mask: under another it is another system. Without "
        "a causal mask the shifted design still tells the length of the sequence, which grows with "
        "the prefix, so that V_T there is no residual channel; the natural design holds it fixed. "
        "Check: the normalizers that the forward pass used equal those of the keys shown.",
        missing="shifted captures under another mask (posprobe audit MODEL --full)",
    ),
)
