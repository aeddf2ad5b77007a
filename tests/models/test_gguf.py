"""GGUF files: every key and tensor is carried over, inert or refused, and nothing is lost."""

import json

import gguf_files
import numpy as np
import pytest
import tiny
import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models import Observation, Observer, load_model

DERIVED = {key: value for key, value in tiny.GROUPED.items() if key != "head_dim"}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
WINDOW = dict(sliding_window=9, query_pre_attn_scalar=8)
CONFIGS = {
    "gemma2": ("Gemma2Config", tiny.GROUPED | WINDOW | dict(attn_logit_softcapping=20.0)),
    "gemma3": ("Gemma3TextConfig", tiny.GROUPED | WINDOW | dict(num_hidden_layers=7)),
    "gpt2": ("GPT2Config", tiny.GPT2),
    "llama": ("LlamaConfig", tiny.GROUPED),
    "phi3": ("Phi3Config", DERIVED | dict(rope_parameters=tiny.PARTIAL)),
    "qwen2": ("Qwen2Config", DERIVED),
    "qwen2moe": ("Qwen2MoeConfig", DERIVED | EXPERTS | dict(shared_expert_intermediate_size=24)),
    "qwen3": ("Qwen3Config", tiny.GROUPED),
    "qwen3moe": ("Qwen3MoeConfig", tiny.GROUPED | EXPERTS | dict(norm_topk_prob=True)),
    "starcoder2": ("Starcoder2Config", DERIVED),
}
LENGTH = 48


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def native(architecture, **changes):
    """A random transformers model of an architecture, in float32."""
    name, values = CONFIGS[architecture]
    config = getattr(transformers, name)(**values | changes)
    keywords = {"experts_implementation": "eager"} if "num_experts" in values else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, **keywords
        )
    return tiny.scramble(model)


def written(path, architecture="llama", *, tensors=(), without=(), general=(), model=None, **keys):
    """A file of a random model with other keys (`__` for a dot) and tensors; its own of each."""
    model = model or native(architecture)
    changed = {name.replace("__", "."): value for name, value in keys.items()}
    every = gguf_files.keys_of(model, architecture) | changed
    arrays = gguf_files.tensors_of(model, architecture) | dict(tensors)
    every, arrays = ({k: v for k, v in d.items() if k not in without} for d in (every, arrays))
    gguf_files.write(path, architecture, every, arrays, general=general)
    return every, arrays


def observed(model, ids):
    """Log-normalizers (layer, head, query) of one sequence."""
    seen = {}
    observer = Observer(
        lambda name, layer, tensor: seen.setdefault(name, {}).update({layer: tensor}),
        Observation(n_queries=len(ids)),
    )
    model.run(torch.as_tensor(ids)[None], observer)
    layers = [seen["normalizer"][layer][0] for layer in range(model.n_layers)]
    return torch.stack(layers).transpose(1, 2).numpy()


# --- what a file holds ---


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [(name, tied) for name in CONFIGS for tied in (True, False) if tied or name != "gemma2"],
)
def test_file_gives_the_model_that_it_was_written_from(architecture, tied, tmp_path):
    model = native(architecture, tie_word_embeddings=tied)
    written(tmp_path / "tiny.gguf", architecture, model=model)
    loaded = load_model(str(tmp_path / "tiny.gguf"))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.logits(tiny.tokens()), model(tiny.tokens()).logits)
    assert loaded.quantization == "F32"
    assert list(loaded.tokenize("the")) == [95, 68]


LONG = {"rope_factors_long.weight": np.linspace(2, 8, 4, dtype=np.float32)}
RAMP = np.linspace(1, 2, 4, dtype=np.float32)
SHORT = {"rope_factors_short.weight": RAMP}
YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 8.0}
YARN |= {"rope__scaling__original_context_length": 16}


