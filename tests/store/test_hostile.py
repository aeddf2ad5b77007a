"""Files that are not what they say: one line each, before anything is allocated or drawn."""

import errno
import fcntl
import json
import os

import h5py
import numpy as np
import pytest
import synthetic

from posprobe.channels import channel_effects
from posprobe.errors import DesignError, StoreError
from posprobe.store import ActivationStore, Header, StoreWriter

JSON = ("config", "versions", "stimulus", "interventions", "quantities")
VALUES = ("null", "3", "[]", '"x"', "[{}]", "NaN", "{", '{"a": NaN}', '{"a": 3}', "[3]")
ACCEPTED = {
    "config": {'{"a": 3}'},
    "stimulus": {'{"a": 3}'},
    "versions": set(),
    "interventions": {"[]", "[{}]"},
    "quantities": {"[]"},
}
LARGE = 2**40
COUNTS = ("n_layers", "n_heads", "width", "n_sequences", "length", "n_queries", "batch_tokens")


@pytest.fixture
def path(tmp_path, rng):
    path = tmp_path / "a.h5"
    synthetic.effect_store(path, np.zeros((5, 3)), np.zeros((5, 3)), rng=rng).close()
    return path


def change(path, **attributes):
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value


def refused(path, said):
    with pytest.raises(StoreError, match=said) as error:
        ActivationStore(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("value", VALUES)
def test_json_of_another_form_is_named(name, value, path):
    change(path, **{name: value})
    if value in ACCEPTED[name]:
        ActivationStore(path).close()
    else:
        refused(path, rf"a\.h5: (root attribute|header: quantity).*{name[:7]}|data set|quantity")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, LARGE])
def test_counts_have_a_range(name, value, path):
    change(path, **{name: value})
    refused(path, rf"a\.h5: header: '{name}' is {value}: it must be between 1 and")


@pytest.mark.parametrize("name", ["offsets", "prefixes", "layer_window", "residual_layers"])
@pytest.mark.parametrize("value", [[-1], [LARGE], [0.5], "x"])
def test_lists_have_a_range(name, value, path):
    change(path, **{name: value})
    refused(path, r"a\.h5: ")


def test_many_queries_are_refused_without_making_them(path):
    change(path, n_queries=2**31 - 1, length=2**31 - 1)
    refused(path, r"a\.h5: data set '/.*expected")


@pytest.mark.parametrize("name", ["prefix_length", "item"])
def test_items_without_each_prefix_are_not_split(name, path):
    with h5py.File(path, "r+") as file:
        file[name][:2] = file[name][1]
        file[name][0] = 0 if name == "prefix_length" else file[name][1]
    with pytest.raises(DesignError, match=r"a\.h5 does not have one sequence of each item behind"):
        channel_effects(ActivationStore(path), 0)


def test_control_characters_are_escaped(path):
    change(path, model="tiny\x1b]0;title\x07\nline")
    store = ActivationStore(path)
    assert store.model == r"tiny\x1b]0;title\x07\nline"
    assert store.model.isprintable()


def test_a_file_that_is_open_for_writing_is_not_damaged(path):
    held = os.open(path, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        refused(path, r"a\.h5 is being written by another process: wait until it is complete")
    finally:
        os.close(held)
    ActivationStore(path).close()


@pytest.mark.parametrize("ending", [".partial", ".journal", ".lock"])
def test_names_of_unfinished_captures_are_refused(ending, tmp_path):
    header, index = small()
    with pytest.raises(StoreError, match=f"choose one that does not end in {ending}"):
        StoreWriter.create(tmp_path / f"a.h5{ending}", header, index)
    assert list(tmp_path.iterdir()) == []


def small():
    header = Header(
        model="tiny", design="natural", n_layers=1, n_heads=2, width=4, n_sequences=3, length=5,
        n_queries=5, quantities=("normalizer",), layer_window=(0,),
    )  # fmt: skip
    zeros = np.zeros(3)
    index = dict(tokens=np.ones((3, 5)), item=np.arange(3), sequence_id=np.arange(3))
    return header, index | dict(prefix_length=zeros, query_start=zeros)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_a_way_round(code, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    header, index = small()
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=r"its file system has no locks .* POSPROBE_LOCKING=off"):
        StoreWriter.create(tmp_path / "a.h5", header, index)
    monkeypatch.setenv("POSPROBE_LOCKING", "off")
    with StoreWriter.create(tmp_path / "a.h5", header, index) as writer:
        writer.write({"normalizer": np.zeros((1, 3, 5, 2), "f4")})
        writer.finish()
    assert ActivationStore(tmp_path / "a.h5").n_sequences == 3


@pytest.mark.parametrize(
    "journal",
    [
        {"format": "posprobe", "version": 1, "done": True},
        {"format": "posprobe", "version": 1, "done": 1.0},
        {"format": "posprobe", "version": 1, "done": "2"},
        {"format": "posprobe", "version": 1, "done": 4},
        {"format": "posprobe", "version": 9, "done": 2},
        {"format": "other", "version": 1, "done": 2},
        {"done": 2},
        [],
    ],
)
def test_a_journal_of_another_kind_is_refused(journal, tmp_path):
    header, index = small()
    with StoreWriter.create(tmp_path / "a.h5", header, index) as writer:
        writer.write({"normalizer": np.zeros((1, 2, 5, 2), "f4")})
    (tmp_path / "a.h5.journal").write_text(json.dumps(journal))
    with pytest.raises(StoreError, match="is not a journal of this capture"):
        StoreWriter.resume(tmp_path / "a.h5", header, index)
