"""Where a curve has made half of its change: known answers, and what its intervals cover."""

import numpy as np
import pytest

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights, crossing, crossing_limits, max_t

PLACES = np.arange(12.0)
RISE = np.interp(PLACES, [5, 7], [0, 1])  # half of it at 6


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [
        ([0, 1, 2, 3], 0.5, 1.5),
        ([3, 2, 1, 0], 0.5, 1.5),
        ([0, 0, 4, 4], 0.25, 1.25),
        ([0, 3, 1, 2], 0.5, 1 / 3),  # beyond its end on the way: the first time counts
        ([1, 1, 1, 2], 1.0, 3.0),
        ([-1, -3, -5, -5], 0.5, 1.0),
    ],
)
def test_half_of_the_change(values, share, found):
    assert crossing(values, [0, 1, 2, 3], share=share) == pytest.approx(found)


def test_curves_side_by_side_are_those_alone():
    curves = np.random.default_rng(0).normal(size=(3, 4, 9)) + np.linspace(0, 5, 9)
    places = np.log2(1 + np.arange(9) ** 2)
    alone = [[crossing(curve, places) for curve in row] for row in curves]
    np.testing.assert_array_equal(crossing(curves, places), alone)


def test_what_does_not_change_has_no_crossing():
    assert np.isnan(crossing([2.0, 5.0, 2.0], [0, 1, 2]))
    draws = np.r_[np.full(30, np.nan), np.ones(970)]
    assert np.isnan(crossing_limits(draws)).all()
    assert crossing_limits(np.r_[np.full(20, np.nan), np.ones(980)]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "places", "options", "said"),
    [
        ([0, 1], [0, 1, 2], {}, r"shape \(2,\) at 3 places"),
        ([0, 1, 2], [0, 2, 1], {}, "ascending places"),
        ([0], [0], {}, "two or more"),
        ([0, 1], [0, 1], {"share": 0.0}, "share=0.0 must be above 0"),
    ],
)
def test_what_is_no_curve_is_refused(values, places, options, said):
    with pytest.raises(DesignError, match=said):
        crossing(values, places, **options)


def curves(rng, n, shared):
    """Units that differ in the size of their rise, with noise of their own at each place."""
    size = 1 + 0.5 * rng.normal(size=(n, 1)) * shared
    return size * RISE + 0.3 * rng.normal(size=(n, len(PLACES)))


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("n", [16, 32])
def test_the_interval_of_half_of_the_change_covers(n, shared):
    rng = np.random.default_rng(n + shared)
    repetitions, covered = 300, 0
    for _ in range(repetitions):
        units = curves(rng, n, shared)
        draws = cluster_weights(n, 400, rng) @ units / n
        low, high = crossing_limits(crossing(draws, PLACES))
        covered += low <= 6 <= high
    assert 0.90 <= covered / repetitions <= 0.99


def test_a_band_of_studentised_deviations_covers_a_whole_curve_of_skewed_units():
    rng = np.random.default_rng(1)
    n, repetitions = 32, 200
    covered = {"studentised": 0, "plain": 0}
    for _ in range(repetitions):
        units = rng.exponential(size=(n, len(PLACES))) ** 1.5
        truth = 1.329340388179137  # Gamma(2.5)
        weights = cluster_weights(n, 400, rng).astype(float)
        draws = weights @ units / n
        squares = weights @ units**2 / n
        errors = np.sqrt(np.maximum(squares - draws**2, 0) / (n - 1))
        own = units.std(0, ddof=0) / np.sqrt(n - 1)
        bands = {
            "studentised": max_t(units.mean(0), draws, n=n, errors=(own, errors)),
            "plain": max_t(units.mean(0), draws, n=n),
        }
        for name, band in bands.items():
            covered[name] += bool(((band.low <= truth) & (truth <= band.high)).all())
    assert covered["studentised"] / repetitions >= 0.90
    assert covered["plain"] < covered["studentised"]
