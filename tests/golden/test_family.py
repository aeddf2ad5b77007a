"""Rows of the report on trained families (analysis 2), recomputed from the models in data/zoo.

Their weights are the smallest capture there is. Two models are captured anew, as the analysis does
it, and give their rows of models, layers, replacement, sinks and checks, in the report on the
family and in that with controls. The slow test captures all models and compares both reports whole.
"""

import committed
import pytest
import scripts
from click.testing import CliRunner

from posprobe.workflows.compare import compare

MODELS = ("rope-0", "window-0")
FAMILY, CONTROLS = "02_architectures/family", "02_architectures/controls"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of a comparison of two models of the family, captured as in the analysis."""
    folder, script = tmp_path_factory.mktemp("family"), scripts.load("02_architectures")
    files = [
        path
        for name in MODELS
        for path in script.capture_all(
            f"zoo/{name}", folder / name, n=32, length=128, replaced=True
        )
    ]
    compare(files, folder / "report", blocks=script.seeds(), progress=False)
    return committed.tables_of(folder / "report")


@pytest.mark.parametrize("report", [FAMILY, CONTROLS])
@pytest.mark.parametrize(
    ("name", "rows"),
    [("models", 2), ("layers", 8), ("replacement", 4), ("sinks", 2), ("checks", 6)],
)
def test_two_models_captured_anew_give_their_rows(tables, report, name, rows, tmp_path):
    assert len(tables[name]) == rows
    assert not committed.differences(report, name, tables[name], tmp_path)


@pytest.mark.slow
def test_all_models_captured_anew_give_both_reports(tmp_path):
    script, comparing = scripts.load("02_architectures"), scripts.load("compare_reports")
    options = ["--part", "family", "--files", tmp_path / "files", "--report", tmp_path / "report"]
    done = CliRunner().invoke(script.main, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    for report in (FAMILY, CONTROLS):
        new = tmp_path / "report" / report.split("/")[1]
        _, found = comparing.compare_reports(committed.REPORTS / report, new)
        assert not found, "\n".join(map(str, found))
