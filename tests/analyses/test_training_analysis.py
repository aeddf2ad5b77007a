"""Analysis 6: the order that a rule gives, and runs that are added once."""

import sys

import numpy as np
import pandas as pd
import pytest
import scripts

STEPS = (0, 16, 128)


@pytest.fixture(scope="module")
def analysis():
    return scripts.load("06_training")


def page():
    return sys.modules["checkpoints.page"]


def run_of(name, first="V_M", *, missing=()):
    architecture, _, seed = name.rpartition("-")
    head = {"architecture": architecture, "seed": int(seed), "model": name}
    quantities = [q for q in page().NAMES if q not in missing]
    other = {"V_M": "V_R", "V_R": "V_M", "open": "V_R"}[first]
    one = first if first != "open" else "V_M"
    tables = {
        "curves": [
            {"quantity": q, "step": step, "estimate": k / 2, "low": k / 2, "high": k}
            for q in page().NAMES for k, step in enumerate(STEPS)
        ],
        "half_way": [
            {"quantity": q, "first": 0.0, "last": 1.0}
            | dict.fromkeys(("step", "low", "high"), 16.0 if q in quantities else np.nan)
            for q in page().NAMES
        ],
        "order": [{"earlier": one, "later": other, "ratio": 2.0, "low": 1.5, "high": 2.5,
                   "first": first}],
        "checkpoints": [{"step": step, "weights": f"{name}{step}"} for step in STEPS],
    }  # fmt: skip
    return {what: pd.DataFrame([head | row for row in rows]) for what, rows in tables.items()}


def tables_of(analysis, *runs):
    tables = {name: pd.DataFrame({"model": []}) for name in page().TABLES}
    for run in runs:
        tables = analysis.add(tables, run)
    return tables


@pytest.mark.parametrize(
    ("firsts", "verdict"),
    [
        (("V_M", "V_M", "V_M"), "supported"),
        (("V_M", "V_M", "open"), "undecided"),
        (("V_M", "V_R", "V_M"), "contradicted"),
        (("open", "open", "open"), "undecided"),
        (("V_M",), "undecided"),  # one run is no family
    ],
)
def test_the_order_of_a_pair_follows_the_rule(firsts, verdict, analysis):
    runs = [run_of(f"rope-{k}", first) for k, first in enumerate(firsts, 3)]
    tables = tables_of(analysis, *runs)
    found = {(one, other): said for one, other, said, _ in page().orders(tables)}
    assert found["V_M", "V_R"] == verdict


def test_a_quantity_that_never_changes_is_said(analysis, tmp_path):
    tables = tables_of(analysis, run_of("rope-3", missing=("sink_attention",)))
    text = page().write_page(tmp_path, tables)
    assert "no change of one of them in 1 of 1 runs" in text
    assert "| rope-3 | 16 (16 to 16) | 16 (16 to 16) | no change |" in text


def test_runs_of_the_tables_are_not_measured_again(analysis, tmp_path, monkeypatch):
    measured = []

    def measure(snapshots, name, files):
        measured.append(name)
        return run_of(name)

    monkeypatch.setattr(analysis, "measure", measure)
    monkeypatch.setattr(analysis, "is_kept", lambda snapshots, name: True)
    for name in ("rope-3", "ntk-3"):
        (tmp_path / "work" / "snapshots" / name).mkdir(parents=True)
    options = ["--work", tmp_path / "work", "--report", tmp_path / "r", "--files", tmp_path / "f"]
    for _ in range(2):
        analysis.main([str(one) for one in options], standalone_mode=False)
    assert measured == ["ntk-3", "rope-3"]
    kept = tmp_path / "r" / "tables" / "checkpoints.csv"
    table = pd.read_csv(kept)
    table[table["model"] != "rope-3"].to_csv(kept, index=False)  # as its page says
    analysis.main([str(one) for one in options], standalone_mode=False)
    assert measured == ["ntk-3", "rope-3", "rope-3"]
    assert list(pd.read_csv(kept)["model"].unique()) == ["ntk-3", "rope-3"]
    assert len(pd.read_csv(tmp_path / "r" / "tables" / "order.csv")) == 2
