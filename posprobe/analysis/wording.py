"""A stored file in words: its items, its design and its first token."""

from __future__ import annotations

import numpy as np

from posprobe.channels import MAX_UNITS
from posprobe.store import ActivationStore

__all__ = ["first_token", "listed", "n_units", "shifted_design"]


def n_units(store: ActivationStore) -> int:
    """Number of resampling units behind the tables of channels, which pool many items."""
    return min(store.n_items, MAX_UNITS)


def listed(values: tuple[int, ...]) -> str:
    """Numbers with commas between them."""
    return ", ".join(str(v) for v in values)


def shifted_design(store: ActivationStore) -> str:
    """The shifted stimulus of a file, as a sentence."""
    return (
        f"{store.n_items} windows of {store.window} tokens, each behind prefixes of "
        f"{listed(store.prefixes)} tokens (reference: the last), {first_token(store)} at "
        "position 0."
    )


def first_token(store: ActivationStore) -> str:
    """What is at position 0, in words."""
    first = np.unique(store.tokens[:, 0])
    if len(first) > 1:
        return "whatever token the text begins with"
    forced = store.header.stimulus.get("bos_token") is not None
    return f"token {first[0]}" + (" (BOS)" if forced else "")
