from .architectures import compare_architectures, fit_mixed
from .captures import capture
from .channels import decompose
from .errors import PosprobeError
from .intervals import Interval
from .models import load_model
from .probes import GroupRidgeCV, PositionProbe, VariancePartition
from .stimuli import Stimulus, make_stimulus
from .store import ActivationStore
from .workflows.analyze import analyze
from .workflows.audit import audit
from .workflows.compare import compare
from .workflows.plan import plan

__version__: str

__all__ = [
    "ActivationStore",
    "GroupRidgeCV",
    "Interval",
    "PositionProbe",
    "PosprobeError",
    "Stimulus",
    "VariancePartition",
    "analyze",
    "audit",
    "capture",
    "compare",
    "compare_architectures",
    "decompose",
    "fit_mixed",
    "load_model",
    "make_stimulus",
    "plan",
]
