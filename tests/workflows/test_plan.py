"""posprobe plan: which unit is planned from which files, and what is refused."""

import json

import lineups
import numpy as np
import pandas as pd
import pytest

import posprobe
from posprobe.errors import DesignError

FEW = dict(precision=0.5)


def text(folder, name, size, **stimulus):
    stimulus = {"bos_token": None, "corpus": name, "bos": "native"} | stimulus
    path = folder / f"{name}.h5"
    return lineups.file_of(path, "one", size=size, n=12, stimulus=stimulus).path


def test_one_file_plans_items_as_does_a_capture_in_two_files(tmp_path):
    (found,) = posprobe.plan(lineups.file_of(tmp_path / "a.h5", "one", n=12).path, **FEW)
    assert (found.unit, found.n) == ("items", 12)
    assert found.what.startswith("V_R, BOS at position 0")
    assert 8 <= found.needed["precision"] <= 200
    paths = [
        lineups.file_of(tmp_path / f"{first}.h5", "one", n=6, seed=first, first_item=first).path
        for first in (0, 6)
    ]
    (joined,) = posprobe.plan(paths, **FEW)
    assert (joined.unit, joined.n) == ("items", 12)


def test_three_texts_plan_texts_too_without_shuffled_ones(tmp_path):
    sizes = {"prose": 0.5, "code": 0.55, "french": 0.6}
    paths = [text(tmp_path, name, size) for name, size in sizes.items()]
    assert [one.unit for one in posprobe.plan(paths[:2], **FEW)] == ["items"] * 2
    found = posprobe.plan(paths, **FEW)
    assert [one.unit for one in found] == ["items"] * 3 + ["texts"]
    assert found[-1].estimate == pytest.approx(np.mean([one.estimate for one in found[:3]]))
    mixed = text(tmp_path, "mixed", 0.5, text={"shuffled": True})
    assert [one.unit for one in posprobe.plan([*paths[:2], mixed], **FEW)] == ["items"] * 3


def test_several_models_plan_models_from_files_and_from_the_folder_of_a_comparison(tmp_path):
    paths = [store.path for store in lineups.family(tmp_path)]
    found = posprobe.plan(paths)
    assert [one.unit for one in found] == ["models"] * 5
    assert [one.what.split(" (")[0] for one in found][1] == "H1 step: rope - ntk"
    table = pd.read_csv(posprobe.compare(paths, tmp_path / "out").parent / "tables/contrasts.csv")
    expected = table[table["value"] == "V_R"]["estimate"]
    np.testing.assert_allclose([one.estimate for one in found], expected)
    again = posprobe.plan([tmp_path / "out"])
    assert [one.needed for one in again] == [one.needed for one in found]
    assert "models of each architecture" in again[0].sentences()
    relative = posprobe.plan([tmp_path / "out"], quantity="relative")
    assert [one.what[:2] for one in relative] == ["H1"] * 3  # one number per model has no slope


def test_models_in_blocks_plan_blocks(tmp_path):
    paths = [store.path for store in lineups.family(tmp_path)]
    blocks = {str(seed): f"*-{seed}" for seed in range(3)}
    found = posprobe.plan(paths, blocks=blocks)
    assert [(one.unit, one.n) for one in found] == [("blocks", 3)] * 3 + [
        ("models", 9),
        ("blocks", 3),
    ]
    posprobe.compare(paths, tmp_path / "out", blocks=blocks)
    assert [one.needed for one in posprobe.plan([tmp_path / "out"])] == [
        one.needed for one in found
    ]


def test_other_architectures_are_compared_pair_by_pair(tmp_path):
    truth = {"alibi": (0.4, 0.0), "rope": (0.7, 0.0)}
    paths = [store.path for store in lineups.family(tmp_path, truth=truth)]
    (found,) = posprobe.plan(paths, precision=0.5)
    assert found.what == "rope - alibi (intercept of V_R)"
    assert "reached" in found.table


def test_what_is_said_fits_the_goal_and_json(tmp_path):
    (found,) = posprobe.plan([lineups.file_of(tmp_path / "a.h5", "one", n=12).path], power=0.01)
    assert found.sentences().endswith("in 1% of studies: 8 items or fewer")
    assert json.loads(json.dumps(found.asdict(), allow_nan=False))["goal"]["precision"] == 0.1
    paths = [store.path for store in lineups.family(tmp_path)]
    models = posprobe.plan(paths)[0].asdict()
    assert json.loads(json.dumps(models, allow_nan=False))["goal"]["precision"] is None


@pytest.mark.parametrize(
    ("quantity", "message"),
    [("V_X", "quantity 'V_X' is unknown: use one of V_T, V_M"), ("relative", "over models only")],
)
def test_quantities_that_are_not_there(quantity, message, tmp_path):
    path = lineups.file_of(tmp_path / "a.h5", "one", n=12).path
    with pytest.raises(DesignError, match=message):
        posprobe.plan([path], quantity=quantity)


def test_files_and_folders_from_which_nothing_can_be_planned(tmp_path):
    with pytest.raises(DesignError, match=r"has no tables/summaries\.csv: give a folder that"):
        posprobe.plan([tmp_path])
    variants = [store.path for store in lineups.variants(tmp_path)]
    with pytest.raises(DesignError, match="variants of one checkpoint, which are no sample"):
        posprobe.plan(variants)
    moved = lineups.file_of(
        tmp_path / "p.h5", "one", config={"posprobe_own_position": {"layer": 0, "change": 1.0}}
    )
    with pytest.raises(DesignError, match=r"p\.h5: no shifted capture whose effects can be split"):
        posprobe.plan([moved.path])
    one = [store.path for store in lineups.family(tmp_path, truth={"rope": (0.7, 0.0)})]
    with pytest.raises(DesignError, match=r"one architecture \(rope\): there is no contrast"):
        posprobe.plan(one)
    tables = tmp_path / "tables"
    tables.mkdir()
    frame = pd.DataFrame({"value": ["V_T"], "architecture": "a", "intercept": 1.0, "slope": 0.0})
    frame.to_csv(tables / "summaries.csv")
    with pytest.raises(DesignError, match="the comparison has no V_R: use one of V_T"):
        posprobe.plan([tmp_path])
    frame.drop(columns="slope").to_csv(tables / "summaries.csv")
    with pytest.raises(DesignError, match=r"summaries\.csv lacks column 'slope'"):
        posprobe.plan([tmp_path])
