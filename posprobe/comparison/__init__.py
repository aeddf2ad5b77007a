"""From stored files of several models to tables.

lineup  who is compared with whom: models of architectures, or variants of one checkpoint
tables  tables and tests
sinks   tables without tests: sinks, replacement of position 0, checks
"""

from posprobe.comparison.lineup import line_up
from posprobe.comparison.tables import PRIMARY_VALUE, RELATIVE, VALUES, Comparison, compare_lineup

__all__ = ["PRIMARY_VALUE", "RELATIVE", "VALUES", "Comparison", "compare_lineup", "line_up"]
