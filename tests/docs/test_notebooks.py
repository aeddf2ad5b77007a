"""The notebooks are small, hold no output, and run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_three_and_the_guide_names_them():
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"notebooks/{path.name}" in guide for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_output(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert path.stat().st_size < 10_000
    assert cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    shown = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert '<div class="posprobe">' in shown or "sk-top-container" in shown
