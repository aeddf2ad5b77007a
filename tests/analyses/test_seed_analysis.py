"""Analysis 5: what it keeps is what report 2 measured, and no verdict comes before the plan."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scripts

REPORTS = scripts.ANALYSES / "reports"
KEPT = ["V_T", "V_M", "V_R", "C_MR"]


@pytest.fixture(scope="module")
def analysis():
    return scripts.load("05_seeds")


@pytest.fixture(scope="module")
def committed(analysis):
    return analysis.read_tables(REPORTS / "05_seeds")


def module(name):
    return sys.modules[f"seeds.{name}"]


def seeds_of(n, apart, rng):
    """Tables of n seeds; `apart` is added to the window's V_R."""
    rows = [
        {"architecture": name, "model": f"{name}-{seed}", "block": seed, "last_change": 0.01}
        for seed in range(n)
        for name in ("ntk", "rope", "window")
    ]
    layers = pd.DataFrame([row | {"layer": k, "depth": k / 3} for row in rows for k in range(4)])
    noise = rng.normal(size=(3, len(layers)))
    layers["V_R"] = 0.1 + 0.01 * noise[0] + apart * (layers["architecture"] == "window")
    layers["V_M"], layers["V_T"] = 0.1 + 0.01 * noise[1], 0.1 + 0.01 * noise[2]
    return {"models": pd.DataFrame(rows), "layers": layers}


def test_seeds_of_report_2_are_as_they_were_there(committed):
    family = REPORTS / "02_architectures" / "family" / "tables" / "layers.csv"
    expected = pd.read_csv(family).set_index(["model", "layer"])[KEPT]
    found = committed["layers"].set_index(["model", "layer"]).loc[expected.index, KEPT]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_model_measured_anew_is_that_of_the_tables(analysis, committed, tmp_path):
    model, layers = analysis.measure("window-1", "zoo/window-1", tmp_path)
    kept = committed["models"].set_index("model").loc["window-1"]
    assert (model["weights"], model["text"]) == (kept["weights"], kept["text"])
    expected = committed["layers"].query("model == 'window-1'")[KEPT]
    np.testing.assert_allclose(layers[KEPT], expected, rtol=1e-3, atol=1e-6)


def test_what_is_missing_comes_seed_by_seed_and_deleted_rows_are_replaced(analysis, committed):
    tables = {name: table.copy() for name, table in committed.items()}
    tables["models"] = tables["models"].query("model != 'ntk-1'")
    assert analysis.missing_models(tables, 2) == ["ntk-1"]
    assert analysis.missing_models(analysis.read_tables(Path("none")), 1) == [
        "rope-0", "ntk-0", "window-0"
    ]  # fmt: skip
    row = committed["models"].query("model == 'ntk-1'").iloc[0].to_dict()
    layers = committed["layers"].query("model == 'ntk-1'")
    analysis.add(tables, row, layers)
    for name, table in committed.items():
        pd.testing.assert_frame_equal(
            tables[name].reset_index(drop=True),
            table.sort_values(["architecture", "model"], kind="stable").reset_index(drop=True),
        )


@pytest.mark.parametrize(("n", "verdict"), [(7, "interim"), (8, "supported")])
def test_there_is_no_verdict_before_all_planned_seeds(n, verdict, analysis, tmp_path, rng):
    page = analysis.write_page(tmp_path, seeds_of(n, 0.05, rng))
    table = pd.read_csv(tmp_path / "tables" / "contrasts.csv").set_index(["value", "contrast"])
    found = table.loc[("V_R", "H1 trend: window - ntk")]
    assert found["verdict"] == verdict
    assert found["n"] == n
    assert ("no verdict yet" in page) == (n < 8)


@pytest.mark.parametrize(("apart", "verdict"), [(-0.05, "contradicted"), (0.0, "undecided")])
def test_a_verdict_follows_the_sign_and_the_adjusted_p_value(
    apart, verdict, analysis, tmp_path, rng
):
    analysis.write_page(tmp_path, seeds_of(8, apart, rng))
    table = pd.read_csv(tmp_path / "tables" / "contrasts.csv").query("value == 'V_R'")
    trend = table.set_index("contrast").loc["H1 trend: window - ntk"]
    assert trend["verdict"] == verdict
    assert trend["p_holm"] >= trend["p_value"]


def test_a_seed_that_lacks_a_model_is_left_out(analysis, tmp_path, rng):
    tables = seeds_of(3, 0.0, rng)
    tables["models"] = tables["models"].query("model != 'ntk-2'")
    tables["layers"] = tables["layers"].query("model != 'ntk-2'")
    page = analysis.write_page(tmp_path, tables)
    assert "2 of 8 planned seeds" in page


def test_a_trained_model_has_the_tokenizer_beside_it(analysis, tmp_path, monkeypatch):
    measuring = module("measuring")

    def run(command, check):
        (command_model,) = (command[k + 1] for k, word in enumerate(command) if word == "--model")
        (tmp_path / "models" / command_model).mkdir()

    monkeypatch.setattr(measuring.subprocess, "run", run)
    folder = measuring.train("rope-3", tmp_path)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert (tmp_path / "models" / "tokenizer" / "tokenizer.json").exists()
