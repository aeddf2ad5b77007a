"""The page on several models or variants opens with what was found, in words."""

import html
import re

import pytest
from lineups import TRUTH, family, variants

from posprobe.workflows.compare import compare

QUICK = dict(n_resamples=100, n_refits=20, n_jobs=1, progress=False)


def page(stores, folder):
    return compare([store.path for store in stores], folder / "report", **QUICK).read_text()


def answer(text):
    box = re.search(r'<div class="answer">(.*?)</div>', text, re.DOTALL)[1]
    return [html.unescape(each) for each in re.findall("<p>(.*?)</p>", box)]


@pytest.fixture
def two_variants(tmp_path):
    truth = {"standard": TRUTH["rope"], "no_causal": TRUTH["ntk"]}
    return page(variants(tmp_path, truth), tmp_path)


def test_variants_open_with_their_paired_difference_and_what_is_tested(two_variants):
    sizes, difference, *hypotheses = answer(two_variants)
    assert sizes.startswith("The residual channel, V_R, is ")
    said = (
        r"Differences in V_R, paired by item: no_causal − standard −[\d.]+ \(−[\d.]+ to −[\d.]+\)"
    )
    assert re.match(said, difference)
    assert [each[:2] for each in hypotheses] == ["H3"]  # H1 and H2 ask for a sliding window


def test_the_lowest_v_m_leaves_out_what_has_no_mask_to_show(two_variants):
    lowest = re.search(r"lowest of any model: V_M ([\d.]+)", two_variants)[1]
    assert float(lowest) > 0.1


def test_models_open_with_each_hypothesis_in_words(tmp_path):
    (_, sample, first, *rest) = answer(page(family(tmp_path, seeds=2), tmp_path))
    assert sample == "6 models of 3 architectures: the models are the sample."
    verdict = "(supported|contradicted|inconclusive)"
    order = "the residual channel is ordered NTK < standard < sliding window."
    assert re.fullmatch(rf"H1, {verdict} by V_R, {verdict} by V_R/.*: {re.escape(order)}", first)
    assert [each[:2] for each in rest] == ["H2", "H3"]
