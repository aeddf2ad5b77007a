"""How many models: power by the noncentral t, widths by the closed form."""

import numpy as np
import pytest
from scipy import stats

from posprobe.architectures import plan_models
from posprobe.architectures.contrasts import contrast_parts
from posprobe.architectures.planning import simulate_contrast
from posprobe.errors import DesignError
from posprobe.intervals import Goal

# Two architectures with standard deviations of 1 and 3, three apart on the mean of two.
VALUES = np.array([-1.0, 0.0, 1.0, 0.0, 3.0, 6.0])
LABELS = ["a", "a", "a", "b", "b", "b"]
BLOCKS = [0, 1, 2, 0, 1, 2]  # within which b - a is 1, 3, 5
APART = np.array([-1.0, 1.0])


def welch_power(k, repetitions=20_000):
    """Of Welch's test on fresh samples, two-sided at 5%, on the side of the effect."""
    rng = np.random.default_rng(k)
    one, other = rng.normal(0, 1, (k, repetitions)), rng.normal(3, 3, (k, repetitions))
    found = stats.ttest_ind(other, one, equal_var=False)
    return np.mean((found.pvalue < 0.05) & (found.statistic > 0))


def paired_power(k):
    """Of the paired t test, from the noncentral t."""
    return stats.nct.sf(stats.t.isf(0.025, k - 1), k - 1, 3 / 2 * np.sqrt(k))


@pytest.mark.parametrize(
    ("blocks", "power"), [(None, welch_power), (BLOCKS, paired_power)], ids=["welch", "paired"]
)
@pytest.mark.parametrize("k", [2, 5, 9])
def test_power_is_that_of_the_test_that_will_be_made(blocks, power, k, rng):
    parts, _ = contrast_parts(VALUES, LABELS, APART, blocks)
    studies = simulate_contrast(parts, k, repetitions=20_000, rng=rng)
    assert (studies.low > 0).mean() == pytest.approx(power(k), abs=0.015)


@pytest.mark.parametrize(
    ("blocks", "power"), [(None, welch_power), (BLOCKS, paired_power)], ids=["welch", "paired"]
)
def test_as_many_models_or_blocks_are_needed_as_the_test_says(blocks, power):
    exact = next(k for k in range(2, 100) if power(k) >= 0.8)
    needed, table = plan_models(VALUES, LABELS, APART, Goal(precision=np.inf), blocks=blocks)
    assert abs(needed["power"] - exact) <= 1
    assert table["power"].iloc[-1] >= 0.8


def test_a_mean_over_texts_is_a_contrast_of_one_group():
    values = 1 + 0.1 * np.array([-1.0, 0.0, 1.0])
    goal = Goal(precision=0.05, assurance=0.5)
    needed, _ = plan_models(values, ["text"] * 3, [1.0], goal)
    exact = next(k for k in range(2, 99) if stats.t.isf(0.025, k - 1) * 0.1 / np.sqrt(k) <= 0.05)
    assert abs(needed["precision"] - exact) <= 1


@pytest.mark.parametrize(
    ("labels", "blocks", "message"),
    [
        (["a", "a", "b"], None, "one model of b: nothing tells architecture from model"),
        (["a", "b", "b"], [0, 0, 1], "1 complete blocks: nothing tells their spread"),
        (["a", "b", "b"], [0, 1, 2], "0 complete blocks"),
    ],
)
def test_without_a_spread_nothing_is_planned(labels, blocks, message):
    with pytest.raises(DesignError, match=message):
        plan_models([1.0, 2.0, 3.0], labels, APART, Goal(), blocks=blocks)
