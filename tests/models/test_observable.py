"""Families against eager attention in float64, the proof of observability, and loading."""

import copy
import json
import re

import numpy as np
import pytest
import tiny
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface

from posprobe.errors import ModelError
from posprobe.models import (
    NO_INTERVENTION,
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    load_model,
    observation,
    scores,
)
from posprobe.models.attention import Visibility
from posprobe.models.masks import recognise_mask
from posprobe.models.proofs import ATTENTION, prove_observable

LENGTH = 24
IDS = tiny.tokens(2, LENGTH)
EVERY = Observation(n_queries=LENGTH, offsets=tuple(range(LENGTH)))


def watch(model, ids=IDS, observation=EVERY, intervention=NO_INTERVENTION, **keywords):
    """What a run emits: {name: {layer: tensor}}."""
    seen = {}
    observer = Observer(
        lambda name, layer, tensor: seen.setdefault(name, {}).update({layer: tensor}),
        observation,
        intervention,
    )
    model.run(ids, observer, **keywords)
    return seen


def eager(family, ids=IDS, *, edit=None, dtype=torch.float64, **changes):
    """Outputs of transformers' eager attention; `edit(layer, keywords)` changes its masks."""
    model = tiny.tiny_model(family, dtype=dtype, attention="eager", **changes)
    if edit is not None:
        for module in model.modules():
            if hasattr(module, "layer_idx") and "Attention" in type(module).__name__:
                module.register_forward_pre_hook(
                    lambda module, args, keywords: (args, edit(module, keywords)), with_kwargs=True
                )
    with tiny.exact_softmax(), torch.inference_mode():
        return model(ids, use_cache=False, output_attentions=True, output_hidden_states=True)


