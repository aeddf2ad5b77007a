"""The questions of the report, in order: a finding and a protocol for each."""

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
    family : str
        The question of the claims that the section is about, of `posprobe.claims.FAMILIES`.
    title : str
        The question.
    needs : str
        The table that the section is about; without it the section is left out.
    figures : tuple of str
        Names in `posprobe.figures.PANELS`.
    finding : callable
        From an analysis to the answer, in sentences.
    estimand, unit, interval : str
        What is estimated, what is resampled, how the interval is made (``{level}``: its level).
    n : callable
        From an analysis to the numbers of items, sequences, layers and heads.
    note : str
        What else a reader has to know.
    missing : str
        The capture that would provide it.
    """

    name: str
    family: str
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
            ("What is estimated", self.estimand),
            ("What counts once, and is resampled", self.unit),
            ("How sure", self.interval.format(level=how.percent, refits=how.n_refits)),
            ("How many", self.n(analysis)),
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


def _conditions(analysis: Analysis) -> str:
    table = analysis.tables["conditions"]
    return f"{len(table)} conditions of {table['n'].min()} items or more each."


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
        family="channels",
        title="How does attention change with absolute position?",
        needs="position_effects",
        figures=(
            "position_effects",
            "balance_of_variance",
            "position_effects_first_third",
            "position_effects_middle_third",
            "position_effects_last_third",
        ),
        finding=findings.position_effects,
        estimand="T(p) = a(p) − a(ref): change of the log attention weight at a fixed offset, for "
        "keys inside the window, between position p and the latest. M(p) = −(z_mask(p) − z(ref)), "
        "where z_mask(p) is the late row's normalizer if the row saw only the keys that position p "
        "shows. R = T − M. S: the part of R that comes from key 0's score, relative to the mean "
        "score at the fixed offsets.",
        unit=ITEM,
        interval="{level}. Studentised bootstrap of items; pointwise.",
        n=_shifted,
        note="T, M, R and S are differences within one row, so adding a constant to the scores of "
        "a query leaves them unchanged.",
        missing=SCORES,
    ),
    Section(
        name="channels",
        family="channels",
        title="How much is mask and how much residual stream, layer by layer?",
        needs="channels_by_layer",
        figures=("channels_shifted", "channels_natural", "shares", "precision"),
        finding=findings.channels,
        estimand="V_T = V_M + V_R + 2 C: variances over positions of T, M and R by a U-statistic "
        "over pairs of different items, free of content noise and never clipped. Shares: "
        "(V + C)/V_T.",
        unit=ITEM,
        interval="{level}. Variances: studentised bootstrap of items. Shares: Fieller on jackknife "
        "pseudo-values; undefined where V_T is not distinguishable from 0.",
        n=_both,
        note="Intervals are not adjusted for the number of layers. In the natural design content "
        "differs between positions, which widens its intervals. At layer 0 the residual stream is "
        f"the embedding, which does not contain position; even so R is not quite 0. {WHY_LAYER_0}",
        missing=SCORES,
    ),
    Section(
        name="heads",
        family="channels",
        title="Which heads?",
        needs="channels_by_head",
        figures=("heads_mask", "heads_residual", "heads_share", "channels_by_offset"),
        finding=findings.heads,
        estimand="V_M, V_R and shares as above, for each head by itself.",
        unit=ITEM,
        interval="tables/channels_by_head.csv has every head's intervals and adjusted p-values "
        "(max-T over all heads, one set of bootstrap weights); tables/channels_by_offset.csv has "
        "those by offset and range of queries (adjusted over all of these at once).",
        n=_shifted,
        note="A head's variance is the mean of its variances at the offsets. By offset, all "
        "effects are averaged over the same rows of the window; M does not depend on the score at "
        "an offset, so it is the same at every offset. T is observed; its division into M and R "
        "depends on how the mask is shrunk.",
        missing=SCORES,
    ),
    Section(
        name="bands",
        family="channels",
        title="Which frequencies carry position?",
        needs="bands",
        figures=("bands",),
        finding=findings.bands,
        estimand="The part of a band in V_R: the covariance over positions of R by band and R. A "
        "score is a sum over bands of rotation, which are named by the turns that their pairs of "
        "dimensions make over the longest sequence; a normalizer is the sum of their Shapley "
        "values and of the logarithm of the number of keys. Likewise for T, M and S.",
        unit=ITEM,
        interval="{level}. Parts: studentised bootstrap of items. Shares: Fieller on jackknife "
        "pseudo-values; undefined where the channel's variance is not distinguishable from 0.",
        n=_shifted,
        note="Parts add up to the channel. A negative part works against the others. "
        "tables/bands.csv has T, M, R and S for every layer.",
        missing="a shifted capture with bands (posprobe capture MODEL --design shifted --bands 3)",
    ),
    Section(
        name="probes",
        family="probes",
        title="Can position be read off a layer?",
        needs="probes",
        figures=("probes", "probes_error", "partition", "partition_shapley"),
        finding=findings.probes,
        estimand="R² and mean absolute error, out of fold, of ridge probes for the position: from "
        "the log-normalizers of a layer's heads (N), from the residual stream that enters it (R), "
        "from both (J). Unique and shared parts are contrasts of R² on the same folds.",
        unit="The sequence, for folds and for resampling; position 0 is left out.",
        interval="{level}. fixed_probe: these probes held fixed, cluster bootstrap of sequence "
        "scores, t. refit: the average probe at this n, fitted anew in each of "
        "{refits} bootstrap samples, t.",
        n=_natural,
        note="5 folds; the penalty is chosen on the same folds, one per group in the joint probe. "
        "The mean error of a random guess among n positions is (n² − 1)/(3n) tokens.",
        missing=f"{NATURAL} that keeps the residual stream",
    ),
    Section(
        name="denominator",
        family="probes",
        title="How much of the position in attention patterns is the denominator?",
        needs="fixed_denominator",
        figures=("fixed_denominator",),
        finding=findings.denominator,
        estimand="R² of ridge probes for the position from log attention weights at fixed offsets "
        "(P), from the scores at the same offsets (P_fix: attention under a constant "
        "denominator), and their difference.",
        unit=SEQUENCE,
        interval="{level}. fixed_probe: cluster bootstrap of sequence scores with one set of "
        "weights for both probes and all layers, t.",
        n=_natural,
        note="Adding a constant to all scores of a query leaves attention unchanged but changes "
        "P_fix, which is computed from scores.",
        missing=f"{NATURAL} of 5 sequences or more, with scores at offsets",
    ),
    Section(
        name="sinks",
        family="sinks",
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
        family="position0",
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
        estimand="Difference: between position 0 and a run on its token alone, relative to the "
        "norm of the latter. Spread: mean distance of an input's position 0 from the mean over "
        "inputs, relative to the norm of that mean.",
        unit="The sequence; items in the shifted design.",
        interval="The figures describe, without intervals. Those of the claims are Student's t "
        "over units.",
        n=_both,
        missing=NATURAL,
    ),
    Section(
        name="repeated",
        family="exact",
        title="With the residual channel closed, is the mask all that is left?",
        needs="repeated",
        figures=("repeated", "bos_repeated"),
        finding=findings.repeated,
        estimand="Largest |M| and |R| over items, positions, heads and offsets. One token repeated "
        "makes all hidden states equal, so R must be 0 to float precision; a BOS in front opens "
        "the residual channel.",
        unit="The repeated token.",
        interval="The figures show largest values, without intervals. Those of the claims are "
        "Student's t over tokens.",
        n=_repeated,
        missing="a capture of one repeated token (posprobe capture MODEL --design repeated)",
    ),
    Section(
        name="replacement",
        family="replacement",
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
        "study's own is not known. Specifications share their data, so they are not independent "
        "tests.",
        missing="shifted captures with position 0 native and replaced "
        "(posprobe capture MODEL --design shifted --bos force --position0 mean)",
    ),
    Section(
        name="conditions",
        family="channels",
        title="Does it hold in other conditions?",
        needs="conditions",
        figures=("conditions", "condition_replacement"),
        finding=findings.conditions,
        estimand="V_M, V_R and C as above, in each condition by itself: what stands at position 0, "
        "which text, how many tokens. Differences between tokens at position 0 are over the same "
        "windows. Over texts: the mean over texts, which are a sample of the texts one could take.",
        unit="The item; for the limits over texts, the text.",
        interval="{level}. Over items of a text: studentised bootstrap of items; differences "
        "paired by item. Over texts: t, with one degree of freedom less than there are texts.",
        n=_conditions,
        note="Conditions are not adjusted for their number. tables/conditions.csv has all of them, "
        "tables/condition_differences.csv the paired differences, and tables/condition_texts.csv "
        "the means over three texts or more. Shuffled tokens are a control, not a text.",
        missing="shifted captures in two conditions (posprobe audit MODEL --conditions "
        "'position0=native,bos text=code')",
    ),
    Section(
        name="cuts",
        family="sinks",
        title="What is lost when heads cannot see key 0?",
        needs="cut_sink",
        figures=("cut_sink",),
        finding=findings.cut_sink,
        estimand="1 − V_R(cut)/V_R(native), over all positions, measured in two ways: in the heads "
        "that no compared capture cuts (heads left whole), which leaves out what hiding key 0 does "
        "by itself; and in all heads, with key 0 left out of every denominator, in the native run "
        "too (without key 0).",
        unit="The item, paired.",
        interval="{level}. Fieller on jackknife pseudo-values, over items. The random draws of "
        "heads are taken as fixed.",
        n=_paired("cut_sink"),
        note="Sink-reading heads were chosen on one half of the natural sequences.",
        missing="shifted captures with key 0 hidden (posprobe audit MODEL --full)",
    ),
    Section(
        name="masks",
        family="masks",
        title="What is left under another mask?",
        needs="masks",
        figures=("mask_layers", "mask_probes"),
        finding=findings.masks,
        estimand="V_T, V_M and V_R as above, without the causal mask or with a sliding window in "
        "every layer. At positions past the length of the sliding window a row sees the same "
        "number of keys everywhere, key 0 not among them: M = 0 and T = R. R² of ridge probes for "
        "the position from the normalizers.",
        unit="The item, paired; the sequence for the probes.",
        interval="{level}. Cluster bootstrap of items, studentised, layers not adjusted for their "
        "number; probes as fitted: t.",
        n=_paired("masks"),
        note="The model was trained with its own mask; under another it is another system. Without "
        "the causal mask V_T reflects sequence length, not the residual channel: in the shifted "
        "design sequences grow with the prefix. The natural design holds length fixed. Check: the "
        "normalizers that the forward pass used equal those of the keys shown.",
        missing="shifted captures under another mask (posprobe audit MODEL --full)",
    ),
)
