"""The vocabulary of the study and of posprobe, in a sentence or two each, and the report's limits.

docs/glossary.md prints the same words; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GLOSSARY", "LIMITS", "VOCABULARY", "Term"]


class Term(NamedTuple):
    """One word for one thing.

    Attributes
    ----------
    name : str
    meaning : str
        One or two plain sentences.
    where : str
        The file, column, flag or name in Python where the word appears.
    in_report : bool
        Whether the report on one model uses it, and so explains it.
    """

    name: str
    meaning: str
    where: str
    in_report: bool = True


VOCABULARY: dict[str, tuple[Term, ...]] = {
    "Attention": (
        Term(
            "score",
            "The number s that enters the softmax for a query and a key, in nats.",
            "data sets `sink_score`, `offset_score`",
        ),
        Term(
            "normalizer",
            "z, the logarithm of a query's softmax denominator, in nats. It grows with the number "
            "of keys that the mask shows.",
            "data set `normalizer`; feature group N",
        ),
        Term(
            "log attention weight",
            "a = s − z: the score of a query and a key, less the query's normalizer.",
            "columns `T`: its change with position",
        ),
        Term(
            "residual stream",
            "The vector of a token that enters a block; every block reads it and adds to it.",
            "data set `residual`; feature group R; `--layers`, `--positions`",
        ),
        Term(
            "offset",
            "The position of a query less the position of a key, in tokens.",
            "attribute `offsets`; column `offset` of `channels_by_offset`",
        ),
        Term(
            "band of rotation",
            "The pairs of a head's dimensions that a rotary embedding turns about as often over "
            "the longest sequence; dimensions that do not turn are a band of their own.",
            "`--bands`, `--zero-band`; table `bands`; data sets that begin with `band_`",
        ),
        Term(
            "native",
            "The model as it is: its own mask, its own denominators, its own embedding at "
            "position 0.",
            "`--position0 native`; columns that begin or end with `native`",
        ),
    ),
    "The two channels": (
        Term(
            "position effect",
            "The mean of a measured number over items, as a function of position.",
            "table `position_effects`",
        ),
        Term(
            "total (T)",
            "The change of a log attention weight at a fixed offset when its query and key move "
            "from the reference to position p.",
            "columns `T` and `V_T`",
        ),
        Term(
            "mask channel (M)",
            "The part of T that the changing extent of the causal mask makes by itself, through "
            "the denominator: a late row sees only the keys that it would see at position p.",
            "columns `M` and `V_M`",
        ),
        Term(
            "residual channel (R)",
            "R = T − M: the part of T that the residual stream makes.",
            "columns `R` and `V_R`",
        ),
        Term(
            "sink part (S)",
            "The part of R that the score with key 0 makes, relative to the mean score at the "
            "fixed offsets.",
            "columns `S` and `V_S`",
        ),
        Term(
            "V_T, V_M, V_R, C",
            "Variances over positions of T, M and R, and the covariance of M and R, in squared "
            "nats: V_T = V_M + V_R + 2 C.",
            "tables `channels`, `channels_by_layer`, `channels_by_head`, where C is `C_MR`",
        ),
        Term(
            "share",
            "A channel's part of V_T: (V_M + C)/V_T for the mask, (V_R + C)/V_T for the residual "
            "stream. The two add to 1, and one is negative only where −C exceeds its V_M or V_R.",
            "columns `share_mask`, `share_residual`",
        ),
        Term(
            "undefined",
            "The state of a share where V_T is not distinguishable from 0. No number is given: "
            "there is nothing to divide.",
            "column `status`",
        ),
        Term(
            "relation",
            "The two channels oppose each other where the interval of C lies below 0, and "
            "reinforce each other where it lies above 0.",
            "column `relation`: `opposed`, `reinforcing`, `not distinguishable`",
        ),
    ),
    "Position 0": (
        Term(
            "attention sink",
            "Key 0, where it draws a large share of attention.",
            "table `sinks`",
        ),
        Term(
            "sink score",
            "The score of a query with key 0.",
            "data set `sink_score`",
        ),
        Term(
            "sink rate",
            "The share of sequences in which a head's attention to key 0, averaged over queries, "
            "is above 0.3 (Gu et al. 2024, arXiv 2410.10781).",
            "column `sink_rate` of `sinks` and `sink_heads`",
        ),
        Term(
            "sink-reading head",
            "A head whose sink rate is above 0.5 on one half of the sequences. What the report "
            "then says of it comes from the other half.",
            "column `sink_reading` of `sink_heads`; `posprobe.analysis.sink_reading_heads`",
        ),
        Term(
            "closure",
            "Position 0 is closed if nothing but its own token reaches it: its residual stream is "
            "then the same as in a run on that token alone.",
            "table `closed_system`; data set `position0_alone`",
        ),
        Term(
            "fingerprint",
            "The trajectory of position 0 through the layers, which its token determines.",
            "table `fingerprint`",
        ),
        Term(
            "treatment of position 0",
            "What a capture does to the embedding at position 0: `native` leaves it alone; "
            "`special`, `content`, `mean`, `noise` and `zero` replace it. All but `native` are "
            "replacements.",
            "`--position0`; attribute `position0_treatment`; table `replacement`",
        ),
        Term(
            "fraction removed",
            "1 − V_R(changed)/V_R(native): how much of the residual channel a replacement or an "
            "intervention takes away. It is negative where V_R grows.",
            "column `fraction_removed` of `replacement`, `cut_sink`, `specification`",
        ),
    ),
    "What is run": (
        Term(
            "text",
            "What sequences are drawn from: one document or several, with a name and a digest.",
            "`--text`; `corpus` and `text` in the attribute `stimulus`; `posprobe.stimuli.Text`",
            in_report=False,
        ),
        Term(
            "document",
            "A part of a text that belongs together: a file, a row of a data set. No sequence lies "
            "across two documents that are each long enough for one.",
            "`--text-field`; `documents` and `joined` in the attribute `stimulus`",
            in_report=False,
        ),
        Term(
            "corpus",
            "The token ids of a text, document by document, without special tokens.",
            "`posprobe.stimuli.Corpus`",
            in_report=False,
        ),
        Term(
            "design",
            "How the sequences of a stimulus are drawn: `natural`, `shifted`, `iid` or `repeated`.",
            "`--design`; attribute `design`",
        ),
        Term(
            "window",
            "In the shifted design, the piece of text that is the same at every position. A "
            "sliding window is something else: the number of nearest keys that a layer can see.",
            "`--window`; attributes `window` and, for the sliding window, `layer_window`",
        ),
        Term(
            "prefix",
            "The tokens ahead of a window, the one at position 0 included.",
            "attribute `prefixes`; data set `prefix_length`",
        ),
        Term(
            "position",
            "The number of tokens ahead of a token; for a window, the length of its prefix. The "
            "latest position of a window is the reference of T, M and R.",
            "column `position`; `--positions`",
        ),
        Term(
            "early queries",
            "Queries behind prefixes of at most an eighth of the longest sequence.",
            "column `positions`: `early`, `late`, `all`",
        ),
        Term(
            "item",
            "The content that a statistic counts once: a window with all its prefixes in the "
            "shifted design, a sequence in the others.",
            "data set `item`; columns `n`",
        ),
        Term(
            "unit",
            "What is drawn as a whole in resampling: an item, or a sequence; never a token.",
            "the protocol of every section; `n` in claims.json",
        ),
        Term(
            "variant",
            "A change of attention that belongs to the model, such as `ntk(8)` or `window(64)`. "
            "All captures of one report share it.",
            "`--variant`, `--variants`; attribute `variant`",
        ),
        Term(
            "intervention",
            "A change of attention in one capture, which is set against the native one: key 0 "
            "hidden from heads, a fixed denominator, no causal mask, or a sliding window.",
            "`audit --full`, `--cut-sink`; attribute `interventions`; "
            "`posprobe.models.Intervention`",
        ),
        Term(
            "condition",
            "One state in which the same items are captured: native, with a replacement at "
            "position 0, or under an intervention.",
            "tables `cut_sink`, `masks`, `replacement`",
        ),
        Term(
            "capture",
            "A stimulus run through a model in one condition, and the file that holds what was "
            "recorded.",
            "`posprobe capture`; `posprobe.ActivationStore`",
            in_report=False,
        ),
        Term(
            "quantity",
            "What a capture records at every layer: one data set of the file.",
            "attribute `quantities`; `posprobe.store.DATA_SETS` (in tables, the column `quantity` "
            "names the number in its row)",
            in_report=False,
        ),
    ),
    "Estimates": (
        Term(
            "estimand",
            "What a number is an estimate of, in which population.",
            "column `estimand`; the protocol of every section",
        ),
        Term(
            "level",
            "The fraction of studies in which an interval contains its estimand, such as 0.95.",
            "`ci_level` in claims.json",
        ),
        Term(
            "probe",
            "A ridge regression that reads position from the normalizers of a layer's heads (N), "
            "from the residual stream that enters it (R), or from both (J).",
            "tables `probes`, `partition`; `posprobe.PositionProbe`",
        ),
        Term(
            "fixed_probe",
            "The R² of these probes as they were fitted. Its interval says how the R² would vary "
            "with other sequences to score.",
            'column `estimand`; `interval("fixed_probe")`',
        ),
        Term(
            "refit",
            "The R² of the average probe that this number of sequences gives. Its interval "
            "includes the variation from fitting.",
            'column `estimand`; `interval("refit")`',
        ),
        Term(
            "Fieller interval",
            "All ratios that a paired t test does not reject. It is unbounded where the "
            "denominator is not distinguishable from 0.",
            "`ci_method` in claims.json; column `method`",
        ),
        Term(
            "unbounded",
            "The data exclude no ratio, or hardly any, so no verdict follows from the interval.",
            "`ci_method` in claims.json; empty `low` and `high`",
        ),
        Term(
            "claim",
            "One sentence of the study, or of posprobe's own protocol, that an interval can "
            "support or contradict.",
            "claims.json; `posprobe.claims.Claim`",
        ),
        Term(
            "verdict",
            "What an interval says of a claim. Supported: the whole interval lies where the claim "
            "says; contradicted: the whole interval lies elsewhere; negligible: the whole interval "
            "is nearer to 0 than the smallest effect worth a sentence, fixed beforehand (0.0001 "
            "nats², which changes attention weights by one percent; an R² of 0.02; a share of "
            "0.05); inconclusive: none of these.",
            "`verdict` in claims.json",
        ),
        Term(
            "adjusted verdict",
            "The verdict that is left when the claims that answer one question are counted "
            "together. Each has a p-value, 1 − the level at which its interval would lose the "
            "verdict, which Holm's method adjusts; a verdict whose adjusted p-value is not below "
            "1 − level is inconclusive. Summaries count these.",
            "`verdict_adjusted`, `p_value`, `p_adjusted`, `family` in claims.json",
        ),
        Term(
            "check",
            "What shows that a capture did what it was asked to do: the mask that its layers had, "
            "the heads that saw no key 0, the token at position 0.",
            "table `checks`",
        ),
    ),
    "Several models": (
        Term(
            "architecture",
            "A kind of model. Models of one architecture differ by training only, and they are "
            "the sample.",
            "`--architecture`; column `architecture`",
            in_report=False,
        ),
        Term(
            "comparison",
            "Several models, or several variants of one checkpoint, measured side by side. Other "
            "contrasts are named by what they contrast.",
            "`posprobe compare`; comparison.json",
            in_report=False,
        ),
        Term(
            "lineup",
            "The models of a comparison, with their architectures and their files.",
            "`posprobe.comparison.line_up`",
            in_report=False,
        ),
        Term(
            "response",
            "The number that stage one keeps of each model: its value at mean depth (`intercept`) "
            "or its `slope` over depth.",
            "column `response` of `contrasts`; `posprobe.architectures.Contrast`",
            in_report=False,
        ),
        Term(
            "hypothesis",
            "H1, H2 or H3 of the study. It is supported where all its claims are, and "
            "contradicted where one of them is.",
            "`answers` in comparison.json",
            in_report=False,
        ),
    ),
}
GLOSSARY = {
    term.name: term.meaning.replace("`", "")
    for terms in VOCABULARY.values()
    for term in terms
    if term.in_report
}
LIMITS = (
    "The report is about one model and cannot test claims about architectures; other models may "
    "behave differently.",
    "posprobe relies on the study's abstract and does not know its protocols. A contradicted claim "
    "is contradicted under the protocol printed with it.",
    "The split T = M + R is exact arithmetic, but it rests on a choice: posprobe shrinks the mask "
    "of the late row rather than widening that of the early one.",
    "Probes are linear, and they were fitted on the number of sequences given. What they cannot "
    "read may still be there, and probes fitted on more sequences would read more.",
    "Items are a sample of the text that they were drawn from; another text may give other "
    "numbers.",
    "Intervals are not adjusted for the number of claims, layers or heads unless the report says "
    "so. P-values of claims are adjusted for the claims that answer the same question, not for all "
    "questions together.",
)
