"""Position from features, as scikit-learn estimators.

feature_matrix  a stored file as X, y, groups, feature_groups
accumulation    Grams gathered while a capture runs
gram/           sufficient statistics per sequence: every linear fit from one pass over the data
ridge/          ridge regression by feature group, scored by sequence
partition       unique, shared and Shapley R2
controls        permuted and shifted positions
"""

from posprobe.probes.accumulation import GramAccumulator
from posprobe.probes.controls import permute_positions, shift_positions, with_controls
from posprobe.probes.feature_matrix import feature_blocks, features
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.gram.rows import Block
from posprobe.probes.partition import VariancePartition
from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe, guess_error
from posprobe.probes.ridge.scored import Estimand

__all__ = [
    "Block",
    "ClusterGram",
    "Estimand",
    "GramAccumulator",
    "GroupRidgeCV",
    "PositionProbe",
    "VariancePartition",
    "feature_blocks",
    "features",
    "guess_error",
    "permute_positions",
    "shift_positions",
    "with_controls",
]
