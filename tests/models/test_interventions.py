"""Interventions as plain values: there and back, from text, and refused where they name nothing."""

import json

import capture_child as child
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from posprobe.captures import capture_stimulus
from posprobe.cli import main
from posprobe.errors import ModelError
from posprobe.models import NO_INTERVENTION, Intervention, parse_heads
from posprobe.store import ActivationStore

number = st.integers(0, 50)
constant = st.floats(-5, 5)
interventions = st.builds(
    Intervention,
    causal=st.booleans(),
    window=st.none() | st.integers(2, 99),
    cut_sink=st.none() | st.just("all") | st.lists(st.tuples(number, number)).map(tuple),
    fixed_denominator=st.lists(st.tuples(number, number, constant)).map(tuple),
    temperature=st.lists(st.tuples(number, constant)).map(tuple),
    zero_dimensions=st.lists(st.tuples(number, st.lists(number).map(tuple))).map(tuple),
)


@given(interventions)
def test_there_and_back_through_json(change):
    text = json.dumps(change.describe())
    assert Intervention.from_description(json.loads(text)) == change


def test_a_file_names_its_intervention(tmp_path):
    change = Intervention(window=9, cut_sink=((2, 3), (0, 1)), fixed_denominator=((1, 0, 2.5),))
    path = tmp_path / "a.h5"
    capture_stimulus(child.model(), child.stimulus(), path, intervention=change, progress=False)
    (values,) = ActivationStore(path).header.interventions
    assert Intervention.from_description(values) == change


def test_what_older_files_do_not_know_is_not_written_where_it_is_empty():
    assert "zero_dimensions" not in Intervention(window=9).describe()


def test_an_older_file_reads_as_no_more_than_it_names():
    assert Intervention.from_description({"causal": True}) == NO_INTERVENTION


def test_an_unknown_intervention_is_refused():
    with pytest.raises(ModelError, match="intervention 'rotate' is unknown"):
        Intervention.from_description({"causal": True, "rotate": 3})


@pytest.mark.parametrize(
    ("text", "heads"),
    [("all", "all"), (" all ", "all"), ("3:1", ((3, 1),)), ("3:1, 0:2,3:1", ((0, 2), (3, 1)))],
)
def test_heads_from_text(text, heads):
    assert parse_heads(text) == heads


def test_heads_from_a_file(tmp_path):
    path = tmp_path / "heads.json"
    path.write_text("[[3, 1], [0, 2]]")
    assert parse_heads(str(path)) == ((0, 2), (3, 1))


@pytest.mark.parametrize("text", ["", "none", "3", "3:", "3:1:2", "-1:2", "3:1,", "1.5:2"])
def test_heads_that_are_not_understood(text):
    with pytest.raises(ModelError, match=r"heads .* are not understood; give all, layer:head"):
        parse_heads(text)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "[3, 1]", "[[3]]", "[[1, -1]]", '[["a", 1]]']
)
def test_a_file_that_holds_no_heads(tmp_path, content):
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"heads.json does not hold a list of \[layer, head\]"):
        parse_heads(str(path))


def test_a_file_of_heads_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"heads.json cannot be read \(No such file"):
        parse_heads(str(tmp_path / "heads.json"))


@pytest.mark.parametrize(
    "change",
    [
        Intervention(cut_sink=((0, 0), (3, 0))),
        Intervention(cut_sink=((0, 4),)),
        Intervention(fixed_denominator=((3, 0, 1.0),)),
    ],
)
def test_heads_that_the_model_does_not_have(tmp_path, change):
    with pytest.raises(
        ModelError, match=r"no head [03]:[04]; the model has layers 0 to 2 of heads"
    ):
        capture_stimulus(
            child.model(), child.stimulus(), tmp_path / "a.h5", intervention=change, progress=False
        )
    assert not list(tmp_path.iterdir())


def test_the_command_line_refuses_heads_before_it_loads_a_model(tmp_path):
    call = ["capture", "no-such-model", "-o", str(tmp_path / "a.h5"), "--cut-sink", "3-1"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert "heads '3-1' are not understood" in result.output
