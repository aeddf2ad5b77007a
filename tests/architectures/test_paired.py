"""Variants of one checkpoint, over the items that they share."""

import numpy as np
import pytest
from scipy import stats

from posprobe.architectures import (
    Contrast,
    paired_contrasts,
)
from posprobe.errors import DesignError


def paired_items(seed=0, *, n=40, layers=5, noise=0.1):
    """Items x variants x layers: what items share is large, and cancels in differences."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.full(layers, 1.0), np.linspace(1.0, 3.0, layers)])
    shared = rng.normal(0, 2, size=(n, 1, 1))
    return truth + shared + rng.normal(0, noise, size=(n, 2, layers))


def resampled(items, draws=2000):
    weights = np.random.default_rng(1).multinomial(
        len(items), [1 / len(items)] * len(items), size=draws
    )
    return items.mean(0), np.tensordot(weights / len(items), items, 1)


TWO = (
    Contrast("b - a", "intercept", {"a": -1.0, "b": 1.0}),
    Contrast("slope of b", "slope", {"b": 1.0}),
    Contrast("a", "intercept", {"a": 1.0}),
)


def test_paired_contrasts_are_paired_t_intervals_over_items():
    items = paired_items()
    found = paired_contrasts(*resampled(items), ["a", "b"], TWO, n=40)
    depth = np.linspace(0, 1, 5)
    slopes = np.array([np.polyfit(depth, one, 1)[0] for one in items[:, 1]])
    by_item = (items[:, 1].mean(1) - items[:, 0].mean(1), slopes, items[:, 0].mean(1))
    for one, values in zip(found, by_item, strict=True):
        exact = stats.ttest_1samp(values, 0.0)
        low, high = exact.confidence_interval()
        assert one.interval.estimate == pytest.approx(values.mean())
        width = one.interval.high - one.interval.low
        assert width == pytest.approx(high - low, rel=0.05)
        assert one.p_value == pytest.approx(exact.pvalue, rel=0.5)
        assert one.p_holm >= one.p_value
    shared = found[2].interval
    assert found[0].interval.high - found[0].interval.low < (shared.high - shared.low) / 5


def test_paired_contrasts_cover():
    inside = 0
    for seed in range(200):
        items = paired_items(seed, n=15)
        (found,) = paired_contrasts(*resampled(items, 300), ["a", "b"], TWO[:1], n=15)
        inside += not found.interval.excludes(1.0)
    assert 180 <= inside <= 198


def test_one_layer_has_no_slope_to_contrast():
    found = paired_contrasts(*resampled(paired_items(layers=1)), ["a", "b"], TWO, n=40)
    assert [one.contrast.response for one in found] == ["intercept", "intercept"]


def test_what_is_the_same_in_all_items_has_no_interval():
    items = np.tile(np.array([[[0.0], [1.0]]]), (10, 1, 3))
    (found,) = paired_contrasts(*resampled(items), ["a", "b"], TWO[:1], n=10)
    assert found.interval.unbounded
    assert found.interval.method == "the same in all items"
    assert np.isnan(found.p_value)


def test_paired_contrasts_refuse_what_does_not_fit():
    estimate, replicates = resampled(paired_items())
    with pytest.raises(DesignError, match=r"3 variants came with values of shape \(2, 5\)"):
        paired_contrasts(estimate, replicates, ["a", "b", "c"], TWO, n=40)
    with pytest.raises(DesignError, match="weighs architecture 'b', which the table lacks"):
        paired_contrasts(estimate, replicates, ["a", "c"], TWO, n=40)
