"""The words of the report in one sentence each, and what it cannot say."""

from __future__ import annotations

__all__ = ["GLOSSARY", "LIMITS"]

GLOSSARY = {
    "normalizer": "z, the logarithm of a query's softmax denominator, in nats; it grows with the "
    "number of keys that the mask shows.",
    "residual stream": "The vector of a token that enters a block; every block reads it and adds "
    "to it.",
    "position effect": "The mean over items of a quantity, as a function of position.",
    "total (T), mask channel (M), residual channel (R)": "T is the change of a log attention "
    "weight with position; M is what the changing extent of the causal mask does to it alone, "
    "through the denominator; R = T − M is what the residual stream does.",
    "V_T, V_M, V_R, C": "Variances over positions of T, M and R, and the covariance of M and R: "
    "V_T = V_M + V_R + 2 C.",
    "share": "A channel's part of V_T, (V + C)/V_T; the two add to 1, and one is negative where "
    "the channels oppose each other.",
    "undefined": "V_T is not distinguishable from 0, so that there is nothing to share and no "
    "number is given.",
    "attention sink": "Key 0 where it draws a large share of attention.",
    "sink score": "The score of a query with key 0.",
    "sink rate": "Of a head: the share of sequences whose attention to key 0, averaged over "
    "queries, is above 0.3 (Gu et al. 2024, arXiv 2410.10781).",
    "sink-reading head": "A head whose sink rate is above 0.5 on one half of the sequences; what "
    "is then reported of it comes from the other half.",
    "fingerprint": "The trajectory of position 0 through the layers, which the token that stands "
    "there determines.",
    "item": "What is resampled: a window with all its prefixes, or a sequence; never a token.",
    "fixed_probe": "The R² of these probes as they were fitted; its interval says how it would "
    "vary with other sequences to score.",
    "refit": "The R² of the average probe fitted on so many sequences; its interval holds the "
    "fitting too.",
    "Fieller interval": "All ratios that a paired t test does not reject; unbounded where the "
    "denominator is not distinguishable from 0.",
    "unbounded": "The data exclude no ratio: the interval is the whole line or nearly so, and no "
    "verdict is drawn from it.",
}
LIMITS = (
    "It tests no claim about architectures: with one model of each there is no test, and what is "
    "found is found in this model.",
    "The study's own protocols are not known here. A claim that is contradicted is contradicted "
    "under the protocol printed beside it.",
    "The split into T, M and R is exact as arithmetic. That the late row is the one whose mask is "
    "shrunk is a choice.",
    "Probes are linear, and were fitted on as many sequences as stated. What they do not read may "
    "be there all the same, and more sequences would read more.",
    "The population of items is the text that they were drawn from. Other text may differ.",
    "Intervals hold for each number by itself, unless they are said to be adjusted.",
)
