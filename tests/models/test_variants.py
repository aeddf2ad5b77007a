"""Variants: what they say they change, the proof that they do, and what they refuse."""

import contextlib
import json
import math

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
import transformers

from posprobe.captures import capture_stimulus
from posprobe.errors import ModelError
from posprobe.models import (
    NO_INTERVENTION,
    VARIANTS,
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    Variant,
    parse_variant,
    rotary,
)
from posprobe.models.rotary import rotations
from posprobe.models.variant_proofs import prove_variant
from posprobe.models.variants import DEFAULTS, MIN_TURN


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
        ("yarn(4)", NO_INTERVENTION),
        ("llama3", NO_INTERVENTION),
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
        ("llama3(8)", "llama3 takes no number"),
        ("yarn(1)", r"variant 'yarn\(1\)' would change nothing; give a number above 1"),
        ("dynamic(8)", r"variant 'dynamic\(8\)' does nothing within the length .* use ntk\(s\)"),
        ("ntk(1)", r"variant 'ntk\(1\)' would change nothing; give a number above 1"),
        ("linear(1.0)", "would change nothing; give a number above 1"),
        ("linear(0)", "give a number above 1"),
        ("window(0)", "a window is a whole number of tokens, 2 or more"),
        ("window(1)", r"variant 'window\(1\)': a window is a whole number of tokens, 2 or more"),
        ("window(2.5)", "a window is a whole number of tokens, 2 or more"),
        (f"ntk(1{'0' * 400})", "give a number below 1,000,000,000"),
    ],
)
def test_variant_that_makes_no_sense_is_refused(text, reason):
    with pytest.raises(ModelError, match=reason) as error:
        parse_variant(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["ntk(8.0000001)", "window(1234567)", "yarn(2.5)", "linear(16)"])
def test_variant_is_written_as_it_was_read(text):
    assert str(parse_variant(text)) == text


THETA, SIZE = 1e4, 64
LONG = dict(head_dim=SIZE, max_position_embeddings=2048)
PLAIN = THETA ** (-np.arange(0, SIZE, 2) / SIZE)
ROTARY = ["ntk(8)", "linear(8)", "yarn(8)", "llama3"]
KINDS = {"gemma3": {"full_attention", "sliding_attention"}}


def parameters(family, text, **changes):
    config = tiny.tiny_config(family, **changes)
    parse_variant(text).change_config(config)
    return config.rope_parameters


