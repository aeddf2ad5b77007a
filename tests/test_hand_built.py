"""Models built so that one channel alone is open: the split must find the shares they have."""

from unittest import mock

import capture_child as child
import numpy as np
import pytest
import tiny
import torch

import posprobe.models
from posprobe.captures import capture_stimulus
from posprobe.channels import decompose
from posprobe.effects import channel_effects
from posprobe.models import ATTENTION, ObservableModel
from posprobe.stimuli import make_stimulus


def observable(model):
    """Observe a model whose scores move nothing, which the proof at load would refuse."""
    with mock.patch.object(
        posprobe.models,
        "prove_observable",
        lambda built: built.model.set_attn_implementation(ATTENTION),
    ):
        return ObservableModel(model, name="hand-built")


def split(model, tmp_path, **changes):
    stimulus = child.stimulus(n=24, length=40, window=8, **changes)
    return capture_stimulus(
        model, stimulus, tmp_path / "a.h5", offsets=(1, 2), progress=False, dtype="float32"
    )


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
        found = effects.variances()
        assert (found["V_M"] + found["C_MR"]) / found["V_T"] == pytest.approx(1, abs=1e-4)
        assert (found["V_R"] + found["C_MR"]) / found["V_T"] == pytest.approx(0, abs=1e-4)


def test_residual_only(tmp_path):
    """Behind a window shorter than every position the mask is the same at all of them."""
    types = ["full_attention", "sliding_attention", "full_attention"]
    built = tiny.tiny_model("gemma3", dtype=torch.float32, layer_types=types, sliding_window=4)
    store = split(ObservableModel(built, name="hand-built"), tmp_path, prefixes=(5, 12, 32))
    windowed, full = (channel_effects(store, layer) for layer in (1, 2))
    assert np.abs(windowed.mask).max() < 1e-5
    assert np.abs(windowed.residual).max() > 0.01
    np.testing.assert_allclose(windowed.total, windowed.residual, atol=1e-5)
    assert np.abs(full.mask).max() > 0.1
    found = windowed.variances()
    assert (found["V_R"] + found["C_MR"]) / found["V_T"] == pytest.approx(1, abs=0.02)


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


def built_with_both_channels():
    model = tiny.tiny_model(
        "nope", dtype=torch.float32, num_hidden_layers=2, no_rope_layers=[0, 0],
        num_key_value_heads=4, attention_bias=True,
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


def built_shares(head, n=4000):
    """Shares of mask and residual channel by the construction, over tokens drawn anew."""
    rng = np.random.default_rng(7)
    drawn = rng.choice(child.CORPUS, (n, LENGTH))
    total, mask = np.zeros((2, len(SEEN), len(PREFIXES)))
    late = scores_of_keys(np.insert(drawn[:, 1:], 0, FIRST, axis=1), head)
    for p, prefix in enumerate(PREFIXES):
        kept = drawn[:, LENGTH - WINDOW - prefix + 1 :]  # a shorter prefix is the end of a longer
        early = scores_of_keys(np.insert(kept, 0, FIRST, axis=1), head)
        for d, offset in enumerate(SEEN):
            for row in range(offset, WINDOW):
                here, there = prefix + row, LENGTH - WINDOW + row
                seen = np.exp(late[:, there - here + 1 : there + 1]).sum(1) + np.exp(late[:, 0])
                z_early, z_late = (
                    np.log(np.exp(part[:, : end + 1]).sum(1))
                    for part, end in ((early, here), (late, there))
                )
                moved = early[:, here - offset] - late[:, there - offset] - z_early + z_late
                total[d, p] += moved.mean() / (WINDOW - offset)
                mask[d, p] += (z_late - np.log(seen)).mean() / (WINDOW - offset)
    by_mask = np.mean([np.cov(t, m)[0, 1] for t, m in zip(total, mask, strict=True)])
    share = by_mask / total.var(axis=1, ddof=1).mean()
    return {"share_mask": share, "share_residual": 1 - share}


def test_shares_are_those_that_the_model_was_built_with(tmp_path):
    stimulus = make_stimulus(
        "shifted", child.CORPUS, n=48, length=LENGTH, window=WINDOW, prefixes=PREFIXES, seed=3,
        bos="force", bos_id=FIRST,
    )  # fmt: skip
    store = capture_stimulus(
        observable(built_with_both_channels()), stimulus, tmp_path / "a.h5", offsets=SEEN,
        progress=False, dtype="float32",
    )  # fmt: skip
    table = decompose(store).by_head.set_index(["layer", "head"])
    built = [built_shares(head) for head in range(4)]
    assert [round(found["share_mask"], 1) for found in built] == [0.9, 0.1, 0.8, 0.0]
    for head, expected in enumerate(built):
        row = table.loc[(1, head)]
        assert row["status"] == "ok"
        for name, share in expected.items():
            assert row[name] == pytest.approx(share, abs=0.02)
            assert row[f"{name}_low"] <= share <= row[f"{name}_high"]