def llama3_divisors(factor, base=1e4, size=8, length=8192):
    """As llama.cpp's converter writes them."""
    divisors = []
    for pair in range(size // 2):
        wavelength = 2 * np.pi * base ** (2 * pair / size)
        if wavelength < length / 4:
            divisors.append(1)
        elif wavelength > length:
            divisors.append(factor)
        else:
            smooth = (length / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


ROTATIONS = {
    "plain": ("llama", {}, {}, "default"),
    "other base": ("llama", {"rope__freq_base": 500.0}, {}, "default"),
    "linear": (
        "llama",
        {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0},
        {},
        "linear",
    ),
    "linear without its type": ("llama", {"rope__scaling__factor": 8.0}, {}, "linear"),
    "linear by its old name": ("llama", {"rope__scale_linear": 4.0}, {}, "linear"),
    "none": (
        "llama",
        {"rope__scaling__type": "none", "rope__scaling__factor": 8.0},
        {},
        "default",
    ),
    "yarn": ("llama", YARN, {}, "yarn"),
    "yarn with a factor of its own": (
        "llama",
        YARN | {"rope__scaling__attn_factor": 0.8, "rope__scaling__yarn_ext_factor": 1.0},
        {},
        "yarn",
    ),
    "yarn with another ramp": (
        "llama",
        YARN | {"rope__scaling__yarn_beta_fast": 4.0, "rope__scaling__yarn_beta_slow": 0.25},
        {},
        "yarn",
    ),
    "llama 3, with a slow pair on its ramp": (
        "llama",
        {},
        {"rope_freqs.weight": llama3_divisors(8.0)},
        "llama3",
    ),
    "llama 3.2, another base": (
        "llama",
        {"rope__freq_base": 5e5},
        {"rope_freqs.weight": llama3_divisors(32.0, 5e5)},
        "llama3",
    ),
    "divisors of one": ("llama", {}, {"rope_freqs.weight": np.ones(4, np.float32)}, "default"),
    "a part of each head": ("phi3", {"rope__dimension_count": 4}, {}, "default"),
    "longrope": (
        "llama",
        {
            "rope__scaling__attn_factor": 1.2,
            "rope__scaling__original_context_length": 60,
        },
        LONG | SHORT,
        "longrope",
    ),
    "longrope beyond its switch": (
        "llama",
        {"rope__scaling__original_context_length": 16},
        LONG | SHORT,
        "longrope",
    ),
    "window": ("llama", {"attention__sliding_window": 9}, {}, "default"),
    "window of phi3": ("phi3", {"attention__sliding_window": 9}, {}, "default"),
}


@pytest.mark.parametrize("case", ROTATIONS)
def test_scores_are_those_that_the_file_defines(case, tmp_path):
    """z against float64 NumPy that reads the file's own tensors and turns them as ggml does."""
    architecture, keys, tensors, kind = ROTATIONS[case]
    keys, tensors = written(tmp_path / "tiny.gguf", architecture, tensors=tensors, **keys)
    model = load_model(str(tmp_path / "tiny.gguf"), dtype="float64")
    ids = tiny.tokens(1, LENGTH)[0].numpy()
    expected = gguf_files.normalizers(architecture, keys, tensors, ids)
    np.testing.assert_allclose(observed(model, ids), expected, atol=2e-5)
    assert model.config.rope_parameters["rope_type"] == kind


@pytest.mark.parametrize("case", [case for case in ROTATIONS if case not in ("plain", "none")])
def test_each_piece_shows_in_the_scores(case, tmp_path):
    """The comparison above can fail: without the piece, the reference is another."""
    architecture, keys, tensors, _ = ROTATIONS[case]
    if case == "divisors of one":
        tensors = {"rope_freqs.weight": np.full(4, 2.0)}
    plain = native(architecture)
    ids = tiny.tokens(1, LENGTH)[0].numpy()
    every = gguf_files.keys_of(plain, architecture)
    own = gguf_files.tensors_of(plain, architecture)
    changed = every | {name.replace("__", "."): value for name, value in keys.items()}
    if case == "a part of each head":
        every = every | {"rope.dimension_count": 8}
    moved = gguf_files.normalizers(architecture, changed, own | tensors, ids)
    assert np.abs(moved - gguf_files.normalizers(architecture, every, own, ids)).max() > 1e-2


@pytest.mark.parametrize(
    ("keys", "tensors", "named"),
    [
        ({"rope__scaling__attn_factor": 1.19}, {}, r"attn_factor = 1\.19.*attention factor 1, not"),
        (YARN | {"rope__scaling__yarn_ext_factor": 0.5}, {}, r"yarn_ext_factor = 0\.5"),
        ({"rope__scaling__yarn_ext_factor": 1.0}, {}, r"yarn_ext_factor = 1\.0"),
        (YARN | {"rope__scaling__yarn_attn_factor": 0.5}, {}, r"yarn_attn_factor = 0\.5 cannot"),
        (YARN | {"rope__scaling__yarn_log_multiplier": 0.1}, {}, r"log_multiplier = 0\.1.* cannot"),
        ({"rope__scaling__alpha": 1000.0}, {}, r"alpha = 1000\.0 cannot be expressed"),
        ({"rope__scaling__type": "dynamic"}, {}, r"type = dynamic\): no type dynamic"),
        ({"rope__scaling__type": "longrope"}, {}, r"type = longrope\): .*both tensors of factors"),
        ({}, LONG, r"rope_factors_long\.weight\): longrope needs both tensors"),
        ({}, SHORT, r"rope_factors_short\.weight\): longrope needs both tensors"),
        ({}, {"rope_freqs.weight": np.ones(3, np.float32)}, r"have 3 elements for 4 rotated"),
        (
            {},
            {"rope_freqs.weight": SHORT["rope_factors_short.weight"]},
            r"rope_freqs\.weight\): pair",
        ),
        (YARN, {"rope_freqs.weight": np.full(4, 2, np.float32)}, r"rope_freqs\.weight\): pair 0"),
        (
            {"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0},
            LONG | SHORT,
            r"factor = 4\.0.*rope_factors_long\.weight\): pair 0",
        ),
        ({"rope__dimension_count": 4}, {}, r"dimension_count = 4\): 8 rotated dimensions for 4"),
        ({"rope__dimension_count_swa": 4}, {}, r"dimension_count_swa = 4\): one rotation for all"),
        ({"rope__freq_base_swa": 500.0}, {}, r"freq_base_swa = 500\.0\): one rotation for all"),
        ({"rope__freq_base": 0.0}, {}, r"rope\.freq_base = 0\.0 is not a positive number"),
        ({"rope__freq_base": float("nan")}, {}, r"freq_base = nan is not a positive number"),
        (YARN | {"rope__scaling__yarn_beta_slow": 0.0}, {}, r"beta_slow = 0\.0 is not a positive"),
        ({"rope__scaling__factor": -2.0}, {}, r"scaling\.factor = -2\.0 is not a positive"),
        ({"rope__scaling__factor": float("inf")}, {}, r"scaling\.factor = inf is not a positive"),
        ({"rope__scaling__unheard": 1.0}, {}, r"rope\.scaling\.unheard = 1\.0 is unknown"),
    ],
)
def test_rotation_that_transformers_cannot_express_is_refused(keys, tensors, named, tmp_path):
    written(tmp_path / "tiny.gguf", tensors=tensors, **keys)
    with pytest.raises(ModelError, match=rf"tiny\.gguf': .*{named}") as error:
        load_model(str(tmp_path / "tiny.gguf"))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "keys", "named"),
    [
        ("phi3", YARN, r"phi3\.rope\.scaling\.type = yarn.*\): no yarn scaling"),
        ("gemma3", YARN, r"gemma3\.rope\.scaling\.type = yarn.*\): no yarn scaling"),
        (
            "gpt2",
            {"rope__freq_base": 1e4},
            r"gpt2\.rope\.freq_base = 10000\.0, but a gpt2 does not",
        ),
        ("qwen2", {"rope__dimension_count": 4}, r"dimension_count = 4\): 8 rotated"),
    ],
)
def test_rotation_that_an_architecture_does_not_know_is_refused(
    architecture, keys, named, tmp_path
):
    written(tmp_path / "tiny.gguf", architecture, **keys)
    with pytest.raises(ModelError, match=named):
        load_model(str(tmp_path / "tiny.gguf"))


def test_layers_of_gemma_3_keep_two_rotations(tmp_path):
    """A factor scales the layers that see everything; those with a window turn as ever."""
    keys = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0, "rope__freq_base": 1e6}
    written(tmp_path / "tiny.gguf", "gemma3", rope__freq_base_swa=500.0, **keys)
    loaded = load_model(str(tmp_path / "tiny.gguf"))
    expected = native(
        "gemma3",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    )
    with torch.inference_mode():
        torch.testing.assert_close(loaded.logits(tiny.tokens()), expected(tiny.tokens()).logits)


