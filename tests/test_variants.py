"""Variants: what they say they change, and what they refuse."""

import pytest
import tiny

from posprobe.errors import ModelError
from posprobe.observation import NO_INTERVENTION, Intervention
from posprobe.variants import DEFAULTS, VARIANTS, Variant, parse_variant


@pytest.mark.parametrize("name", VARIANTS)
def test_every_listed_variant_can_be_asked_for_by_its_bare_name(name):
    kind = name.partition("(")[0]
    variant = parse_variant(kind)
    assert variant == Variant(kind, DEFAULTS.get(kind))
    assert parse_variant(str(variant)) == variant


@pytest.mark.parametrize(
    ("text", "intervention"),
    [
        ("standard", NO_INTERVENTION),
        ("ntk(8)", NO_INTERVENTION),
        ("linear(2.5)", NO_INTERVENTION),
        ("window(2)", Intervention(window=2)),
        (" no_causal ", Intervention(causal=False)),
    ],
)
def test_variant_changes_the_mask_it_names(text, intervention):
    assert parse_variant(text).intervention == intervention


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "variant '' is unknown; use one of standard"),
        ("yarm(4)", r"variant 'yarm\(4\)' is unknown; use one of standard"),
        ("ntk(", r"variant 'ntk\(' is unknown"),
        ("ntk()", r"variant 'ntk\(\)' is unknown"),
        ("ntk(1.2.3)", r"variant 'ntk\(1.2.3\)' is unknown"),
        ("ntk(-8)", r"variant 'ntk\(-8\)' is unknown"),
        ("ntk(nan)", r"variant 'ntk\(nan\)' is unknown"),
        ("standard(2)", r"variant 'standard\(2\)': standard takes no number"),
        ("no_causal(2)", "no_causal takes no number"),
        ("ntk(1)", r"variant 'ntk\(1\)' would change nothing; give a number above 1"),
        ("linear(1.0)", "would change nothing; give a number above 1"),
        ("linear(0)", "give a number above 1"),
        ("window(0)", "a window is a whole number of tokens, 2 or more"),
        ("window(1)", r"variant 'window\(1\)': a window is a whole number of tokens, 2 or more"),
        ("window(2.5)", "a window is a whole number of tokens, 2 or more"),
    ],
)
def test_variant_that_makes_no_sense_is_refused(text, reason):
    with pytest.raises(ModelError, match=reason) as error:
        parse_variant(text)
    assert "\n" not in str(error.value)


def theta(family, text, **changes):
    config = tiny.tiny_config(family, **changes)
    parse_variant(text).change_config(config)
    return config.rope_parameters


def test_static_ntk_scales_the_base_by_the_rotary_dimension():
    assert theta("llama", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (8 / 6))
    # half of the 8 dimensions of a head rotate
    assert theta("gpt-neox", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (4 / 2))
    assert theta("phi", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (4 / 2))


def test_linear_scaling_is_declared():
    assert theta("llama", "linear(4)") == {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 10_000.0,
    }


def test_every_layer_type_is_scaled():
    before = tiny.tiny_config("gemma3").rope_parameters
    after = theta("gemma3", "ntk(8)")
    for kind in ("sliding_attention", "full_attention"):
        ratio = after[kind]["rope_theta"] / before[kind]["rope_theta"]
        assert ratio == pytest.approx(8 ** (8 / 6))


@pytest.mark.parametrize("text", ["standard", "window(64)", "no_causal"])
def test_other_variants_leave_the_configuration_alone(text):
    assert theta("llama", text) == tiny.tiny_config("llama").rope_parameters
    parse_variant(text).change_config(tiny.tiny_config("gpt2"))


@pytest.mark.parametrize("text", ["ntk(8)", "linear(8)"])
def test_rotary_variant_of_a_model_without_rotary_embedding_is_refused(text):
    for family in ("gpt2", "opt"):
        with pytest.raises(ModelError, match="does not apply: the model has no rotary position"):
            theta(family, text)


@pytest.mark.parametrize("text", ["ntk(8)", "linear(8)"])
def test_rotary_variant_of_a_scaled_model_is_refused(text):
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match=r"already scales its rotary embedding \(linear\)"):
        theta("llama", text, rope_parameters=scaled)
