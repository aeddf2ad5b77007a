"""Bands of rotation: measured layouts, scores that add up, Shapley values, and bands zeroed."""

import itertools

import capture_child as child
import decoder_types
import numpy as np
import pytest
import tiny
import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models import (
    NO_INTERVENTION,
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    find_bands,
    prove_bands,
)
from posprobe.models.attention import Scoring, Visibility
from posprobe.models.band_scores import observe_bands

SPLIT = ("llama", "mistral", "qwen2-window", "qwen3", "gemma3", "gpt-neox", "gpt-oss", "phi")
SPLIT += ("phi3", "llama4", "stablelm")
CAUSAL, SCALED = Visibility(), Scoring(0.7)
WINDOW, OWN, OFFSETS = 5, 9, (1, 2, 12)


def seen_in(model, observation, change=NO_INTERVENTION, seed=0):
    """What one pass of 14 random tokens emits, as float64."""
    tokens = torch.randint(97, (2, OWN + WINDOW), generator=torch.Generator().manual_seed(seed))
    seen = {}

    def emit(name, layer, tensor):
        seen[name, layer] = tensor.double()

    model.run(tokens, Observer(emit, observation, change))
    return seen


def observation(bands, prefixes=(1, 4, OWN)):
    return Observation(WINDOW, OFFSETS, prefixes, WINDOW, bands=bands.dimensions)


