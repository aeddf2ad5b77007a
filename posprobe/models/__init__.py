"""A checkpoint -> a decoder whose attention is observed as it computes.

bundled, checkpoints, loading  from a name to weights and a tokenizer
gguf_header, gguf_keys,
gguf_rotation, gguf_conversion what a GGUF file says, carried over, proved, or refused
decoders                       what can be observed, and where its blocks are
rotary, variants               what is changed in the configuration
interventions                  what is changed in the attention
attention                      output and log-normalizer from one kernel
scores, observation, masks     what is read off, and how transformers calls it
proofs, variant_proofs         proof that what is shown is what is computed
observable                     the model itself
third_channel                  whether scores move with position by themselves
exact                          a pass again in float64, block by block
"""

from posprobe.models.attention import BLOCK
from posprobe.models.bundled import PACKAGED, list_zoo
from posprobe.models.exact import Seen, computed_and_exact
from posprobe.models.interventions import NO_INTERVENTION, Intervention, parse_heads
from posprobe.models.observable import ObservableModel, load_model
from posprobe.models.observation import Observer
from posprobe.models.scores import Observation
from posprobe.models.third_channel import own_position
from posprobe.models.variants import VARIANTS, Variant, parse_variant

__all__ = [
    "BLOCK",
    "NO_INTERVENTION",
    "PACKAGED",
    "VARIANTS",
    "Intervention",
    "ObservableModel",
    "Observation",
    "Observer",
    "Seen",
    "Variant",
    "computed_and_exact",
    "list_zoo",
    "load_model",
    "own_position",
    "parse_heads",
    "parse_variant",
]
