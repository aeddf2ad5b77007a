"""Turn the stored files of one model into the tables behind its claims, figures and report.

files          sorts files by the question that each answers
steps          defines one step of an analysis: what it needs and what it finds
tables         runs all steps that the files allow
interventions  lists the steps that compare interventions with the native model
checks         reports what each file says about the model, the mask and the first token
exact          checks what must hold exactly, at layer 0 and with one token repeated
limits         says up to where an identity counts as kept, by the rounding of its files
probes         predicts absolute position from features, layer by layer
sinks          measures attention to key 0, head by head
position0      measures whether position 0 is closed, and how far it differs between inputs
heads          chooses sink-reading heads on one half of the sequences and measures the other
cuts           hides key 0 from some heads
masks          removes the causal mask, or adds a sliding window
denominator    fixes the softmax denominator, in stored patterns and in forward passes
replacement    replaces the embedding at position 0
specification  varies how the effect of a replacement is measured
conditions     compares what is at position 0, texts and lengths
precision      compares standard errors of the shifted and the natural design
wording        describes a stored file in words
"""

from posprobe.analysis.checks import check
from posprobe.analysis.conditions import measurable
from posprobe.analysis.cuts import cut_key
from posprobe.analysis.denominator import mean_normalizers
from posprobe.analysis.files import INTERVENTIONS, Condition, Files, condition_of, sort_files
from posprobe.analysis.heads import (
    SINK_RATE,
    Head,
    held_back_half,
    random_heads,
    sink_reading_heads,
    strongest,
)
from posprobe.analysis.limits import Limit, floor, limit
from posprobe.analysis.masks import NO_MASK, mask_name
from posprobe.analysis.position0 import closed_system_table
from posprobe.analysis.replacement import PRIMARY_TREATMENT, replacement_table
from posprobe.analysis.sinks import SINK_THRESHOLD, share_of_sink_heads, sink_attention
from posprobe.analysis.tables import Analysis, analyze_files, possible_steps
from posprobe.analysis.wording import (
    first_token,
    kept,
    listed,
    n_units,
    planned_items,
    shifted_design,
    way_of_writing,
)

__all__ = [
    "INTERVENTIONS",
    "NO_MASK",
    "PRIMARY_TREATMENT",
    "SINK_RATE",
    "SINK_THRESHOLD",
    "Analysis",
    "Condition",
    "Files",
    "Head",
    "Limit",
    "analyze_files",
    "check",
    "closed_system_table",
    "condition_of",
    "cut_key",
    "first_token",
    "floor",
    "held_back_half",
    "kept",
    "limit",
    "listed",
    "mask_name",
    "mean_normalizers",
    "measurable",
    "n_units",
    "planned_items",
    "possible_steps",
    "random_heads",
    "replacement_table",
    "share_of_sink_heads",
    "shifted_design",
    "sink_attention",
    "sink_reading_heads",
    "sort_files",
    "strongest",
    "way_of_writing",
]
