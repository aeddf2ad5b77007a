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
