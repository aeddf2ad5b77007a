"""Predict position from features, with scikit-learn estimators.

feature_matrix  turns a stored file into X, y, groups and feature_groups
accumulation    gathers Gram matrices while a capture runs
gram/           holds sufficient statistics of each sequence, from one pass over the data
ridge/          fits ridge regressions by feature group, scored by sequence
partition       divides R2 between feature groups: unique, shared and Shapley parts
erasure         erases a concept from features, by the smallest linear change
controls        scores probes on permuted and shifted positions
shape           describes the mean stream by position: dimension, bend, log or linear
transfer        scores probes where they were not trained: positions, layers, texts
"""

from posprobe.probes.accumulation import GramAccumulator
from posprobe.probes.controls import permute_positions, shift_positions, with_controls
from posprobe.probes.erasure import Eraser, fit_eraser, position_slope
from posprobe.probes.feature_matrix import Features, feature_blocks, features
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.gram.rows import Block
from posprobe.probes.partition import VariancePartition
from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe, guess_error
from posprobe.probes.ridge.scored import Estimand, replicate_interval
from posprobe.probes.shape import Alignment, PositionShape, align_shapes, position_shape
from posprobe.probes.transfer import between, transfer_scores

__all__ = [
    "Alignment",
    "Block",
    "ClusterGram",
    "Eraser",
    "Estimand",
    "Features",
    "GramAccumulator",
    "GroupRidgeCV",
    "PositionProbe",
    "PositionShape",
    "VariancePartition",
    "align_shapes",
    "between",
    "feature_blocks",
    "features",
    "fit_eraser",
    "guess_error",
    "permute_positions",
    "position_shape",
    "position_slope",
    "replicate_interval",
    "shift_positions",
    "transfer_scores",
    "with_controls",
]
