"""Sufficient statistics of each sequence, which allow any linear fit after one pass over the data.

cluster_gram  holds the Gram matrices of all sequences
rows          checks rows of data and computes their products
"""

from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.gram.rows import Block

__all__ = ["Block", "ClusterGram"]
