"""Tiny random models of many families, for the code path and never for findings."""

import contextlib
import copy
from unittest import mock

import torch
import transformers

COMMON = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=None,
)
GROUPED = COMMON | dict(num_key_value_heads=2, head_dim=8)
GPT2 = dict(
    bos_token_id=None,
    eos_token_id=None,
    vocab_size=97,
    n_embd=32,
    n_layer=3,
    n_head=4,
    n_positions=64,
)
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WHOLE = {"rope_type": "default", "rope_theta": 1e4}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
EXPERTS = dict(num_local_experts=2, num_experts_per_tok=1)

# name: configuration class, its values; every oddity that attention has in the families we name
FAMILIES = {
    "llama": ("LlamaConfig", GROUPED),
    "llama-one-head": ("LlamaConfig", COMMON | dict(num_attention_heads=1, num_key_value_heads=1)),
    "mistral": ("MistralConfig", GROUPED | dict(sliding_window=9)),
    "mistral-full": ("MistralConfig", GROUPED | dict(sliding_window=None)),
    "qwen2": ("Qwen2Config", GROUPED | dict(use_sliding_window=False)),
    "qwen2-window": (
        "Qwen2Config",
        GROUPED | dict(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    "qwen3": ("Qwen3Config", GROUPED),
    "gemma2": (
        "Gemma2Config",
        GROUPED
        | dict(sliding_window=9, query_pre_attn_scalar=13, attn_logit_softcapping=2.0)
        | dict(layer_types=MIXED),
    ),
    "gemma3": (
        "Gemma3TextConfig",
        GROUPED | dict(sliding_window=9, query_pre_attn_scalar=13, layer_types=MIXED),
    ),
    "nope": ("SmolLM3Config", GROUPED | dict(no_rope_layers=[0] * 3)),
    "gpt-neox": ("GPTNeoXConfig", COMMON | dict(rope_parameters=PARTIAL)),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-inverse-layer": ("GPT2Config", GPT2 | dict(scale_attn_by_inverse_layer_idx=True)),
    "gpt2-unscaled": ("GPT2Config", GPT2 | dict(scale_attn_weights=False)),
    "gpt-oss": (
        "GptOssConfig",
        GROUPED | EXPERTS | dict(sliding_window=9, layer_types=MIXED, rope_parameters=WHOLE),
    ),
    "phi": ("PhiConfig", COMMON | dict(num_key_value_heads=4, rope_parameters=PARTIAL)),
    "phi3": ("Phi3Config", GROUPED),
    "llama4": (
        "Llama4TextConfig",
        GROUPED
        | dict(num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=48, moe_layers=[])
        | dict(no_rope_layers=[0, 1, 0], layer_types=["full_attention"] * 3)
        | dict(rope_parameters=WHOLE, attn_temperature_tuning=False, use_qk_norm=False),
    ),
    "stablelm": ("StableLmConfig", COMMON | dict(num_key_value_heads=2, rope_parameters=PARTIAL)),
    "opt": ("OPTConfig", COMMON | dict(ffn_dim=48, word_embed_proj_dim=32)),
}


def tiny_config(family, **changes):
    name, values = FAMILIES[family]
    return getattr(transformers, name)(**copy.deepcopy(values | changes))


def scramble(model, seed=0):
    """Give every weight, norm, bias and learned sink a size that shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            plain = parameter.ndim > 1
            parameter.copy_(0.25 * noise if plain else parameter + 0.3 * noise.to(parameter))
    return model.eval()


def tiny_model(family="llama", *, dtype=torch.float64, attention=None, seed=0, **changes):
    """A random transformers model of the family; the same weights for the same seed."""
    config = tiny_config(family, **changes)
    keywords = {} if attention is None else {"attn_implementation": attention}
    if family == "gpt-oss":
        keywords["experts_implementation"] = "eager"  # the fused one has no float64
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **keywords)
    return scramble(model, seed)


def tokens(n=2, length=24, seed=0, vocabulary=97):
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def exact_softmax():
    """Keep eager attention in float64: transformers' own passes through float32."""
    plain = torch.nn.functional.softmax
    with mock.patch.object(
        torch.nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: plain(x, dim)
    ):
        yield
