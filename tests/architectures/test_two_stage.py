"""The two-stage tests: their level, the tests of SciPy that they are, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from studies import simulate

from posprobe.architectures import (
    compare_architectures,
)
from posprobe.architectures.contrasts import adjust, pooled_variance
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.architectures.two_stage import two_stage_f, welch_f
from posprobe.errors import DesignError


def random_intercept_f(values, labels, depth):
    """Test architecture x depth as if models had no slopes of their own: values (..., M, L)."""
    z = depth - depth.mean()
    slopes = values @ z / (z @ z)
    means = values.mean(axis=-1, keepdims=True)
    names = np.unique(labels)
    centre = np.stack([slopes[..., labels == name].mean(axis=-1) for name in names], axis=-1)
    fitted = centre[..., np.searchsorted(names, labels)]
    rest = np.sum((values - means - fitted[..., None] * z) ** 2, axis=(-2, -1))
    between = np.sum((fitted - slopes.mean(axis=-1, keepdims=True)) ** 2, axis=-1) * (z @ z)
    df = values.shape[-2] * (len(z) - 1) - len(names)
    statistic = between / (len(names) - 1) / (rest / df)
    return statistic, stats.f.sf(statistic, len(names) - 1, df)


# The level of the tests.


def test_primary_test_keeps_its_level_and_the_random_intercept_does_not():
    values, labels, depth = simulate(400)
    z = depth - depth.mean()
    intercepts, slopes = values.mean(axis=-1), values @ z / (z @ z)
    rates = [float(np.mean(two_stage_f(y, labels)[1] < 0.05)) for y in (intercepts, slopes)]
    assert all(0.03 <= rate <= 0.07 for rate in rates), rates
    assert np.mean(random_intercept_f(values, labels, depth)[1] < 0.05) > 0.3


@pytest.mark.parametrize("per", [2, 3, 5])
def test_two_stage_p_values_are_uniform_under_the_null(per):
    values, labels, _ = simulate(20_000, per=per, layers=2)
    p_values = two_stage_f(values.mean(axis=-1), labels)[1]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    assert 0.045 < np.mean(p_values < 0.05) < 0.055


def test_simulated_study_gives_what_the_whole_comparison_gives():
    values, labels, depth = simulate(3)
    z = depth - depth.mean()
    for one in values:
        rows = [
            (label, f"{label}-{m}", layer, depth[layer], one[m, layer])
            for m, label in enumerate(labels)
            for layer in range(len(depth))
        ]
        table = pd.DataFrame(rows, columns=["architecture", "model", "layer", "depth", "value"])
        found = compare_architectures(table, mixed_model=False)
        for test, y in ((found.test, one.mean(axis=-1)), (found.slope_test, one @ z / (z @ z))):
            assert test.p_value == pytest.approx(float(two_stage_f(y, labels)[1]))


def test_random_intercept_closed_form_is_the_mixed_model():
    """The control of the gate is the analysis that it names."""
    values, labels, depth = simulate(1)
    table = pd.DataFrame(
        {
            "y": values[0].ravel(),
            "architecture": np.repeat(labels, len(depth)),
            "model": np.repeat(np.arange(len(labels)), len(depth)),
            "z": np.tile(depth - depth.mean(), len(labels)),
        }
    )
    fit = fit_mixed("y ~ 0 + C(architecture) + C(architecture):z + (1 | model)", table)
    statistic, *_ = fit.f_test(np.eye(6)[3:5] - np.eye(6)[4:6])
    closed = random_intercept_f(values, labels, depth)[0][0]
    assert statistic == pytest.approx(closed, rel=1e-3)


# Theorems.


def test_two_stage_f_is_the_analysis_of_variance_of_scipy():
    y = np.random.default_rng(0).normal(size=9)
    labels = np.array(["c", "a", "a", "b", "c", "c", "b", "a", "c"])  # unbalanced, unsorted
    expected = stats.f_oneway(*[y[labels == name] for name in "abc"])
    statistic, p_value, between, within = two_stage_f(y, labels)
    assert (statistic, p_value) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert (between, within) == (2, 6)


def test_welch_f_of_two_architectures_is_the_t_test_of_welch():
    values, labels = [1.0, 1.2, 1.1, 4.0, 9.0], ["a"] * 3 + ["b"] * 2
    statistic, p_value, between, within = welch_f(values, labels)
    found = stats.ttest_ind(values[:3], values[3:], equal_var=False)
    assert (statistic, p_value) == pytest.approx((found.statistic**2, found.pvalue))
    assert (between, within) == (1, pytest.approx(found.df))


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1, 2, 3], "aab"), ([1, 1, 3, 4], "aabb"), ([1, 2], "aa")],
    ids=["one model", "copies", "one architecture"],
)
def test_welch_f_needs_a_spread_in_every_architecture(values, labels):
    assert welch_f(values, list(labels)) is None


def test_blocked_f_is_the_analysis_of_randomised_blocks():
    rng = np.random.default_rng(2)
    cells = rng.normal(size=(4, 3)) + 5 * rng.normal(size=(4, 1))  # blocks x architectures
    labels, blocks = np.tile(list("abc"), 4), np.repeat(np.arange(4), 3)
    statistic, _, between, within = two_stage_f(cells.ravel(), labels, blocks)
    rest = cells - cells.mean(axis=0) - cells.mean(axis=1, keepdims=True) + cells.mean()
    expected = 4 * cells.mean(axis=0).var(ddof=1) / (np.sum(rest**2) / 6)
    assert (float(statistic), between, within) == (pytest.approx(expected), 2, 6)
    with pytest.raises(DesignError, match="blocks leave no comparison of architectures"):
        two_stage_f(cells.ravel(), labels, labels)


def test_pure_functions_refuse_what_they_cannot_test():
    with pytest.raises(DesignError, match="add a second model"):
        two_stage_f([1, 2], ["a", "b"])
    with pytest.raises(DesignError, match="add a second model"):
        pooled_variance([1.0, 2.0], ["a", "b"])
    with pytest.raises(DesignError, match="there is nothing to compare"):
        two_stage_f([1, 2], ["a", "a"])
    with pytest.raises(DesignError, match="3 model summaries came with 2 architectures"):
        two_stage_f([1, 2, 3], ["a", "b"])
    assert np.isnan(adjust([float("nan")])).all()
