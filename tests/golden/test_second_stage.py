"""Comparisons of models follow from their committed layers: recomputed to 1e-9.

Recomputed from layers.csv and models.csv: estimates, tests, contrasts and summaries, and the mixed
model (to the tolerance of its optimizer). The comparison of variants is left out: it resamples
items, which its tables do not hold. What follows there from its tables is in test_consistency.py.
"""

from io import StringIO

import committed
import pandas as pd
import pytest

from posprobe.architectures import adjust_secondary, compare_architectures

REPORTS = [f"02_architectures/{name}" for name in ("family", "controls", "gemma")]
VALUES = ("V_R", "relative", "V_M", "V_T")
PARTS = {
    "estimates": "estimates",
    "tests": "tests",
    "contrasts": "contrasts",
    "summaries": "models",
}
MIXED = ["mixed_estimate", "mixed_low", "mixed_high"]


def committed_values(report, value):
    """One value per model and layer; the ratio of two layer means once per model."""
    if value != "relative":
        return committed.table(report, "layers")
    models = committed.table(report, "models")
    return models.assign(
        layer=0, depth=0.0, relative=models["V_R"] / (models["V_R"] + models["V_M"])
    )


@pytest.fixture(scope="module", params=REPORTS)
def recomputed(request):
    """A report, and what the comparison of architectures finds in its layers, by value."""
    level = committed.comparison(request.param)["level"]
    found = {
        value: compare_architectures(
            committed_values(request.param, value),
            value=value,
            level=level,
            mixed_model=value != "relative",
        )
        for value in VALUES
    }
    return request.param, found


def tables(found, part):
    """One part for all values, as it is read from a file."""
    parts = {value: one.table(part) for value, one in found.items()}
    kept = [table.assign(value=value) for value, table in parts.items() if not table.empty]
    text = pd.concat(kept).to_csv(index=False) if kept else "value\n"
    return pd.read_csv(StringIO(text))


@pytest.mark.parametrize("name", PARTS)
def test_the_second_stage_follows_from_the_layers(recomputed, name):
    report, found = recomputed
    table = tables(found, PARTS[name])
    if name == "tests" and len(table):
        table = adjust_secondary(table, table["primary"] & (table["value"] == "V_R"))
    if not (committed.REPORTS / report / "tables" / f"{name}.csv").exists():
        assert table.empty
        return
    expected = committed.table(report, name)
    exact = [column for column in expected if column not in MIXED]
    pd.testing.assert_frame_equal(
        table[exact], expected[exact], check_dtype=False, rtol=1e-9, atol=1e-12
    )


def test_the_mixed_model_follows_from_the_layers(recomputed, tmp_path):
    report, found = recomputed
    mixed = found["V_R"].mixed
    assert committed.comparison(report)["mixed_model"]["V_R"]["status"] == mixed.status
    table = found["V_R"].table("mixed")
    table.insert(0, "value", "V_R")
    if len(table):
        assert not committed.differences(report, "mixed", table, tmp_path)


def test_the_page_of_the_comparison_says_what_was_tested(recomputed):
    report, found = recomputed
    said = committed.comparison(report)
    assert said["status"] == {value: one.status for value, one in found.items()}
    assert said["reason"] == {value: one.reason for value, one in found.items()}
    counts = {name: len(models) for name, models in said["architectures"].items()}
    assert counts == found["V_R"].architectures
