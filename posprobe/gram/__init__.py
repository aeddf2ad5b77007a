"""Sufficient statistics per sequence: every linear fit from one pass over the data."""

from posprobe.gram.cluster_gram import ClusterGram
from posprobe.gram.rows import Block

__all__ = ["Block", "ClusterGram"]
