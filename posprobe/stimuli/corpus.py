"""The text that stimuli are drawn from: a file, or the prose that comes with CPython."""

from __future__ import annotations

import platform
from pathlib import Path

from posprobe.errors import StimulusError
from posprobe.stimuli.stimulus import Corpus

__all__ = ["DEFAULT_CORPUS", "corpus_name", "default_corpus", "read_corpus"]

DEFAULT_CORPUS = "pydoc_data.topics"


def corpus_name(text: str) -> str:
    """Name of a text, or that it came without one.

    Examples
    --------
    >>> corpus_name(Corpus.named("Some words.", "words.txt"))
    'words.txt'
    >>> corpus_name("Some words.")
    'a text without a name'
    """
    return getattr(text, "name", "a text without a name")


def default_corpus() -> Corpus:
    """Return the prose of `pydoc_data.topics`, the reference manual that ships with CPython.

    About 465,000 characters, the same for every run of one Python release.

    Examples
    --------
    >>> len(default_corpus()) > 400_000
    True
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return Corpus.named(text, f"{DEFAULT_CORPUS}, Python {platform.python_version()}")


def read_corpus(path: str | Path) -> Corpus:
    """Return the text of a user's UTF-8 file.

    Raises
    ------
    StimulusError
        The file cannot be read, is not UTF-8 text, or holds nothing but white space.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StimulusError(
            f"cannot read the text file {path}: {error.strerror}; pass a readable UTF-8 file"
        ) from error
    except UnicodeDecodeError as error:
        raise StimulusError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, e.g. with "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise StimulusError(f"{path} is not text but a binary file: pass a UTF-8 text file")
    if not text.strip():
        raise StimulusError(f"the text file {path} is empty: pass one with prose in it")
    return Corpus.named(text, Path(path).name)
