"""What must hold exactly, each with a model that fails it; and the same on a real one."""

from unittest import mock

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
import transformers
from transformers import AttentionInterface

from posprobe.captures import capture, capture_stimulus, plan
from posprobe.channels import channel_effects, decompose, score_shift
from posprobe.models import ObservableModel, Observation, Observer, load_model, observable
from posprobe.models.checkpoints import find_checkpoint
from posprobe.models.observation import observed_attention
from posprobe.models.proofs import ATTENTION

ROTARY = ["llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt-neox", "phi", "gpt-oss"]
LEARNED = ["gpt2", "opt"]


def residuals(model, ids, **keywords):
    """Residual streams of all layers, with the last output: (layer, batch, token, width)."""
    seen = {}
    observer = Observer(
        lambda name, layer, tensor: seen.update({(name, layer): tensor}),
        Observation(n_queries=ids.shape[1]),
    )
    model.run(ids, observer, **keywords)
    return torch.stack([seen["residual", layer] for layer in range(model.n_layers + 1)])


def spread(values):
    """Largest difference over the batch, relative to the norm, per layer: (layer,)."""
    gap = (values - values[:, :1]).norm(dim=-1).amax(1)
    return gap / values.norm(dim=-1).mean(1)


# --- position 0 ---


@pytest.mark.parametrize("family", [*ROTARY, *LEARNED])
def test_position_0_is_a_run_of_length_1(family):
    model, ids = ObservableModel(tiny.tiny_model(family)), tiny.tokens(4, 30)
    whole, alone = residuals(model, ids), residuals(model, ids[:, :1])
    torch.testing.assert_close(whole[:, :, 0], alone[:, :, 0], rtol=1e-6, atol=1e-9)
    assert (spread(whole[:, :, 0]) > 0.1).all()
    ids[:, 0] = 7
    assert (spread(residuals(model, ids)[:, :, 0]) < 1e-6).all()
    assert (spread(residuals(model, ids)[1:, :, 1]) > 0.1).all()


def test_position_0_is_open_without_a_causal_mask():
    model = ObservableModel(tiny.tiny_model("llama"))
    ids = tiny.tokens(4, 30)
    ids[:, 0] = 7
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    model.model(ids, is_causal=False, use_cache=False)
    hook.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert spread(output[None, :, 0]) > 0.1


# --- rotary embeddings know offsets only ---


