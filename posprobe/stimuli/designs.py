"""The four designs as pure functions of a corpus.

Each returns its sequences and where they come from. The draws of an item depend on the seed and on
the item's number alone, so the first items stay as they are when more of them are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.errors import StimulusError
from posprobe.stimuli.corpus import Corpus, Tokens

__all__ = ["PAD", "iid", "natural", "repeated", "shifted"]

PAD = -1


def natural(
    corpus: Corpus, *, n: int, length: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Chunks of the corpus at random starts, no two of them overlapping.

    Parameters
    ----------
    corpus : Corpus
        No chunk lies across two of its documents, except short ones (`Corpus.pieces`).
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
        Where each chunk starts in the pieces of the corpus, one after another.

    Raises
    ------
    StimulusError
        The corpus is too short.

    Examples
    --------
    >>> corpus = Corpus.of_tokens(range(100))
    >>> tokens, starts = natural(corpus, n=2, length=5, lead=None, seed=0)
    >>> bool((tokens == starts[:, None] + np.arange(5)).all())
    True
    """
    chunk = length - (lead is not None)
    tokens, starts = _disjoint_starts(corpus, n, chunk, seed)
    return _behind(lead, tokens[starts[:, None] + np.arange(chunk)]), starts


def iid(
    corpus: Corpus, *, n: int, length: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens drawn independently from the unigram distribution of the corpus.

    Parameters and returns as in `natural`; the second value numbers the sequences, which have no
    place in the corpus.

    Examples
    --------
    >>> corpus = Corpus.of_tokens([3, 3, 3, 8])
    >>> tokens, _ = iid(corpus, n=1, length=4000, lead=None, seed=0)
    >>> round(float((tokens == 3).mean()), 2)
    0.74
    """
    chunk = length - (lead is not None)
    tokens = corpus.tokens
    draws = [tokens[rng.integers(len(tokens), size=chunk)] for rng in _generators(seed, n)]
    return _behind(lead, np.stack(draws)), np.arange(n, dtype=np.int64)


def repeated(
    corpus: Corpus, *, n: int, length: int, lead: int | None, seed: int
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
    >>> repeated(Corpus.of_tokens([5, 5, 6]), n=2, length=3, lead=9, seed=0)[0]
    array([[9, 5, 5],
           [9, 6, 6]], dtype=int32)
    """
    vocabulary = np.unique(corpus.tokens)
    if len(vocabulary) < n:
        raise StimulusError(
            f"the text has {len(vocabulary)} different tokens and n={n} repeated sequences need "
            f"{n}: pass a longer text or lower n"
        )
    chosen = _shuffled(vocabulary, seed)[:n]
    chunk = length - (lead is not None)
    return _behind(lead, np.repeat(chosen[:, None], chunk, axis=1)), chosen.astype(np.int64)


def shifted(
    corpus: Corpus, *, n: int, prefixes: Sequence[int], window: int, lead: int | None, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """Put the same window of text behind prefixes of several lengths.

    A prefix of p tokens is the first token and the p - 1 tokens of one unrelated chunk that are
    *nearest* to the window: a shorter prefix is the end of the longest one, so the text next
    to the window stays the same, and so that the late row of the mask counterfactual (key 0 and the
    p - 1 nearest prefix keys) sees the tokens which a window at position p sees. The first token is
    `lead`, or else one token per item, drawn from the corpus: only position changes.

    All windows and prefixes are disjoint parts of the corpus: its pieces are cut into blocks, dealt
    in random order; an item's window is the end of its block, its prefix the start of the next
    item's.

    Parameters
    ----------
    corpus : Corpus
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
        Where each item's window starts in the pieces of the corpus, one after another.

    Raises
    ------
    StimulusError
        The corpus is too short.

    Examples
    --------
    >>> corpus = Corpus.of_tokens(range(100))
    >>> shifted(corpus, n=1, prefixes=(1, 3), window=2, lead=777, seed=0)[0]
    array([[777,  46,  47,  -1,  -1],
           [777,  68,  69,  46,  47]], dtype=int32)
    """
    longest = prefixes[-1] - 1
    pieces, starts = _disjoint_starts(corpus, n + 1, longest + window, seed)
    windows = starts[:n] + longest
    content = pieces[windows[:, None] + np.arange(window)]
    ahead = pieces[starts[1:, None] + np.arange(longest)]
    every = corpus.tokens
    drawn = [every[rng.integers(len(every))] for rng in _generators(seed, n)]
    tokens = np.full((len(prefixes), n, prefixes[-1] + window), PAD, dtype=np.int32)
    for row, prefix in zip(tokens, prefixes, strict=True):
        row[:, 0] = drawn if lead is None else lead
        row[:, 1:prefix] = ahead[:, longest - (prefix - 1) :]
        row[:, prefix : prefix + window] = content
    return tokens.reshape(-1, tokens.shape[-1]), windows


def _disjoint_starts(
    corpus: Corpus, n: int, size: int, seed: int
) -> tuple[Tokens, NDArray[np.int64]]:
    """The pieces one after another, and where `n` disjoint chunks of `size` start in them.

    Every piece has a grid of random phase; the chunks of all grids are dealt in an order that does
    not depend on n.
    """
    pieces = corpus.pieces(size)
    chunks = [len(piece) // size for piece in pieces]
    if sum(chunks) < n:
        raise StimulusError(_too_short(corpus, n, size, sum(chunks)))
    rng = np.random.default_rng([seed, 0])
    phases = [rng.integers(len(piece) % size + 1) for piece in pieces]
    ahead = np.cumsum([0, *map(len, pieces[:-1])])
    grid = [
        start + phase + size * np.arange(count, dtype=np.int64)
        for start, phase, count in zip(ahead, phases, chunks, strict=True)
    ]
    return np.concatenate(pieces), _shuffled(np.concatenate(grid), seed)[:n]


def _too_short(corpus: Corpus, n: int, size: int, found: int) -> str:
    documents = len(corpus.documents)
    has = f"the text has {len(corpus.tokens)} tokens"
    if documents > 1:
        has += (
            f" in {documents} documents, which hold {found} chunks of {size} that keep them apart,"
        )
    return (
        f"{has} and {n} chunks of {size} need {n * size}: pass a longer text, or lower n or length"
    )


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
