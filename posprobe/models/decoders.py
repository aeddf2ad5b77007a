"""Check that a transformers model is a decoder that can be observed, and find its blocks."""

from __future__ import annotations

import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models.offload import is_kept, numbers_of

__all__ = ["check_state", "check_weights", "coarsest_dtype", "find_blocks", "size"]

LAYER = "layer_idx"  # attribute with the layer number of transformers' attention modules


def find_blocks(model: transformers.PreTrainedModel) -> list[torch.nn.Module]:
    """Return the decoder blocks in order, block i being the one with the attention of layer i.

    A model of text and images may have a vision tower with as many blocks, so the text decoder is
    searched first.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.

    Returns
    -------
    list of torch.nn.Module

    Raises
    ------
    ModelError
        If the model is not a decoder with a language-model head, or its attention cannot be
        observed.
    """
    kind = type(model).__name__
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder, not a decoder")
    if not model._can_set_attn_implementation():
        raise ModelError(
            f"{kind} does not call transformers' attention interface, "
            "so its attention cannot be observed"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(f"{kind} has no language-model head; load a causal LM")
    n_layers = size(config, "num_hidden_layers")
    for part in (model.get_decoder(), model.base_model):
        for module in part.modules():
            if isinstance(module, torch.nn.ModuleList) and _is_stack(module, n_layers):
                return list(module)
    raise ModelError(f"{kind} has no list of {n_layers} blocks with attention")


def size(config: object, name: str) -> int:
    """A size of the decoder, by transformers' name for it.

    Raises
    ------
    ModelError
        If the configuration does not have it.
    """
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise ModelError(
            f"{type(config).__name__} does not say how large the decoder is ({name} is {value}), "
            "so it cannot be observed"
        )
    return value


def _is_stack(blocks: torch.nn.ModuleList, n_layers: int) -> bool:
    """Whether each module of a list contains the attention of the layer with its index."""
    if len(blocks) != n_layers:
        return False
    return all(
        any(getattr(module, LAYER, None) == layer for module in block.modules())
        for layer, block in enumerate(blocks)
    )


def check_state(model: torch.nn.Module) -> None:
    """Refuse a model that hooks cannot observe or whose weights cannot be read.

    Raises
    ------
    ModelError
        If the model is compiled, or some of its weights are nowhere.
    """
    # torch.compile sets _orig_mod; an isinstance test would import dynamo
    wrapped = hasattr(model, "_orig_mod")
    if wrapped or any(module._compiled_call_impl is not None for module in model.modules()):
        raise ModelError(
            "the model is compiled, so its parts cannot be observed; pass it as it was before "
            "torch.compile"
        )
    numbers = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    away = [name for name, each in numbers.items() if each.is_meta and not is_kept(model, name)]
    if away:
        raise ModelError(
            f"{len(away)} of the model's weights and buffers are on the meta device ({away[0]}), "
            "and accelerate does not keep them elsewhere, so they cannot be read; load the model "
            "with device='auto'"
        )


def coarsest_dtype(model: torch.nn.Module) -> torch.dtype:
    """The type of a model's weights that rounds most; quantised weights are computed in another."""
    dtypes = {w.dtype for w in model.parameters() if w.is_floating_point() and w.itemsize > 1}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def check_weights(model: torch.nn.Module, blocks: list[torch.nn.Module]) -> None:
    """Refuse weights with NaN or infinities.

    Parameters
    ----------
    model : torch.nn.Module
        Model to check.
    blocks : list of torch.nn.Module
        Decoder blocks of the model, for the message.

    Raises
    ------
    ModelError
        If a weight has such values; the message gives the layer, the module and their number.
    """
    layers = {
        id(weight): (f"layer {layer}", name)
        for layer, block in enumerate(blocks)
        for name, weight in block.named_parameters()
    }
    for full_name, own in model.named_parameters():
        weight = numbers_of(model, full_name, own)
        if not weight.is_floating_point() or weight.dtype.itemsize < 2:  # quantised
            continue
        # the sum reads the weight once without a copy, and is finite only if all terms are
        if torch.isfinite(weight.sum(dtype=torch.float32)):
            continue
        where, name = layers.get(id(own), ("the model", full_name))
        for what, bad in (("NaN", weight.isnan()), ("infinities", weight.isinf())):
            if count := int(bad.sum()):
                values = "value" if count == 1 else "values"
                module = name.removesuffix(".weight")
                raise ModelError(
                    f"weights of {where} hold {what} ({module}, {count} {values}); the checkpoint "
                    "is damaged, or was trained until it diverged"
                )