def logits_at(model, ids, start):
    positions = torch.arange(start, start + ids.shape[1]).expand_as(ids)
    with torch.inference_mode():
        return model.model(ids, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("family", ROTARY)
def test_shifting_all_positions_changes_nothing(family):
    model, ids = ObservableModel(tiny.tiny_model(family)), tiny.tokens(2, 24)
    plain = logits_at(model, ids, 0)
    # transformers computes the rotation itself in float32
    torch.testing.assert_close(logits_at(model, ids, 17), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", LEARNED)
def test_shifting_learned_positions_changes_all(family):
    model, ids = ObservableModel(tiny.tiny_model(family)), tiny.tokens(2, 24)
    assert (logits_at(model, ids, 17) - logits_at(model, ids, 0)).abs().max() > 0.1


@pytest.mark.parametrize("family", [*ROTARY, *LEARNED, "nope"])
def test_scores_of_layer_0_stay_where_all_positions_are_shifted(family, take):
    """In layer 0 alone, and not with learned positions: deeper, key 0 has reached the tokens."""
    store = take(child.model(family), child.stimulus(length=40, window=12, prefixes=(1, 5, 28)))
    first, second = score_shift(store, 0), score_shift(store, 1)
    assert first.shape == (5,)
    assert first.max() < 1e-4 or (family in LEARNED and first.min() > 0.1)
    assert second.min() > 0.01


# --- one token, over and over ---


@pytest.fixture
def take(tmp_path):
    count = iter(range(100))

    def function(model, stimulus, **options):
        path = tmp_path / f"{next(count)}.h5"
        return capture_stimulus(model, stimulus, path, progress=False, **options)

    return function


def repeated(**changes):
    return child.stimulus("repeated", **dict(length=60, window=10, prefixes=None) | changes)


def largest(effects):
    """Largest |T|, |M| and |R| in nats over items, positions, heads and offsets."""
    return {n: np.abs(getattr(effects, n)).max() for n in ("total", "mask", "residual")}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt-neox"])
def test_repeated_token_leaves_the_mask_alone(family, take):
    store = take(child.model(family), repeated())
    for layer in range(3):
        found = largest(channel_effects(store, layer))
        assert found["residual"] < 1e-4
        # a window shows early and late rows alike, but for the first few
        assert found["mask"] > 0.05
        assert found["total"] == pytest.approx(found["mask"], abs=1e-4)


def test_repeated_token_has_the_same_hidden_state_everywhere():
    ids = torch.full((1, 60), 5)
    for family in ("llama", "mistral", "gemma3", "gpt-neox"):
        found = residuals(ObservableModel(tiny.tiny_model(family)), ids)
        assert (spread(found.transpose(1, 2)) < 1e-6).all()
    found = residuals(ObservableModel(tiny.tiny_model("gpt2")), ids)
    assert (spread(found.transpose(1, 2)) > 0.1).all()


@pytest.mark.parametrize("family", LEARNED)
def test_repeated_token_does_not_hide_learned_positions(family, take):
    store = take(child.model(family), repeated())
    assert min(largest(channel_effects(store, layer))["residual"] for layer in range(3)) > 0.05


def test_bos_opens_the_residual_channel(take):
    store = take(child.model("llama"), repeated(bos="force", bos_id=1))
    for layer in (1, 2):
        assert largest(channel_effects(store, layer))["residual"] > 0.05


@pytest.mark.parametrize("position0", ["zero", "noise", "content"])
def test_replacing_position_0_opens_the_residual_channel(position0, take):
    store = take(child.model("llama"), repeated(), position0=position0)
    for layer in (1, 2):
        assert largest(channel_effects(store, layer))["residual"] > 0.05


# --- the split ---


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_total_is_mask_plus_residual(family, take):
    """T and R from the stored scores by their definitions; no effect at the reference."""
    store = take(child.model(family), child.stimulus(length=40, window=12, prefixes=(1, 5, 28)))
    for layer in range(3):
        effects = channel_effects(store, layer)
        for part in (effects.total, effects.mask, effects.residual):
            assert np.abs(part[:, -1]).max() < 1e-5
        z, s = store.normalizer(layer), store.read("offset_score", layer)
        early, late = (
            {store.item[n]: s[n, 4:, :, 2] - z[n, 4:] for n in rows}
            for rows in (
                np.flatnonzero(store.prefix_length == 5),
                np.flatnonzero(store.prefix_length == 28),
            )
        )
        remasked = {
            store.item[n]: s[n, 4:, :, 2] - store.read("remasked_normalizer", layer)[n, 1, 4:]
            for n in np.flatnonzero(store.prefix_length == 28)
        }
        for item, weight in early.items():
            for part, other in (("total", late), ("residual", remasked)):
                expected = (weight - other[item]).mean(0)
                found = getattr(effects, part)[item, 1, :, 2]
                np.testing.assert_allclose(found, expected, atol=1e-5)
        share = decompose(store).by_layer.query("status == 'ok'")
        np.testing.assert_allclose(share.share_mask + share.share_residual, 1.0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_a_constant_on_the_scores_of_a_query_moves_nothing(family, design, take, monkeypatch):
    """Attention does not know it, so neither may what is reported: z and s alone do."""
    generator = torch.Generator().manual_seed(0)

    def gauged(module, query, key, value, mask, *, scaling, **keywords):
        constant = torch.randn(*query.shape[:3], 1, generator=generator).to(query) / scaling
        longer = (
            torch.cat([query, constant], -1),
            torch.cat([key, torch.ones_like(key[..., :1])], -1),
        )
        return observed_attention(module, *longer, value, mask, scaling=scaling, **keywords)

    model, stimulus = child.model(family), child.stimulus(design, length=40, prefixes=(1, 5, 35))
    plain = take(model, stimulus)
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, gauged)
    # a third channel to whoever looks at scores alone, as the check before a capture does
    monkeypatch.setattr(plan, "own_position", lambda *args, **keywords: None)
    moved = take(model, stimulus)
    for layer in range(3):
        assert np.abs(moved.normalizer(layer) - plain.normalizer(layer)).mean() > 0.5
        one, other = channel_effects(plain, layer), channel_effects(moved, layer)
        for part in ("total", "mask", "residual", "sink"):
            np.testing.assert_allclose(getattr(other, part), getattr(one, part), atol=1e-4)


# --- Kazemnejad et al. 2023 (arXiv 2305.19466), Theorem 1 ---


def clock():
    """GPT-2 without positions: constant keys, and values that are 1 at the BOS and 0 elsewhere.

    Embeddings are +-(1, -1, 0, 0), which the first norm scales by sqrt(2).
    """
    config = tiny.tiny_config("gpt2", n_embd=4, n_head=1, n_layer=2, layer_norm_epsilon=1e-14)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    direction = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight.copy_(-direction.expand(97, 4))
        model.transformer.wte.weight[1] = direction
        block = model.transformer.h[0].attn
        block.c_attn.bias[:8] = 0.7  # queries and keys: one constant score, 4 * 0.49 / 2
        block.c_attn.weight[0, 8] = 8**-0.5  # half of the first coordinate: +-1/2
        block.c_attn.bias[8] = 0.5
        block.c_proj.weight[0, 2] = 1.0
    return model


def test_constant_keys_and_a_bos_write_one_over_t():
    with mock.patch.object(  # its first layer's scores move nothing: no proof
        observable,
        "prove_observable",
        lambda built: built.model.set_attn_implementation(ATTENTION),
    ):
        model = ObservableModel(clock())
    ids = tiny.tokens(3, 50)
    ids[ids == 1] = 2
    ids[:, 0] = 1
    seen = {}
    observer = Observer(
        lambda name, layer, tensor: seen.update({(name, layer): tensor}),
        Observation(n_queries=50, offsets=(0, 1)),
    )
    model.run(ids, observer)
    t = torch.arange(1, 51, dtype=torch.float64)
    torch.testing.assert_close(seen["residual", 1][..., 2], (1 / t).expand(3, -1))
    score, z = seen["sink_score", 0][..., 0], seen["normalizer", 0][..., 0]
    torch.testing.assert_close(score, torch.full_like(score, 0.98))
    torch.testing.assert_close(z - score, t.log().expand(3, -1))
    assert torch.equal(seen["residual", 0][..., 2], torch.zeros(3, 50, dtype=torch.float64))


# --- a real model: SmolLM2-135M-Instruct, a 4-bit quantised small one ---


@pytest.fixture(scope="session")
def smollm2():
    return load_model("smollm2")


KEPT = ("normalizer", "sink_score", "position0", "position0_alone")


def test_smollm2_is_converted_once(smollm2, monkeypatch):
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    assert find_checkpoint("smollm2").quantization == "Q4_1"
    assert smollm2.quantization == "Q4_1"
    assert (smollm2.n_layers, smollm2.n_heads, smollm2.width) == (30, 9, 576)
    assert (smollm2.native_bos, smollm2.bos_id) == (None, 1)
    assert smollm2.layer_windows == (None,) * 30


def test_smollm2_position_0_is_closed_and_half_of_the_heads_sink(smollm2, tmp_path):
    store = capture(smollm2, tmp_path / "a.h5", n=4, length=128, quantities=KEPT, progress=False)
    whole, alone = store.read("position0"), store.read("position0_alone")
    gap = np.linalg.norm(whole - alone, axis=-1) / np.linalg.norm(alone, axis=-1)
    assert gap.shape == (31, 4)
    assert gap.max() < 1e-4
    assert len(np.unique(store.tokens[:, 0])) > 1
    attention = np.exp(store.read("sink_score") - store.read("normalizer"))[:, :, 1:]
    assert attention.max() <= 1 + 1e-4
    rate = (attention.mean(2) > 0.3).mean(1)
    assert 0.35 < rate.mean() < 0.65
    assert np.linalg.norm(whole[20], axis=-1).min() > 5_000


def test_smollm2_repeated_token_leaves_the_mask_alone(smollm2, tmp_path):
    store = capture(
        smollm2,
        tmp_path / "a.h5",
        design="repeated",
        n=2,
        length=64,
        window=9,
        progress=False,
        quantities=(
            "normalizer",
            "sink_score",
            "offset_score",
            "remasked_normalizer",
            "remasked_body",
        ),
    )
    for layer in range(30):
        found = largest(channel_effects(store, layer))
        assert found["residual"] < 1e-4
        assert found["mask"] > 1
