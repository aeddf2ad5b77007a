"""The corpus: the token ids of a text, document by document."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posprobe.errors import StimulusError, Telling
from posprobe.stimuli.text import Text

__all__ = ["Corpus", "Tokens"]

Tokens = NDArray[np.int32]
SEPARATOR = "\n\n"  # between documents that are joined
NOTHING = np.empty(0, dtype=np.int32)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus(Telling):
    """Token ids of a text, without special tokens.

    Attributes
    ----------
    documents : tuple of (K_d,) int32
        The tokens of each document.
    separator : (B,) int32
        The tokens between documents that are joined.
    name : str
        The text's name.
    text : mapping
        What a file records of the text.
    shuffled : bool
        Whether the tokens are put in random order before sequences are drawn.

    Examples
    --------
    >>> corpus = Corpus((np.arange(5, dtype=np.int32), np.arange(2, dtype=np.int32)))
    >>> len(corpus.tokens), [len(piece) for piece in corpus.pieces(4)]
    (7, [5, 2])
    """

    documents: tuple[Tokens, ...]
    separator: Tokens = dataclasses.field(default_factory=NOTHING.copy)
    name: str = ""
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shuffled: bool = False

    def _line(self) -> str:
        tokens = sum(map(len, self.documents))
        return f"{self.name or 'no name'}, {tokens:,} tokens, documents: {len(self.documents)}"

    @classmethod
    def of_text(cls, text: Text, encode: Callable[[str], ArrayLike]) -> Corpus:
        r"""Tokenize a text.

        Parameters
        ----------
        text : Text
        encode : callable
            From a string to token ids, without special tokens.

        Examples
        --------
        >>> from posprobe.stimuli.text import make_text
        >>> text = make_text("two", ["ab", "c"])
        >>> Corpus.of_text(text, lambda string: [ord(letter) for letter in string]).tokens
        array([97, 98, 99], dtype=int32)
        """
        ids = [encode(document) for document in text.documents]
        between = np.asarray(encode(SEPARATOR))  # none, where white space has no tokens
        return cls(
            documents=tuple(map(_token_ids, [one for one in ids if np.size(one)] or [[]])),
            separator=_token_ids(between) if between.size else NOTHING,
            name=text.name,
            text=text.describe(),
            shuffled=text.shuffled,
        )

    @classmethod
    def of_tokens(cls, tokens: ArrayLike) -> Corpus:
        """One document of token ids.

        Raises
        ------
        StimulusError
            If they are none.
        """
        return cls((_token_ids(tokens),))

    @property
    def tokens(self) -> Tokens:
        """The tokens of all documents, one after another, without separators: (K,) int32."""
        return self.documents[0] if len(self.documents) == 1 else np.concatenate(self.documents)

    def pieces(self, size: int) -> list[Tokens]:
        """What chunks of `size` tokens are cut from, none of them across two pieces.

        Each document of at least `size` tokens is a piece. The others are joined in order, with the
        separator between them, to one last piece.
        """
        pieces = [document for document in self.documents if len(document) >= size]
        short = [document for document in self.documents if len(document) < size]
        if short:
            behind = [part for document in short[1:] for part in (self.separator, document)]
            pieces.append(np.concatenate([short[0], *behind]))
        return pieces

    def chunks(self, size: int) -> int:
        """Disjoint chunks of `size` tokens that it has.

        Examples
        --------
        >>> Corpus((np.arange(9, dtype=np.int32), np.arange(2, dtype=np.int32))).chunks(4)
        2
        """
        return sum(len(piece) // size for piece in self.pieces(size))

    def joined(self, size: int) -> int:
        """Documents that are joined where chunks have `size` tokens."""
        short = sum(len(document) < size for document in self.documents)
        return short if short > 1 else 0

    def shuffle(self, seed: int) -> Corpus:
        """All tokens in random order, as one document."""
        mixed = np.random.default_rng([seed, 2]).permutation(self.tokens)
        return dataclasses.replace(self, documents=(mixed,), shuffled=False)


def _token_ids(tokens: ArrayLike) -> Tokens:
    """Token ids as int32, refused unless they are a plain list of them."""
    ids = np.asarray(tokens)
    if ids.size == 0:
        raise StimulusError("the text is empty: pass one with at least a few thousand tokens")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise StimulusError(
            f"corpus_tokens must be one list of token ids >= 0, not {ids.dtype} of shape "
            f"{ids.shape}: tokenize the text without padding"
        )
    return ids.astype(np.int32)
