"""Files that are not what they say: one line each, before anything is allocated or drawn."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import synthetic
from alterations import fixed
from hypothesis import given, settings
from hypothesis import strategies as st
from store_files import edit, forge, header_digest

from posprobe.analysis import check
from posprobe.channels import channel_effects, cut_heads
from posprobe.channels.reading import why_not_split
from posprobe.errors import DesignError, StoreError
from posprobe.store import ATTRIBUTES, ActivationStore, Header, StoreWriter

JSON = ("config", "versions", "stimulus", "interventions", "quantities", "rounding")
VALUES = ("null", "3", "[]", '"x"', "[{}]", "NaN", "{", '{"a": NaN}', '{"a": 3}', "[3]")
ACCEPTED = {
    "config": {'{"a": 3}'},
    "stimulus": {'{"a": 3}'},
    "versions": set(),
    "interventions": {"[]", "[{}]"},
    "quantities": set(),  # of none there would be fewer digests
    "rounding": set(),
}
LARGE = 2**40
COUNTS = ("n_layers", "n_heads", "width", "n_sequences", "length", "n_queries")


@pytest.fixture
def path(tmp_path, rng):
    path = tmp_path / "a.h5"
    synthetic.effect_store(path, np.zeros((5, 3)), np.zeros((5, 3)), rng=rng).close()
    return path


def change(path, **attributes):
    """What a faulty writer would have written, with its digest, if there is one of such values."""
    edit(path, lambda file: [file.attrs.__setitem__(n, fixed(v)) for n, v in attributes.items()])
    with contextlib.suppress(TypeError):
        edit(path, lambda file: file["digest"].__setitem__(0, header_digest(file)))


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
        refused(path, rf"a\.h5: attribute '{name}|data set '/digest' is")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, LARGE])
def test_counts_have_a_range(name, value, path):
    change(path, **{name: value})
    refused(path, rf"a\.h5: attribute '{name}' is {value}, expected integer, 1 to 2\^")


@pytest.mark.parametrize("name", ["offsets", "prefixes", "layer_window", "residual_layers"])
@pytest.mark.parametrize("value", [[-1], [LARGE], [0.5], "x"])
def test_lists_have_a_range(name, value, path):
    change(path, **{name: value})
    refused(path, rf"a\.h5: attribute '{name}'")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"R": [0.1, 0.2]}, r"'rounding\.R' has 2 entries, expected 1"),
        ({"residual": [0.1]}, r"'rounding\.residual' has 1 entries, expected 2"),
        ({"R": [-0.1]}, r"'rounding\.R\[0\]' is -0\.1, expected a size"),
        ({"unknown": 3}, r"'rounding\.unknown' is 3, expected a string"),
        ({"sequences": [0.5]}, r"'rounding\.sequences\[0\]' is 0\.5, expected a sequence"),
    ],
)
def test_rounding_is_by_layer(value, said, path):
    change(path, rounding=json.dumps(value))
    refused(path, rf"a\.h5: attribute {said}")


def test_many_queries_are_refused_without_making_them(path):
    change(path, n_queries=2**31 - 1, length=2**31 - 1)
    refused(path, r"a\.h5: data set '/.*expected")


def test_items_without_each_prefix_are_not_split(path):
    forge(path, lambda file: file["item"].__setitem__(0, file["item"][1]))
    with pytest.raises(DesignError, match=r"a\.h5 does not have one sequence of each item behind"):
        channel_effects(ActivationStore(path), 0)


def test_a_sequence_behind_none_of_the_prefixes_is_named(path):
    forge(path, lambda file: file["prefix_length"].__setitem__(slice(None), 0))
    refused(path, r"a\.h5: index: prefix_length of sequence 0 is 0, none of the prefixes 1, ")


def test_control_characters_are_escaped(path):
    change(path, model="tiny\x1b]0;title\x07\nline")
    store = ActivationStore(path)
    assert store.model == r"tiny\x1b]0;title\x07\nline"
    assert store.model.isprintable()
    change(path, model="tiny", stimulus=json.dumps({"corpus": "\u202e\x9b2J", "\x7f": ["\x07"]}))
    found = ActivationStore(path).header.stimulus
    assert found == {"corpus": r"\u202e\x9b2J", r"\x7f": [r"\x07"]}


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
    ("change", "said"),
    [
        ({"done": True}, "True sequences of 3"),
        ({"done": 2.0}, "2.0 sequences of 3"),
        ({"done": "2"}, "'2' sequences of 3"),
        ({"done": 4}, "4 sequences of 3"),
        ({"version": 1}, "expected {'format': 'posprobe', 'version': 2, 'done': 2"),
        ({"format": "other"}, "expected {'format': 'posprobe'"),
        ({"more": 0}, "expected {'format': 'posprobe'"),
        ({"digest": 0}, "the 2 sequences in the file are not those it counts"),
        (None, "list"),
    ],
)
def test_a_journal_of_another_kind_is_refused(change, said, tmp_path):
    header, index = small()
    with StoreWriter.create(tmp_path / "a.h5", header, index) as writer:
        writer.write({"normalizer": np.zeros((1, 2, 5, 2), "f4")})
    journal = tmp_path / "a.h5.journal"
    changed = [] if change is None else json.loads(journal.read_text()) | change
    journal.write_text(json.dumps(changed))
    said = rf"is not a journal of this capture \(.*{re.escape(said)}"
    with pytest.raises(StoreError, match=said):
        StoreWriter.resume(tmp_path / "a.h5", header, index)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_reader_names_a_file_system_without_locks(code, path, monkeypatch):
    plain = h5py.File

    def refuse(*args, locking):
        if locking is False:
            return plain(*args, locking=locking)
        text = f"unable to lock file, errno = {code}, error message = '{os.strerror(code)}'"
        raise OSError(f"Unable to synchronously open file ({text})")

    monkeypatch.setattr(h5py, "File", refuse)
    refused(path, rf"has no locks \(.*{os.strerror(code)}\): use another, or set POSPROBE_LOCKING")
    monkeypatch.setenv("POSPROBE_LOCKING", "off")
    ActivationStore(path).close()


NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**40, 2**63 - 1])
TEXTS = st.sampled_from(["", "x", "float16", "shifted", "\x1b]0;t\x07", "\u202e", "ü" * 70_000])
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), TEXTS)
CHANGES = ["cut_sink", "window", "causal", "fixed_denominator", "temperature"]
DRAWN = ["bos_token", "first_tokens", "corpus", "special_tokens"]
KEYS = st.sampled_from([*CHANGES, *DRAWN, "rope_parameters", "posprobe_own_position", "layer"])
TREES = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=3)
)
ATTRIBUTE_VALUES = st.one_of(
    NUMBERS,
    st.floats(),
    TEXTS,
    st.lists(NUMBERS, max_size=4).map(lambda values: np.array(values, "i8")),
    st.sampled_from([np.zeros((2, 2)), np.array(["a", "b"], "S1"), np.bytes_(b"\xff\xfe"), True]),
    TREES.map(json.dumps),
)


@settings(max_examples=300, deadline=None)
@given(names=st.lists(st.sampled_from([*ATTRIBUTES]), min_size=1, max_size=2), data=st.data())
def test_any_header_is_read_or_refused_in_one_line(names, data, complete, tmp_path_factory):
    """Refused by the name of an attribute or of a data set; what is read can be described."""
    path = Path(shutil.copy(complete, tmp_path_factory.mktemp("any") / "a.h5"))
    change(path, **{name: data.draw(ATTRIBUTE_VALUES) for name in names})
    error = refusal(path)
    assert error is None or re.match(rf"{path}[: ]", error)
    assert error is None or re.search("attribute|data set|format|index", error)
    assert error is None or error.isprintable()


def refusal(path):
    """Why a file is refused; None if it is read, described and checked."""
    try:
        with ActivationStore(path) as store:
            store.verify()
            check(store)
            cut_heads(store, 0)
            why_not_split(store)
            assert json.dumps(store.summary()["attributes"], ensure_ascii=False).isprintable()
    except StoreError as error:
        return str(error)
    return None


def test_a_hostile_name_reaches_no_terminal(tmp_path):
    with pytest.raises(StoreError) as caught:
        ActivationStore(tmp_path / "a\x1b]0;title\x07\n.h5")
    assert r"a\x1b]0;title\x07\n.h5 is not a file" in str(caught.value)
    assert str(caught.value).isprintable()
