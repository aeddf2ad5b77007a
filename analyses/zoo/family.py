"""The architectures of the controlled family, and the initial weights that they share.

All are stock classes of transformers. ``rope``, ``ntk``, ``window`` and ``nope`` have the same
parameters by name and shape and differ in attention alone. ``learned`` is a GPT-2: it adds learned
positions to the embedding, and differs besides in LayerNorm instead of RMSNorm, biases, and a
two-matrix MLP (GELU) of the same number of parameters instead of a gated one (SiLU).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
)

ARCHITECTURES = ("rope", "ntk", "window", "nope", "learned")
THETA = 10_000.0
NTK_SCALE = 8.0
WINDOW = 32
INITIAL_SD = 0.02


@dataclass(frozen=True)
class Shape:
    """Size of the models.

    Attributes
    ----------
    layers, width, heads, inner : int
        Blocks, residual width, attention heads, hidden width of the gated MLP.
    length : int
        Tokens per sequence, BOS included.
    vocabulary : int
        Number of token ids; id 0 is the BOS.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    inner: int = 384
    length: int = 128
    vocabulary: int = 2048


def ntk_theta(theta: float, scale: float, head_dim: int) -> float:
    """Return the RoPE base under NTK scaling, ``theta * scale ** (D / (D - 2))``.

    Parameters
    ----------
    theta, scale : float
        The base and the factor by which the context is to be stretched.
    head_dim : int
        Dimensions per head, D > 2.
    """
    return theta * scale ** (head_dim / (head_dim - 2))


def _llama_like(shape: Shape, theta: float) -> dict:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.length,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": INITIAL_SD,
    }


def make_config(architecture: str, shape: Shape) -> PreTrainedConfig:
    """Return the configuration of one architecture.

    Raises
    ------
    ValueError
        If ``architecture`` is not one of `ARCHITECTURES`.
    """
    head_dim = shape.width // shape.heads
    if architecture == "rope":
        return LlamaConfig(**_llama_like(shape, THETA))
    if architecture == "ntk":
        return LlamaConfig(**_llama_like(shape, ntk_theta(THETA, NTK_SCALE, head_dim)))
    if architecture == "window":
        return MistralConfig(**_llama_like(shape, THETA), sliding_window=WINDOW)
    if architecture == "nope":
        return SmolLM3Config(**_llama_like(shape, THETA), no_rope_layers=[0] * shape.layers)
    if architecture == "learned":
        return _gpt2(shape)
    raise ValueError(f"no architecture {architecture!r}: choose from {', '.join(ARCHITECTURES)}")


def _gpt2(shape: Shape) -> GPT2Config:
    return GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.inner * 3 // 2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        initializer_range=INITIAL_SD,
    )


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return the initial weights of one matrix: normal, sd 0.02, from its name and the seed."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(key)
    return torch.randn(shape, generator=generator) * INITIAL_SD


def build_model(architecture: str, seed: int, shape: Shape) -> PreTrainedModel:
    """Return an untrained model whose weights depend on the seed, not on the architecture.

    The embedding, the output matrix, and the query, key, value and output projections of attention
    are equal in all architectures; the MLP is equal in all but ``learned``.
    """
    model = AutoModelForCausalLM.from_config(make_config(architecture, shape), dtype=torch.float32)
    matrices = {n: p for n, p in model.named_parameters() if p.ndim >= 2}
    with torch.no_grad():
        for name, parameter in matrices.items():
            if architecture == "learned":
                parameter.copy_(_gpt2_matrix(name, tuple(parameter.shape), seed))
            else:
                parameter.copy_(draw(name, tuple(parameter.shape), seed))
    return model


def _gpt2_matrix(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return a GPT-2 matrix out of the Llama-named draws; GPT-2 stores projections transposed."""
    if name == "transformer.wte.weight":
        return draw("model.embed_tokens.weight", shape, seed)
    block = f"model.layers.{name.split('.')[2]}.self_attn" if ".h." in name else ""
    width = shape[0]
    if name.endswith("attn.c_attn.weight"):
        parts = [draw(f"{block}.{p}_proj.weight", (width, width), seed).T for p in "qkv"]
        return torch.cat(parts, dim=1)
    if name.endswith("attn.c_proj.weight"):
        return draw(f"{block}.o_proj.weight", (width, width), seed).T
    return draw(name, shape, seed)