@pytest.mark.parametrize("case", ["linear", "yarn", "llama 3.2, another base", "longrope"])
def test_variant_of_a_file_that_scales_already_is_refused(case, tmp_path):
    architecture, keys, tensors, kind = ROTATIONS[case]
    written(tmp_path / "tiny.gguf", architecture, tensors=tensors, **keys)
    with pytest.raises(ModelError, match=rf"yarn\(4\) does not apply: .* already scales .*{kind}"):
        load_model(str(tmp_path / "tiny.gguf"), variant="yarn(4)")


# --- other keys ---


@pytest.mark.parametrize(
    ("architecture", "key", "value", "attribute"),
    [
        ("llama", "context_length", 80, "max_position_embeddings"),
        ("llama", "attention__layer_norm_rms_epsilon", 0.125, "rms_norm_eps"),
        ("llama", "attention__sliding_window", 9, "sliding_window"),
        ("gemma2", "attn_logit_softcapping", 2.0, "attn_logit_softcapping"),
        ("gemma2", "final_logit_softcapping", 2.0, "final_logit_softcapping"),
        ("gemma2", "attention__sliding_window", 5, "sliding_window"),
        ("qwen3moe", "expert_used_count", 1, "num_experts_per_tok"),
    ],
)
def test_key_reaches_the_configuration(architecture, key, value, attribute, tmp_path):
    written(tmp_path / "tiny.gguf", architecture, **{key: value})
    assert getattr(load_model(str(tmp_path / "tiny.gguf")).config, attribute) == value


