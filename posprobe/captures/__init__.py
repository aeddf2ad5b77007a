"""Stimuli through a model into a file.

options    what is kept and what is changed
plan       everything that is decided before the first forward pass
position0  treatments of position 0
run        the capture itself
selection  which layers and positions are kept
cluster    the same on many machines
"""

from posprobe.captures.cluster import capture_distributed, connect
from posprobe.captures.options import OFFSETS, QUANTITIES, CaptureOptions
from posprobe.captures.plan import check_length
from posprobe.captures.run import Consumer, capture, capture_stimulus

__all__ = [
    "OFFSETS",
    "QUANTITIES",
    "CaptureOptions",
    "Consumer",
    "capture",
    "capture_distributed",
    "capture_stimulus",
    "check_length",
    "connect",
]
