"""Models as the sample: the two-stage test, and a mixed model that says whether to believe it.

summaries    one value and one slope per model
contrasts    planned contrasts between architectures
two_stage    F tests on the summaries
components   closed forms of the mixed model
mixed_model  its optimum, by statsmodels
mixed_fit    what came out, with its status
paired       variants of one checkpoint, over the items that they share
compare      all of it on one table
result       what `compare_architectures` returns
"""

from posprobe.architectures.compare import compare_architectures
from posprobe.architectures.contrasts import Contrast, contrast_interval, planned_contrasts
from posprobe.architectures.mixed_fit import MixedFit, likelihood_ratio
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.architectures.paired import paired_contrasts
from posprobe.architectures.result import ArchitectureComparison, ContrastResult, adjust_secondary
from posprobe.architectures.summaries import ModelSummary
from posprobe.architectures.two_stage import FTest, two_stage_f, welch_f

__all__ = [
    "ArchitectureComparison",
    "Contrast",
    "ContrastResult",
    "FTest",
    "MixedFit",
    "ModelSummary",
    "adjust_secondary",
    "compare_architectures",
    "contrast_interval",
    "fit_mixed",
    "likelihood_ratio",
    "paired_contrasts",
    "planned_contrasts",
    "two_stage_f",
    "welch_f",
]