@pytest.mark.parametrize(
    ("architecture", "keys", "windows"),
    [
        ("llama", {}, (None,) * 3),
        ("llama", {"attention__sliding_window": 64}, (None,) * 3),  # as long as the context
        ("llama", {"attention__sliding_window": 9}, (9,) * 3),
        ("phi3", {"attention__sliding_window": 0}, (None,) * 3),
        ("starcoder2", {"attention__sliding_window": 9}, (9,) * 3),
        ("gemma2", {}, (9, None, 9)),
        ("gemma2", {"attention__sliding_window_pattern": 3}, (9, 9, None)),
        (
            "gemma2",
            {"attention__sliding_window_pattern": [False, False, True]},
            (None, None, 9),
        ),
        ("gemma3", {}, (9,) * 5 + (None, 9)),
    ],
)
def test_layers_have_the_windows_of_the_file(architecture, keys, windows, tmp_path):
    written(tmp_path / "tiny.gguf", architecture, **keys)
    assert load_model(str(tmp_path / "tiny.gguf")).layer_windows == windows


@pytest.mark.parametrize(
    ("architecture", "keys", "named"),
    [
        ("llama", {"unheard_of": 1.0}, r"llama\.unheard_of = 1\.0 is unknown to posprobe"),
        ("llama", {"attention__causal": False}, r"llama\.attention\.causal = False cannot be"),
        ("llama", {"attention__max_alibi_bias": 8.0}, r"max_alibi_bias = 8\.0 cannot be"),
        ("llama", {"attention__clamp_kqv": 6.0}, r"clamp_kqv = 6\.0 cannot be"),
        ("llama", {"logit_scale": 0.25}, r"logit_scale = 0\.25 cannot be expressed in a LlamaCo"),
        ("llama", {"residual_scale": 0.25}, r"residual_scale = 0\.25 cannot be"),
        ("llama", {"embedding_scale": 12.0}, r"embedding_scale = 12\.0 cannot be"),
        ("llama", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0 cannot be"),
        ("llama", {"expert_count": 8}, r"expert_count = 8 cannot be"),
        ("llama", {"use_parallel_residual": True}, r"use_parallel_residual = True cannot be"),
        ("llama", {"attention__scale": 0.5}, r"attention\.scale = 0\.5 is not the scale"),
        ("llama", {"attention__value_length": 4}, r"value_length = 4, and 8 for keys"),
        ("llama", {"attention__head_count_kv": [2, 2, 1]}, r"head_count_kv differs by layer \(\[2"),
        ("qwen2", {"attention__sliding_window": 9}, r"sliding_window = 9 does not say which"),
        (
            "llama",
            {"attention__sliding_window": 9, "attention__sliding_window_pattern": 2},
            r"sliding_window_pattern = 2 does not say which",
        ),
        ("gemma2", {"attention__sliding_window_pattern": [True]}, r"has 1 flags, not one each"),
        ("qwen2moe", {"expert_weights_scale": 2.5}, r"expert_weights_scale = 2\.5 cannot be"),
        ("qwen2", {"attention__key_length": 4, "attention__value_length": 4}, r"key_length = 4 is"),
    ],
)
def test_key_that_would_be_lost_is_refused(architecture, keys, named, tmp_path):
    written(tmp_path / "tiny.gguf", architecture, **keys)
    with pytest.raises(ModelError, match=rf"tiny\.gguf': .*{named}") as error:
        load_model(str(tmp_path / "tiny.gguf"))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


NOTHING = {
    "attention__causal": True,
    "attention__max_alibi_bias": 0.0,
    "attention__scale": 8**-0.5,
    "attn_logit_softcapping": 0.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "pooling_type": 0,
    "rope__dimension_sections": [1, 1, 2, 0],
    "rope__scaling__finetuned": False,
    "rope__scaling__original_context_length": 16,
    "tensor_data_layout": "Meta AI original pth",
    "vocab_size": 97,
}
GENERAL = {
    "general.name": "tiny",
    "general.quantization_version": 2,
    "general.sampling.temp": 0.5,
    "quantize.imatrix.entries_count": 3,
    "somebody.note": "theirs",
}


def test_keys_that_say_nothing_change_nothing(tmp_path):
    written(tmp_path / "tiny.gguf", general=GENERAL, **NOTHING)
    loaded, model = load_model(str(tmp_path / "tiny.gguf")), native("llama")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.logits(tiny.tokens()), model(tiny.tokens()).logits)
    assert loaded.config.rope_parameters["rope_type"] == "default"


