"""Across architectures: the two-stage test, and a mixed model that says whether to believe it.

`summaries` (one value and one slope per model), `two_stage` (F tests and contrasts on them),
`components` (closed forms of the mixed model), `fit` and `result` (its optimum, by statsmodels, and
its status), `compare` and `comparison` (all of it on one table).
"""

from posprobe.mixed.compare import compare_architectures
from posprobe.mixed.comparison import ArchitectureComparison, ContrastResult
from posprobe.mixed.fit import fit_mixed
from posprobe.mixed.result import MixedFit, likelihood_ratio
from posprobe.mixed.summaries import ModelSummary
from posprobe.mixed.two_stage import Contrast, FTest, planned_contrasts, two_stage_f

__all__ = [
    "ArchitectureComparison",
    "Contrast",
    "ContrastResult",
    "FTest",
    "MixedFit",
    "ModelSummary",
    "compare_architectures",
    "fit_mixed",
    "likelihood_ratio",
    "planned_contrasts",
    "two_stage_f",
]
