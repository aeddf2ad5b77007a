"""Pages made from hostile files: no script runs, nothing is asked for, nothing is obeyed."""

import csv
import re

import browser
import numpy as np
import pytest
import synthetic
from lineups import file_of

from posprobe.workflows.analyze import analyze
from posprobe.workflows.compare import compare

QUICK = dict(n_resamples=200, n_refits=20, n_jobs=1, progress=False)
RAN = "document.documentElement.dataset.ran=1"
CONTROLS = "\x1b]0;owned\x07\n\x9b2J\u202e"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">\n')
needs_browser = pytest.mark.skipif(browser.BROWSER is None, reason="needs chromium or chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder, its address, and what was asked for."""
    folder = tmp_path_factory.mktemp("site")
    with browser.served(folder) as (address, asked):
        yield folder, address, asked


@pytest.fixture(scope="module")
def attack(site):
    """Markup that leaves whatever it is in, runs a script in two ways and asks the server twice."""
    return (
        f"</title></style>\"'><script>{RAN};fetch('{site[1]}/fetched')</script>"
        f"<img src={site[1]}/image onerror={RAN}>"
    )


@pytest.fixture(scope="module")
def study(site, attack):
    """The report on a hostile model, whose files have hostile names."""
    fields = dict(
        model=f"=cmd|{attack}$${CONTROLS}",
        variant=f"@{attack}",
        stimulus={"bos_token": 1, "corpus": attack, "special_tokens": {f"+{attack}": 1}},
        config={"model_type": attack, "rope_parameters": {"rope_type": attack}},
        versions={"numpy": attack},
    )
    stores = synthetic.study_files(site[0] / "files", np.random.default_rng(0), **fields)
    name = f"=cmd'\"><img src=x onerror={RAN}>$${CONTROLS}\udcff"
    paths = [
        store.path.rename(store.path.with_name(f"{name}{k}.h5"))
        for k, store in enumerate(stores.values())
    ]
    return analyze(paths, site[0] / "study", **QUICK)


@pytest.fixture(scope="module")
def comparison(site, attack):
    """The report on six models of two hostile architectures."""
    files = [
        file_of(
            site[0] / f"{kind}{k}" / f"; touch x; {CONTROLS}.h5",
            f"{kind}{k}",
            size=size + 0.01 * k,
            model=f"=cmd {attack}{kind}$${CONTROLS}{k}",
        )
        for kind, size in (("a", 0.4), ("b", 0.8))
        for k in range(3)
    ]
    names = {f"=cmd$$<i>{kind}": f"*/{kind}?/*" for kind in "ab"}
    paths = [store.path for store in files]
    return compare(paths, site[0] / "comparison", architectures=names, **QUICK)


@pytest.fixture(scope="module", params=["study", "comparison"])
def report(request):
    return request.getfixturevalue(request.param)


def page_of(report):
    return report.read_text(encoding="utf-8")


def test_the_policy_comes_first_and_allows_styles_and_inlined_images_alone(report):
    page = page_of(report)
    (policy,) = POLICY.findall(page)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules.pop("style-src") == "'unsafe-inline'"
    assert rules.pop("img-src") == "data:"
    assert rules.pop("default-src") == "'none'"
    assert set(rules) == {"base-uri", "form-action"}  # default-src does not stand in for these
    assert set(rules.values()) == {"'none'"}
    before = page[: POLICY.search(page).start()]
    assert before == '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'


def test_nothing_in_a_report_is_obeyed_by_a_terminal(report):
    for path in report.parent.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            text = path.read_text(encoding="utf-8")
            assert all(c.isprintable() or c == "\n" for c in text), path
    assert r"\x1b]0;owned\x07\n\x9b2J\u202e" in page_of(report)


def test_no_cell_of_a_table_is_a_formula(report):
    cells = [
        cell
        for path in (report.parent / "tables").glob("*.csv")
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines())
        for cell in row
    ]
    assert any(cell.startswith("'=cmd") for cell in cells)
    assert all(re.fullmatch(r"-[\d.e-]+|[^=+\-@].*|", cell) for cell in cells)


def test_names_of_files_are_single_words_to_a_shell(comparison):
    (command,) = re.findall("<pre>(.*?)</pre>", page_of(comparison))
    assert command.startswith("posprobe compare &#39;; touch x; ")


def test_figures_draw_names_as_they_are(comparison):
    assert "$$" in (comparison.parent / "figures" / "balance.svg").read_text(encoding="utf-8")


# --- in a browser ---


def seen(site, name, page):
    """The document after its scripts, and what it asked for, without the page itself."""
    folder, address, asked = site
    (folder / name).write_text(page, encoding="utf-8")
    asked.clear()
    document = browser.opened(f"{address}/{name}")
    assert "</html>" in document
    assert asked.pop(0).startswith(f"/{name}")
    return document, asked.copy()


@needs_browser
def test_no_script_runs_and_nothing_is_asked_for(site, report):
    document, asked = seen(site, "page.html", page_of(report))
    assert asked == []
    assert "data-ran" not in document.partition("<body")[0]
    for tag in ("script", "img", "iframe", "object", "link"):
        assert f"<{tag}" not in document


@needs_browser
def test_the_policy_holds_where_a_name_was_not_escaped(site, report, attack):
    """What the policy is for: with it nothing happens, and without it everything does."""
    page = page_of(report).replace("<h1>", f"<h1>{attack}")
    document, asked = seen(site, "page.html", page)
    assert "<script>" in document
    assert "data-ran" not in document.partition("<head")[0]
    assert asked == []
    document, asked = seen(site, "page.html", POLICY.sub("", page))
    assert 'data-ran="1"' in document.partition("<head")[0]
    assert {"/fetched", "/image"} <= {*asked}
