"""Stored files of one model -> tables: everything that claims, figures and report are made of.

files          which file answers what
steps          what a step of an analysis needs, and what it finds
tables         all tables of one model, and the numbers that claims rest on
checks, exact  manipulation checks; what must hold exactly
limits         up to where an identity counts as kept, by the rounding of its files
interventions  which interventions the files hold, each with its table
probes         absolute position from features, layer by layer
sinks          attention to key 0, head by head
position0      whether position 0 is closed, and what fingerprint it leaves
heads          who reads position 0, chosen on one half and measured on the other
cuts, masks    key 0 hidden from heads; attention without its mask, or behind a window
denominator    patterns and forward passes with a fixed denominator
replacement    position 0 replaced
specification  how much that removes, over all ways to say it, as one curve
precision      shifted against natural design
wording        a stored file in words
"""

from posprobe.analysis.checks import check
from posprobe.analysis.denominator import mean_normalizers
from posprobe.analysis.files import INTERVENTIONS, Files, sort_files
from posprobe.analysis.heads import (
    SINK_RATE,
    Head,
    held_back_half,
    random_heads,
    sink_reading_heads,
    strongest,
)
from posprobe.analysis.limits import FINEST_R2, Limit, floor, limit
from posprobe.analysis.masks import NO_MASK, mask_name
from posprobe.analysis.position0 import closed_system_table
from posprobe.analysis.replacement import PRIMARY_TREATMENT, replacement_table
from posprobe.analysis.sinks import share_of_sink_heads
from posprobe.analysis.tables import Analysis, analyze_files, possible_steps
from posprobe.analysis.wording import first_token, listed, n_units, shifted_design

__all__ = [
    "FINEST_R2",
    "INTERVENTIONS",
    "NO_MASK",
    "PRIMARY_TREATMENT",
    "SINK_RATE",
    "Analysis",
    "Files",
    "Head",
    "Limit",
    "analyze_files",
    "check",
    "closed_system_table",
    "first_token",
    "floor",
    "held_back_half",
    "limit",
    "listed",
    "mask_name",
    "mean_normalizers",
    "n_units",
    "possible_steps",
    "random_heads",
    "replacement_table",
    "share_of_sink_heads",
    "shifted_design",
    "sink_reading_heads",
    "sort_files",
    "strongest",
]
