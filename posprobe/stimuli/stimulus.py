"""Token sequences by design, each of which answers a question that the others cannot.

======== ================================================== ===================================
design   what it is                                         what it isolates
======== ================================================== ===================================
natural  chunks of text at random starts                    what a user's model sees
shifted  the same window behind prefixes of several lengths position, with content held fixed
iid      independent draws from the tokens of the corpus    stationary content
repeated one token all along (or behind a BOS)              the mask: all hidden states are equal
======== ================================================== ===================================

Everything here works on arrays of token ids that were made *without* special tokens, so no
tokenizer is needed; the first token is decided in one place, `leading_token`. Same seed, same
stimulus; the first items stay as they are when more of them are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posprobe.errors import StimulusError, Telling
from posprobe.stimuli.corpus import Corpus, Tokens
from posprobe.stimuli.designs import PAD, iid, natural, repeated, shifted

__all__ = [
    "BOS_POLICIES",
    "DESIGNS",
    "Stimulus",
    "default_prefixes",
    "leading_token",
    "make_stimulus",
]

BOS_POLICIES = ("native", "force", "none")
LARGEST_SEED = 2**63 - 1  # of what a file can hold
LAST_ITEM = 2**31 - 1  # likewise


@dataclass(frozen=True, eq=False, repr=False)
class Stimulus(Telling):
    """Sequences of tokens with the plan by which they were drawn.

    S sequences of up to T tokens belong to N items. In the shifted design an item is the content of
    a window and has one sequence per prefix length, shortest first for all items, then the next
    length: sequences of equal length are adjacent. In the other designs every sequence is an item.
    The item is the unit of resampling.

    Attributes
    ----------
    design : str
        One of `DESIGNS`.
    tokens : (S, T) int32
        Token ids, padded with -1 on the right.
    lengths : (S,) int32
        Tokens in each sequence.
    item : (S,) int32
        The item that the sequence belongs to.
    prefix_length : (S,) int32
        Tokens ahead of the window, the first token included; 0 where not shifted.
    sequence_id : (S,) int64
        Where the chunk or window starts in the pieces of the corpus, one after another (tokens); in
        the repeated design the token that is repeated, in the iid design the item.
    query_start : (S,) int32
        Absolute position of the first query that is observed.
    n_queries : int
        Observed queries per sequence: positions ``query_start[s] + arange(n_queries)``.
    prefixes : tuple of int
        The measured band: the positions p at which a window is compared. ``prefixes[-1]`` is the
        reference, the latest.
    window : int
        Tokens in the window.
    bos : str
        One of `BOS_POLICIES`.
    seed : int
        Seed of all draws.
    bos_token : int or None
        The id put ahead of every sequence, if any.
    first_item : int
        Number of the first item; items before it are those of another capture.
    corpus : str
        Name of the text that the tokens come from.
    text : mapping
        What is known of that text: digest, documents, how many of them were joined, ...
    precision : mapping
        The precision that items were captured for, if one was asked: see `posprobe.audit`.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = np.arange(1000)
    >>> stimulus = make_stimulus("natural", corpus, n=3, length=64, bos="force", bos_id=7777)
    >>> stimulus.tokens.shape, stimulus.first_token.tolist()
    ((3, 64), [7777, 7777, 7777])
    """

    design: str
    tokens: Tokens
    lengths: Tokens
    item: Tokens
    prefix_length: Tokens
    sequence_id: NDArray[np.int64]
    query_start: Tokens
    n_queries: int
    prefixes: tuple[int, ...]
    window: int
    bos: str
    seed: int
    bos_token: int | None = None
    first_item: int = 0
    corpus: str = ""
    text: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_token(self) -> Tokens:
        """The token that is really at position 0 of each sequence, (S,) int32."""
        return self.tokens[:, 0].copy()

    def _line(self) -> str:
        begins = "no BOS" if self.bos_token is None else f"BOS {self.bos_token}"
        return (
            f"{self.design}, {self.n_items} items in {len(self.tokens)} sequences of up to "
            f"{self.tokens.shape[1]} tokens, {begins}, seed {self.seed}, from "
            f"{self.corpus or 'tokens without a name'}"
        )

    @property
    def n_items(self) -> int:
        """Number of items, the units of resampling."""
        return len(np.unique(self.item))

    def describe(self) -> dict[str, Any]:
        """What it takes to make the stimulus again, and a digest to know it by (plain JSON types).

        Examples
        --------
        >>> import numpy as np
        >>> plan = make_stimulus("repeated", np.arange(50), n=2, length=40, window=8).describe()
        >>> plan["design"], plan["n_items"], plan["prefixes"], plan["bos_token"]
        ('repeated', 2, [1, 2, 5, 14, 32], None)
        """
        padded = np.ascontiguousarray(self.tokens, dtype="<i4")
        return {
            "design": self.design,
            "corpus": self.corpus,
            "text": dict(self.text),
            "n_items": self.n_items,
            "n_sequences": len(self.tokens),
            "length": int(self.lengths.max()),
            "window": self.window,
            "prefixes": list(self.prefixes),
            "n_queries": self.n_queries,
            "bos": self.bos,
            "bos_token": self.bos_token,
            "first_tokens": np.unique(self.first_token).tolist(),
            "seed": self.seed,
            "tokens_sha256": hashlib.sha256(padded.tobytes()).hexdigest(),
        } | {k: v for k, v in self._asked().items() if v}

    def _asked(self) -> dict[str, Any]:
        return {"first_item": self.first_item, "precision": dict(self.precision)}


def default_prefixes(length: int, window: int) -> tuple[int, ...]:
    """Prefix lengths from 1 to ``length - window``, roughly geometric (a factor of 2.3 to 4).

    Parameters
    ----------
    length : int
        Tokens of the longest sequence.
    window : int
        Tokens of the window at its end.

    Returns
    -------
    tuple of int
        Increasing; the first is 1 and the last ``length - window``.

    Raises
    ------
    StimulusError
        Fewer than two prefix lengths fit.

    Examples
    --------
    >>> default_prefixes(257, 32)
    (1, 9, 33, 97, 225)
    >>> default_prefixes(2048, 32)
    (1, 19, 73, 289, 865, 2016)
    """
    if window < 1:
        raise StimulusError(f"window={window} is too short: a window has at least 1 token")
    if length < window + 2:
        raise StimulusError(
            f"length={length} is too short for a window of {window}: at least two prefix lengths "
            f"must fit, so raise length to {window + 2} or more"
        )
    span = length - window - 1
    steps = [span, span * 3 / 7, span / 7, span / 28]
    while steps[-1] >= 32:
        steps.append(steps[-1] / 4)
    return tuple(sorted({1, *(1 + round(step) for step in steps)}))


def leading_token(bos: str, native_bos: int | None, bos_id: int | None) -> int | None:
    """Return the token that the BOS policy puts ahead of every sequence (None: none).

    Parameters
    ----------
    bos : {"native", "force", "none"}
        Whatever the tokenizer does by itself; always a BOS; never one.
    native_bos : int or None
        The id that the tokenizer prepends by itself.
    bos_id : int or None
        The tokenizer's BOS id, whether it prepends it or not.

    Raises
    ------
    StimulusError
        The policy is unknown, or a BOS is forced that the tokenizer does not have.

    Examples
    --------
    >>> [leading_token(bos, native_bos=None, bos_id=1) for bos in BOS_POLICIES]
    [None, 1, None]
    """
    if bos not in BOS_POLICIES:
        raise StimulusError(f"unknown BOS policy {bos!r}: choose one of {', '.join(BOS_POLICIES)}")
    if bos == "force" and bos_id is None:
        raise StimulusError(
            "bos='force' needs a BOS token and this tokenizer has none: "
            "choose bos='native' or bos='none'"
        )
    return {"native": native_bos, "force": bos_id, "none": None}[bos]


DESIGNS: dict[str, Callable[..., tuple[Tokens, NDArray[np.int64]]]] = {
    "natural": natural,
    "shifted": shifted,
    "iid": iid,
    "repeated": repeated,
}


def make_stimulus(
    design: str,
    corpus_tokens: ArrayLike | Corpus,
    *,
    n: int,
    length: int,
    window: int = 32,
    prefixes: Sequence[int] | None = None,
    bos: str = "native",
    native_bos: int | None = None,
    bos_id: int | None = None,
    seed: int = 0,
    first_item: int = 0,
    corpus: str = "",
) -> Stimulus:
    """Draw a stimulus by the name of its design.

    Parameters
    ----------
    design : {"natural", "shifted", "iid", "repeated"}
        See the table at the top of `posprobe.stimuli`. Bos+repeated is the repeated design with
        ``bos="force"``.
    corpus_tokens : array of int, shape (K,), or Corpus
        A text, tokenized without special tokens; `Corpus` keeps its documents apart.
    n : int
        Items, at least 2: an interval needs more than one.
    length : int
        Tokens of the longest sequence, a BOS included.
    window : int
        Tokens in the window that is compared over positions.
    prefixes : sequence of int, optional
        Increasing numbers of tokens ahead of the window, first token included. Default:
        `default_prefixes`. In the shifted design ``prefixes[-1] + window`` is the length.
    bos : {"native", "force", "none"}
        See `leading_token`, as for `native_bos` and `bos_id`.
    native_bos, bos_id : int or None
        The id that the tokenizer prepends by itself, and its BOS id.
    seed : int
        Same seed, same stimulus.
    first_item : int
        Number of the first of the `n` items. What is drawn for an item depends on the seed and its
        number alone, so items 32 to 47 extend a capture of the first 32.
    corpus : str
        Name of the text, to be recorded. Default: that of the `Corpus`.

    Returns
    -------
    Stimulus

    Raises
    ------
    StimulusError
        The design or policy is unknown, the corpus is empty, too short or carries BOS tokens
        itself, n is below 2, the seed or the first item below 0, or length, window and prefixes do
        not fit together.

    Examples
    --------
    >>> stimulus = make_stimulus("shifted", np.arange(20_000), n=4, length=257, bos="none")
    >>> stimulus.tokens.shape, stimulus.prefixes, stimulus.n_items
    ((20, 257), (1, 9, 33, 97, 225), 4)
    """
    if design not in DESIGNS:
        raise StimulusError(f"unknown design {design!r}: choose one of {', '.join(DESIGNS)}")
    if n < 2:
        raise StimulusError(f"n={n} is too few: intervals need at least 2 items, so raise n")
    if not 0 <= seed <= LARGEST_SEED:
        raise StimulusError(f"seed={seed} must be between 0 and {LARGEST_SEED}")
    if not 0 <= first_item <= LAST_ITEM - n:
        raise StimulusError(f"first_item={first_item} must be between 0 and {LAST_ITEM - n}")
    grid = _checked_prefixes(length, window, prefixes)
    lead = leading_token(bos, native_bos, bos_id)
    found = _checked_corpus(corpus_tokens, [native_bos, bos_id])
    ids = found.shuffle(seed) if found.shuffled else found
    is_shifted = design == "shifted"
    extent = {"prefixes": grid, "window": window} if is_shifted else {"length": length}
    tokens, source = DESIGNS[design](ids, n=first_item + n, lead=lead, seed=seed, **extent)
    copies = len(tokens) // (first_item + n)
    tokens = tokens.reshape(copies, -1, tokens.shape[-1])[:, first_item:].reshape(n * copies, -1)
    block = length - (is_shifted or lead is not None)
    joined = ids.joined(block) if design in ("natural", "shifted") else 0
    ahead = np.repeat(np.array(grid if is_shifted else [0], dtype=np.int32), n)
    return Stimulus(
        design=design,
        tokens=tokens,
        lengths=(tokens != PAD).sum(axis=1, dtype=np.int32),
        item=np.tile(np.arange(first_item, first_item + n, dtype=np.int32), copies),
        prefix_length=ahead,
        sequence_id=np.tile(source[first_item:], copies),
        query_start=ahead.copy(),
        n_queries=window if is_shifted else length,
        prefixes=grid,
        window=window,
        bos=bos,
        seed=seed,
        bos_token=lead,
        first_item=first_item,
        corpus=corpus or found.name,
        text={**found.text, "documents": len(found.documents), "joined": joined},
    )


def _checked_prefixes(length: int, window: int, prefixes: Sequence[int] | None) -> tuple[int, ...]:
    """Return the grid of prefix lengths, refused if it does not fit."""
    default = default_prefixes(length, window)
    if prefixes is None:
        return default
    grid = tuple(int(prefix) for prefix in prefixes)
    increasing = all(low < high for low, high in pairwise(grid))
    if len(grid) < 2 or grid[0] < 1 or not increasing:
        raise StimulusError(
            f"prefixes={grid} must be at least two increasing lengths from 1 on (position 0 holds "
            f"the first token): try {default}"
        )
    reach = grid[-1] + window
    if reach != length:  # the latest window ends the sequence: its rows are the ones re-masked
        raise StimulusError(
            f"prefixes={grid} and window={window} make sequences of {reach} tokens, but "
            f"length={length}: set length={reach}, or leave prefixes out"
        )
    return grid


def _checked_corpus(corpus_tokens: ArrayLike | Corpus, specials: list[int | None]) -> Corpus:
    """Return the corpus, refused where the text contains a BOS token itself."""
    given = corpus_tokens
    corpus = given if isinstance(given, Corpus) else Corpus.of_tokens(given)
    tokens = corpus.tokens
    found = np.flatnonzero(np.isin(tokens, [token for token in specials if token is not None]))
    if len(found):
        raise StimulusError(
            f"the text itself contains the BOS token {tokens[found[0]]} (token {found[0]}): "
            "tokenize it with add_special_tokens=False, the BOS policy adds the one at position 0"
        )
    return corpus
