"""
Port an architecture that is refused
====================================

GPT-J computes its attention by itself, so posprobe cannot observe it. A port is short: attention
has to go through the interface of transformers, as in most models. This page ports a small random
GPT-J; real weights load in the same way.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoTokenizer, GPTJConfig, GPTJForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gptj.modeling_gptj import GPTJAttention

import posprobe

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained("../../data/zoo/tokenizer")
config = GPTJConfig(
    vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128,
    bos_token_id=0, eos_token_id=None,
)  # fmt: skip

try:
    posprobe.load_model(GPTJForCausalLM(config).eval(), tokenizer=tokenizer)
except posprobe.PosprobeError as error:
    print(error)


# %%
# The method ``_attn`` gets queries, keys and values of shape (batch, head, token, dimension). It is
# replaced by a call of whatever attention is asked for, and GPT-J's own one is what "eager" means.


def own(module, query, key, value, attention_mask, **_):
    """Attention as GPT-J computes it."""
    output, weights = GPTJAttention._attn(module, query, key, value, attention_mask)
    return output.transpose(1, 2), weights


class Ported(GPTJAttention):
    """GPT-J's attention, through the interface."""

    def _attn(self, query, key, value, attention_mask=None):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, own)
        scaling = 1 / self.scale_attn
        output, weights = attend(self, query, key, value, attention_mask, scaling=scaling)
        return output.transpose(1, 2), weights


class PortedForCausalLM(GPTJForCausalLM):
    """GPT-J with ported attention."""

    _supports_attention_backend = True
    _can_set_attn_implementation_cached_value = True  # or transformers goes by GPT-J's source

    def __init__(self, config):
        super().__init__(config)
        for block in self.transformer.h:
            block.attn.__class__ = Ported


# %%
# At load posprobe proves the port: the logits must be those of the model's own attention, and every
# layer must call the interface once. A port that leaves something out, such as a bias in the
# scores, is refused.

model = posprobe.load_model(PortedForCausalLM(config).eval(), tokenizer=tokenizer, name="gpt-j")
print(model)

# %%
# From here on it is a model like any other.

path = Path(tempfile.mkdtemp()) / "ported.h5"
store = posprobe.capture(model, path, design="shifted", n=8, length=48, window=16, progress=False)
layers = posprobe.decompose(store).by_layer

fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.bar(layers["layer"] - 0.2, layers["V_M"], 0.35, color="#0072b2", label="mask")
ax.bar(layers["layer"] + 0.2, layers["V_R"], 0.35, color="#d55e00", label="residual stream")
ax.set(xlabel="layer", ylabel="variance (squared nats)", xticks=range(len(layers)), yscale="log")
ax.legend()
