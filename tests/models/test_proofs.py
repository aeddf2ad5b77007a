"""The proof of observability: what cannot be observed is refused by name."""

import numpy as np
import pytest
import tiny
import torch
import transformers
from transformers import AttentionInterface
from watched import IDS, watch

from posprobe.errors import ModelError
from posprobe.models import (
    ObservableModel,
    Observation,
    load_model,
    observation,
)
from posprobe.models.proofs import ATTENTION, prove_observable

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
    plain = observation.observe_scores

    def other_heads(*args):
        seen = plain(*args)
        return seen | {"offset_score": seen["offset_score"].roll(1, dims=2)}

    monkeypatch.setattr(observation, "observe_scores", other_heads)
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
