"""Find the tokens that a tokenizer itself puts around a text."""

from __future__ import annotations

from typing import Any, NamedTuple

from posprobe.errors import ModelError

__all__ = ["Frame", "native_frame"]

# Texts to try in turn; a tokenizer for another script or for whole words may lack some of them.
PROBES = ("a", "the", "0", ".", "hello world", "\n")


class Frame(NamedTuple):
    """Token ids that a tokenizer puts before and after every text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def native_frame(tokenizer: Any, name: str) -> Frame:
    """Find the tokens that a tokenizer puts around a text by default.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Tokenizer to try.
    name : str
        Name of the model, for the message.

    Returns
    -------
    Frame

    Raises
    ------
    ModelError
        If the tokenizer has no tokens for any of the texts in `PROBES`, or changes the tokens of a
        text when it adds its own.
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
