"""Masks are recognised, and never dropped."""

import pytest
import tiny
import torch
from watched import IDS, LENGTH

from posprobe.errors import ModelError
from posprobe.models import (
    Intervention,
    ObservableModel,
    Observer,
)
from posprobe.models.attention import Visibility
from posprobe.models.masks import recognise_mask


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
