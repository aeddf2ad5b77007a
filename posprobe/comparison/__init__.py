"""From stored files of several models to tables.

lineup    who is compared with whom: models of architectures, or variants of one checkpoint
tables    tables and tests
sinks     tables without tests: sinks, replacement of position 0, checks
training  checkpoints of one training run, in the order of their steps
"""

from posprobe.comparison.lineup import line_up
from posprobe.comparison.tables import PRIMARY_VALUE, RELATIVE, VALUES, Comparison, compare_lineup
from posprobe.comparison.training import CURVES, Training, TrainingRun, follow, line_up_steps

__all__ = [
    "CURVES",
    "PRIMARY_VALUE",
    "RELATIVE",
    "VALUES",
    "Comparison",
    "Training",
    "TrainingRun",
    "compare_lineup",
    "follow",
    "line_up",
    "line_up_steps",
]
