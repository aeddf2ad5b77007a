"""Across architectures: the two-stage test, and a mixed model that says whether to believe it.

`summaries` (one value and one slope per model), `two_stage` (F tests and contrasts on them),
`components` (closed forms of the mixed model), `fit` and `result` (its optimum, by statsmodels, and
its status), `compare` and `comparison` (all of it on one table), `paired` (variants of one
checkpoint, over the items that they share).
"""

from posprobe.mixed.compare import compare_architectures
from posprobe.mixed.comparison import ArchitectureComparison, ContrastResult
from posprobe.mixed.fit import fit_mixed
from posprobe.mixed.paired import paired_contrasts
from posprobe.mixed.result import MixedFit, likelihood_ratio
from posprobe.mixed.summaries import ModelSummary
from posprobe.mixed.two_stage import (
    Contrast,
    FTest,
    contrast_interval,
    planned_contrasts,
    two_stage_f,
    welch_f,
)

__all__ = [
    "ArchitectureComparison",
    "Contrast",
    "ContrastResult",
    "FTest",
    "MixedFit",
    "ModelSummary",
    "compare_architectures",
    "contrast_interval",
    "fit_mixed",
    "likelihood_ratio",
    "paired_contrasts",
    "planned_contrasts",
    "two_stage_f",
    "welch_f",
]
