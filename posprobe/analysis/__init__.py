"""From stored files to tables: everything that claims, figures and report are made of.

roles          which file answers what
tables         all tables of one model, and the numbers that claims rest on
isolation      which of the interventions there are, each with its table
probing        absolute position from features, layer by layer
replacement    position 0 replaced
specification  how much that removes, over all ways to say it, as one curve
heads          who reads position 0, chosen on one half and measured on the other
cuts, masks    key 0 hidden from heads; attention without its mask, or behind a window
denominator    patterns and forward passes with a fixed denominator
precision      shifted against natural design
"""

from posprobe.analysis.roles import Files, sort_files
from posprobe.analysis.tables import Analysis, analyze_files, count_steps

__all__ = ["Analysis", "Files", "analyze_files", "count_steps", "sort_files"]
