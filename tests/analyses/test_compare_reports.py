"""Reports run anew against the committed ones: what counts as a difference, and how it is said."""

import json
import shutil

import pandas as pd
import pytest
import scripts
from click.testing import CliRunner

CHANNELS = pd.DataFrame(
    {
        "stimulus": ["shifted", "shifted", "natural"],
        "layer": ["0", "all", "all"],
        "V_R": [0.25, 0.035, 0.042],
        "share_residual": [0.5, -0.2, float("nan")],
        "V_R_p_adjusted": [0.001, 0.3, float("nan")],
        "relation": ["opposed", "opposed", "reinforcing"],
    }
)
CLAIM = {
    "id": "residual_channel",
    "estimate": 0.035,
    "ci_low": None,
    "n": 32,
    "verdict": "supported",
    "protocol": "32 windows. At most 5.41e-07 nats, or -0.054 [−0.092, -0.022].",
}


@pytest.fixture(scope="module")
def script():
    return scripts.load("compare_reports")


def write(folder, table=CHANNELS, claim=CLAIM, name="channels.csv"):
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "tables" / name, index=False)
    (folder / "claims.json").write_text(json.dumps([claim]))


@pytest.fixture
def folders(tmp_path):
    for name in ("old", "new"):
        write(tmp_path / name / "study")
    return tmp_path / "old", tmp_path / "new"


def changed(row, column, value):
    table = CHANNELS.copy()
    table.loc[row, column] = value
    return table


def run(script, folders, *options):
    result = CliRunner().invoke(script.main, [*map(str, folders), *options])
    return result.exit_code, result.output


def test_equal_reports_are_the_same(script, folders):
    code, output = run(script, folders)
    assert code == 0
    assert "study: 1 tables, 3 rows: the same" in output
    assert "Tolerance: 0.0001 of a number, or 1e-05" in output


def test_a_changed_number_is_named_with_its_row_and_column(script, folders):
    write(folders[1] / "study", changed(1, "V_R", 0.07))
    code, output = run(script, folders)
    assert code == 1
    assert "study: 1 tables, 3 rows: differs in 1 places of tables/channels.csv" in output
    assert (
        "tables/channels.csv: stimulus=shifted, layer=all: V_R: 0.035 -> 0.07 "
        "(relative difference +1)"
    ) in output


def test_a_changed_verdict_is_named_with_its_claim(script, folders):
    write(folders[1] / "study", claim=CLAIM | {"verdict": "inconclusive"})
    code, output = run(script, folders)
    assert code == 1
    assert "claims.json: residual_channel: verdict: supported -> inconclusive" in output


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("protocol", "32 windows. At most 6e-07 nats, or -0.053 [−0.091, -0.023].", True),
        ("protocol", "31 windows. At most 5.41e-07 nats, or -0.054 [−0.092, -0.022].", False),
        ("protocol", "32 windows. At least 5.41e-07 nats, or -0.054 [−0.092, -0.022].", False),
        ("n", 31, False),
        ("n", 32.0, False),
        ("ci_low", 0.03, False),
        ("estimate", None, False),
        ("estimate", 0.035001, True),
    ],
)
def test_sentences_may_round_otherwise_and_say_nothing_else(script, folders, field, value, same):
    write(folders[1] / "study", claim=CLAIM | {field: value})
    assert run(script, folders)[0] == (0 if same else 1)


@pytest.mark.parametrize(
    ("row", "column", "value", "same"),
    [
        (0, "V_R", 0.250024, True),
        (0, "V_R", 0.250026, False),
        (1, "V_R", 0.035009, True),
        (1, "V_R", float("nan"), False),
        (0, "share_residual", 0.502, True),
        (0, "share_residual", 0.503, False),
        (0, "V_R_p_adjusted", 0.01, True),
        (0, "V_R_p_adjusted", 0.02, False),
        (1, "V_R_p_adjusted", 0.8, True),
        (1, "V_R_p_adjusted", 0.049, False),
        (0, "relation", "reinforcing", False),
    ],
)
def test_each_kind_of_number_has_its_tolerance(script, folders, row, column, value, same):
    write(folders[1] / "study", changed(row, column, value))
    assert run(script, folders)[0] == (0 if same else 1)


def test_effects_that_are_0_but_for_rounding_may_double(script, folders):
    table = pd.DataFrame({"layer": [11], "residual": [1.5e-5], "mask": [3.0]})
    for folder, residual in zip(folders, (1.5e-5, 3.8e-5), strict=True):
        write(folder / "study", table.assign(residual=residual), name="repeated.csv")
    assert run(script, folders)[0] == 0
    write(folders[1] / "study", table.assign(residual=2e-4), name="repeated.csv")
    assert run(script, folders)[0] == 1


def test_a_missing_row_hides_no_other(script, folders):
    write(folders[1] / "study", changed(2, "V_R", 0.05).drop(index=0))
    code, output = run(script, folders)
    assert code == 1
    assert "stimulus=shifted, layer=0: a row -> absent" in output
    assert "stimulus=natural, layer=all: V_R: 0.042 -> 0.05" in output
    assert run(script, folders[::-1])[1].count("absent -> a row") == 1


def test_rows_with_the_same_labels_are_told_apart_by_their_number(script, folders):
    twice = pd.concat([CHANNELS, CHANNELS.assign(V_R=[1.0, 2.0, 3.0])])
    write(folders[0] / "study", twice)
    write(folders[1] / "study", twice.assign(V_R=[0.25, 0.035, 0.042, 1.0, 2.0, 4.0]))
    assert "stimulus=natural, layer=all [1]: V_R: 3.0 -> 4.0" in run(script, folders)[1]


def test_a_missing_table_a_new_one_and_a_missing_column(script, folders):
    write(folders[0] / "study", name="sinks.csv")
    write(folders[1] / "study", name="probes.csv")
    write(folders[1] / "study", CHANNELS.drop(columns="V_R"))
    code, output = run(script, folders)
    assert code == 1
    assert "tables/sinks.csv: a file -> absent" in output
    assert "tables/probes.csv: absent -> a file" in output
    assert "layer=all: V_R: 0.035 -> absent" in output


def test_a_missing_report_differs_unless_it_is_left_out(script, folders):
    write(folders[0] / "more" / "gemma")
    code, output = run(script, folders)
    assert code == 1
    assert "more/gemma: 1 tables, 3 rows: differs in 2 places" in output
    assert "study: 1 tables, 3 rows: the same" in output
    assert run(script, folders, "--leave-out", "more/gemma")[0] == 0
    assert run(script, folders, "--leave-out", "more/gem")[0] == 1
    assert run(script, folders, "--leave-out", "more")[0] == 0


def test_compressed_tables_are_compared_too(script, folders):
    for folder, value in zip(folders, (0.035, 0.07), strict=True):
        write(folder / "study", changed(1, "V_R", value), name="by_offset.csv.gz")
    assert "tables/by_offset.csv.gz: stimulus=shifted" in run(script, folders)[1]


def test_a_long_list_is_cut_and_says_so(script, folders):
    write(folders[1] / "study", CHANNELS.assign(V_R=[1.0, 2.0, 3.0]))
    output = run(script, folders, "--show", "2")[1]
    assert output.count(" -> ") == 2
    assert "and 1 more: --show 3 prints all" in output


def test_folders_without_reports_are_refused(script, folders):
    for folder in folders:
        shutil.rmtree(folder / "study")
    code, output = run(script, folders)
    assert code == 2
    assert "a report is a folder with tables" in output
