"""Contrasts of architectures: coverage, adjustment, and the order that is expected."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from studies import simulate, study

from posprobe.architectures import (
    Contrast,
    compare_architectures,
    contrast_interval,
)
from posprobe.architectures.contrasts import adjust


def test_intervals_of_contrasts_cover():
    values, labels, _ = simulate(1000, layers=2)
    hits = [
        not contrast_interval(y, labels, [-1, 0, 1], estimand="trend")[0].excludes(0)
        for y in values.mean(axis=-1)
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("method", ["holm", "fdr_bh"])
def test_adjusted_p_values_are_those_of_statsmodels(method):
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(size=seed + 1) ** 3
        np.testing.assert_allclose(adjust(p.tolist(), method), multipletests(p, method=method)[1])


def test_two_architectures_give_the_t_test():
    y, labels = np.random.default_rng(1).normal(size=7), np.repeat(["a", "b"], [3, 4])
    expected = stats.ttest_ind(y[3:], y[:3])
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
