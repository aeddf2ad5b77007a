"""Texts from data sets of Hugging Face's `datasets`, by name or local path, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posprobe.errors import StimulusError, quieted
from posprobe.stimuli.files import FIELD, field_of
from posprobe.stimuli.text import Text, make_text

__all__ = ["CHARACTERS", "read_data_set"]

CHARACTERS = 4_000_000  # about a million tokens: 40 sequences of 24,000
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def read_data_set(name: str, *, field: str | None = None, characters: int | None = None) -> Text:
    """Return the first documents of a data set.

    Parameters
    ----------
    name : str
        ``NAME[@CONFIG][:SPLIT]``: a data set of the hub (``org/name``), a folder of its files, or
        one that `datasets` saved. Without a split: ``train``, or the only one.
    field : str or None
        Field with the text (None: ``text``).
    characters : int or None
        Read until this many characters are there (None: 4,000,000). The number of sequences does
        not change what is read.

    Returns
    -------
    Text

    Raises
    ------
    StimulusError
        `datasets` is not installed, or there is no such data set, configuration, split or field.
    """
    place, config, split = _parsed(name)
    rows, split = _open(place, config, split)
    local = Path(place).exists()
    shown = Path(place).resolve().name if local else place
    spelled = f"hf:{shown}{f'@{config}' * bool(config)}:{split}"
    documents = (field_of(row, field, f"a row of {spelled}") for row in _stream(spelled, rows))
    return make_text(
        spelled,
        documents,
        characters=CHARACTERS if characters is None else characters,
        given=(spelled,),
        field=field or FIELD,
        source="a local data set" if local else "Hugging Face",
    )


def _parsed(name: str) -> tuple[str, str | None, str | None]:
    """Place, configuration and split."""
    if name and Path(name).exists():
        return name, None, None
    found = re.fullmatch(r"(?P<place>.+?)(?:@(?P<config>[^@:]+))?(?::(?P<split>[^:/]+))?", name)
    if found is None:
        raise StimulusError(
            f"data set {name!r}: write hf:NAME, hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT"
        )
    return found["place"], found["config"], found["split"]


def _open(place: str, config: str | None, split: str | None) -> tuple[Any, str]:
    """The rows of one split, and its name."""
    try:
        import datasets
    except ImportError as error:
        raise StimulusError(
            f"data set {place!r} needs datasets; install it with pip install 'posprobe[datasets]'"
        ) from error
    try:
        if any((Path(place) / mark).exists() for mark in SAVED):
            found = datasets.load_from_disk(place)
        else:
            with quieted("huggingface_hub"):  # which logs each time that it tries again
                found = datasets.load_dataset(place, config, streaming=True)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise StimulusError(
            f"data set {place!r} is neither a folder nor known to the hub, or it is private there"
        ) from error
    except ConnectionError as error:
        raise StimulusError(
            f"data set {place!r} is not on this machine, and the hub cannot be reached (no "
            "network, it is down, --offline or HF_HUB_OFFLINE)"
        ) from error
    except Exception as error:  # of many kinds, those of the hub and of parsers among them
        raise StimulusError(f"cannot open the data set {place!r}: {_first_line(error)}") from error
    if not isinstance(found, Mapping):  # one that was saved without splits
        return found, split or "all"
    splits = list(found)
    chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if chosen not in splits:
        what = f"no split {chosen!r}" if chosen else "several splits and none is called train"
        raise StimulusError(
            f"data set {place!r} has {what}; its splits are {', '.join(splits)}: write "
            f"hf:{place}:{splits[0]}"
        )
    return found[chosen], str(chosen)


def _stream(name: str, rows: Any) -> Iterator[Any]:
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # of many kinds, as above
            raise StimulusError(f"cannot read the data set {name}: {_first_line(error)}") from error
        yield row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
