"""Models built so that one channel is open, or both: the split must find the shares they have."""

from unittest import mock

import capture_child as child
import numpy as np
import pytest
import tiny
import torch

from posprobe.captures import capture_stimulus
from posprobe.channels import channel_effects, decompose
from posprobe.models import ObservableModel
from posprobe.models import observable as observable_module
from posprobe.models.proofs import ATTENTION
from posprobe.stimuli import make_stimulus


def observable(model):
    """Observe a model whose scores move nothing, which the proof at load would refuse."""
    with mock.patch.object(
        observable_module,
        "prove_observable",
        lambda built: built.model.set_attn_implementation(ATTENTION),
    ):
        return ObservableModel(model, name="hand-built")


def split(model, tmp_path, **changes):
    stimulus = child.stimulus(n=24, length=40, window=8, **changes)
    return capture_stimulus(
        model, stimulus, tmp_path / "a.h5", offsets=(1, 2), progress=False, dtype="float32"
    )


def assert_shares(table, *, mask, atol=1e-6):
    """Shares of 1 and 0, whose limits differ by the rounding of float32."""
    assert len(table)
    for name, share in (("share_mask", mask), ("share_residual", 1 - mask)):
        for limit in ("", "_low", "_high"):
            assert table[name + limit].to_numpy() == pytest.approx(share, abs=atol)


def test_normalizer_only(tmp_path):
    """Scores of 0: a row's weights are 1 / (number of keys), whatever the residual stream."""
    model = tiny.tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.zero_()
    store = split(observable(model), tmp_path, prefixes=(1, 4, 12, 32))
    for layer in range(store.n_layers):
        effects = channel_effects(store, layer)
        assert np.abs(effects.residual).max() < 1e-5
        rows = np.arange(1, 8)
        keys = np.add.outer([1, 4, 12, 32], rows + 1)
        expected = -np.log(keys / keys[-1]).mean(1)
        np.testing.assert_allclose(effects.mask[0, :, 0, 0], expected, atol=1e-5)
    assert_shares(decompose(store).by_head, mask=1)


# A model of two layers without position encoding. In layer 0 all keys are alike, and only BOS has
# a value: position t gets 1/(t + 1) of it. In layer 1 queries are constant, and keys read what
# layer 0 wrote (strength `WRITTEN` of each head) and a number of the token's own (`OWN`).
FIRST = 1
BOS, CONTENT, NUMBER, TRACE = range(4)
WRITTEN, OWN = np.array([0.0, 1.5, -1.5, 4.0]), 0.5
BROUGHT = 3.0
LENGTH, WINDOW, PREFIXES, SEEN = 40, 8, (1, 4, 12, 32), (1, 2)


def numbers(vocabulary=97):
    return np.random.default_rng(5).normal(0, 0.5, vocabulary)


def built_with_both_channels(**changes):
    model = tiny.tiny_model(
        "nope", dtype=torch.float32, num_hidden_layers=2, no_rope_layers=[0, 0],
        num_key_value_heads=4, attention_bias=True, rms_norm_eps=1e-12, **changes,
    )  # fmt: skip
    width, size = 32, 8
    with torch.no_grad():
        for block in model.model.layers:
            for parameter in block.parameters():
                parameter.zero_()
            block.input_layernorm.weight.fill_(1)
        embedding = model.model.embed_tokens.weight
        embedding.zero_()
        embedding[:, CONTENT] = 1
        embedding[:, NUMBER] = torch.as_tensor(numbers())
        embedding[FIRST] = 0
        embedding[FIRST, BOS] = 1
        first, second = (block.self_attn for block in model.model.layers)
        first.v_proj.weight[0, BOS] = BROUGHT / np.sqrt(width)
        first.o_proj.weight[TRACE, 0] = 1
        for head, written in enumerate(WRITTEN):
            second.q_proj.bias[head * size] = written * np.sqrt(size)
            second.q_proj.bias[head * size + 1] = OWN * np.sqrt(size)
            second.k_proj.weight[head * size, TRACE] = 1
            second.k_proj.weight[head * size + 1, NUMBER] = 1
    return model


def scores_of_keys(tokens, head):
    """Scores of the second layer's keys, whatever the query: (sequence, key)."""
    place = np.arange(tokens.shape[1])
    stream = np.zeros((*tokens.shape, 4))
    stream[:, 1:, CONTENT], stream[:, 1:, NUMBER] = 1, numbers()[tokens[:, 1:]]
    stream[:, 0, BOS] = 1
    stream[..., TRACE] = BROUGHT / (place + 1)
    stream /= np.sqrt((stream**2).sum(-1, keepdims=True) / 32)
    return WRITTEN[head] * stream[..., TRACE] + OWN * stream[..., NUMBER]


