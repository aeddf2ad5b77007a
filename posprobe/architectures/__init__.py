"""Compare architectures, with models as the sample: a mixed model and its two-stage check.

summaries      reduces every model to one value and one slope
contrasts      tests planned contrasts between architectures
two_stage      tests the summaries for equal means
tables         makes any table of pandas a plain one
formulas       reads lme4's formulas against a table
components     evaluates the mixed model in closed form, from cross-products
signed         lets its variances be negative
optimum        finds its optimum
satterthwaite  tests its fixed effects
marginal       turns marginal means and type III hypotheses into weights of fixed effects
mixed_fit      holds the fitted mixed model and its status
mixed_model    fits it
paired         compares variants of one checkpoint over their common items
planning       says how many models a contrast needs
compare        runs the whole comparison on one table
result         holds what `compare_architectures` returns
"""

from posprobe.architectures.compare import compare_architectures
from posprobe.architectures.contrasts import (
    Contrast,
    contrast_interval,
    default_contrasts,
    planned_contrasts,
)
from posprobe.architectures.mixed_fit import MixedFit, likelihood_ratio
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.architectures.paired import paired_contrasts
from posprobe.architectures.planning import plan_models
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
    "default_contrasts",
    "fit_mixed",
    "likelihood_ratio",
    "paired_contrasts",
    "plan_models",
    "planned_contrasts",
    "two_stage_f",
    "welch_f",
]
