"""Stored files of several models -> tables.

lineup  who is compared with whom: models of architectures, or variants of one checkpoint
tables  tables and tests
sinks   what is shown beside them: sinks, replaced position 0, checks
"""

from posprobe.comparison.lineup import line_up
from posprobe.comparison.tables import PRIMARY, RELATIVE, VALUES, Comparison, compare_lineup

__all__ = ["PRIMARY", "RELATIVE", "VALUES", "Comparison", "compare_lineup", "line_up"]