def assert_observed_is_eager(model, expected, seen, tolerance):
    close = dict(atol=tolerance, rtol=tolerance)
    for layer, weights in enumerate(expected.attentions):
        z = seen["normalizer"][layer]
        sink = (seen["sink_score"][layer] - z).exp().transpose(1, 2)
        visible = weights[..., 0] > 0
        torch.testing.assert_close(sink[visible], weights[..., 0][visible], **close)
        for offset in range(LENGTH):
            score = seen["offset_score"][layer][..., offset]
            assert score[:, :offset].isnan().all()
            observed = (score - z)[:, offset:].exp().transpose(1, 2)
            wanted = weights.diagonal(-offset, -2, -1)
            visible = wanted > 0
            torch.testing.assert_close(observed[visible], wanted[visible], **close)
    for layer in range(model.n_layers):
        stream = expected.hidden_states[layer]
        # a small entry of a stream is the sum of large ones, and rounds as they do
        size = float(stream.abs().max())
        torch.testing.assert_close(
            seen["residual"][layer], stream, atol=tolerance * max(size, 1.0), rtol=tolerance
        )
        assert torch.equal(seen["position0"][layer], seen["residual"][layer][:, 0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_family_is_observed_as_eager_attention_computes_it(family):
    model = ObservableModel(tiny.tiny_model(family))
    expected, seen = eager(family), watch(model)
    assert_observed_is_eager(model, expected, seen, 1e-9)
    torch.testing.assert_close(model.logits(IDS), expected.logits, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_family_in_float32(family):
    model = ObservableModel(tiny.tiny_model(family, dtype=torch.float32))
    expected, seen = eager(family, dtype=torch.float32), watch(model)
    assert_observed_is_eager(model, expected, seen, 1e-5)


ODDITIES = [
    ("mistral", dict(sliding_window=8)),
    ("mistral", dict(sliding_window=None)),
    ("llama", dict(num_key_value_heads=1)),
    ("gemma2", dict(query_pre_attn_scalar=8)),
    ("gemma2", dict(attn_logit_softcapping=None)),
    ("gemma3", dict(query_pre_attn_scalar=8)),
    ("gemma3", dict(layer_types=["full_attention"] * 3)),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True)),
    ("gpt2", dict(scale_attn_weights=False)),
    ("qwen2-window", dict(use_sliding_window=False, layer_types=None)),
]


@pytest.mark.parametrize(("family", "change"), ODDITIES)
def test_each_oddity_shows_in_what_is_observed(family, change):
    """The comparison above can fail: without the oddity, attention is another."""
    model = ObservableModel(tiny.tiny_model(family, **change))
    with pytest.raises(AssertionError):
        assert_observed_is_eager(model, eager(family), watch(model), 1e-3)


def test_last_residual_is_the_last_block_before_the_final_norm():
    model = ObservableModel(tiny.tiny_model("llama"))
    seen, expected = watch(model), eager("llama").hidden_states[-1]
    torch.testing.assert_close(model.model.model.norm(seen["residual"][3]), expected)
    assert (seen["residual"][3] - expected).abs().max() > 0.1


def test_late_queries_alone_are_the_late_rows_of_all():
    model = ObservableModel(tiny.tiny_model("mistral"))
    late = watch(model, observation=Observation(n_queries=5, offsets=(1, 7, 30)))
    whole = watch(model, observation=Observation(n_queries=LENGTH, offsets=(1, 7, 30)))
    for name in ("normalizer", "sink_score", "offset_score", "residual"):
        for layer, values in late[name].items():
            rows = whole[name][layer][:, -5:]
            torch.testing.assert_close(values, rows, equal_nan=True, rtol=1e-12, atol=1e-12)
    assert late["offset_score"][0][..., 2].isnan().all()


OUTPUT_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sink_value_is_what_key_0_writes(family):
    """Alone, a token attends to itself: its heads' outputs are their values, up to a weight."""
    entered, expected = [], []
    model = tiny.tiny_model(family, attention="eager")
    for module in model.modules():
        if "Attention" in type(module).__name__:
            project = next(getattr(module, n) for n in OUTPUT_PROJECTION if hasattr(module, n))
            project.register_forward_hook(
                lambda project, args, _: entered.append((project, args[0]))
            )
    with tiny.exact_softmax(), torch.inference_mode():
        output = model(IDS[:, :1], use_cache=False, output_attentions=True)
        weights = [layer.flatten(1) for layer in output.attentions]
        for project, heads in entered.copy():
            alone = torch.diag_embed(heads[:, 0])
            each = project(alone) - project(torch.zeros_like(alone))
            n_heads = model.config.num_attention_heads
            expected.append(each.unflatten(1, (n_heads, -1)).sum(2).norm(dim=-1))
    seen = watch(ObservableModel(tiny.tiny_model(family)))["sink_value"]
    for layer in range(3):
        torch.testing.assert_close(seen[layer] * weights[layer], expected[layer])


def test_windows_and_sizes_are_read_off_the_configuration():
    model = ObservableModel(tiny.tiny_model("qwen2-window"))
    assert model.layer_windows == (None, 9, 9)
    assert (model.n_layers, model.n_heads, model.width, model.max_length) == (3, 4, 32, 64)
    assert ObservableModel(tiny.tiny_model("qwen2")).layer_windows == (None,) * 3
    assert ObservableModel(tiny.tiny_model("gpt-oss")).layer_windows == (9, None, 9)
    for family in ("mistral", "gemma2", "gemma3", "qwen2-window", "gpt-oss"):
        model = ObservableModel(tiny.tiny_model(family))
        observer = Observer()
        model.logits(IDS, observer)
        found = tuple(observer.visibilities[layer].window for layer in range(3))
        assert found == model.layer_windows


# --- interventions ---


def masked(change):
    """An edit of eager's additive mask by `change(mask)`, with one plane per head."""

    def edit(module, keywords):
        mask = keywords["attention_mask"].expand(-1, 4, -1, -1).clone()
        change(module.layer_idx, mask)
        return keywords | {"attention_mask": mask}

    return edit


def hide_sink(heads):
    def change(layer, mask):
        for head in range(4):
            if heads == "all" or (layer, head) in heads:
                mask[:, head, 1:, 0] = -torch.inf

    return masked(change)


def hide_beyond(window):
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    return masked(lambda _, mask: mask.masked_fill_(distance >= window, -torch.inf))


def show_future(_, mask):
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    mask.masked_fill_(distance < 0, 0.0)


INTERVENTIONS = {
    "all-sinks": (Intervention(cut_sink="all"), hide_sink("all")),
    "some-sinks": (
        Intervention(cut_sink=((0, 1), (2, 0), (2, 3))),
        hide_sink([(0, 1), (2, 0), (2, 3)]),
    ),
    "window-1": (Intervention(window=1), hide_beyond(1)),
    "window-5": (Intervention(window=5), hide_beyond(5)),
    "not-causal": (Intervention(causal=False), masked(show_future)),
}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_intervention_is_eager_with_its_mask_edited(name, family):
    if name == "not-causal" and family != "llama":
        family = "gpt2"  # a window without causality is tested in test_attention
    intervention, edit = INTERVENTIONS[name]
    model = ObservableModel(tiny.tiny_model(family))
    expected = eager(family, edit=edit)
    seen = watch(model, intervention=intervention)
    logits = model.logits(IDS, Observer(intervention=intervention))
    assert_observed_is_eager(model, expected, seen, 1e-9)
    torch.testing.assert_close(logits, expected.logits, atol=1e-9, rtol=1e-9)
    assert (logits - model.logits(IDS)).abs().max() > 1e-3


def test_temperature_scales_the_scores_of_its_layer():
    model = ObservableModel(tiny.tiny_model("llama"))
    intervention = Intervention(temperature=((1, 0.5),)).combined(
        Intervention(temperature=((1, 0.5), (2, 3.0)))
    )

    def edit(module, keywords):
        module.scaling = 8**-0.5 * {0: 1.0, 1: 0.25, 2: 3.0}[module.layer_idx]
        return keywords

    seen = watch(model, intervention=intervention)
    assert_observed_is_eager(model, eager("llama", edit=edit), seen, 1e-9)


def test_temperatures_by_row_are_those_of_a_run_each():
    model = ObservableModel(tiny.tiny_model("gemma2"))
    change = Intervention(temperature=((2, 0.5), (0, 3.0), (2, 1.0)))
    rows = IDS[:1].expand(3, -1)
    together = model.logits(rows, Observer(intervention=change, by_row=True))
    for row, one in enumerate(change.temperature):
        alone = model.logits(IDS[:1], Observer(intervention=Intervention(temperature=(one,))))
        torch.testing.assert_close(together[row : row + 1], alone)
    assert (together[0] - together[1]).abs().max() > 1e-3


# --- what cannot be observed ---

SMALL = dict(vocab_size=97, hidden_size=32)
SHORT = dict(num_hidden_layers=2, num_attention_heads=4)
BERT = SMALL | SHORT | dict(intermediate_size=32)
T5 = dict(vocab_size=97, d_model=32, d_ff=32, num_layers=2, num_heads=4, d_kv=8)
REFUSED = [
    ("BloomConfig", SMALL | dict(n_layer=2, n_head=4), "BloomForCausalLM does not call"),
    ("FalconConfig", SMALL | SHORT, "FalconForCausalLM does not call"),
    ("GPTJConfig", dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, rotary_dim=4), "GPTJ"),
    ("BertConfig", BERT, "'BertLMHeadModel' is not causal"),
    ("MambaConfig", SMALL | dict(num_hidden_layers=2), r"layer\(s\) 0, 1 never called"),
    ("Llama4TextConfig", tiny.GROUPED | tiny.EXPERTS | dict(attention_chunk_size=16), "neither"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "values", "reason"), REFUSED)