def observable(family, text, *, change=True, **changes):
    """A tiny model as `load_model` would make it: the configuration is changed first."""
    config, variant = tiny.tiny_config(family, **changes), parse_variant(text)
    if change:
        variant.change_config(config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    return ObservableModel(tiny.scramble(model), name="tiny", variant=variant)


# --- what is changed: inverse frequencies against the published equations ---


def yarn(factor, length):
    """Peng et al. (2023), equations 17 to 23: r = rotations in the original length."""

    def pair(rotations):
        return SIZE * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = math.floor(pair(32)), math.ceil(pair(1))
    kept = 1 - np.clip((np.arange(SIZE // 2) - max(low, 0)) / (high - max(low, 0)), 0, 1)
    return PLAIN * kept + PLAIN / factor * (1 - kept)


def llama3(length):
    """Dubey et al. (2024) as in the model's own code: by wavelength against the length."""
    turns = length * PLAIN / (2 * math.pi)
    kept = np.clip((turns - 1) / (4 - 1), 0, 1)
    return PLAIN * kept + PLAIN / 8 * (1 - kept)


@pytest.mark.parametrize(
    ("text", "expected", "factor"),
    [
        ("ntk(8)", (THETA * 8 ** (64 / 62)) ** (-np.arange(0, SIZE, 2) / SIZE), 1.0),
        ("linear(4)", PLAIN / 4, 1.0),
        ("yarn(8)", yarn(8, 2048), 0.1 * math.log(8) + 1),
        ("yarn(2)", yarn(2, 2048), 0.1 * math.log(2) + 1),
        ("llama3", llama3(2048), 1.0),
    ],
)
def test_frequencies_are_those_of_the_equation(text, expected, factor):
    found = rotations(observable("llama", text, **LONG).model)["all"]
    np.testing.assert_allclose(found.frequencies, expected, rtol=2e-6)
    assert found.factor == pytest.approx(factor)
    assert not np.allclose(expected, PLAIN)


def test_the_fastest_pair_is_kept_and_the_slowest_divided():
    for text, kept in [("ntk(8)", True), ("yarn(8)", True), ("llama3", True), ("linear(8)", False)]:
        ratio = PLAIN / rotations(observable("llama", text, **LONG).model)["all"].frequencies
        assert ratio[0] == pytest.approx(1 if kept else 8)
        assert ratio[-1] == pytest.approx(8, rel=1e-5)


def test_yarn_multiplies_scores_by_the_square_of_its_factor():
    """Where nothing is rotated, scores at offset 0 are those of the model times factor^2."""
    seen = {}
    for text in ("standard", "yarn(8)"):
        model = observable("llama", text)
        with rotary.unrotated(model.model):
            observer = Observer(
                lambda name, layer, tensor, text=text: seen.setdefault((text, name), tensor),
                Observation(n_queries=8, offsets=(0,)),
            )
            model.run(tiny.tokens(1, 8), observer)
    ratio = seen["yarn(8)", "offset_score"] / seen["standard", "offset_score"]
    expected = torch.full_like(ratio, (0.1 * math.log(8) + 1) ** 2)
    torch.testing.assert_close(ratio, expected, rtol=1e-6, atol=0)


def test_static_ntk_scales_the_base_by_the_dimensions_that_rotate():
    assert parameters("llama", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (8 / 6))
    # half of the 8 dimensions of a head rotate
    assert parameters("gpt-neox", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (4 / 2))
    assert parameters("phi", "ntk(8)")["rope_theta"] == pytest.approx(1e4 * 8 ** (4 / 2))


@pytest.mark.parametrize("text", ROTARY)
def test_only_layers_with_full_attention_are_scaled_where_rotations_go_by_type(text):
    before = tiny.tiny_config("gemma3").rope_parameters
    after = parameters("gemma3", text)
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"] != before["full_attention"]
    evidence = observable("gemma3", text).variant_evidence(64)["rotations"]
    assert evidence["sliding_attention"]["pairs_turned"] == 0
    assert evidence["sliding_attention"]["attention_factor"] == 1
    assert evidence["full_attention"]["pairs_turned"] > 0


@pytest.mark.parametrize("text", ["standard", "window(64)", "no_causal"])
def test_other_variants_leave_the_configuration_alone(text):
    assert parameters("llama", text) == tiny.tiny_config("llama").rope_parameters
    parse_variant(text).change_config(tiny.tiny_config("gpt2"))


@pytest.mark.parametrize("text", ROTARY)
def test_the_checkpoints_own_rotation_stays_in_the_configuration(text):
    model = observable("llama", text)
    config = model.effective_config()
    assert config[rotary.STANDARD_ROPE] == tiny.tiny_config("llama").rope_parameters
    assert config["rope_parameters"] != config[rotary.STANDARD_ROPE]


# --- the proof ---


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt-neox", "phi", "gemma3"])
@pytest.mark.parametrize("text", ROTARY)
def test_rotary_variant_is_proved_by_the_turn_of_its_pairs(family, text):
    model = observable(family, text)
    evidence = model.variant_evidence(64)
    assert json.loads(json.dumps(evidence)) == evidence
    assert (evidence["variant"], evidence["length"]) == (text, 64)
    standard = rotations(tiny.tiny_model(family))
    assert set(evidence["rotations"]) == set(standard) == KINDS.get(family, {"all"})
    for kind, rotation in rotations(model.model).items():
        turn = np.abs(rotation.frequencies - standard[kind].frequencies) * 63
        found = evidence["rotations"][kind]
        assert found["largest_turn"] == pytest.approx(turn.max(), rel=1e-3)
        assert (found["pairs"], found["pairs_turned"]) == (len(turn), (turn >= MIN_TURN).sum())
    ids = tiny.tokens(1, 24)
    assert (
        model.logits(ids) - ObservableModel(tiny.tiny_model(family)).logits(ids)
    ).abs().max() > 1e-3


def test_window_and_no_causal_are_proved_by_the_keys_that_they_take_and_give():
    assert observable("llama", "window(12)").variant_evidence(48) == {
        "variant": "window(12)",
        "length": 48,
        "narrowed_layers": [0, 1, 2],
        "hidden_from_last": 36,
    }
    assert observable("gemma3", "window(12)").variant_evidence(48)["narrowed_layers"] == [1]
    assert observable("llama", "no_causal").variant_evidence(48)["future_keys"] == 47
    standard = observable("llama", "standard").variant_evidence(48)
    assert standard == {"variant": "standard", "length": 48}


def test_proof_leaves_the_rotation_as_it_was():
    for family in ("llama", "gemma3"):
        model = observable(family, "ntk(4)")
        before, logits = rotations(model.model), model.logits(tiny.tokens())
        prove_variant(model)
        for kind, rotation in rotations(model.model).items():
            assert np.array_equal(rotation.frequencies, before[kind].frequencies)
        assert torch.equal(model.logits(tiny.tokens()), logits)


def test_rotation_is_turned_back_after_an_error():
    model = observable("llama", "ntk(4)").model
    before = rotations(model)["all"].frequencies
    with contextlib.suppress(KeyError), rotary.unrotated(model):
        assert not rotations(model)["all"].frequencies.any()
        raise KeyError
    assert np.array_equal(rotations(model)["all"].frequencies, before)


@pytest.mark.parametrize("text", ["standard", "yarn(8)", "window(7)"])
def test_file_holds_the_evidence(text, tmp_path):
    model = observable("llama", text)
    stimulus = child.stimulus("natural", n=2, length=24, window=3, prefixes=None)
    with capture_stimulus(model, stimulus, tmp_path / "a.h5", progress=False) as store:
        assert store.header.config["posprobe_variant"] == model.variant_evidence(24)
        assert store.header.variant == text


def test_capture_at_which_a_variant_is_inert_writes_nothing(tmp_path):
    stimulus = child.stimulus("natural", n=2, length=24, window=3, prefixes=None)
    with pytest.raises(ModelError, match="is inert at length 24"):
        capture_stimulus(observable("llama", "window(24)"), stimulus, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


# --- what is refused ---


def assert_one_line(error):
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ROTARY)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_rotary_variant_of_learned_positions_is_refused(text, family):
    with pytest.raises(ModelError, match="does not apply: the model has no rotary position") as e:
        parameters(family, text)
    assert_one_line(e)


@pytest.mark.parametrize("text", ROTARY)
def test_rotary_variant_of_a_model_that_never_rotates_is_refused(text):
    with pytest.raises(ModelError, match="no layer of model 'tiny' uses a rotary embedding") as e:
        observable("nope", text)
    assert_one_line(e)


@pytest.mark.parametrize("text", ROTARY)
def test_one_layer_that_rotates_is_enough(text):
    model = observable("nope", text, no_rope_layers=[0, 1, 0])
    assert model.variant_evidence(64)["rotations"]["all"]["pairs_turned"] > 0


@pytest.mark.parametrize("text", ROTARY)
@pytest.mark.parametrize(
    "scaled",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 1e4,
        },
    ],
)
def test_rotary_variant_of_a_scaled_model_is_refused(text, scaled):
    reason = rf"already scales its rotary embedding \({scaled['rope_type']}\)"
    with pytest.raises(ModelError, match=reason) as error:
        parameters("llama", text, rope_parameters=scaled)
    assert_one_line(error)


def test_ntk_of_a_head_that_rotates_one_pair_is_refused():
    with pytest.raises(ModelError, match="heads rotate 2 dimensions, and the first two are left"):
        parameters("phi", "ntk(8)", hidden_size=16)
    assert parameters("phi", "linear(8)", hidden_size=16)["factor"] == 8


@pytest.mark.parametrize("text", ROTARY)
def test_rotary_variant_that_was_not_made_is_refused(text):
    with pytest.raises(ModelError, match=r"was not made in the model's configuration; use load_m"):
        observable("llama", text, change=False)


@pytest.mark.parametrize(
    ("text", "length", "reason"),
    [
        # at 2,048 positions the pairs that llama3 divides turn once in 512 tokens or more
        (
            "llama3",
            8,
            r"llama3 is inert at length 8: .* than 0.\d+ radians; give a --length of \d+ or",
        ),
        (
            "yarn(1.0001)",
            2048,
            "is inert at length 2048: .* give a larger factor or another variant",
        ),
        ("ntk(8)", 1, "is inert at length 1: .* than 0 radians; give a larger factor"),
        ("window(48)", 48, r"window\(48\) is inert at length 48: .*; give a smaller window or a l"),
        ("window(64)", 48, "is inert at length 48: every token sees all before it"),
        ("no_causal", 1, "no_causal is inert at length 1; give a longer --length"),
    ],
)
def test_inert_variant_is_refused(text, length, reason):
    model = observable("llama", text, **LONG)
    with pytest.raises(ModelError, match=reason) as error:
        model.variant_evidence(length)
    assert_one_line(error)


def test_the_length_that_the_refusal_names_is_the_first_that_is_long_enough():
    model = observable("llama", "llama3", **LONG)
    with pytest.raises(ModelError, match="give a --length of") as error:
        model.variant_evidence(8)
    needed = int(str(error.value).split("--length of ")[1].split()[0])
    model.variant_evidence(needed)
    with pytest.raises(ModelError, match="is inert"):
        model.variant_evidence(needed - 1)


def test_window_that_no_layer_exceeds_is_refused():
    with pytest.raises(ModelError, match="no layer of model 'tiny' sees more than 9 tokens; give"):
        observable("mistral", "window(9)").variant_evidence(48)
    assert observable("mistral", "window(8)").variant_evidence(48)["hidden_from_last"] == 1


def test_causal_mask_that_stays_is_noticed(monkeypatch):
    monkeypatch.setattr(Intervention, "visibility", lambda self, native: native)
    with pytest.raises(ModelError, match="no_causal does not act: later tokens do not reach"):
        observable("llama", "no_causal")


def test_rotary_embedding_that_cannot_be_built_again_is_refused():
    class Own(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.register_buffer("inv_freq", torch.ones(size))

    config = tiny.tiny_config("llama")
    parse_variant("ntk(8)").change_config(config)
    with pytest.raises(ModelError, match="rotary embedding Own cannot be compared with its stan"):
        rotary.standard_rotations(Own(4), config)
