"""A pass again in float64: the model's own without rounding, and the model stays as it is."""

import capture_child as child
import pytest
import tiny
import torch

from posprobe.errors import ModelError
from posprobe.models import NO_INTERVENTION, ObservableModel, Observation, computed_and_exact

LENGTH = 24
EVERYTHING = Observation(n_queries=LENGTH, offsets=(0, 1, 5), prefixes=(2, 8, 19), window=5)
SIZES = {torch.float32: 1e-4, torch.bfloat16: 1.0}


def both(model, **keywords):
    return computed_and_exact(
        model, tiny.tokens(1, LENGTH), EVERYTHING, NO_INTERVENTION, **keywords
    )


def gap(computed, exact):
    """The largest error of anything, relative to the largest value of its kind."""
    assert computed.keys() == exact.keys()
    return max(
        float((computed[key] - values).nan_to_num().abs().max() / values.nan_to_num().abs().max())
        for key, values in exact.items()
    )


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_family_has_a_float64(family):
    computed, exact = both(child.model(family))
    assert {layer for name, layer in exact if name == "residual"} == set(range(4))
    assert 1e-9 < gap(computed, exact) < 1e-3


def test_coarser_types_round_further():
    gaps = [gap(*both(child.model(dtype=dtype))) for dtype in (torch.float32, torch.bfloat16)]
    assert gaps[1] > 1e3 * gaps[0]


def without_positions():
    """GPT-2, whose code computes in its own type, with embeddings that are not a sum."""
    model = tiny.tiny_model("gpt2", dtype=torch.float32)
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    return model


def test_it_is_the_pass_of_the_whole_model_in_float64():
    _, exact = both(ObservableModel(without_positions()))
    computed, same = both(ObservableModel(without_positions().double()))
    assert gap(computed, same) < 1e-12
    assert gap(computed, exact) < 1e-12


@pytest.mark.parametrize("family", ["gpt-neox", "nope"])
def test_rotations_and_norms_are_in_float64_too(family):
    """transformers computes both in float32, in a model of float64 as well.

    GPT-NeoX has rotations without such norms, SmolLM3 without rotations such norms.
    """
    computed, exact = both(child.model(family, dtype=torch.float64))
    assert 1e-9 < gap(computed, exact) < 1e-5


@pytest.mark.parametrize(
    "narrow",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.to(dtype=torch.float32),
        lambda x: x.type(torch.float32),
    ],
    ids=["float()", "to(float32)", "to(dtype=float32)", "type(float32)"],
)
def test_no_way_of_computing_in_float32_rounds_what_is_exact(narrow):
    _, plain = both(child.model())
    model = child.model()
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _module, _args, output: narrow(output))
    _, exact = both(model)
    for key, values in plain.items():
        assert torch.equal(exact[key].nan_to_num(), values.nan_to_num()), key


def test_the_model_is_not_touched():
    model = child.model(dtype=torch.bfloat16)
    before, ids = model.weights_digest(), tiny.tokens(1, LENGTH)
    logits = model.logits(ids)
    both(model)
    assert model.weights_digest() == before
    assert torch.equal(model.logits(ids), logits)
    assert not any(part._forward_hooks for part in model.model.modules())


def test_what_replaces_position_0_is_replaced_in_float64_too():
    model = child.model()
    _, native = both(model)
    _, replaced = both(model, embedding0=torch.zeros(1, 32))
    assert replaced["position0", 0].abs().max() == 0 < native["position0", 0].abs().max()


def test_quantised_weights_are_named():
    model = child.model()
    model.blocks[1].register_buffer("codes", torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ModelError, match=r"its weights are quantised \(uint8\)"):
        both(model)


def test_code_that_has_no_float64_is_named():
    model = child.model()

    def refusing(_module, args, _output):
        if args[0].dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")

    said = r"no float64 .* \(RuntimeError: not implemented"
    hook = model.model.model.layers[2].mlp.register_forward_hook(refusing)
    with hook, pytest.raises(ModelError, match=said):
        both(model)


def test_a_stream_that_changes_between_blocks_is_named():
    model = child.model()

    def halving(_module, args, kwargs):
        return (args[0] / 2, *args[1:]), kwargs

    hook = model.blocks[1].register_forward_pre_hook(halving, with_kwargs=True)
    with hook, pytest.raises(ModelError, match="the stream changes between blocks 0 and 1"):
        both(model)
