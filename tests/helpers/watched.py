"""What a run of a model emits, and what transformers' eager attention gives."""

import tiny
import torch

from posprobe.models import (
    NO_INTERVENTION,
    Observation,
    Observer,
)

LENGTH = 24
IDS = tiny.tokens(2, LENGTH)
EVERY = Observation(n_queries=LENGTH, offsets=tuple(range(LENGTH)))


def watch(model, ids=IDS, observation=EVERY, intervention=NO_INTERVENTION, **keywords):
    """What a run emits: {name: {layer: tensor}}."""
    seen = {}
    observer = Observer(
        lambda name, layer, tensor: seen.setdefault(name, {}).update({layer: tensor}),
        observation,
        intervention,
    )
    model.run(ids, observer, **keywords)
    return seen


def eager(family, ids=IDS, *, edit=None, dtype=torch.float64, **changes):
    """Outputs of transformers' eager attention; `edit(layer, keywords)` changes its masks."""
    model = tiny.tiny_model(family, dtype=dtype, attention="eager", **changes)
    if edit is not None:
        for module in model.modules():
            if hasattr(module, "layer_idx") and "Attention" in type(module).__name__:
                module.register_forward_pre_hook(
                    lambda module, args, keywords: (args, edit(module, keywords)), with_kwargs=True
                )
    with tiny.exact_softmax(), torch.inference_mode():
        return model(ids, use_cache=False, output_attentions=True, output_hidden_states=True)
