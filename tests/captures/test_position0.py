"""Treatments of position 0 change it, and nothing else."""

import dataclasses

import capture_child as child
import numpy as np
import pytest
import torch
from stored import assert_close

from posprobe.captures.position0 import POSITION0, replace_token, replaced_embedding
from posprobe.errors import StimulusError


def paired(store):
    """Values per item of what stands at position 0 at layer 0: (item, prefix, width)."""
    order = np.lexsort((store.prefix_length, store.item))
    return store.read("position0", 0)[order].reshape(5, 4, -1)


@pytest.mark.parametrize("position0", sorted(set(POSITION0) - {"native"}))
@pytest.mark.parametrize("bos", ["none", "force"])
def test_treatment_changes_position_0_and_nothing_else(position0, bos, take, llama):
    stimulus = child.stimulus(bos=bos, bos_id=1)
    native, treated = take(stimulus), take(stimulus, position0=position0)
    before, after = paired(native), paired(treated)
    assert (np.abs(after - before).max(-1) > 1e-3).all()
    assert np.array_equal(after, np.broadcast_to(after[:, :1], after.shape))
    embedding = llama.model.model.embed_tokens.weight.numpy()
    if position0 == "zero":
        assert not after.any()
    elif position0 == "mean":
        assert_close(after[0, 0], embedding.mean(0))
    elif position0 == "noise":
        assert_close(np.linalg.norm(after, axis=-1), np.linalg.norm(before, axis=-1))
        assert len(np.unique(after[:, 0, 0])) == 5
    else:
        assert_close(after.reshape(20, -1), embedding[_in_order(treated)])
        assert (treated.tokens[:, 0] != native.tokens[:, 0]).all()
    special = np.isin(treated.tokens[:, 0], [0, 1, 2])
    assert special.all() == (position0 == "special" or (bos == "force" and position0 != "content"))
    assert np.array_equal(treated.tokens[:, 1:], native.tokens[:, 1:])
    assert np.array_equal(treated.residual(0)[:, 1:], native.residual(0)[:, 1:])
    assert np.abs(treated.residual(3) - native.residual(3)).max() > 1e-3
    assert_close(treated.read("position0_alone"), treated.read("position0"))


@pytest.mark.parametrize(("family", "position0"), [("gpt2", "mean"), ("opt", "content")])
def test_the_learned_position_vector_that_stays_is_recorded(family, position0, take):
    model = child.model(family)
    store = take(child.stimulus("natural", bos="force", bos_id=1), model=model, position0=position0)
    left = take(child.stimulus("natural", bos="force", bos_id=1), model=model, position0="zero")
    stays = np.linalg.norm(left.read("position0", 0)[0])
    token = int(store.tokens[0, 0])
    native = model.model.base_model(torch.tensor([[token]]), output_hidden_states=True)
    norm = float(native.hidden_states[0].norm())
    assert store.kept_at_position0 == pytest.approx(stays / norm, rel=1e-3)
    assert 0.05 < store.kept_at_position0 < 5


def test_nothing_stays_where_there_is_none(take):
    for family in ("llama", "gemma2"):
        model = child.model(family)
        store = take(child.stimulus(bos="force", bos_id=1), model=model, position0="zero")
        assert store.kept_at_position0 == 0 == np.abs(store.read("position0", 0)).max()
    assert take(child.stimulus(), model=child.model("gpt2")).kept_at_position0 == 0


def _in_order(store):
    return store.tokens[np.lexsort((store.prefix_length, store.item)), 0]


@pytest.mark.parametrize("seed", range(5))
def test_content_never_draws_the_token_that_stands_there(seed, take):
    stimulus = child.stimulus("repeated", n=2, seed=seed)
    treated = take(stimulus, position0="content", quantities=("position0",))
    assert (treated.tokens[:, 0] != stimulus.tokens[:, 0]).all()


def test_content_needs_another_token(take):
    stimulus = child.stimulus("natural")
    stimulus.tokens[:] = 7
    with pytest.raises(StimulusError, match="'content': the text has no other token"):
        take(stimulus, position0="content")


def test_treatments_are_of_the_embedding_where_that_is_narrower(take):
    model = child.model("opt", word_embed_proj_dim=16)
    for position0 in ("zero", "mean", "noise"):
        store = take(child.stimulus(), model=model, position0=position0)
        assert store.read("position0", 0).shape == (20, 32)


@pytest.mark.parametrize("position0", ["native", "zero", "content"])
@pytest.mark.parametrize("bos", ["none", "force"])
def test_replaced_token_of_the_repeated_design_is_apart(position0, bos, take):
    """The counterfactual shows key 0 itself as soon as it is another token than the rest."""
    store = take(child.stimulus("repeated", bos=bos, bos_id=1), position0=position0)
    late = store.read("sink_score", 1)[:, -store.window :]
    body = store.read("remasked_body", 1)
    error = np.abs(np.logaddexp(body, late[:, None]) - store.read("remasked_normalizer", 1))
    all_alike = position0 == "native" and bos == "none"
    assert (error.max() > 0.1) == all_alike
    assert error[:, -1].max() < 1e-5
    if not all_alike:
        assert error.max() < 1e-5


def test_unknown_treatment_is_refused(take):
    with pytest.raises(StimulusError, match="position0 'one' is unknown; use one of native"):
        take(child.stimulus(), position0="one")


def test_special_needs_another_special_token(take):
    with pytest.raises(StimulusError, match="'tiny-llama' has no other special token"):
        take(child.stimulus(), model=child.model(), position0="special")


@pytest.mark.parametrize("position0", sorted(set(POSITION0) - {"content"}))
@pytest.mark.parametrize("bos", ["none", "force"])
def test_what_is_drawn_for_an_item_does_not_depend_on_the_number_of_items(position0, bos, llama):
    whole = child.stimulus(bos=bos, bos_id=1, n=5)
    for part in (
        child.stimulus(bos=bos, bos_id=1, n=3),
        child.stimulus(n=2, first_item=3, bos=bos, bos_id=1),
    ):
        here = np.isin(whole.item, part.item)
        both = [replace_token(llama, stimulus, position0) for stimulus in (whole, part)]
        np.testing.assert_array_equal(both[0].tokens[here], both[1].tokens)
        drawn = [replaced_embedding(llama, stimulus, slice(None), position0) for stimulus in both]
        if drawn[0] is not None:
            assert torch.equal(drawn[0][torch.from_numpy(here)], drawn[1])


def test_special_is_another_token_than_the_item_has_whatever_other_items_have(llama):
    stimulus = child.stimulus("natural", bos="none")
    tokens = stimulus.tokens.copy()
    tokens[0, 0] = llama.special_ids[0]
    treated = replace_token(llama, dataclasses.replace(stimulus, tokens=tokens), "special")
    assert treated.tokens[:, 0].tolist() == [llama.special_ids[1]] + [llama.special_ids[0]] * 4


def test_content_cannot_be_extended(llama):
    with pytest.raises(StimulusError, match="it cannot start at item 3; capture all items into"):
        replace_token(llama, child.stimulus(n=2, first_item=3), "content")
