"""Contrasts of architectures: coverage, adjustment, and the order that is expected."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from studies import study

from posprobe.architectures import (
    Contrast,
    compare_architectures,
    contrast_interval,
)
from posprobe.architectures.contrasts import adjust


# In brackets what limits with one spread for all architectures would cover.
@pytest.mark.parametrize(
    ("spread", "models", "lowest", "highest"),
    [
        pytest.param((1, 1, 1), (3, 3, 3), 0.95, 0.98, id="equal [.95]"),
        pytest.param((1, 1, 4), (3, 3, 3), 0.93, 0.96, id="one wide [.87]"),
        pytest.param((1, 1, 4), (8, 8, 8), 0.94, 0.96, id="one wide, many [.86]"),
        pytest.param((1, 1, 4), (5, 5, 2), 0.88, 0.92, id="one wide, few of it [.63]"),
    ],
)
def test_intervals_of_contrasts_cover_whatever_the_spreads(spread, models, lowest, highest):
    rng = np.random.default_rng(20)
    labels = np.repeat(["a", "b", "c"], models)
    noise = rng.normal(size=(3000, len(labels))) * np.repeat(spread, models)
    found = [contrast_interval(y, labels, [-1, 0, 1], estimand="trend") for y in noise]
    assert lowest <= np.mean([not interval.excludes(0) for interval, _ in found]) <= highest
    assert all((p < 0.05) == interval.excludes(0) for interval, p in found)


def test_intervals_within_blocks_cover_where_blocks_matter():
    rng = np.random.default_rng(21)
    labels, blocks = np.tile(["a", "b", "c"], 4), np.repeat(np.arange(4), 3)
    noise = rng.normal(size=(3000, 12)) + 3 * np.repeat(rng.normal(size=(3000, 4)), 3, axis=1)
    hits = [
        not contrast_interval(y, labels, [-1, -1, 2], estimand="c", blocks=blocks)[0].excludes(0)
        for y in noise
    ]
    assert 0.94 <= np.mean(hits) <= 0.96


def test_two_blocked_architectures_give_the_paired_t_test():
    y = np.random.default_rng(3).normal(size=10)
    labels, blocks = np.tile(["a", "b"], 5), np.repeat(list("vwxyz"), 2)
    expected = stats.ttest_rel(y[1::2], y[::2])
    interval, p_value = contrast_interval(y, labels, [-1, 1], estimand="b - a", blocks=blocks)
    limits = expected.confidence_interval(0.95)
    assert p_value == pytest.approx(expected.pvalue)
    assert (interval.low, interval.high) == (pytest.approx(limits.low), pytest.approx(limits.high))


def test_incomplete_blocks_are_left_out_and_one_is_not_enough():
    y, labels = np.array([1.0, 3.0, 2.0, 5.0, 9.0]), ["a", "b", "a", "b", "a"]
    contrast = [-1, 1]
    whole, _ = contrast_interval(y[:4], labels[:4], contrast, estimand="d", blocks=[0, 0, 1, 1])
    found, _ = contrast_interval(y, labels, contrast, estimand="d", blocks=[0, 0, 1, 1, 2])
    assert found == whole
    assert found.n == 2
    found, p_value = contrast_interval(y, labels, contrast, estimand="d", blocks=[0, 0, 1, 2, 3])
    assert (found.unbounded, found.method, np.isnan(p_value)) == (True, "1 complete blocks", True)


def test_one_model_has_no_spread_of_its_own():
    found, p_value = contrast_interval([1.0, 2.0, 4.0], ["a", "a", "b"], [-1, 1], estimand="b - a")
    assert found.estimate == 2.5
    assert (found.unbounded, found.method, np.isnan(p_value)) == (True, "one model of b", True)
    alone, _ = contrast_interval([1.0, 2.0, 4.0], ["a", "a", "b"], [1, 0], estimand="a")
    assert not alone.unbounded


@pytest.mark.parametrize("method", ["holm", "fdr_bh"])
def test_adjusted_p_values_are_those_of_statsmodels(method):
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(size=seed + 1) ** 3
        np.testing.assert_allclose(adjust(p.tolist(), method), multipletests(p, method=method)[1])


def test_two_architectures_give_the_t_test():
    y, labels = np.random.default_rng(1).normal(size=7), np.repeat(["a", "b"], [3, 4])
    expected = stats.ttest_ind(y[3:], y[:3], equal_var=False)
    interval, p_value = contrast_interval(y, labels, [-1, 1], estimand="b - a", level=0.9)
    limits = expected.confidence_interval(0.9)
    assert p_value == pytest.approx(expected.pvalue)
    assert (interval.low, interval.high) == (pytest.approx(limits.low), pytest.approx(limits.high))


def test_planned_contrasts_find_the_order_and_not_its_reverse():
    table = study(4, effect=3.0)
    table.loc[table["architecture"] == "window", "value"] += 5 * table["depth"]
    found = {
        one.contrast.name: one for one in compare_architectures(table, mixed_model=False).contrasts
    }
    assert len(found) == 5
    assert all(one.interval.low > 0 for name, one in found.items() if "H2" in name)
    assert found["H1 trend: window - ntk"].interval.low > 0
    assert found["H1 step: standard - ntk"].p_holm >= found["H1 step: standard - ntk"].p_value
    names = {"ntk": "window", "window": "ntk"}
    turned = compare_architectures(
        table.replace({"architecture": names}), mixed_model=False
    ).contrasts[0]
    assert turned.interval.high < 0


def test_zoo_names_are_understood_and_others_left_to_the_caller():
    renamed = study().replace({"architecture": {"standard": "rope"}})
    found = compare_architectures(renamed, mixed_model=False)
    assert found.contrasts[1].contrast.weights == {"ntk": -1.0, "rope": 1.0}
    other = study(names=["a", "b"])
    bare = compare_architectures(other, mixed_model=False)
    assert bare.contrasts == ()
    assert bare.notes[-1].startswith("no planned contrasts")
    own = [Contrast("b - a", "intercept", {"a": -1, "b": 1})]
    chosen = compare_architectures(other, contrasts=own, mixed_model=False)
    assert chosen.contrasts[0].interval.estimate == pytest.approx(
        chosen.means["b"].estimate - chosen.means["a"].estimate
    )
