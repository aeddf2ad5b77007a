"""How many models: power by the noncentral t, widths by the closed form."""

import numpy as np
import pytest
from scipy import stats

from posprobe.architectures import plan_models, simulate_contrast
from posprobe.errors import DesignError
from posprobe.intervals import Goal

# Two architectures with a pooled standard deviation of exactly 1, three apart on the mean of two.
VALUES = np.array([-1.0, 0.0, 1.0, 0.5, 1.5, 2.5])
LABELS = ["a", "a", "a", "b", "b", "b"]
APART = np.array([-1.0, 1.0])


def power(k):
    """Of a two-sample t test, two-sided at 5%, on the side of the effect."""
    df = 2 * (k - 1)
    return stats.nct.sf(stats.t.isf(0.025, df), df, 1.5 / np.sqrt(2 / k))


@pytest.mark.parametrize("k", [2, 5, 9])
def test_power_is_that_of_the_t_test(k, rng):
    studies = simulate_contrast(VALUES, LABELS, APART, k, repetitions=20_000, rng=rng)
    assert (studies.low > 0).mean() == pytest.approx(power(k), abs=0.012)


def test_as_many_models_are_needed_as_the_t_test_says():
    exact = next(k for k in range(2, 100) if power(k) >= 0.8)
    needed, table = plan_models(VALUES, LABELS, APART, Goal(precision=np.inf))
    assert abs(needed["power"] - exact) <= 1
    assert table["power"].iloc[-1] >= 0.8


def test_a_mean_over_texts_is_a_contrast_of_one_group():
    values = 1 + 0.1 * np.array([-1.0, 0.0, 1.0])
    goal = Goal(precision=0.05, assurance=0.5)
    needed, _ = plan_models(values, ["text"] * 3, [1.0], goal)
    exact = next(k for k in range(2, 99) if stats.t.isf(0.025, k - 1) * 0.1 / np.sqrt(k) <= 0.05)
    assert abs(needed["precision"] - exact) <= 1


def test_one_model_of_each_architecture_is_no_sample():
    with pytest.raises(DesignError, match="one model per architecture"):
        plan_models([1.0, 2.0], ["a", "b"], APART, Goal())