def test_llama_that_is_called_mistral_has_no_window_of_its_own(tmp_path):
    """transformers makes a Mistral of it, whose window of 4096 tokens no key has asked for."""
    written(tmp_path / "tiny.gguf", general={"general.name": "mistral"}, context_length=8192)
    assert load_model(str(tmp_path / "tiny.gguf")).layer_windows == (None,) * 3


@pytest.mark.parametrize(
    ("architecture", "value"), [("gemma2", 46), ("gemma3", 62)], ids=["gemma2", "gemma3"]
)
def test_scale_of_the_large_gemmas_is_that_of_their_architecture(architecture, value, tmp_path):
    model = native(architecture, num_hidden_layers=value, head_dim=4, query_pre_attn_scalar=8)
    written(tmp_path / "tiny.gguf", architecture, model=model)
    assert load_model(str(tmp_path / "tiny.gguf")).config.query_pre_attn_scalar == 8


# --- files that are not whole ---


@pytest.mark.parametrize(
    "gone",
    [
        "context_length",
        "block_count",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_file_without_a_needed_key_is_refused_before_it_is_loaded(gone, tmp_path, monkeypatch):
    written(tmp_path / "tiny.gguf", without=(gone,))
    monkeypatch.delattr(transformers.AutoConfig, "from_pretrained")
    with pytest.raises(ModelError, match=rf"tiny\.gguf': it lacks llama\.{gone}; download it"):
        load_model(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    ("architecture", "gone"),
    [("gemma3", "attention.sliding_window"), ("qwen3moe", "expert_used_count")],
)
def test_key_that_an_architecture_needs_is_needed(architecture, gone, tmp_path):
    written(tmp_path / "tiny.gguf", architecture, without=(gone,))
    with pytest.raises(ModelError, match=rf"it lacks {architecture}\.{gone}"):
        load_model(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            dict(without=("blk.1.attn_k.weight",)),
            r"lacks 1 tensors of its 3 blocks \(blk\.1\.attn_k",
        ),
        (dict(block_count=200), r"lacks 1773 tensors of its 200 blocks \(blk\.10\."),
        (dict(block_count=2), r"9 of its tensors have no place in a Llama\S+ of 2 blocks \(blk\.2"),
        (dict(tensors={"blk.0.attn_q.bias": np.ones(32, np.float32)}), r"no place.*attn_q\.bias"),
        (dict(embedding_length=4096), r"tensor \S+ has \d+ elements where its keys ask for \d+"),
        (dict(vocab_size=98), r"tensor token_embd\.weight has 3104 elements .*ask for 3136"),
        (dict(general={"split.count": 3}), r"one of split\.count = 3 parts; join them"),
        (
            dict(general={"qwen2.rope.freq_base": 9.0}),
            r"qwen2\.rope\.freq_base = 9\.0 is a key of an",
        ),
        (dict(general={"general.type": "mmproj"}), r"holds general\.type = mmproj, not a model"),
    ],
)
def test_file_that_is_not_whole_is_refused_before_it_is_loaded(
    changes, named, tmp_path, monkeypatch
):
    written(tmp_path / "tiny.gguf", **changes)
    monkeypatch.delattr(transformers.AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(ModelError, match=rf"tiny\.gguf': .*{named}") as error:
        load_model(str(tmp_path / "tiny.gguf"))
    assert "\n" not in str(error.value)


def test_inverse_frequencies_of_an_old_converter_are_left_out(tmp_path):
    old = {f"blk.{layer}.attn_rot_embd.weight": np.ones(4, np.float32) for layer in range(3)}
    written(tmp_path / "tiny.gguf", tensors=old)
    assert load_model(str(tmp_path / "tiny.gguf")).n_layers == 3


def test_other_architecture_is_refused_by_its_name(tmp_path):
    keys, tensors = written(tmp_path / "tiny.gguf")
    gguf_files.write(tmp_path / "other.gguf", "falcon", keys, tensors)
    with pytest.raises(ModelError, match=r"general\.architecture = falcon is not one that posp"):
        load_model(str(tmp_path / "other.gguf"))


def test_file_without_a_tokenizer_is_refused(tmp_path):
    keys, tensors = written(tmp_path / "tiny.gguf")
    path = tmp_path / "bare.gguf"
    gguf_files.write(path, "llama", keys | {"vocab_size": 97}, tensors, tokens=())
    with pytest.raises(ModelError, match=r"bare\.gguf': its tokenizer cannot be read \("):
        load_model(str(path))
    gguf_files.write(path, "llama", keys, tensors, tokens=())
    with pytest.raises(ModelError, match=r"it lacks tokenizer\.ggml\.tokens"):
        load_model(str(path))


def test_conversion_says_where_it_comes_from(tmp_path, cache):
    written(tmp_path / "tiny.gguf")
    load_model(str(tmp_path / "tiny.gguf"))
    (folder,) = cache.iterdir()
    notes = json.loads((folder / "posprobe.json").read_text())
    assert (notes["source"], notes["quantization"]) == ("tiny.gguf", "F32")


@pytest.mark.parametrize("ends", [{}, {"bos": True}, {"eos": True}, {"bos": True, "eos": True}])
def test_tokens_that_the_file_puts_around_a_text_are_kept(ends, tmp_path):
    keys, tensors = written(tmp_path / "tiny.gguf")
    gguf_files.write(tmp_path / "ends.gguf", "llama", keys, tensors, ends=ends)
    loaded = load_model(str(tmp_path / "ends.gguf"))
    expected = [96] * ("bos" in ends) + [95, 68] + [96] * ("eos" in ends)
    assert loaded.tokenizer("the")["input_ids"] == expected