def test_model_that_cannot_be_observed_is_refused_by_name(config, values, reason):
    ids = dict(bos_token_id=None, eos_token_id=None)
    config = getattr(transformers, config)(**values | ids)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=reason):
        ObservableModel(tiny.scramble(model))


def test_encoder_decoder_is_refused(tmp_path):
    config = transformers.T5Config(**T5, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        ObservableModel(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder-decoder, not a decoder"):
        load_model(str(tmp_path))


def test_model_without_a_language_head_is_refused():
    with pytest.raises(ModelError, match="LlamaModel has no language-model head"):
        ObservableModel(transformers.LlamaModel(tiny.tiny_config("llama")))


def test_model_shorter_than_the_proof_is_proved_on_what_it_can_hold():
    model = ObservableModel(tiny.tiny_model("gpt2", n_positions=10))
    assert watch(model, IDS[:, :10], Observation(10))["normalizer"][0].shape == (2, 10, 4)


def test_upcast_attention_is_observed_as_computed():
    """GPT-2 takes its own way only under eager attention: what replaces it is the same."""
    model = ObservableModel(tiny.tiny_model("gpt2", reorder_and_upcast_attn=True))
    expected = eager("gpt2").logits
    torch.testing.assert_close(model.logits(IDS), expected, atol=1e-5, rtol=1e-5)


def skip_attention(model, layer):
    attention = model.model.layers[layer].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    return model


def test_layer_that_does_not_call_back_is_refused():
    model = skip_attention(tiny.tiny_model("llama"), 1)
    with pytest.raises(ModelError, match=r"'tiny': layer\(s\) 1 never called the attention"):
        ObservableModel(model, name="tiny")


def test_layer_that_calls_twice_is_refused():
    model = tiny.tiny_model("llama")
    attention = model.model.layers[1].self_attn
    once = attention.forward
    attention.forward = lambda *args, **kwargs: (once(*args, **kwargs), once(*args, **kwargs))[1]
    with pytest.raises(ModelError, match="4 attention calls in 3 layers"):
        ObservableModel(model)


def replace_attention(monkeypatch, function):
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, function)


def test_attention_that_computes_something_else_is_refused(monkeypatch):
    def other(*args, **kwargs):
        output, weights = observation.observed_attention(*args, **kwargs)
        return output * 1.01, weights

    replace_attention(monkeypatch, other)
    with pytest.raises(ModelError, match=r"'tiny': observed logits differ from its own by \d"):
        ObservableModel(tiny.tiny_model("llama"), name="tiny")


def test_normalizer_that_is_not_that_of_the_rows_is_refused(monkeypatch):
    plain = observation.observe_scores

    def other(query, key, normalizer, *rest):
        return plain(query, key, normalizer + np.log(2), *rest)

    monkeypatch.setattr(observation, "observe_scores", other)
    with pytest.raises(ModelError, match="attention rows of layer 0 sum to 1 only within"):
        ObservableModel(tiny.tiny_model("llama"), name="tiny")


@pytest.mark.parametrize("family", ["llama", "gpt-oss"])
def test_scores_that_are_not_those_of_the_rows_are_refused(family, monkeypatch):
    plain = scores._near_scores

    def other_heads(*args):
        sink, near = plain(*args)
        return sink, near.roll(1, dims=2)

    monkeypatch.setattr(scores, "_near_scores", other_heads)
    with pytest.raises(ModelError, match="attention rows of layer 0 sum to 1 only within"):
        ObservableModel(tiny.tiny_model(family), name="tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_do_not_reach_the_logits_are_refused(dtype):
    model = tiny.tiny_model("llama", dtype=dtype)
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()
    with pytest.raises(ModelError, match="scores of layer 2 do not reach the logits"):
        ObservableModel(model)


def test_proof_holds_of_a_model_that_is_observed_already():
    model = ObservableModel(tiny.tiny_model("gemma3"))
    prove_observable(model)


# --- masks are never dropped ---


@pytest.fixture(scope="module")
def llama():
    return ObservableModel(tiny.tiny_model("llama"))


def test_padding_is_refused(llama):
    mask = torch.ones_like(IDS)
    llama.model(IDS, attention_mask=mask, use_cache=False)
    mask[1, :3] = 0
    with pytest.raises(ModelError, match="padding is not supported"):
        llama.model(IDS, attention_mask=mask, use_cache=False)


def test_a_mask_made_by_hand_is_refused(llama):
    mask = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    with pytest.raises(ModelError, match="layer 0 got a mask that posprobe did not make"):
        llama.model(IDS, attention_mask=mask, use_cache=False)


def test_a_cache_is_refused(llama):
    cache = llama.model(IDS, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="a cache of 24 tokens is in use; pass use_cache=False"):
        llama.model(IDS[:, :1], past_key_values=cache)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("boundary", [1, 11, 23])
def test_packed_documents_are_refused(llama, row, boundary):
    positions = torch.arange(LENGTH).repeat(2, 1)
    positions[row, boundary:] -= boundary
    with pytest.raises(ModelError, match="neither causal nor a causal sliding window"):
        llama.model(IDS, position_ids=positions, use_cache=False)


def test_not_causal_by_keyword_is_what_it_says(llama):
    seen = llama.model(IDS, is_causal=False, use_cache=False).logits
    observer = Observer(intervention=Intervention(causal=False))
    torch.testing.assert_close(seen, llama.logits(IDS, observer))


@pytest.mark.parametrize("length", [1, 2, 5, 64, 65, 300])
@pytest.mark.parametrize("window", [None, 1, 2, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_are_recognised_at_every_length(length, window, causal):
    expected = Visibility(causal, window)

    def mask_function(batch, head, query, key):
        seen = expected.mask(query.flatten(), key.flatten())
        return seen.view(torch.broadcast_shapes(query.shape, key.shape))

    found = recognise_mask(
        batch_size=2, q_length=length, kv_length=length, mask_function=mask_function
    )
    rows = torch.arange(length)
    assert torch.equal(found.mask(rows, rows), expected.mask(rows, rows))


# --- loading ---

WORDS = ["a", "the", "of", "king", "queen", "sea", "ship", "storm"]


def make_tokenizer(*, prepends_bos):
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if prepends_bos:
        plain.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def folder(tmp_path):
    tiny.tiny_model("llama").save_pretrained(tmp_path)
    make_tokenizer(prepends_bos=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_folder_is_loaded_as_it_was_saved(folder, dtype):
    model = load_model(str(folder), dtype=dtype)
    assert str(model.model.dtype) == f"torch.{dtype}"
    assert model.name == str(folder)
    reference = tiny.tiny_model("llama")(IDS, use_cache=False).logits.detach().double()
    tolerance = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 0.5}[dtype]
    torch.testing.assert_close(model.logits(IDS).double(), reference, atol=tolerance, rtol=0.1)


def test_bos_is_the_one_that_the_tokenizer_prepends(folder):
    model = load_model(str(folder))
    assert (model.native_bos, model.bos_id) == (1, 1)
    assert model.tokenize("the king of the sea").tolist() == [4, 6, 5, 4, 8]
    assert model.tokenize("").tolist() == []
    assert model.special_ids == [0, 1, 2]
    make_tokenizer(prepends_bos=False).save_pretrained(folder)
    model = load_model(str(folder))
    assert (model.native_bos, model.bos_id) == (None, 1)
    assert model.tokenize("the king of the sea").tolist() == [4, 6, 5, 4, 8]


def test_a_token_put_at_the_end_is_no_bos(llama):
    tokenizer = make_tokenizer(prepends_bos=False)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    model = copy.copy(llama)
    model.tokenizer = tokenizer
    assert tokenizer("a")["input_ids"] == [3, 2]
    assert model.native_bos is None


def test_long_text_is_tokenized_without_a_warning(folder, capfd):
    model = load_model(str(folder))
    model.tokenizer.model_max_length = 4
    assert len(model.tokenize("the sea " * 100)) == 200
    assert capfd.readouterr().err == ""


def test_model_without_tokenizer_takes_token_ids_only(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load_model(str(folder))
    assert (model.tokenizer, model.native_bos, model.bos_id, model.special_ids) == (
        *(None,) * 3,
        [],
    )
    with pytest.raises(ModelError, match="has no tokenizer; pass token ids"):
        model.tokenize("the sea")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_tokenizer_that_cannot_be_read_is_not_taken_for_none(folder, damage):
    path = folder / "tokenizer.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if damage == "cut" else '{"version": 3}')
    reason = r"its tokenizer cannot be read \(tokenizer\.json: \w+: .*\); download it again"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_pointer_to_a_file_that_was_not_fetched_is_refused(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer, .*; run git lfs pull"):
        load_model(str(folder))


def test_configuration_that_asks_for_tuples_is_loaded(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"return_dict": False}))
    assert load_model(str(folder)).n_layers == 3


def test_weights_that_the_configuration_leaves_over_are_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    reason = r"9 weights .* no place in a LlamaForCausalLM of 2 blocks \(model\.layers\.2\.input"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_than_the_configuration_asks_for_are_named(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 40}))
    reason = r"weight model\.layers\.0\.mlp\.down_proj\.weight has shape \(32, 48\) .* \(32, 40\)"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


SURPLUS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": True,
    "model.layers.0.self_attn.k_scale": True,
    "vision_tower.encoder.layers.0.self_attn.q_proj.weight": True,
    "model.multi_modal_projector.linear_1.weight": True,
    "model.layers.0.self_attn.q_proj.bias": False,
    "model.layers.0.self_attn.q_proj.weight_scale": False,
    "model.layers.3.mlp.up_proj.weight": False,
    "transformer.h.0.attn.c_attn.weight": False,
}


@pytest.mark.parametrize("name", SURPLUS)
def test_surplus_weight_is_left_out_only_if_it_takes_no_part(folder, name):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(4)}, path, metadata={"format": "pt"})
    if SURPLUS[name]:
        assert load_model(str(folder)).n_layers == 3
        return
    with pytest.raises(ModelError, match=rf"1 weights .* \({re.escape(name)}\); does its config"):
        load_model(str(folder))


