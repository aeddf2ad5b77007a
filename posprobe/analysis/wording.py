"""Describe a stored file in words: its items, its design and its first token."""

from __future__ import annotations

import numpy as np

from posprobe.channels import MAX_UNITS
from posprobe.store import ActivationStore

__all__ = ["first_token", "listed", "n_units", "shifted_design"]


def n_units(store: ActivationStore) -> int:
    """Return the number of resampling units in the tables of channels.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    int
        The number of items, or `posprobe.channels.MAX_UNITS` if there are more, since these are
        pooled.
    """
    return min(store.n_items, MAX_UNITS)


def listed(values: tuple[int, ...]) -> str:
    """Join numbers with commas.

    Parameters
    ----------
    values : tuple of int
        The numbers.

    Returns
    -------
    str

    Examples
    --------
    >>> from posprobe.analysis import listed
    >>> listed((1, 2, 4))
    '1, 2, 4'
    """
    return ", ".join(str(v) for v in values)


def shifted_design(store: ActivationStore) -> str:
    """Describe the shifted stimulus of a file in one sentence.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design.

    Returns
    -------
    str
    """
    return (
        f"{store.n_items} windows of {store.window} tokens, each behind prefixes of "
        f"{listed(store.prefixes)} tokens (reference: the last), {first_token(store)} at "
        "position 0."
    )


def first_token(store: ActivationStore) -> str:
    """Describe the token at position 0 in words.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    str
        The id of the token, or a phrase if sequences begin with different tokens.
    """
    first = np.unique(store.tokens[:, 0])
    if len(first) > 1:
        return "whatever token the text begins with"
    return f"token {first[0]}" + (" (BOS)" if store.has_bos else "")
