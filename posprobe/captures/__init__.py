"""Stimuli through a model into a file.

plan       everything that is decided before the first forward pass
position0  treatments of position 0
run        the capture itself
selection  which layers and positions are kept
cluster    the same on many machines
"""

from posprobe.captures.cluster import capture_distributed, connect
from posprobe.captures.plan import QUANTITIES
from posprobe.captures.run import Consumer, capture, capture_stimulus

__all__ = [
    "QUANTITIES",
    "Consumer",
    "capture",
    "capture_distributed",
    "capture_stimulus",
    "connect",
]
