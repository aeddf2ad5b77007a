"""Architectures compared: every design, the tables, the sentence, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from studies import spoil, study

from posprobe.architectures import (
    Contrast,
    compare_architectures,
    planned_contrasts,
)
from posprobe.errors import DesignError


@pytest.mark.parametrize(
    ("slope", "models", "negative"), [(0.5, 3, False), (0.0, 3, True), (0.0, [2, 3, 5], False)]
)
def test_the_mixed_model_and_its_check_are_one_test_whatever_the_sign(slope, models, negative):
    found = compare_architectures(study(4, slope=slope, models=models))
    assert found.mixed.status == "ok"
    assert (found.mixed.variances["z | model"] < 0) == negative
    assert [test.method for test in (found.test, *found.checks)] == [
        "mixed model F", "two-stage F", "two-stage F",
    ]  # fmt: skip
    for test, check in zip((found.test, found.slope_test), found.checks, strict=True):
        for part in ("statistic", "df_within", "p_value"):
            assert getattr(test, part) == pytest.approx(getattr(check, part), rel=1e-6)


def test_without_a_mixed_model_the_check_is_the_test():
    found = compare_architectures(study(6, noise=0.0))
    assert found.mixed.status == "failed"
    assert (found.test.method, found.checks) == ("two-stage F", ())
    assert "mixed model: failed (fixed and random" in found.sentence()


def test_depth_may_be_shifted_and_value_scaled():
    table = study(2)
    moved = table.assign(depth=table["depth"] / 2 + 0.25, value=1e-3 * table["value"] + 7)
    one, other = (compare_architectures(t) for t in (table, moved))
    assert other.test.statistic == pytest.approx(one.test.statistic)
    assert other.slope_test.statistic == pytest.approx(one.slope_test.statistic)
    assert other.mixed.status == one.mixed.status == "ok"
    assert other.slopes["ntk"].estimate == pytest.approx(2e-3 * one.slopes["ntk"].estimate)


def test_exact_lines_fail_and_say_so():
    found = compare_architectures(study(6, noise=0.0))
    assert found.mixed.status == "failed"
    assert "no residual is left" in found.mixed.reason
    assert found.status == "tested"


# Designs.


def test_one_model_per_architecture_is_described_and_not_tested():
    found = compare_architectures(study(models=1))
    assert (found.status, found.test, found.slope_test) == ("refused", None, None)
    assert found.reason.startswith("one model per architecture")
    assert all(interval.unbounded for interval in (*found.means.values(), *found.slopes.values()))
    assert all(one.interval.unbounded and np.isnan(one.p_holm) for one in found.contrasts)
    assert found.mixed.status == "not_identified"
    assert found.sentence().startswith("No test of architecture on value (one model per arch")
    assert len(found.sentence().splitlines()) == 1
    assert found.table("tests").empty


def test_one_architecture_is_described_and_not_tested():
    found = compare_architectures(study(names=["rope"], models=4))
    assert found.reason == "one architecture ('rope'): there is nothing to compare"
    assert not found.means["rope"].unbounded
    assert found.contrasts == ()


def test_copies_of_one_model_are_no_sample():
    table = study(models=1)
    copies = [table.assign(model=table["model"] + f"-{k}") for k in range(3)]
    found = compare_architectures(pd.concat(copies))
    assert found.test is None
    assert "copies of one model" in found.reason
    assert all(one.interval.unbounded for one in found.contrasts)


def test_one_row_is_described_without_a_mixed_model():
    found = compare_architectures(study(models=1, layers=1).head(1))
    assert (found.status, found.mixed) == ("refused", None)


def test_same_slope_in_all_models_is_noted():
    level = study(noise=0.0, slope=0.0)
    found = compare_architectures(level)
    assert found.slope_test is None
    assert found.test is not None
    assert any(note.startswith("no test of slopes") for note in found.notes)


def test_one_layer_gives_means_only():
    found = compare_architectures(study(layers=1))
    assert found.test is not None
    assert (found.slope_test, found.slopes) == (None, {})
    assert {one.contrast.response for one in found.contrasts} == {"intercept"}
    assert found.notes == ("one layer per model: no slope over depth, means only",)
    assert found.mixed.status == "not_identified"


def test_one_layer_at_several_depths_is_noted():
    table = study(layers=1)
    found = compare_architectures(table.assign(depth=np.linspace(0, 1, len(table))))
    assert found.notes[0].endswith("and not at the same depth in every model")


def test_unbalanced_design_is_tested_and_noted():
    found = compare_architectures(study(models=[1, 3, 5], effect=3.0))
    assert (found.test.df_between, found.test.df_within) == (2, pytest.approx(6))
    assert found.test.p_value < 0.05
    assert any(note.startswith("one model only of ntk") for note in found.notes)
    assert any("equal variances" in note for note in found.notes)


def test_uneven_spread_is_noted():
    table = study(models=3)
    assert not any("spread" in note for note in compare_architectures(table).notes)
    first = table["architecture"] == table["architecture"].iloc[0]
    table.loc[first, "value"] *= 100
    (note,) = [note for note in compare_architectures(table).notes if "spread more widely" in note]
    assert f"models of {table['architecture'].iloc[0]} spread" in note
    table.loc[first, "value"] = table["value"].groupby(table["layer"]).transform("mean")
    assert any("and 0), and the F test" in note for note in compare_architectures(table).notes)


def test_models_of_different_depth_share_the_reference():
    deep = study(1, layers=12, names=["window"], slope=0.0, intercept=0.1, noise=0.01)
    shallow = study(2, layers=4, names=["rope"], slope=0.0, intercept=0.1, noise=0.01)
    found = compare_architectures(pd.concat([deep, shallow]), mixed_model=False)
    assert found.depth == pytest.approx(0.5)
    assert found.mixed is None
    assert found.notes[0].startswith("layers lie at different depths")


def test_sequences_are_averaged_and_give_each_model_an_interval():
    table = study(3)
    shifts = np.array([-0.1, 0.0, 0.4])
    parts = [table.assign(sequence=s, value=table["value"] + x) for s, x in enumerate(shifts)]
    found = compare_architectures(pd.concat(parts), mixed_model=False)
    plain = compare_architectures(table, mixed_model=False)
    assert found.test.statistic == pytest.approx(plain.test.statistic)
    interval = found.models[0].intercept_interval
    half = stats.t.ppf(0.975, 2) * shifts.std(ddof=1) / np.sqrt(3)
    assert interval.high - interval.estimate == pytest.approx(half)
    assert found.models[0].slope_interval.high == pytest.approx(found.models[0].slope)
    alone = compare_architectures(parts[0], mixed_model=False)
    assert alone.models[0].intercept_interval.unbounded
    uneven = pd.concat([*parts, parts[0][parts[0]["model"] == "ntk-0"].assign(sequence=9)])
    assert any("number of sequences" in note for note in compare_architectures(uneven).notes)


def test_tables_are_tidy_and_agree_with_the_result():
    found = compare_architectures(study(effect=3.0))
    estimates = found.table()
    assert estimates.groupby("response").size().to_dict() == {"intercept": 3, "slope": 3}
    assert estimates.loc[0, "low"] == found.means["ntk"].low
    tests = found.table("tests")
    assert tests["primary"].tolist() == [True] + [False] * 5
    methods = ["mixed model F", "two-stage F", "Welch F"]
    assert tests["method"].tolist() == [method for method in methods for _ in range(2)]
    assert tests["check"].tolist() == [False] * 2 + [True] * 4
    assert tests["p_holm"].notna().tolist() == [False, True] + [False] * 4
    assert tests.loc[0, "p_value"] == found.test.p_value
    assert np.isnan(tests.loc[0, "p_holm"])
    assert tests.loc[1, "p_holm"] == found.slope_test.p_value
    assert found.table("contrasts")["p_bh"].tolist() == [one.p_bh for one in found.contrasts]
    assert len(found.table("models")) == 9
    mixed = found.table("mixed")
    assert set(mixed["part"]) == {"fixed", "variance"}
    assert set(mixed["status"]) == {found.mixed.status}
    assert compare_architectures(study(), mixed_model=False).table("mixed").empty


def test_sentence_says_differ_only_where_the_test_does():
    strong, null = (compare_architectures(study(effect=e)) for e in (5.0, 0.0))
    assert strong.test.p_value < 0.05 < null.test.p_value
    opening = "Architectures differ in value at depth 0.50: mixed model F(2, 6)"
    assert strong.sentence().startswith(opening)
    assert null.sentence().startswith("Architectures are not shown to differ in value")
    assert "(two-stage F(2, 6) = " in strong.sentence()


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (study().drop(columns="depth"), "the table lacks column 'depth'"),
        (study().rename(columns={"value": "V_R"}), "the table lacks column 'value'"),
        (study().iloc[:0], "the table has no rows"),
        (spoil(value=np.nan), r"model 'ntk-1' layer 1 has value nan: measure it again"),
        (spoil(value=np.inf), r"model 'ntk-1' layer 1 has value inf"),
        (spoil(depth=np.nan), r"model 'ntk-1' layer 1 has depth nan"),
        (spoil(depth=7.0), r"layer 1 has depth 7: depth runs from 0 \(first layer\) to 1"),
        (spoil(value="high"), "column 'value' is not numeric"),
        (study().assign(model=None), "row 0 has no model"),
        (spoil(value=1e101), r"column 'value' has values of size 1e\+101, whose squares leave the"),
        (study().assign(value=1e-160), "column 'value' has values of size 1e-160, whose squares"),
        (study().assign(value=1j), "column 'value' is not numeric: convert it to real numbers"),
        (study().assign(layer=[[]] * 54), "column 'layer' holds labels that cannot be told apart"),
        (study().assign(layer=[1j, 2] * 27), "column 'layer' holds labels that cannot be told ap"),
        (pd.concat([study(), study()]), "model 'ntk-0' layer 0 is given twice: keep one row per"),
        (
            pd.concat([study(), study().assign(architecture="rope")]),
            "model 'ntk-0' is listed under the architectures ntk and rope",
        ),
        (
            study().drop(index=range(1, 6)),
            "model 'ntk-0' has one layer while 'ntk-1' has 6: measure the same layers",
        ),
    ],
)
def test_tables_that_cannot_be_compared(table, match):
    with pytest.raises(DesignError, match=match) as caught:
        compare_architectures(table)
    assert len(str(caught.value).splitlines()) == 1


def test_sequences_that_are_missing_or_at_two_depths():
    both = pd.concat([study().assign(sequence=s) for s in (0, 1)], ignore_index=True)
    with pytest.raises(DesignError, match="model 'ntk-0' layer 3 lacks sequence 0"):
        compare_architectures(both.drop(index=3))
    both.loc[3, "depth"] = 0.99
    with pytest.raises(DesignError, match="model 'ntk-0' layer 3 has two depths"):
        compare_architectures(both)


def test_options_that_mean_nothing():
    with pytest.raises(DesignError, match="level=95 must be between 0 and 1"):
        compare_architectures(study(), level=95)
    with pytest.raises(DesignError, match="there is no table 'test': use one of estimates"):
        compare_architectures(study(), mixed_model=False).table("test")
    twins = [Contrast("same", "slope", {"ntk": 1})] * 2
    with pytest.raises(DesignError, match="two contrasts have the same name"):
        compare_architectures(study(), contrasts=twins)
    with pytest.raises(DesignError, match="weighs architecture 'rope', which the table lacks"):
        compare_architectures(study(), contrasts=planned_contrasts(standard="rope"))
    with pytest.raises(DesignError, match="is on 'mean': use 'intercept' or 'slope'"):
        Contrast("c", "mean", {"ntk": 1})
    with pytest.raises(DesignError, match=r"has the weights \[0\]: give finite ones"):
        Contrast("c", "slope", {"ntk": 0})


def test_diagnostics_show_what_is_left_and_on_which_model_estimates_hang():
    table = study(4, models=4)
    table.loc[table["model"] == "window-2", "value"] += 9
    found = compare_architectures(table)
    rest, moved = found.table("residuals"), found.table("influence")
    assert len(rest) == len(table)
    cells = table.set_index(["model", "layer"])["value"]
    again = rest.set_index(["model", "layer"])
    pd.testing.assert_series_equal(
        (again["fitted"] + again["residual"]).sort_index(), cells.sort_index(), check_names=False
    )
    assert moved.loc[moved["cook"].idxmax(), "model"] == "window-2"
    bare = compare_architectures(table, mixed_model=False)
    assert bare.table("residuals").empty
    assert bare.table("influence").empty
