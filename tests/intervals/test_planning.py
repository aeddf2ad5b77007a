"""Sizes of studies: known answers of means, and what is said where a goal is out of reach."""

import numpy as np
import pytest
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals import Goal, Interval, Studies, next_size, plan_size


def means(mean=1.0, repetitions=20_000):
    """Studies of n normal values with standard deviation 1, whose interval knows that."""

    def simulate(n):
        estimate = np.random.default_rng(n).normal(mean, 1 / np.sqrt(n), repetitions)
        half = stats.norm.isf(0.025) / np.sqrt(n)
        return Studies(estimate, estimate - half, estimate + half)

    return simulate


def test_a_mean_needs_as_many_values_as_the_textbook_says():
    z, power = stats.norm.isf(0.025), stats.norm.isf(0.1)
    needed, table = plan_size(means(), Goal(precision=0.05, power=0.9, assurance=0.5), least=4)
    assert needed["precision"] == pytest.approx((z / 0.05) ** 2, rel=0.02)
    assert needed["power"] == pytest.approx((z + power) ** 2, abs=1)
    assert table["precision"].is_monotonic_decreasing
    assert (table["n"].iloc[0], table["precision"].iloc[-1] <= 0.05) == (4, True)


def test_more_assurance_needs_more_values():
    sizes = [
        plan_size(means(), Goal(precision=0.3, assurance=share), least=4)[0]["precision"]
        for share in (0.5, 0.8, 0.95)
    ]
    assert sizes == sorted(set(sizes))


def test_the_side_of_0_is_that_of_the_estimate():
    assert plan_size(means(-1.0), Goal(precision=np.inf), least=4)[0]["power"] == pytest.approx(
        plan_size(means(1.0), Goal(precision=np.inf), least=4)[0]["power"], abs=1
    )


def test_what_is_out_of_reach_is_said_and_what_is_reached_at_once():
    needed, table = plan_size(means(), Goal(precision=0.01), least=10, largest=40)
    assert needed == {"precision": None, "power": 10}
    assert table["n"].tolist() == [10, 15, 22, 32, 40]


def test_an_unbounded_interval_has_no_precision():
    low, high = np.array([0.5, np.nan, np.nan]), np.array([1.5, np.nan, np.nan])
    row = Studies(np.ones(3), low, high).row(5, Goal(precision=0.5))
    assert row == {"n": 5, "precision": np.inf, "reached": 1 / 3, "power": 1 / 3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": 0.0}, "precision=0.0 must be above 0, e.g. 0.1"),
        ({"precision": np.nan}, "precision=nan must be above 0"),
        ({"power": 1.0}, "power=1.0 must be between 0 and 1"),
        ({"assurance": 0}, "assurance=0 must be between 0 and 1"),
        ({"level": 95}, "level=95 must be between"),
    ],
)
def test_a_goal_out_of_range_is_refused(fields, message):
    with pytest.raises(DesignError, match=message):
        Goal(**fields)


def of(n, half, estimate=1.0):
    low, high = (None, None) if half is None else (estimate - half, estimate + half)
    return Interval(estimate, low, high, 0.95, "t", "mean", n)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (of(32, 0.0999), 32),  # reached
        (of(32, 0.11), 39),  # by the square root
        (of(32, 0.1001), 34),  # two at least, which a capture needs
        (of(32, 5.0), 64),  # twice at most, since the width itself is not well known
        (of(32, None), 64),
        (of(32, 0.1, estimate=0.0), 64),
        (of(90, 5.0), 100),
        (of(32, 0.12, estimate=-1.0), 47),
    ],
)
def test_the_next_size_follows_the_width(interval, expected):
    assert next_size(interval, 0.1, 100) == expected
