"""Sufficient statistics per sequence: every linear fit from one pass over the data."""

from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.gram.rows import Block

__all__ = ["Block", "ClusterGram"]