def test_variant_is_loaded_as_its_configuration_says(folder):
    model = load_model(str(folder), variant="ntk(4)", dtype="float64")
    theta = model.effective_config()["rope_parameters"]["rope_theta"]
    assert theta == pytest.approx(10_000 * 4 ** (8 / 6))
    frequencies = model.model.model.rotary_emb.inv_freq
    expected = theta ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(frequencies.double(), expected.double(), rtol=1e-6, atol=0)
    model = load_model(str(folder), variant="linear(4)", dtype="float64")
    quarter = 10_000 ** (-torch.arange(0, 8, 2) / 8) / 4
    frequencies = model.model.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies.double(), quarter.double(), rtol=1e-6, atol=0)
    model = load_model(str(folder), variant="window(5)")
    assert model.intervention() == Intervention(window=5)


def test_digest_knows_the_weights(llama):
    own = ObservableModel(tiny.tiny_model("llama"))
    assert llama.weights_digest() == own.weights_digest() == own.weights_digest()
    with torch.no_grad():
        own.model.model.norm.weight[0] += 1  # in place, after the digest was made
    assert own.weights_digest() != llama.weights_digest()
    other = tiny.tiny_model("llama")
    other.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1e-12
    assert ObservableModel(other).weights_digest() != llama.weights_digest()


