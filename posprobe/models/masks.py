"""The model's own mask, recognised as causal or a sliding window, or refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.attention import Visibility

__all__ = ["recognise_mask"]


def recognise_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: object,
) -> Visibility:
    """Turn the model's own index-based mask into a `Visibility`, or refuse it.

    The window is read off the last row and then checked on rows spread over the whole length.
    transformers calls this with its keywords wherever it would make a mask.

    Raises
    ------
    ModelError
        If there is padding, a cache, or a mask that is neither causal nor a sliding window.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError(
            "padding is not supported: pass sequences of equal length, without padding"
        )
    if q_length != kv_length:
        raise ModelError(
            f"a cache of {kv_length - q_length} tokens is in use; pass use_cache=False"
        )
    keys = torch.arange(kv_length, device=device)
    rows = torch.linspace(0, q_length - 1, min(q_length, 64), device=device).long().unique()
    sequences = torch.arange(batch_size, device=device)[:, None, None]
    native = mask_function(sequences, sequences.new_zeros(()), rows[:, None], keys[None, :])
    native = torch.as_tensor(native, device=device).expand(batch_size, len(rows), kv_length)
    seen = int(native[0, -1].sum())
    causal = not bool((native & (keys[None, :] > rows[:, None])).any())
    visibility = Visibility(causal, seen if seen < kv_length else None)
    if not torch.equal(native, visibility.mask(rows, keys).expand_as(native)):
        raise ModelError(
            "the model's mask is neither causal nor a causal sliding window: it cannot be observed"
        )
    return visibility
