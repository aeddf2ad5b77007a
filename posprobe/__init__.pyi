from .captures import capture
from .channels import decompose
from .comparing import compare
from .errors import PosprobeError
from .intervals import Interval
from .mixed import compare_architectures
from .models import load_model
from .partition import VariancePartition
from .ridge import GroupRidgeCV, PositionProbe
from .stimuli import Stimulus, make_stimulus
from .store import ActivationStore
from .study import audit

__version__: str

__all__ = [
    "ActivationStore",
    "GroupRidgeCV",
    "Interval",
    "PositionProbe",
    "PosprobeError",
    "Stimulus",
    "VariancePartition",
    "audit",
    "capture",
    "compare",
    "compare_architectures",
    "decompose",
    "load_model",
    "make_stimulus",
]
