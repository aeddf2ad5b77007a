"""Any table of models: compared right, or refused in one line."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from studies import study

from posprobe import compare_architectures, fit_mixed
from posprobe.errors import PosprobeError

PARTS = ("estimates", "tests", "contrasts", "models", "mixed")
HOSTILE = ["$a_b^c$", "=1+1", "new\nline", "\x1b]0;t\x07", "\u202e", "", " ", "a" * 300, "<b>", "'"]


def attempt(table, **keywords):
    """What is found of a table, every part of it, or why it is refused."""
    try:
        found = compare_architectures(table, **keywords)
    except PosprobeError as error:
        reason = str(error)
    else:
        assert isinstance(found.sentence(), str)
        for part in PARTS:
            json.loads(found.table(part).to_json())
        return found, None
    assert reason.isprintable()
    event(f"refused: {reason[:50]}")
    return None, reason


# what changes nothing


def as_categories(table, draw):
    kind = pd.CategoricalDtype(
        [*draw(st.permutations(table["architecture"].unique().tolist())), "unused"]
    )
    return table.astype({"architecture": kind, "model": "category"})


def shuffled(table, draw):
    return table.iloc[draw(st.permutations(range(len(table))))]


def indexed(table, draw):
    labels = draw(st.sampled_from([0, "x", None, np.nan]))
    return table.set_axis([labels] * len(table))


def multi_indexed(table, draw):
    return table.set_index(["model", "layer"], drop=False).rename_axis([None, None])


def with_more_columns(table, draw):
    return table.assign(**{name: object() for name in draw(st.sets(st.sampled_from(HOSTILE)))})


def of_objects(table, draw):
    return table.astype({"architecture": object, "model": object, "layer": object})


def of_numbers(table, draw):
    kind = draw(st.sampled_from(["Float64", "f8", "longdouble"]))
    return table.astype({"value": kind, "depth": "Float64", "layer": draw(INTEGERS)})


def of_strings(table, draw):
    kind = draw(st.sampled_from(["string", "str"]))
    return table.astype({"architecture": kind, "model": kind})


INTEGERS = st.sampled_from(["i1", "u1", "f4", "Int64", "str", "category"])
NEUTRAL = [as_categories, shuffled, indexed, multi_indexed, with_more_columns, of_objects]
NEUTRAL += [of_numbers, of_strings]
REFERENCE = compare_architectures(study(effect=0.5), mixed_model=False)


@given(st.data())
@settings(max_examples=120)
def test_form_changes_nothing(data):
    table = study(effect=0.5)
    for change in data.draw(st.lists(st.sampled_from(NEUTRAL), max_size=3, unique=True)):
        table = change(table, data.draw)
    found, reason = attempt(table, mixed_model=False)
    assert reason is None
    assert found.test.statistic == pytest.approx(REFERENCE.test.statistic, rel=1e-9)
    assert found.means["ntk"] == REFERENCE.means["ntk"]


@given(
    names=st.permutations(HOSTILE).map(lambda names: names[:3]),
    models=st.sampled_from([*HOSTILE[:4], "m"]),
    value=st.sampled_from(HOSTILE),
)
def test_names_are_names(names, models, value):
    table = study(effect=0.5)
    new = dict(zip(("ntk", "standard", "window"), names, strict=True))
    table["architecture"] = table["architecture"].map(new)
    table["model"] = [f"{models}{name}" for name in table["model"]]
    found, reason = attempt(table.rename(columns={"value": value}), value=value, mixed_model=False)
    assert reason is None
    assert found.test.statistic == pytest.approx(REFERENCE.test.statistic, rel=1e-9)
    assert set(found.means) == set(names)


@given(scale=st.integers(-300, 300), sign=st.sampled_from([-1, 1]), shift=st.integers(-6, 6))
@settings(max_examples=60)
def test_units_change_nothing_or_are_refused(scale, sign, shift):
    table = study(effect=0.5)
    table["value"] = (table["value"] + shift) * sign * 10.0**scale
    found, reason = attempt(table, mixed_model=False)
    if reason is None:
        assert found.test.statistic == pytest.approx(REFERENCE.test.statistic, rel=1e-6)
    else:
        assert abs(scale) > 95


# what makes another table of it

ODD = [np.nan, np.inf, -np.inf, None, 0.0, 1e308, -1e308, 5e-324, "1", "x", True, 1j, pd.NaT, (1,)]
ODD += [pd.Timestamp(0), np.float32(3), b"x", [], {}]


LAYERS = st.integers(1, 6)


@st.composite
def spoiled(draw):
    """A study of any size, in which some cells are odd."""
    table = study()
    if draw(st.booleans()):
        names = ("ntk", "standard", "window")[: draw(st.integers(1, 3))]
        models = [draw(st.integers(1, 4)) for _ in names]
        table = study(draw(st.integers(0, 3)), models=models, names=names, layers=draw(LAYERS))
    table = table.astype(object) if draw(st.booleans()) else table
    for _ in range(draw(st.integers(0, 3))):
        column = draw(st.sampled_from([*table.columns]))
        value = draw(st.sampled_from(ODD))
        where = draw(st.sampled_from(["cell", "column", "model"]))
        table[column] = table[column].astype(object)
        rows = [draw(st.integers(0, len(table) - 1))]
        if where != "cell":
            rows = range(len(table) if where == "column" else min(6, len(table)))
        for row in rows:
            table.at[row, column] = value
        if draw(st.booleans()):
            table = table.infer_objects()
    if draw(st.booleans()):
        table = table.assign(sequence=draw(st.sampled_from([0, "a", None])))
    return table


@given(spoiled(), st.booleans())
@settings(max_examples=200)
def test_any_table_is_compared_or_refused(table, mixed_model):
    attempt(table, mixed_model=mixed_model)


@pytest.mark.slow
@given(spoiled(), st.booleans())
@settings(max_examples=3000)
def test_very_many_tables_are_compared_or_refused(table, mixed_model):
    attempt(table, mixed_model=mixed_model)


def test_labels_of_pandas_change_nothing():
    table = study(3)
    expected = compare_architectures(table).sentence()
    indexed = table.set_index(["architecture", "model", "layer"])
    assert compare_architectures(indexed).sentence() == expected
    numbered = table.rename(columns={"value": 7})
    assert compare_architectures(numbered, value=7).test == compare_architectures(table).test
    for columns, said in (
        (pd.MultiIndex.from_product([["a"], table.columns]), "have 2 levels: flatten them"),
        ([*table.columns[:-1], table.columns[0]], "two columns named 'architecture': rename one"),
    ):
        with pytest.raises(PosprobeError, match=said):
            compare_architectures(table.set_axis(columns, axis=1))


def test_a_mixed_model_takes_unused_categories_and_predicts_some_of_them():
    table = study(3)
    formula = "value ~ architecture + depth + (1 | model)"
    expected = fit_mixed(formula, table)
    kinds = pd.CategoricalDtype([*sorted(table["architecture"].unique()), "unused"])
    fit = fit_mixed(formula, table.astype({"architecture": kinds, "model": "category"}))
    np.testing.assert_allclose(fit.estimates, expected.estimates)
    some = table[table["architecture"] == table["architecture"].iloc[-1]].astype("category")
    some["depth"] = some["depth"].astype(float)
    np.testing.assert_allclose(fit.predict(some), expected.predict(table.loc[some.index]))
