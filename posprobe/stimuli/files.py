"""Texts from files and folders of the user's: plain text, JSON lines, Parquet."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posprobe.errors import StimulusError
from posprobe.stimuli.text import Text, join_texts, make_text

__all__ = ["FIELD", "field_of", "read_path"]

FIELD = "text"
LINES, JSON, PARQUET = (".jsonl", ".ndjson"), ".json", ".parquet"
TABLES = (".csv", ".tsv")
PROSE = (".txt", ".text", ".md", ".rst", ".tex", ".org", ".adoc")
CODE = (
    *(".py", ".pyi", ".r", ".jl", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".java", ".kt"),
    *(".go", ".rs", ".swift", ".js", ".mjs", ".ts", ".tsx", ".php", ".rb", ".pl", ".lua"),
    *(".sh", ".sql", ".scala", ".hs", ".ml", ".ex", ".erl", ".f90"),
)
IN_FOLDERS = {*PROSE, *CODE, *LINES, PARQUET}


def read_path(path: Path, *, field: str | None = None, characters: int | None = None) -> Text:
    """Return the text of a file, or of the files of a folder.

    Parameters
    ----------
    path : Path
        A file is read by its suffix: ``.jsonl``, ``.ndjson`` and ``.json`` as one document for each
        object, ``.parquet`` as one for each row, anything else as one document of UTF-8. Of a
        folder everything is read that has a suffix of prose or code, or is JSON lines or Parquet,
        in the order of paths; hidden files are not.
    field : str or None
        Field of JSON and Parquet with the text (None: ``text``).
    characters : int or None
        As in `posprobe.stimuli.text.make_text`, for each file.

    Returns
    -------
    Text

    Raises
    ------
    StimulusError
        The path cannot be read, has no such field, is not text in UTF-8, or is empty.
    """
    if path.is_dir():
        return _read_folder(path, field, characters)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        raise StimulusError(
            f"{path} is a table, not a text: write its text column as JSON lines (.jsonl) or "
            "Parquet, and name it with --text-field (in Python: field=)"
        )
    known: dict[str, Any] = {"characters": characters, "given": (path.name,)}
    if suffix not in (*LINES, JSON, PARQUET):
        return _of(path, iter([_decoded(path)]), **known)
    named = field or FIELD
    rows = _parquet(path, named) if suffix == PARQUET else _json(path)
    documents = (field_of(row, field, where) for where, row in rows)
    return _of(path, documents, field=named, **known)


def field_of(row: Any, field: str | None, where: str) -> str:
    """Return the text in one row of a data set.

    Raises
    ------
    StimulusError
        If the row has no such field, or if that is not text.

    Examples
    --------
    >>> field_of({"id": 3, "text": "Some words."}, None, "line 1")
    'Some words.'
    """
    if isinstance(row, str) and field is None:
        return row
    named = field or FIELD
    fields = sorted(map(str, row)) if isinstance(row, Mapping) else []
    if named not in fields:
        has = f"its fields are {', '.join(fields)}" if fields else "it has none"
        raise StimulusError(
            f"{where} has no field {named!r}; {has}: name the one with the text with --text-field "
            "(in Python: field=)"
        )
    value = row[named]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StimulusError(
            f"field {named!r} of {where} is of type {type(value).__name__}, not text: name another "
            f"of {', '.join(fields)} with --text-field (in Python: field=)"
        )
    return value


def _of(path: Path, documents: Iterator[str], **known: Any) -> Text:
    """The text of a file; an error of reading names it."""
    try:
        return make_text(path.name, documents, **known)
    except OSError as error:
        raise StimulusError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"cannot read the text file {path}: {error.strerror or error}; pass a readable UTF-8 file"
    )


def _read_folder(folder: Path, field: str | None, characters: int | None) -> Text:
    everything = [path for path in folder.rglob("*") if path.is_file()]
    paths = [path.relative_to(folder) for path in everything]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    kept = sorted(
        (path for path in shown if path.suffix.lower() in IN_FOLDERS), key=lambda p: p.as_posix()
    )
    if not kept:
        raise StimulusError(
            f"the folder {folder} has no text: no file in it ends in one of "
            f"{' '.join(sorted(IN_FOLDERS))}"
        )
    filled = [path for path in kept if (folder / path).stat().st_size]
    texts = [read_path(folder / path, field=field, characters=characters) for path in filled]
    if not texts:
        raise StimulusError(
            f"all texts in the folder {folder} are empty: pass one with prose in it"
        )
    name = f"{folder.resolve().name}/ ({len(texts)} file{'s' * (len(texts) > 1)})"
    joined = join_texts(texts, name)
    notes = [*joined.notes]
    if empty := len(kept) - len(filled):
        notes.append(f"{empty} empty file{'s' * (empty > 1)} left out")
    if others := len(shown) - len(kept):
        kind = "files of other kinds" if others > 1 else "file of another kind"
        notes.append(f"{others} {kind} left out")
    given = (f"{folder.resolve().name}/",)
    return dataclasses.replace(joined, given=given, notes=tuple(notes))


def _decoded(path: Path) -> str:
    """The characters of a UTF-8 file, without its byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StimulusError(_unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise StimulusError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, e.g. with "
            f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > FILE"
        ) from error
    if "\0" in text:
        raise StimulusError(f"{path} is not text but a binary file: pass a UTF-8 text file")
    if not text.strip():
        raise StimulusError(f"the text file {path} is empty: pass one with prose in it")
    return text


def _json(path: Path) -> Iterable[tuple[str, Any]]:
    """Rows of JSON or of JSON lines, and what a message calls them."""
    text = _decoded(path)
    if path.suffix.lower() == JSON:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise StimulusError(
                    f"{path} is not JSON: {error}; correct or convert it"
                ) from error
        else:
            rows = value if isinstance(value, list) else [value]
            return ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    return _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number},", json.loads(line)
        except json.JSONDecodeError as error:
            raise StimulusError(
                f"{path}, line {number}, is not JSON ({error.msg}): JSON lines have one object a "
                "line"
            ) from error


def _parquet(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """Rows of Parquet, with the one field if the file has it."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise StimulusError(
            f"{path}: Parquet needs pyarrow; install it with pip install 'posprobe[datasets]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [field] if field in names else names
            for batch in file.iter_batches(columns=wanted, batch_size=256):
                for row in batch.to_pylist():
                    yield f"{path}", row
    except (ArrowException, ValueError) as error:
        if isinstance(error, StimulusError):
            raise
        raise StimulusError(f"{path} cannot be read as Parquet: {error}") from error