def test_configuration_names_no_path_of_this_machine(folder):
    values = load_model(str(folder)).effective_config()
    assert str(folder) not in str(values)
    assert values["num_key_value_heads"] == 2


def one_line(error):
    return "\n" not in str(error.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    transformers.LlamaModel(tiny.tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 1 weights of a Llama.* \(lm_head") as error:
        load_model(str(tmp_path))
    assert one_line(error)


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="could not be loaded") as error:
        load_model(str(folder))
    assert one_line(error)


def test_configuration_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=f"{re.escape(str(folder))}.*could not be loaded") as error:
        load_model(str(folder))
    assert one_line(error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody/no-such-model", "'nobody/no-such-model' could not be loaded .*hub id that is rea"),
        ("no-such-model", "'no-such-model' could not be loaded"),
        ("./no/such/folder", "there is no such folder; check the path"),
        ("/no/such/folder", "there is no such folder; check the path"),
        ("no-such-file.gguf", "'no-such-file.gguf': there is no such file; check the path"),
        ("", "no model was named"),
    ],
)
def test_unknown_model_is_refused(name, reason):
    with pytest.raises(ModelError, match=reason) as error:
        load_model(name)
    assert one_line(error)


def test_unknown_dtype_is_refused():
    with pytest.raises(ModelError, match="dtype 'float8' is unknown; use one of float32"):
        load_model("smollm2", dtype="float8")


def test_folder_that_is_no_model_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the folder has no weights"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"the folder has no config\.json"):
        load_model(str(folder))


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file that is no GGUF; give its folder"):
        load_model(str(path))