def drawn(seed=0, keys=OWN + WINDOW):
    """Queries and keys of two heads."""
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(1, 2, keys, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(draw)


def bands_of(query, key, *, bands, visibility=CAUSAL, scoring=SCALED):
    what = Observation(WINDOW, OFFSETS, (1, 4, OWN), WINDOW)
    return observe_bands(query, key, visibility, what, scoring, [], bands)


# --- which dimensions turn how often ---


def test_bands_are_those_of_the_frequencies_in_halves():
    length, size = 64, 8
    turns = 1e4 ** (-np.arange(size // 2) / (size // 2)) * (length - 1) / (2 * np.pi)
    bands = find_bands(child.model(), length, 3)
    assert bands.names == ("turns > 4", "turns 1/4 to 4", "turns < 1/4")
    ranges = [turns >= 4, (turns < 4) & (turns >= 0.25), turns < 0.25]
    expected = tuple(
        tuple(sorted({*np.flatnonzero(own), *(np.flatnonzero(own) + size // 2)})) for own in ranges
    )
    assert bands.dimensions == (expected,) * 3


@pytest.mark.parametrize(("n", "edges"), [(2, ("1", "1")), (3, ("4", "1/4")), (4, ("16", "1/16"))])
def test_bands_are_named_by_their_edges(n, edges):
    names = find_bands(child.model(), 64, n).names
    assert len(names) == n
    assert (names[0], names[-1]) == (f"turns > {edges[0]}", f"turns < {edges[1]}")


@pytest.mark.parametrize("family", ["gpt-neox", "phi", "stablelm"])
def test_dimensions_that_do_not_rotate_are_a_band_of_their_own(family):
    bands = find_bands(child.model(family), 48, 3)
    assert bands.names[-1] == "unrotated"
    assert all(layer[-1] == (4, 5, 6, 7) for layer in bands.dimensions)


def test_layers_without_rotation_are_seen():
    bands = find_bands(child.model("llama4"), 48, 3)
    assert [len(layer[-1]) for layer in bands.dimensions] == [8, 0, 8]


def test_layer_types_rotate_by_themselves():
    counts = [
        list(map(len, layer)) for layer in find_bands(child.model("gemma3"), 48, 3).dimensions
    ]
    assert counts[0] == counts[2] != counts[1]


@pytest.mark.parametrize(("family", "first"), [("cohere2", 0), ("deepseek_v3", 8)])
def test_neighbours_and_the_end_of_a_latent_head_are_found(family, first):
    model = transformer(family)
    bands = find_bands(model, 48, 3)
    layer = next(i for i, one in enumerate(bands.dimensions) if any(one[:3]))
    rotated = sorted(d for dims in bands.dimensions[layer][:3] for d in dims)
    assert rotated[0] == first
    fastest = bands.dimensions[layer][0]
    assert fastest[:2] == (first, first + 1) or family != "cohere2"
    prove_bands(model, bands, NO_INTERVENTION)


def transformer(name):
    torch.manual_seed(0)
    config = decoder_types.small_config(name)
    return ObservableModel(transformers.AutoModelForCausalLM.from_config(config), name=name)


# --- identities ---


@pytest.mark.parametrize("family", SPLIT)
def test_bands_add_up_to_scores_and_normalizers(family):
    model = child.model(family, dtype=torch.float64)
    bands = find_bands(model, 48, 3)
    seen = seen_in(model, observation(bands))
    for layer in range(model.n_layers):
        for parts, whole in (
            ("band_sink_score", "sink_score"),
            ("band_offset_score", "offset_score"),
            ("band_normalizer", "remasked_normalizer"),
        ):
            found = seen[parts, layer].sum(-1)
            torch.testing.assert_close(found, seen[whole, layer], equal_nan=True)
        own = seen["band_normalizer", layer][:, -1].sum(-1)
        torch.testing.assert_close(own, seen["normalizer", layer])


def test_whatever_is_observed_without_bands_is_the_same_with_them():
    model = child.model()
    bands = find_bands(model, 48, 3)
    with_bands = seen_in(model, observation(bands))
    without = seen_in(model, Observation(WINDOW, OFFSETS, (1, 4, OWN), WINDOW))
    assert len(with_bands) == len(without) + 3 * model.n_layers
    for name, values in without.items():
        assert torch.equal(values.nan_to_num(7), with_bands[name].nan_to_num(7))


@pytest.mark.parametrize("sink", [None, torch.tensor([0.3, -1.0], dtype=torch.float64)])
@pytest.mark.parametrize("visibility", [Visibility(), Visibility(window=6)])
def test_parts_of_the_normalizer_are_means_over_all_orders(visibility, sink):
    query, key = drawn()
    bands = ((0, 3), (1, 4), (2, 5))
    scoring = Scoring(0.7, None, sink)
    found = bands_of(query, key, bands=bands, visibility=visibility, scoring=scoring)
    row = query.shape[2] - 2
    seen = visibility.mask(torch.tensor([row]), torch.arange(query.shape[2]))[0]
    assert visibility.window is None or not seen[0]

    def normalizer(dims, head):
        scores = 0.7 * key[0, head][:, dims] @ query[0, head, row, dims]
        total = scores[seen].exp().sum() + (0 if sink is None else sink[head].exp())
        return float(total.log())

    for head in range(2):
        parts = np.zeros(4)
        parts[3] = normalizer([], head)
        orders = list(itertools.permutations(range(3)))
        for order in orders:
            for i, band in enumerate(order):
                before, after = ([d for b in order[:j] for d in bands[b]] for j in (i, i + 1))
                parts[band] += (normalizer(after, head) - normalizer(before, head)) / len(orders)
        np.testing.assert_allclose(found["band_normalizer"][0, -1, -2, head], parts, atol=1e-12)


def test_a_band_with_one_score_for_all_keys_has_no_part_in_attention():
    query, key = drawn()
    key[..., [1, 4]] = key[..., :1, [1, 4]]
    found = bands_of(query, key, bands=((0, 3), (1, 4), (2, 5)))
    weight = found["band_sink_score"] - found["band_normalizer"][:, -1, ..., :-1]
    assert float(weight[..., 1].abs().max()) < 1e-12
    assert float(weight[..., 0].abs().min()) > 1e-3


def test_a_row_behind_a_shorter_prefix_has_parts_under_its_own_mask_alone():
    query, key = (part[:, :, : 4 + WINDOW] for part in drawn())
    found = bands_of(query, key, bands=((0, 1, 2), (3, 4, 5)))["band_normalizer"]
    assert found.isnan().all(dim=(0, 2, 3, 4)).tolist() == [True, False, True]
    assert not found[:, 1].isnan().any()


# --- zeroing ---


def test_zeroing_a_band_leaves_it_out_of_all_scores_and_nothing_else_at_layer_0():
    model = child.model(dtype=torch.float64)
    bands = find_bands(model, 48, 3)
    change = bands.zeroing((1,))
    prove_bands(model, bands, change)
    native, zeroed = (seen_in(model, observation(bands), c) for c in (NO_INTERVENTION, change))
    for layer in range(model.n_layers):
        assert not zeroed["band_sink_score", layer][..., 1].any()
        assert native["band_sink_score", layer][..., 1].all()
    left = native["band_offset_score", 0][..., [0, 2]].sum(-1)
    torch.testing.assert_close(zeroed["offset_score", 0], left, equal_nan=True)
    assert not torch.equal(zeroed["residual", 1], native["residual", 1])


def test_zeroing_no_band_changes_nothing():
    bands = find_bands(child.model(), 48, 3)
    assert bands.zeroing(()) == NO_INTERVENTION


def test_layers_without_the_band_are_left_alone():
    bands = find_bands(child.model("llama4"), 48, 3)
    assert [layer for layer, _ in bands.zeroing((0,)).zero_dimensions] == [1]
    both = bands.zeroing((0, 3)).zero_dimensions
    assert [layer for layer, _ in both] == [0, 1, 2]


@pytest.mark.parametrize(
    ("family", "zero", "said"),
    [
        ("llama", (3,), r"no band 3 to zero; the model has 0 to 2 \(turns > 4, "),
        ("llama", (0, 1, 2), "zeroing all bands leaves no scores"),
        ("gpt-neox", (1,), r"band 1 \(turns 1/4 to 4\) has no dimensions in this model"),
    ],
)
def test_bands_that_cannot_be_zeroed_are_refused(family, zero, said):
    bands = find_bands(child.model(family), 48, 3)
    with pytest.raises(ModelError, match=said):
        bands.zeroing(zero)


def test_a_band_that_was_not_zeroed_is_found_out(monkeypatch):
    model = child.model()
    bands = find_bands(model, 48, 3)
    monkeypatch.setattr(Intervention, "without_dimensions", lambda self, layer, query: query)
    with pytest.raises(ModelError, match="scores of layer 0 still have band 'turns > 4'"):
        prove_bands(model, bands, bands.zeroing((0,)))


def test_zeroing_what_does_not_reach_the_logits_is_refused(monkeypatch):
    model = child.model()
    bands = find_bands(model, 48, 3)
    still = torch.zeros(1)
    monkeypatch.setattr(model, "logits", lambda tokens, observer: still)
    with pytest.raises(ModelError, match="zeroing these bands does not reach the logits"):
        prove_bands(model, bands, bands.zeroing((0,)))


# --- refusals ---


@pytest.mark.parametrize("n", [1, 5])
def test_numbers_of_bands_out_of_range_are_refused(n):
    with pytest.raises(ModelError, match=f"{n} bands: give a number from 2 to 4"):
        find_bands(child.model(), 48, n)


@pytest.mark.parametrize("family", ["gpt2", "opt", "nope"])
def test_a_model_that_rotates_nothing_is_refused(family):
    with pytest.raises(ModelError, match=f"model 'tiny-{family}' rotates nothing"):
        find_bands(child.model(family), 48, 3)


def test_capped_scores_are_refused():
    model = child.model("gemma2")
    with pytest.raises(ModelError, match="'tiny-gemma2': scores are capped at 2 nats, so"):
        prove_bands(model, find_bands(model, 48, 3), NO_INTERVENTION)


def test_frequencies_that_follow_the_length_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = child.model(rope_parameters=rope)
    with pytest.raises(ModelError, match="frequencies that follow the length of the sequence"):
        find_bands(model, 48, 3)


def test_a_rotation_that_is_not_what_its_module_says_is_refused():
    model = ObservableModel(tiny.tiny_model("llama"), name="tiny")
    rotary = model.model.model.rotary_emb
    rotary.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"position_ids": 2 * kwargs["position_ids"]}),
        with_kwargs=True,
    )
    with pytest.raises(ModelError, match="queries of layer 0 are not rotated as its rotary"):
        find_bands(model, 48, 3)


def test_bands_that_leave_a_dimension_out_do_not_add_up():
    model = child.model()
    bands = find_bands(model, 48, 3)
    lacking = type(bands)(bands.names, (((0,), (1,), (2,)),) * 3)
    with pytest.raises(ModelError, match="band_sink_score of layer 0 adds up to sink_score only"):
        prove_bands(model, lacking, NO_INTERVENTION)
