"""What a tokenizer puts around a text by itself, and which of its tokens are special."""

from __future__ import annotations

from typing import Any, NamedTuple

from posprobe.errors import ModelError

__all__ = ["Frame", "native_frame"]

# Tried in turn: a tokenizer of one script, or of whole words, may have no token for the first.
PROBES = ("a", "the", "0", ".", "hello world", "\n")


class Frame(NamedTuple):
    """Ids that a tokenizer puts before and after every text, in order."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def native_frame(tokenizer: Any, name: str) -> Frame:
    """Find out what a tokenizer puts around a text when people use it.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    name : str
        Name of the model, for errors.

    Returns
    -------
    Frame

    Raises
    ------
    ModelError
        If it has a token for none of some plain texts, or does not leave their tokens as they are
        when it adds its own.
    """
    for text in PROBES:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text)["input_ids"]
        if not plain:
            continue
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return Frame(tuple(whole[:start]), tuple(whole[start + len(plain) :]))
        raise ModelError(
            f"model {name!r}: its tokenizer changes the tokens of {text!r} when it adds its own; "
            "choose bos 'force' or 'none'"
        )
    raise ModelError(f"model {name!r}: its tokenizer has no token for plain text; pass token ids")
