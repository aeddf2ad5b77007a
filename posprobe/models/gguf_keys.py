"""Carry every key of a GGUF file over into a configuration, or refuse the key by name.

transformers' reader silently drops keys. Here a table says what happens to each key of the
architecture. A key that is not in the table is refused, since it may change the model.
"""

from __future__ import annotations

import math
from typing import Any

import transformers

from posprobe.errors import ModelError
from posprobe.models.gguf_header import Header
from posprobe.models.gguf_rotation import ROTATION_KEYS, carry_rotation

__all__ = ["configuration", "saved_configuration"]

EPSILONS = ("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")
# Key: possible names of the attribute of the configuration to which its value is copied.
CARRIED = {
    "context_length": ("max_position_embeddings",),
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.layer_norm_epsilon": EPSILONS,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "vocab_size": ("vocab_size",),
}
# Keys that are carried over by functions of their own, below.
CARRIED_APART = {
    *("attention.key_length", "attention.value_length", "attention.scale"),
    *("attention.sliding_window", "attention.sliding_window_pattern"),
}
# Key: values that have no effect; any other value is refused.
NEUTRAL = {
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1),  # 1: softmax
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
# Keys without an effect on text: the sections are axes of an image's positions, which are equal in
# text, and the layout of the tensors only says how their rows were arranged when they were written.
INERT = {"rope.dimension_sections", "rope.scaling.finetuned", "tensor_data_layout"}
# Gemma 2 and 3 alternate layers with and without a window; one in so many has none.
PERIOD = {"gemma2": 2, "gemma3": 6}
# Architectures whose window transformers applies to every layer; a llama with one is a Mistral.
WINDOW_EVERYWHERE = ("llama", "phi3", "starcoder2")
# Number of blocks of the models whose scores are scaled by the width per head, not the head size.
WIDTH_PER_HEAD = {"gemma2": 46, "gemma3": 62}
SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def configuration(header: Header) -> Any:
    """Make the configuration of the model in a GGUF file, with every key carried over.

    Parameters
    ----------
    header : Header
        Header of the file.

    Returns
    -------
    transformers configuration

    Raises
    ------
    ModelError
        If a key is unknown or has no counterpart; the message gives its name and value.
    """
    config = transformers.AutoConfig.from_pretrained(
        header.path.parent, gguf_file=header.path.name, trust_remote_code=False
    )
    if isinstance(config, transformers.MistralConfig):  # transformers' reading of some llamas
        config = _converted(config, transformers.LlamaConfig)
    for key, value in header.values.items():
        _carry(header, config, key, value)
    config.vocab_size = header.vocabulary
    for attribute, name in SPECIAL.items():
        setattr(config, attribute, header.general.get(f"tokenizer.ggml.{name}_token_id"))
    _carry_head_size(header, config)
    _carry_scale(header, config)
    _carry_window(header, config)
    carry_rotation(header, config)
    return config


def saved_configuration(config: Any) -> Any:
    """Make the configuration to save, which is that of a model without quantisation.

    Parameters
    ----------
    config : transformers configuration
        Result of `configuration`.

    Returns
    -------
    transformers configuration
        Of the same kind, except that a llama with a window becomes a Mistral, which has the same
        weights.
    """
    windowed = isinstance(config, transformers.LlamaConfig) and getattr(
        config, "sliding_window", None
    )
    return _converted(config, transformers.MistralConfig if windowed else type(config))


def _converted(config: Any, kind: Any) -> Any:
    values = config.to_dict()
    for name in ("model_type", "architectures", "quantization_config"):
        values.pop(name, None)
    return kind.from_dict(values)


def _carry(header: Header, config: Any, key: str, value: Any) -> None:
    """Copy one key to its attribute of the configuration, or refuse it."""
    if key in ROTATION_KEYS or key in CARRIED_APART or key in INERT:
        return
    if isinstance(value, list):
        raise ModelError(f"{header.architecture}.{key} differs by layer ({value[:4]} ...)")
    attribute = next((name for name in CARRIED.get(key, ()) if hasattr(config, name)), None)
    neutral = value in NEUTRAL.get(key, ())
    if attribute is not None:
        setattr(config, attribute, None if neutral else value)
    elif not neutral:
        known = key in CARRIED or key in NEUTRAL
        raise ModelError(
            f"{header.named(key)} {'cannot be expressed' if known else 'is unknown to posprobe'} "
            f"in a {type(config).__name__}; give the model's folder with config.json instead"
        )


def _carry_head_size(header: Header, config: Any) -> None:
    size = header.head_size
    if header.values.get("attention.value_length", size) != size:
        raise ModelError(
            f"its keys and values differ in size ({header.named('attention.value_length')}, and "
            f"{size} for keys); transformers has one size for both"
        )
    if hasattr(config, "head_dim"):
        config.head_dim = size
    elif size * config.num_attention_heads != config.hidden_size:
        raise ModelError(f"{header.named('attention.key_length')} is not the width per head")


def _carry_scale(header: Header, config: Any) -> None:
    """Copy the factor on q.k, which is the file's own or else that of its architecture."""
    size = header.head_size
    if WIDTH_PER_HEAD.get(header.architecture) == config.num_hidden_layers:
        size = config.hidden_size // config.num_attention_heads
    scale = header.number("attention.scale", 0.0) or size**-0.5
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = size if math.isclose(scale, size**-0.5) else scale**-2
    elif not math.isclose(scale, size**-0.5, rel_tol=1e-5):
        raise ModelError(f"{header.named('attention.scale')} is not the scale of its architecture")


def _carry_window(header: Header, config: Any) -> None:
    window = int(header.number("attention.sliding_window", 0))
    named = [key for key in header.values if key.startswith("attention.sliding_window")]
    pattern = header.values.get("attention.sliding_window_pattern")
    everywhere = pattern is None or (isinstance(pattern, list) and all(pattern))
    if header.architecture in PERIOD:
        config.sliding_window = window
        config.layer_types = _layer_types(config, pattern or PERIOD[header.architecture])
    elif not 0 < window < header.values["context_length"]:  # inert
        if hasattr(config, "sliding_window"):
            config.sliding_window = None
    elif header.architecture in WINDOW_EVERYWHERE and everywhere:
        config.sliding_window = window
    else:
        raise ModelError(
            f"{header.named(*named)} does not say which layers of a {type(config).__name__} have "
            "it; give the model's folder with config.json instead"
        )


def _layer_types(config: Any, pattern: Any) -> list[str]:
    """Return the kind of each layer, given a period (its last layer is full) or flags by layer."""
    layers = range(config.num_hidden_layers)
    if isinstance(pattern, int):
        windowed = [(layer + 1) % pattern > 0 for layer in layers]
    elif len(pattern) == len(layers):
        windowed = [bool(flag) for flag in pattern]
    else:
        raise ModelError(f"attention.sliding_window_pattern has {len(pattern)} flags, not one each")
    return ["sliding_attention" if flag else "full_attention" for flag in windowed]
