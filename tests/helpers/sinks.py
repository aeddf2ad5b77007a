"""A tiny random model in which chosen heads read the sink."""

import tiny
import torch

from posprobe.models import ObservableModel

HEADS = ((0, 1), (1, 2))
FIRST = 1


def sink_model(heads=HEADS, *, strength=6.0, tokenizer=None):
    """Heads whose every query points at the key of token `FIRST`, in the slowest rotation."""
    found = tiny.tiny_model(
        "llama", dtype=torch.float32, attention_bias=True, num_key_value_heads=4, seed=1
    )
    with torch.no_grad():
        embedding = found.model.embed_tokens.weight
        embedding[:, 0] = 0.0
        embedding[FIRST] = 0.0
        embedding[FIRST, 0] = 6.0
        for number, layer in enumerate(found.model.layers):
            attention = layer.self_attn
            layer.input_layernorm.weight.fill_(1.0)
            for head in range(4):
                own = slice(8 * head, 8 * head + 8)
                attention.q_proj.bias[own] = 0.0
                attention.k_proj.bias[own] = 0.0
                if (number, head) in heads:
                    attention.q_proj.bias[8 * head + 3] = strength
                    attention.k_proj.weight[8 * head + 3] = 0.0
                    attention.k_proj.weight[8 * head + 3, 0] = 1.0
    return ObservableModel(found, tokenizer, name="tiny-sink")
