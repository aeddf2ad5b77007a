"""Pages that a screen reader can use, light and dark, wide and narrow: axe-core finds nothing."""

import browser
import numpy as np
import pytest
import synthetic
from lineups import family, file_of

from posprobe.workflows.analyze import analyze
from posprobe.workflows.compare import compare

QUICK = dict(n_resamples=100, n_refits=20, n_jobs=1, progress=False)
needs_browser = pytest.mark.skipif(browser.BROWSER is None, reason="needs chromium or chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    stores = synthetic.study_files(folder, np.random.default_rng(0))
    return analyze([store.path for store in stores.values()], folder / "report", **QUICK)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    stores = family(folder, layers=2, seeds=2)
    return compare([store.path for store in stores], folder / "report", **QUICK)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    for step in (0, 10, 20):
        file_of(folder / f"step{step}" / "shifted.h5", f"run-step{step}", size=0.2 + step / 50)
    return compare(sorted(folder.glob("*/*.h5")), folder / "report", steps=True, **QUICK)


@pytest.fixture(scope="module", params=["study", "comparison", "training"])
def page(request):
    """A page with everything unfolded, since what is folded is not looked at."""
    text = request.getfixturevalue(request.param).read_text(encoding="utf-8")
    return text.replace("<details", "<details open")


@needs_browser
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 500)])
def test_nothing_is_lost_to_a_screen_reader(page, dark, width, tmp_path):
    assert browser.violations(page, tmp_path, dark=dark, width=width) == []


@needs_browser
def test_what_is_wrong_is_found(page, tmp_path):
    """What the tests above are worth: a picture without a name, and grey on black in the dark."""
    unnamed = page.replace('role="img" aria-label="', 'role="img" data-label="')
    assert "svg-img-alt" in str(browser.violations(unnamed, tmp_path))
    faint = page.replace("--soft: #b3b8bf", "--soft: #44484d")
    assert faint != page
    assert browser.violations(faint, tmp_path) == []
    assert "color-contrast" in str(browser.violations(faint, tmp_path, dark=True))
