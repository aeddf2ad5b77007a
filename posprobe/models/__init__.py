"""Turn a checkpoint into a decoder whose attention is observed as it computes.

entry                          from a name or a model in memory to a proved model
bundled, checkpoints, loading  from a name to weights and a tokenizer
memory                         a model that is in memory already
offload                        weights that accelerate keeps on the CPU or on disk
gguf_header, gguf_keys,
gguf_rotation, gguf_conversion a GGUF file converted to a checkpoint, proved, or refused
decoders                       which models can be observed, and where their blocks are
rotary, variants               changes of the configuration
interventions                  changes of the attention
attention                      output and log-normalizer by blocks, the reference
kernels                        the same from a fused kernel, proved against the reference
scores, observation, masks     what is recorded, and how transformers calls it
edits                          what is done to the residual stream
writing                        what of attention's output reaches the residual stream
proofs, variant_proofs         proof that the observed attention is the model's own
passes                         one pass at a time, whatever else the process does
observable                     the model itself
third_channel                  whether scores themselves change with position
bands, band_scores             which dimensions turn how often, and scores by band
exact                          a pass again in float64, block by block
"""

from posprobe.models.attention import BLOCK
from posprobe.models.bands import MOST_BANDS, Bands, find_bands, prove_bands
from posprobe.models.bundled import PACKAGED, list_zoo
from posprobe.models.edits import StreamEdit
from posprobe.models.entry import ModelSource, load_model
from posprobe.models.exact import Seen, computed_and_exact
from posprobe.models.interventions import NO_INTERVENTION, Intervention, parse_heads
from posprobe.models.observable import ObservableModel
from posprobe.models.observation import Observer
from posprobe.models.passes import plain_torch
from posprobe.models.scores import Observation
from posprobe.models.third_channel import own_position
from posprobe.models.variants import VARIANTS, Variant, parse_variant

__all__ = [
    "BLOCK",
    "MOST_BANDS",
    "NO_INTERVENTION",
    "PACKAGED",
    "VARIANTS",
    "Bands",
    "Intervention",
    "ModelSource",
    "ObservableModel",
    "Observation",
    "Observer",
    "Seen",
    "StreamEdit",
    "Variant",
    "computed_and_exact",
    "find_bands",
    "list_zoo",
    "load_model",
    "own_position",
    "parse_heads",
    "parse_variant",
    "plain_torch",
    "prove_bands",
]
