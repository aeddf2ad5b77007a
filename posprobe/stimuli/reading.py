"""One reader for whatever text a user has."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posprobe.errors import StimulusError
from posprobe.stimuli.bundled import BUNDLED, DEFAULT, read_bundled
from posprobe.stimuli.data_sets import read_data_set
from posprobe.stimuli.files import read_path
from posprobe.stimuli.text import UNNAMED, Text, join_texts, make_text

__all__ = ["TextSource", "read_text", "text_source"]

TextSource = Text | str | Path | Sequence["Text | str | Path"] | None
DATA_SET, SHUFFLED = "hf:", "shuffled"
LONGEST_PATH = 4096


def read_text(
    source: TextSource = None, *, field: str | None = None, characters: int | None = None
) -> Text:
    r"""Return the text that a source names, or is.

    Parameters
    ----------
    source : None, Text, str, Path, or a sequence of these
        - ``None``: the default, `python-reference`.
        - A `Text` as it is.
        - A path: a file or a folder, see `posprobe.stimuli.files.read_path`.
        - A string: the name of a bundled text (`posprobe.stimuli.BUNDLED`); ``hf:NAME[@CONFIG]
          [:SPLIT]``, a data set; ``shuffled``, the default text with its tokens in random order,
          or ``shuffled:NAME``; and else the text itself.
        - A list: the documents of all of them.
    field : str or None
        Field of JSON, Parquet and data sets with the text (None: ``text``).
    characters : int or None
        Read each file and data set until this many characters are there (None: all of a file,
        4,000,000 of a data set). No document is cut.

    Returns
    -------
    Text

    Raises
    ------
    StimulusError
        For what is not a text, in one line. A short string that names a file or folder is refused:
        pass ``Path(...)``, since a string is the text itself.

    Examples
    --------
    >>> read_text("english").name
    'english'
    >>> read_text(["One document.", "Another.\r\n"]).documents
    ('One document.', 'Another.\n')
    """
    text = _read(source, field, characters)
    if field is not None and not text.field:
        raise StimulusError(
            f"field {field!r} was asked for, and {text.name} has no fields: leave --text-field out "
            "(in Python: field=)"
        )
    return text if characters is None else dataclasses.replace(text, limit=characters)


def text_source(argument: str) -> str | Path:
    """Return what `read_text` takes for an argument of ``--text``: a name, or else a path.

    Examples
    --------
    >>> text_source("french"), text_source("./french").name
    ('french', 'french')
    """
    return argument if _is_name(argument) else Path(argument)


def _is_name(value: str) -> bool:
    one_line = "\n" not in value and len(value) <= LONGEST_PATH
    marked = value.startswith((DATA_SET, f"{SHUFFLED}:"))
    return one_line and (value in BUNDLED or value == SHUFFLED or marked)


def _read(source: Any, field: str | None, characters: int | None) -> Text:
    if source is None:
        return read_bundled(DEFAULT)
    if isinstance(source, Text):
        return source
    if isinstance(source, os.PathLike):
        _refuse_typo(Path(source))
        return read_path(Path(source), field=field, characters=characters)
    if isinstance(source, str):
        return _of_string(source, field, characters)
    if isinstance(source, bytes | bytearray):
        raise StimulusError("text is bytes: decode them, e.g. text.decode('utf-8'), or pass a Path")
    if not isinstance(source, Sequence):
        raise StimulusError(
            f"text is of type {type(source).__name__}: pass a str, a Path, a Text, or a list of "
            "them"
        )
    if not source:
        raise StimulusError("text is an empty list: pass at least one document")
    return _of_documents(source, field, characters)


def _of_documents(
    sources: Sequence[Text | str | Path], field: str | None, most: int | None
) -> Text:
    """A list's texts; strings in a row that are texts themselves are documents of one."""
    if all(isinstance(each, str) and not _is_name(each) for each in sources):
        for each in sources:
            _refuse_path(str(each))
        return make_text(UNNAMED, map(str, sources))
    return join_texts([_read(each, field, most) for each in sources])


def _of_string(source: str, field: str | None, characters: int | None) -> Text:
    if not _is_name(source):
        _refuse_path(source)
        return make_text(UNNAMED, [source])
    if source in BUNDLED:
        return read_bundled(source)
    if source.startswith(DATA_SET):
        name = source.removeprefix(DATA_SET)
        return read_data_set(name, field=field, characters=characters)
    rest = source.removeprefix(SHUFFLED).removeprefix(":")
    return _read(text_source(rest) if rest else None, field, characters).shuffle()


def _refuse_typo(path: Path) -> None:
    """Refuse a path that does not exist and is nearly the name of a bundled text."""
    near = difflib.get_close_matches(str(path), [*BUNDLED, SHUFFLED], n=1, cutoff=0.75)
    if near and not path.exists():
        raise StimulusError(
            f"there is no text or file {str(path)!r}; did you mean the bundled text {near[0]!r}?"
        )


def _refuse_path(value: str) -> None:
    """A short string that is a path is not a text: its author meant the file."""
    if not value.strip() or "\n" in value or "\0" in value or len(value) > LONGEST_PATH:
        return
    try:
        exists = Path(value).exists()
    except OSError:  # longer than the name of a file can be
        return
    if exists:
        raise StimulusError(
            f"text={value!r} is a string, which is taken for the text itself, and it names a file "
            "or folder: pass Path(...) to read that (or --text on the command line)"
        )
