"""A comparison in figures, in a folder, and from the command line."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from lineups import TRUTH, file_of, variants

from posprobe.cli import main
from posprobe.comparison import compare_lineup, line_up
from posprobe.errors import StoreError
from posprobe.figures import COMPARISON_PANELS, draw, to_svg
from posprobe.workflows.compare import compare

# --- what is drawn ---


@pytest.mark.parametrize("name", COMPARISON_PANELS)
def test_every_panel_says_what_it_asks_and_names_its_axes(name, comparison):
    (ax,) = draw(name, comparison.tables).axes
    assert len(ax.figure.get_suptitle()) > 10
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    assert "interval" in COMPARISON_PANELS[name].caption.format(level="95%")


def test_thin_lines_are_models_and_the_thick_one_is_their_mean(comparison):
    (ax,) = draw("depth_V_R", comparison.tables).axes
    thick = {line.get_label(): line for line in ax.get_lines() if line.get_linewidth() > 2}
    thin = [line for line in ax.get_lines() if line.get_linewidth() < 0.7 + 1e-9][:9]
    assert set(thick) == {f"{kind} (3 models)" for kind in TRUTH}
    table = comparison.tables["layers"].astype({"V_R": float})
    means = table.groupby(["architecture", "layer"])["V_R"].mean()
    np.testing.assert_allclose(thick["window (3 models)"].get_ydata(), means["window"])
    own = table[table["model"] == "ntk-1"]["V_R"]
    assert any(np.array_equal(line.get_ydata(), own) for line in thin)
    assert not ax.collections  # no band where models are the spread


def test_dollar_signs_in_names_are_drawn_as_they_are(tmp_path):
    files = [file_of(tmp_path / f"{n}.h5", f"{kind}-0") for n, kind in enumerate(("$$", "a_{$"))]
    tables = compare_lineup(line_up(files)).tables
    for name in COMPARISON_PANELS:
        figure = draw(name, tables)
        assert figure is None or "<path" in to_svg(figure, name)


def test_a_single_model_has_a_band_over_items(paired):
    (ax,) = draw("depth_V_M", paired.tables).axes
    assert len(ax.collections) == 3


def test_models_of_other_depth_are_read_between_layers(models, tmp_path):
    deeper = file_of(tmp_path / "b.h5", "window-9", layers=5, size=1.0, growth=0.6)
    found = compare_lineup(line_up([*models, deeper]))
    (ax,) = draw("depth_V_R", found.tables).axes
    thick = {line.get_label(): line for line in ax.get_lines()}["window (4 models)"]
    np.testing.assert_allclose(thick.get_xdata(), [0, 0.5, 1])


# --- the folder and the command line ---


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_folder_with_page_tables_and_figures(models, tmp_path):
    found = invoke("compare", *[s.path for s in models], "-o", tmp_path / "out", "--quiet")
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{tmp_path / 'out' / 'report.html'}\n"
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    wanted = {"architectures", "models", "layers", "tests", "contrasts", "estimates", "checks"}
    assert {f"tables/{name}.csv" for name in wanted} <= names
    assert {"figures/balance.svg", "figures/depth_V_R.svg", "comparison.json"} <= names
    plain = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert plain["architectures"]["ntk"] == ["ntk-0", "ntk-1", "ntk-2"]
    assert plain["status"]["V_R"] == "tested"
    assert plain["mixed_model"]["V_R"]["status"]
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("two-stage F", "H1", "Planned contrasts", "9 models by architecture", "F(2, 6)"):
        assert words in page
    assert page.count("<svg") == 7
    assert "object at" not in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_the_page_opens_with_the_sizes_and_says_what_order_was_found(models, tmp_path):
    page = compare([s.path for s in models], tmp_path / "out", progress=False).read_text()
    table = pd.read_csv(tmp_path / "out" / "tables" / "architectures.csv")
    sizes = table[table["quantity"] == "V_R"].sort_values("estimate")
    order = [f"{row.architecture} {row.estimate:.3g}" for row in sizes.itertuples()]
    assert f"<b>{' &lt; '.join(order)}</b>" in page
    said = ", ".join(
        f"{row.estimate:.3g} nats² under {row.architecture}" for row in sizes.itertuples()
    )
    assert page.index(f"<p>The residual channel, V_R, is {said}.</p>") < page.index("<nav")
    assert "the models are the sample" in page


def test_a_comparison_without_a_test_opens_with_its_sizes_too(models, tmp_path):
    one_of_each = [store.path for store in models[::3]]
    page = compare(one_of_each, tmp_path / "out", progress=False).read_text()
    assert re.search(
        r"<p>The residual channel, V_R, is ([\d.]+ nats² under \w+(, )?){3}\.</p>", page
    )


def test_the_same_files_give_the_same_bytes_in_any_order(models, tmp_path):
    paths = [store.path for store in models]
    pages = [
        compare(order, tmp_path / name, progress=False).read_bytes()
        for name, order in (("a", paths), ("b", paths[::-1]))
    ]
    assert pages[0] == pages[1]


def test_a_comparison_of_variants_says_so(tmp_path):
    paths = [store.path for store in variants(tmp_path)]
    page = compare(paths, tmp_path / "out", progress=False).read_text()
    assert "3 variants of one checkpoint" in page
    assert "do not test architectures" in page
    assert "they describe it, and test no architecture" in page
    assert "Tests of architecture" not in page
    assert len(pd.read_csv(tmp_path / "out" / "tables" / "contrasts.csv")) == 5 + 3 + 5 + 5


def test_the_command_line_says_what_is_wrong_in_one_line(models, tmp_path):
    paths = [store.path for store in models]
    found = invoke("compare", paths[0], paths[0], "-o", tmp_path / "out")
    assert found.exit_code == 2
    assert re.fullmatch(r"posprobe: file .*ntk-0/shifted\.h5 is given twice: .*\n", found.stderr)
    found = invoke("compare", *paths, "-o", tmp_path / "out", "--architecture", "rope")
    assert found.exit_code == 2
    assert "write NAME=PATTERN" in found.stderr
    found = invoke("compare", *paths, "-o", tmp_path / "out", "--architecture", "all=*", "--quiet")
    assert found.exit_code == 0
    assert "one architecture" in (tmp_path / "out" / "report.html").read_text()


def test_an_incomplete_file_is_refused(models, tmp_path):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(models[0].path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"broken\.h5"):
        compare([models[1].path, broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
