"""Run stimuli through a model and write what is observed to a file.

options    what a capture keeps and what it changes
plan       everything that is decided before the first forward pass
position0  treatments of position 0
run        captures on one machine
selection  which layers and positions are kept
cluster    captures on many machines
"""

from posprobe.captures.cluster import capture_distributed, connect
from posprobe.captures.options import OFFSETS, QUANTITIES, CaptureOptions
from posprobe.captures.plan import LENGTH, fitting_length, warn_of_length
from posprobe.captures.run import Consumer, capture, capture_stimulus, draw

__all__ = [
    "LENGTH",
    "OFFSETS",
    "QUANTITIES",
    "CaptureOptions",
    "Consumer",
    "capture",
    "capture_distributed",
    "capture_stimulus",
    "connect",
    "draw",
    "fitting_length",
    "warn_of_length",
]
