"""Analysis 3: its splits add up, and an explanation counts only where it explains."""

import numpy as np
import pandas as pd
import pytest
import scripts
import synthetic

from posprobe.analysis import sort_files
from posprobe.channels import decompose


@pytest.fixture(scope="module")
def analysis():
    return scripts.load("03_conditions")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    stores = synthetic.study_files(folder, np.random.default_rng(0))
    return sort_files(stores.values())


def test_the_parts_of_the_covariance_add_up_to_what_decompose_says(analysis, files):
    tables = analysis.signs.sign_tables("model", files)
    parts = tables["sign"].set_index("part")["estimate"]
    whole = decompose(files.shifted).overall["C_MR"].iloc[0]
    assert whole < -0.01
    assert parts["C_MR"] == pytest.approx(whole, rel=1e-9)
    assert parts["C_MS"] + parts["C_M(R-S)"] == pytest.approx(whole, rel=1e-9)
    assert parts["C_MR of sink heads"] + parts["C_MR of other heads"] == pytest.approx(whole)
    by_layer = tables["sign_by_layer"]["C_MR"].mean()
    assert by_layer == pytest.approx(whole, rel=1e-9)


def test_replacements_are_rows_with_their_explanations(analysis, files):
    rows = pd.DataFrame(analysis.removal.removal_rows("model", files)).set_index("replacement")
    assert set(rows.index) == {"mean", "content"}
    assert rows.loc["mean", "fraction_removed"] == pytest.approx(1 - 0.5**2, abs=0.02)
    assert rows.loc["mean", "log_ratio"] == pytest.approx(2 * np.log(0.5), abs=0.05)
    assert rows.loc["mean", "mask"] == pytest.approx(0, abs=1e-9)  # M is the same in both files


def replacements(rng, models, slope, noise):
    """Rows whose response follows `mask`, and no other explanation."""
    rows = []
    for model in models:
        for replacement in ("mean", "zero", "noise", "content"):
            values = dict(zip(("attention", "trajectory", "embedding", "sink", "mask"),
                              rng.normal(size=5), strict=True))  # fmt: skip
            response = slope * values["mask"] + noise * rng.normal()
            rows.append(dict(model=model, replacement=replacement, log_ratio=response, **values))
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("slope", "counts"), [(1.0, ["mask"]), (0.0, [])])
def test_an_explanation_counts_only_where_it_explains(analysis, slope, counts):
    rng = np.random.default_rng(1)
    family = replacements(rng, [f"rope-{k}" for k in range(12)], slope, 0.2)
    real = replacements(rng, ["one", "two"], slope, 0.2)
    table = analysis.removal.explain(family, real).set_index("explanation")
    assert list(table.index[table["counts"]]) == counts
    assert {"error_one", "error_two"} <= set(table)


def test_whole_models_are_left_out(analysis):
    rng = np.random.default_rng(2)
    family = replacements(rng, [f"rope-{k}" for k in range(6)], 0.0, 0.0)
    for k in range(6):  # every model has a level of its own, which another cannot know
        family.loc[family["model"] == f"rope-{k}", "log_ratio"] = float(k)
    table = analysis.removal.explain(family, family).set_index("explanation")
    assert table.loc["mean of the family", "error_family"] == pytest.approx(1.8)
