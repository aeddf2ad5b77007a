"""The four designs as pure functions of a corpus of token ids.

Each returns its sequences and where they come from. The draws of an item depend on the seed and on
the item's number alone, so the first items stay as they are when more of them are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.errors import StimulusError

__all__ = ["PAD", "Tokens", "iid", "natural", "repeated", "shifted"]

PAD = -1
Tokens = NDArray[np.int32]


def natural(
    corpus: Tokens, *, n: int, length: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Chunks of the corpus at random starts, no two of them overlapping.

    Parameters
    ----------
    corpus : (K,) int32
        Token ids without special tokens.
    n, length : int
        Sequences, and tokens in each.
    lead : int or None
        Token put ahead of each chunk; it counts towards `length`.
    seed : int
        Decides the starts.

    Returns
    -------
    tokens : (n, length) int32
    starts : (n,) int64
        Where each chunk starts in the corpus.

    Raises
    ------
    StimulusError
        The corpus is too short.

    Examples
    --------
    >>> tokens, starts = natural(np.arange(100, dtype=np.int32), n=2, length=5, lead=None, seed=0)
    >>> bool((tokens == starts[:, None] + np.arange(5)).all())
    True
    """
    chunk = length - (lead is not None)
    starts = _disjoint_starts(corpus, n, chunk, seed)
    return _behind(lead, corpus[starts[:, None] + np.arange(chunk)]), starts


def iid(
    corpus: Tokens, *, n: int, length: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens drawn independently from the unigram distribution of the corpus.

    Parameters and returns as in `natural`; the second value numbers the sequences, which have no
    place in the corpus.

    Examples
    --------
    >>> tokens, _ = iid(np.array([3, 3, 3, 8], dtype=np.int32), n=1, length=4000, lead=None, seed=0)
    >>> round(float((tokens == 3).mean()), 2)
    0.74
    """
    chunk = length - (lead is not None)
    draws = [corpus[rng.integers(len(corpus), size=chunk)] for rng in _generators(seed, n)]
    return _behind(lead, np.stack(draws)), np.arange(n, dtype=np.int64)


def repeated(
    corpus: Tokens, *, n: int, length: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """One token of the corpus' vocabulary all along, a different one in each sequence.

    Without a lead all hidden states of a sequence are equal, and only the mask is left; with one,
    the residual channel alone is opened. Parameters and returns as in `natural`; the second value
    is the repeated token.

    Raises
    ------
    StimulusError
        The corpus has fewer than `n` different tokens.

    Examples
    --------
    >>> repeated(np.array([5, 5, 6], dtype=np.int32), n=2, length=3, lead=9, seed=0)[0]
    array([[9, 5, 5],
           [9, 6, 6]], dtype=int32)
    """
    vocabulary = np.unique(corpus)
    if len(vocabulary) < n:
        raise StimulusError(
            f"the text has {len(vocabulary)} different tokens and n={n} repeated sequences need "
            f"{n}: pass a longer text or lower n"
        )
    chosen = _shuffled(vocabulary, seed)[:n]
    chunk = length - (lead is not None)
    return _behind(lead, np.repeat(chosen[:, None], chunk, axis=1)), chosen.astype(np.int64)


def shifted(
    corpus: Tokens, *, n: int, prefixes: Sequence[int], window: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Put the same window of text behind prefixes of several lengths.

    A prefix of p tokens is the first token and the p - 1 tokens of one unrelated chunk that are
    *nearest* to the window: a shorter prefix is the end of the longest one, so the text next
    to the window stays the same, and so that the late row of the mask counterfactual (key 0 and the
    p - 1 nearest prefix keys) sees the tokens which a window at position p sees. The first token is
    `lead`, or else one token per item, drawn from the corpus: only position changes.

    All windows and prefixes are disjoint pieces of the corpus: it is cut into blocks, dealt in
    random order; an item's window is the end of its block, its prefix the start of the next item's.

    Parameters
    ----------
    corpus : (K,) int32
        Token ids without special tokens.
    n : int
        Items.
    prefixes : sequence of int
        Increasing prefix lengths p, at least 1; a window has positions p to p + window - 1.
    window : int
        Tokens in the window.
    lead : int or None
        The token at position 0 of every sequence.
    seed : int
        Decides the draws.

    Returns
    -------
    tokens : (len(prefixes) * n, prefixes[-1] + window) int32
        All items behind the shortest prefix, then behind the next, padded with -1 on the right.
    starts : (n,) int64
        Where each item's window starts in the corpus.

    Raises
    ------
    StimulusError
        The corpus is too short.

    Examples
    --------
    >>> corpus = np.arange(100, dtype=np.int32)
    >>> shifted(corpus, n=1, prefixes=(1, 3), window=2, lead=777, seed=0)[0]
    array([[777,  46,  47,  -1,  -1],
           [777,  68,  69,  46,  47]], dtype=int32)
    """
    longest = prefixes[-1] - 1
    starts = _disjoint_starts(corpus, n + 1, longest + window, seed)
    windows = starts[:n] + longest
    content = corpus[windows[:, None] + np.arange(window)]
    ahead = corpus[starts[1:, None] + np.arange(longest)]
    drawn = [corpus[rng.integers(len(corpus))] for rng in _generators(seed, n)]
    tokens = np.full((len(prefixes), n, prefixes[-1] + window), PAD, dtype=np.int32)
    for row, prefix in zip(tokens, prefixes, strict=True):
        row[:, 0] = drawn if lead is None else lead
        row[:, 1:prefix] = ahead[:, longest - (prefix - 1) :]
        row[:, prefix : prefix + window] = content
    return tokens.reshape(-1, tokens.shape[-1]), windows


def _disjoint_starts(corpus: Tokens, n: int, size: int, seed: int) -> NDArray[np.int64]:
    """Starts of `n` disjoint chunks: a grid of random phase, dealt in an order independent of n."""
    if len(corpus) < n * size:
        raise StimulusError(
            f"the text has {len(corpus)} tokens and {n} chunks of {size} need {n * size}: pass a "
            "longer text, or lower n or length"
        )
    phase = np.random.default_rng([seed, 0]).integers(len(corpus) % size + 1)
    blocks = _shuffled(np.arange(len(corpus) // size, dtype=np.int64), seed)[:n]
    return blocks * size + phase


def _shuffled(values: NDArray[Any], seed: int) -> NDArray[Any]:
    return np.random.default_rng([seed, 1]).permutation(values)


def _generators(seed: int, n: int) -> list[np.random.Generator]:
    """One independent generator per item: item i draws the same whatever n is."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(n)]


def _behind(lead: int | None, chunks: Tokens) -> Tokens:
    """Put the token `lead` ahead of each of `chunks` (n, length)."""
    if lead is None:
        return chunks
    return np.pad(chunks, ((0, 0), (1, 0)), constant_values=lead)
