"""Describe a stored file in words: its items, its design and its first token."""

from __future__ import annotations

import numpy as np

from posprobe.channels import MAX_UNITS
from posprobe.store import ActivationStore

__all__ = [
    "first_token",
    "kept",
    "listed",
    "n_units",
    "planned_items",
    "shifted_design",
    "way_of_writing",
]


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


def planned_items(store: ActivationStore) -> str:
    """Say up to which precision windows were captured, in one sentence; nothing if none was asked.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design.

    Returns
    -------
    str
    """
    asked = store.header.stimulus.get("precision")
    if not asked:
        return ""
    ended = f", or to the most that --max-items and the text allow ({asked['most']})"
    return (
        f"Windows were added to a pilot of {asked['pilot']} until half of the interval of "
        f"{asked['quantity']} is at most {asked['target']:g} of its estimate"
        f"{ended * (store.n_items >= asked['most'] - 1)}."
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


def kept(store: ActivationStore) -> str:
    """Say what a replacement leaves at position 0.

    Parameters
    ----------
    store : ActivationStore
        A capture with position 0 replaced.

    Returns
    -------
    str
        A sentence with a blank in front, or nothing if all of it was replaced.
    """
    if not store.kept_at_position0:
        return ""
    return (
        " The model adds a learned position vector, which the replacement leaves there: its norm "
        f"is {store.kept_at_position0:.2g} of that of the stream at position 0."
    )


def way_of_writing(store: ActivationStore) -> str:
    """Say what lies between attention and the residual stream.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    str
        A sentence with a blank in front, or nothing if the stream gets attention's output as it is.
    """
    gains = store.attention_gain
    normed = sum(gain is None for gain in gains)
    scaled = sorted({gain for gain in gains if gain not in (None, 1.0)})
    said = ""
    if normed:
        said += (
            f" In {normed} of {store.n_layers} layers a norm or a gate lies between attention and "
            "the stream: the norms are those before it, not those of what reaches the stream."
        )
    if scaled:
        factors = ", ".join(f"{gain:g}" for gain in scaled)
        said += f" The model scales what attention writes ({factors}), which is counted."
    return said