def built_effects(tokens, head):
    """T, M and R by the construction, from the tokens behind each prefix: (3, item, P, D)."""
    late = scores_of_keys(tokens[-1], head)
    found = np.zeros((3, len(late), len(PREFIXES), len(SEEN)))
    for p, d in np.ndindex(found.shape[2:]):
        early, offset = scores_of_keys(tokens[p], head), SEEN[d]
        for row in range(offset, WINDOW):
            here, there = PREFIXES[p] + row, PREFIXES[-1] + row
            hidden = slice(1, there - here + 1)  # keys that the mask of the earlier row leaves out
            whole, end = np.exp(late[:, : there + 1]), late[:, there - offset]
            own = early[:, here - offset] - np.log(np.exp(early[:, : here + 1]).sum(1))
            last = end - np.log(whole.sum(1))
            masked = end - np.log(whole.sum(1) - whole[:, hidden].sum(1))
            found[..., p, d] += np.array([own - last, masked - last, own - masked])
        found[..., p, d] /= WINDOW - offset
    return found


def built_shares(head, n=4000):
    """Shares of mask and residual channel by the construction, over tokens drawn anew."""
    drawn = np.random.default_rng(7).choice(child.CORPUS, (n, LENGTH))
    tokens = [drawn[:, LENGTH - WINDOW - prefix :].copy() for prefix in PREFIXES]
    for each in tokens:
        each[:, 0] = FIRST
    total, mask, residual = (part - part.mean(0) for part in built_effects(tokens, head).mean(1))
    by_mask, by_residual = ((total * part).sum() / (total**2).sum() for part in (mask, residual))
    return {"share_mask": by_mask, "share_residual": by_residual}


@pytest.fixture(scope="module")
def both_channels(tmp_path_factory):
    stimulus = make_stimulus(
        "shifted", child.CORPUS, n=48, length=LENGTH, window=WINDOW, prefixes=PREFIXES, seed=3,
        bos="force", bos_id=FIRST,
    )  # fmt: skip
    return capture_stimulus(
        observable(built_with_both_channels()), stimulus,
        tmp_path_factory.mktemp("built") / "a.h5", offsets=SEEN, progress=False, dtype="float32",
    )  # fmt: skip


def test_effects_are_those_that_the_model_was_built_with(both_channels):
    store = both_channels
    effects = channel_effects(store, 1)
    tokens = []
    for prefix in PREFIXES:
        rows = np.flatnonzero(store.prefix_length == prefix)
        tokens.append(store.tokens[rows[np.argsort(store.item[rows])], : prefix + WINDOW])
    for head in range(4):
        built = built_effects(tokens, head)
        parts = (effects.total, effects.mask, effects.residual)
        for part, expected in zip(parts, built, strict=True):
            np.testing.assert_allclose(part[:, :, head], expected, atol=1e-5)


def test_shares_are_those_that_the_model_was_built_with(both_channels):
    table = decompose(both_channels).by_head.set_index(["layer", "head"])
    built = [built_shares(head) for head in range(4)]
    assert [round(found["share_mask"], 1) for found in built] == [0.9, 0.1, 0.8, 0.0]
    for head, expected in enumerate(built):
        row = table.loc[(1, head)]
        assert row["status"] == "ok"
        for name, share in expected.items():
            assert row[name] == pytest.approx(share, abs=0.02)
            assert row[f"{name}_low"] <= share <= row[f"{name}_high"]


def test_constant_keys_and_a_bos_value_open_the_mask_alone(both_channels):
    """Layer 0 of the same model: all scores are 0, and what is written is BOS's share, 1/t."""
    store = both_channels
    written = BROUGHT / (1 + np.add.outer(store.prefix_length, np.arange(WINDOW)))
    np.testing.assert_allclose(store.read("residual", 1)[..., TRACE], written, rtol=1e-5)
    assert_shares(decompose(store).by_head.query("layer == 0"), mask=1)


def test_residual_only(tmp_path):
    """Behind a window shorter than every position the mask is the same at all of them."""
    types = ["full_attention", "sliding_attention"]
    model = built_with_both_channels(layer_types=types, use_sliding_window=True, sliding_window=4)
    store = split(observable(model), tmp_path, prefixes=(5, 12, 32), bos="force", bos_id=FIRST)
    assert store.layer_window == (0, 4)
    effects = channel_effects(store, 1)
    assert np.abs(effects.mask).max() < 1e-5
    table = decompose(store).by_head.query("layer == 1 and head > 0")  # head 0 reads nothing
    assert_shares(table, mask=0, atol=1e-5)
    assert_shares(decompose(store).by_head.query("layer == 0"), mask=1)
