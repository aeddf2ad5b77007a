"""Recognise a model's own mask as causal or a sliding window, or refuse it."""

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
    """Turn a model's own mask function into a `Visibility`, or refuse it.

    transformers calls this function, with its own keywords, wherever it would make a mask. The
    window is read from the last row and then checked on rows spread over the whole length.

    Parameters
    ----------
    batch_size : int
        Number of sequences.
    q_length : int
        Number of queries.
    kv_length : int
        Number of keys.
    mask_function : callable
        Function of sequence, head, query and key indices that is true where the query sees the key.
    attention_mask : Tensor or None, default=None
        Padding mask, in which false marks padding.
    device : torch.device or str, default="cpu"
        Device on which the mask function is evaluated.
    **kwargs : object
        Other keywords of transformers, which are not used.

    Returns
    -------
    Visibility

    Raises
    ------
    ModelError
        If there is padding or a cache, or the mask is neither causal nor a sliding window.
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
