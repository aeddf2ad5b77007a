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
    failed: Exception | None = None
    for text in PROBES:
        try:
            plain = tokenizer(text, add_special_tokens=False)["input_ids"]
            whole = tokenizer(text)["input_ids"]
        except Exception as error:  # of the tokenizer's own code
            failed = error
            continue
        if not plain:
            continue
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return Frame(tuple(whole[:start]), tuple(whole[start + len(plain) :]))
        raise ModelError(
            f"model {name!r}: its tokenizer changes the tokens of {text!r} when it adds its own; "
            "choose bos 'force' or 'none'"
        )
    why = "" if failed is None else f" ({type(failed).__name__}: {failed})"
    raise ModelError(
        f"model {name!r}: its tokenizer has no token for plain text{why}; pass token ids"
    ) from failed
