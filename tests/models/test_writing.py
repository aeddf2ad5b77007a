"""What heads write, and what of it reaches the residual stream."""

import pytest
import tiny
import torch
import transformers

from posprobe.models import NO_INTERVENTION, ObservableModel, Observation, Observer
from posprobe.models import computed_and_exact as both

HALF = "Granite with half of each block's output"
FAMILIES = {
    HALF: ("GraniteConfig", tiny.GROUPED | dict(residual_multiplier=0.5)),
    "olmo2": ("Olmo2Config", tiny.GROUPED),
    "opt, norms behind": ("OPTConfig", tiny.FAMILIES["opt"][1] | dict(do_layer_norm_before=False)),
}


def model_of(family, dtype=torch.float32):
    if family not in FAMILIES:
        return ObservableModel(tiny.tiny_model(family, dtype=dtype))
    name, values = FAMILIES[family]
    config = getattr(transformers, name)(**values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return ObservableModel(tiny.scramble(model))


class Silenced(Observer):
    """Lets all heads of one layer but one write nothing."""

    def __init__(self, layer, head, emit):
        super().__init__(emit, Observation(n_queries=1))
        self.layer, self.head = layer, head

    def output(self, module, output):
        if module.layer_idx != self.layer:
            return output
        kept = torch.zeros_like(output)
        if self.head is not None:
            kept[:, self.head] = output[:, self.head]
        return kept


def streams(model, layer, head):
    """The stream that leaves each block for one token, whose heads write their values."""
    seen = {}

    def emit(name, at, tensor):
        seen[name, at] = tensor

    model.run(torch.tensor([[7]]), Silenced(layer, head, emit))
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt-neox", HALF])
def test_sink_value_is_how_far_the_stream_moves(family):
    """The rest of the block is silenced, so one head alone moves the stream by what it writes."""
    model = model_of(family, torch.float64)
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    values = streams(model, 1, 2)["sink_value", 1]
    moved = streams(model, 1, 2)["residual", 2] - streams(model, 1, None)["residual", 2]
    torch.testing.assert_close(values[0, 2], moved.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_factor_is_measured_in_every_type(dtype):
    assert model_of(HALF, dtype).gains == pytest.approx([0.5] * 3, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "llama4", "opt", "phi", "gpt-oss"])
def test_most_models_add_what_attention_writes(family):
    assert model_of(family).gains == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "opt, norms behind"])
def test_a_norm_in_between_is_found(family):
    assert model_of(family).gains == (None, None, None)


def test_a_gate_in_between_is_found():
    """Of a kind that no configuration names: it depends on what the layer reads."""
    model = tiny.tiny_model(dtype=torch.float32)
    attention = model.model.layers[1].self_attn
    plain = attention.forward

    def gated(*args, **kwargs):
        output, weights = plain(*args, **kwargs)
        return output * torch.sigmoid(kwargs["hidden_states"]), weights

    attention.forward = gated
    assert ObservableModel(model).gains == (1.0, None, 1.0)


def test_float64_is_scaled_alike():
    computed, exact = both(
        model_of(HALF), tiny.tokens(1), Observation(n_queries=1), NO_INTERVENTION
    )
    for layer in range(3):
        name = "sink_value", layer
        torch.testing.assert_close(computed[name], exact[name], rtol=1e-4, atol=0)
