"""The committed corpus of hostile files: recipes on a file of format 2, and what comes of each."""

import json
import shutil
from itertools import groupby
from pathlib import Path

import alterations
import pytest
from store_files import HEADER, datasets

from posprobe.errors import StoreError
from posprobe.store import ActivationStore

DATA = Path(__file__).parent / "data"
WHOLE = DATA / "format-2.h5"
RECIPES = [json.loads(line) for line in (DATA / "hostile.jsonl").read_text().splitlines()]
TRUE = "true"


def outcome(path):
    """`TRUE` where the file opens as what was written, else why it is refused."""
    try:
        with ActivationStore(path) as store:
            store.verify()
            found = {name: store.read(name).tobytes() for name in store.header.datasets()}
            attributes = store.header.attributes()
    except StoreError as error:
        return str(error).removeprefix(str(path)).lstrip(": ")
    assert attributes == HEADER.attributes()
    assert found == datasets(WHOLE)
    return TRUE


@pytest.mark.parametrize("kind", [kind for kind, _ in groupby(RECIPES, lambda each: each[0])])
def test_hostile_files_are_true_or_refused_as_they_were(kind, tmp_path):
    for name, arguments, expected in RECIPES:
        if name == kind:
            path = Path(shutil.copy(WHOLE, tmp_path / "a.h5"))
            getattr(alterations, name)(path, *arguments)
            found = outcome(path)
            assert found.isprintable()
            assert found.startswith(expected), (name, arguments)
            assert found == TRUE or expected != TRUE


def test_the_corpus_is_large_enough_and_whole():
    assert len(RECIPES) >= 300
    assert outcome(WHOLE) == TRUE
    assert sum((DATA / name).stat().st_size for name in ("format-2.h5", "hostile.jsonl")) < 100_000
