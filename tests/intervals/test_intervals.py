"""Intervals: against scipy and R where they coincide, closed forms, and what must hold exactly."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from posprobe.errors import DesignError, PosprobeWarning
from posprobe.intervals import (
    Inference,
    Interval,
    benjamini_hochberg,
    bootstrap_interval,
    bootstrap_limits,
    cluster_weights,
    fieller_limits,
    fieller_ratio,
    log_ratio_bootstrap_t,
    max_t,
    mean_interval,
    pseudo_values,
    studentized_limits,
    studentized_means,
    studentized_p,
)
from posprobe.intervals.student import jackknife_interval, leave_one_out

# The sample of scipy's own comparison with R (scipy/stats/tests/test_resampling.py): limits of
# boot.ci in R's package boot from a million resamples of the mean.
SIXTEEN = np.array([10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213])
R_BOOT = {"percentile": (28.86, 84.21), "basic": (23.77, 79.12), "bca": (32.31, 91.43)}
METHODS = ("percentile", "basic", "normal", "t", "bca")

BEFORE = np.array([2.1, 1.9, 2.4, 2.0, 1.8])
AFTER = np.array([1.2, 1.0, 1.5, 1.3, 1.0])

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(0.01, 100)


def make(low=0.0, high=1.0, estimate=0.5, level=0.95, n=30):
    return Interval(estimate, low, high, level, "fieller", "fraction removed", n)


def pairs(seed, n=12):
    rng = np.random.default_rng(seed)
    effect = rng.normal(2.0, 0.3, size=n)
    return effect + rng.normal(0, 0.3, size=n), 0.5 * effect + rng.normal(0, 0.3, size=n)


# --- the value


def test_interval_excludes_what_lies_outside_and_holds_its_ends():
    interval = make()
    assert not any(interval.excludes(x) for x in (0.0, 0.5, 1.0))
    assert all(interval.excludes(x) for x in (-0.1, 1.1))


def test_unbounded_interval_excludes_nothing_and_prints_no_limits():
    interval = make(low=None, high=None, estimate=0.4)
    assert interval.unbounded
    assert not make().unbounded
    assert not interval.excludes(1e9)
    assert str(interval) == "0.40 (95% CI unbounded)"
    assert str(make(None, None, 0.4, level=0.9)) == "0.40 (90% CI unbounded)"


def test_interval_prints_two_digits_of_its_width():
    assert str(make(0.31, 0.52, 0.4)) == "0.40 [0.31, 0.52]"
    assert str(make(1203.0, 1391.0, 1300.4)) == "1300 [1203, 1391]"
    assert str(make(0.00031, 0.00052, 0.0004)) == "0.00040 [0.00031, 0.00052]"
    assert str(make(0.5, 0.5)) == "0.50 [0.50, 0.50]"


def test_interval_gives_all_its_fields():
    assert Interval(**make().asdict()) == make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": None}, "has one limit, low=None"),
        ({"high": None}, "has one limit, low=0.0, high=None"),
        ({"low": 2.0}, r"are \[2.0, 1.0\]"),
        ({"high": np.inf}, "must be finite and in order"),
        ({"estimate": np.nan}, "estimate of 'fraction removed' is nan"),
        ({"level": 95}, "level=95 must be between 0 and 1"),
        ({"n": 0}, "rests on n=0 units"),
    ],
)
def test_interval_refuses_what_is_none(change, message):
    with pytest.raises(DesignError, match=message):
        make(**change)


# --- bootstrap and jackknife


@pytest.mark.parametrize("method", R_BOOT)
def test_sixteen_values_agree_with_r(method):
    means = cluster_weights(16, 200_000, rng=0) @ SIXTEEN / 16
    low, high = bootstrap_limits(
        means, SIXTEEN.mean(), n=16, method=method, leave_one_out=leave_one_out(np.mean, SIXTEEN)
    )
    np.testing.assert_allclose((low, high), R_BOOT[method], rtol=0.01)


@pytest.mark.parametrize("method", ["percentile", "basic", "BCa"])
def test_same_replicates_give_the_limits_of_scipy(method, rng):
    sample = rng.gamma(1.0, size=25)
    theirs = stats.bootstrap((sample,), np.std, method=method, n_resamples=999, rng=1)
    low, high = bootstrap_limits(
        theirs.bootstrap_distribution,
        sample.std(),
        n=25,
        method=method.lower(),
        leave_one_out=leave_one_out(np.std, sample),
    )
    np.testing.assert_allclose((low, high), theirs.confidence_interval, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 20])
def test_t_of_a_mean_is_students_interval(n, rng):
    sample = rng.normal(size=n)
    means = cluster_weights(n, 100_000, rng=0) @ sample / n
    student = stats.ttest_1samp(sample, 0.0).confidence_interval(0.9)
    interval = bootstrap_interval(means, sample.mean(), n=n, level=0.9)
    np.testing.assert_allclose((interval.low, interval.high), student, rtol=0.01)
    normal = bootstrap_interval(means, sample.mean(), n=n, level=0.9, method="normal")
    narrower = stats.norm.isf(0.05) / stats.t.isf(0.05, n - 1)
    assert normal.high - normal.low == pytest.approx(narrower * (interval.high - interval.low))


@pytest.mark.parametrize("method", METHODS)
def test_many_statistics_at_once_get_the_limits_of_each(method, rng):
    data = rng.gamma(2.0, size=(15, 2, 3))
    draws = np.tensordot(cluster_weights(15, 300, rng), data, 1) / 15
    without = leave_one_out(lambda x: x.mean(axis=0), data)
    center = data.mean(axis=0)
    low, high = bootstrap_limits(draws, center, n=15, method=method, leave_one_out=without)
    for k in np.ndindex(2, 3):
        at = (slice(None), *k)
        own = bootstrap_interval(
            draws[at], center[k], n=15, method=method, leave_one_out=without[at]
        )
        np.testing.assert_allclose((own.low, own.high), (low[k], high[k]), rtol=1e-12)


@given(seed=seeds, scale=scales, shift=st.floats(-100, 100), method=st.sampled_from(METHODS))
def test_limits_move_and_stretch_with_the_data(seed, scale, shift, method):
    data = np.random.default_rng(seed).normal(size=9)
    weights = cluster_weights(9, 200, seed)

    def limits(x):
        without = leave_one_out(np.mean, x)
        return np.array(
            bootstrap_limits(weights @ x / 9, x.mean(), n=9, method=method, leave_one_out=without)
        )

    expected = shift + scale * limits(data)
    np.testing.assert_allclose(limits(shift + scale * data), expected, rtol=1e-6, atol=1e-6)


@given(seed=seeds, n=st.integers(2, 12), strata=st.booleans())
def test_weights_draw_as_many_clusters_as_there_are(seed, n, strata):
    labels = np.arange(2 * n) % 2 if strata else None
    weights = cluster_weights(2 * n, 50, seed, strata=labels)
    assert weights.min() >= 0
    assert (weights.sum(axis=1) == 2 * n).all()
    halves = weights.reshape(50, n, 2).sum(axis=1)
    assert (halves == n).all() == strata


def test_weights_have_the_moments_of_drawing_with_replacement():
    weights = cluster_weights(8, 100_000, rng=0)
    covariance = np.eye(8) - 1 / 8
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(np.cov(weights.T), covariance, atol=0.02)


def test_same_seed_same_weights():
    np.testing.assert_array_equal(cluster_weights(9, 5, 3), cluster_weights(9, 5, 3))
    assert (cluster_weights(9, 5, 3) != cluster_weights(9, 5, 4)).any()


def test_studentised_limits_of_means_follow_their_equation(rng):
    values, weights = np.exp(rng.normal(size=(12, 2))), cluster_weights(12, 400, rng=1)
    low, high = studentized_means(values, weights, level=0.9)
    for k, x in enumerate(values.T):
        error = x.std(ddof=1) / np.sqrt(12)

        def h(mean, c=3 * error):
            return np.arcsinh(mean / c)

        def slope(mean, c=3 * error):
            return 1 / np.sqrt(mean**2 + c**2)

        pivots = []
        for w in weights:
            drawn = np.repeat(x, w)
            mean, own = drawn.mean(), drawn.std() / np.sqrt(11)
            pivots.append((h(mean) - h(x.mean())) / (slope(mean) * own))
        ends = h(x.mean()) - np.quantile(pivots, [0.95, 0.05]) * slope(x.mean()) * error
        np.testing.assert_allclose([low[k], high[k]], 3 * error * np.sinh(ends))


def test_studentised_limits_follow_unit_and_sign(rng):
    values, weights = np.exp(rng.normal(size=20)), cluster_weights(20, 300, rng=1)
    low, high = studentized_means(values, weights)
    np.testing.assert_allclose(studentized_means(7 * values, weights), (7 * low, 7 * high))
    np.testing.assert_allclose(studentized_means(-values, weights), (-high, -low))


def test_studentised_limits_of_few_clusters_are_students(rng):
    values = rng.normal(size=7)
    expected = mean_interval(values, estimand="mean")
    found = studentized_means(values, cluster_weights(7, 50, rng=0))
    np.testing.assert_allclose(found, (expected.low, expected.high))


def test_studentised_limits_where_nothing_varies_or_samples_have_no_error():
    weights = cluster_weights(9, 200, rng=0)
    np.testing.assert_array_equal(studentized_means(np.full(9, 2.5), weights), (2.5, 2.5))
    one = np.zeros(9)
    one[4] = 1.0  # absent from a third of the samples, which then have no standard error
    assert np.isnan(studentized_means(one, weights)).all()


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-6])
def test_studentised_limits_are_unbounded_where_one_cluster_is_nearly_everything(noise, rng):
    """Not 1e87: nobody can read such a number, and float32 cannot hold it."""
    values = noise * rng.standard_normal(9)
    values[4] += 1.0
    pair = np.stack([values, rng.standard_normal(9)], axis=1)
    low, high = studentized_means(pair, cluster_weights(9, 2000, rng=0))
    assert np.isnan([low[0], high[0]]).all()
    assert np.isfinite([low[1], high[1]]).all()


@given(seed=seeds, n=st.integers(2, 20))
def test_jackknife_of_a_mean_is_students_interval(seed, n):
    data = np.random.default_rng(seed).normal(size=n)
    without = leave_one_out(np.mean, data)
    np.testing.assert_allclose(pseudo_values(data.mean(), without), data, atol=1e-12)
    ours = jackknife_interval(data.mean(), without, level=0.9, estimand="mean")
    theirs = stats.ttest_1samp(data, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=1e-9)


def test_mean_of_pseudo_values_is_the_u_statistic(rng):
    data = rng.normal(size=11)
    without = leave_one_out(lambda x: x.var(ddof=1), data)
    assert pseudo_values(data.var(ddof=1), without).mean() == pytest.approx(data.var(ddof=1))


def test_paired_samples_are_left_out_together(rng):
    x, y = rng.normal(size=(2, 6))
    without = leave_one_out(lambda a, b: np.corrcoef(a, b)[0, 1], x, y)
    assert without[2] == pytest.approx(np.corrcoef(np.delete(x, 2), np.delete(y, 2))[0, 1])


@pytest.mark.parametrize("n", [2, 3, 20])
def test_mean_interval_is_students(n, rng):
    sample = rng.normal(size=n)
    ours = mean_interval(sample, estimand="mean", level=0.9)
    student = stats.ttest_1samp(sample, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose((ours.low, ours.high), student)
    assert (ours.estimate, ours.method, ours.n) == (sample.mean(), "Student t", n)


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([1.0], 0.95, "mean of 'norm': n=1 independent unit"),
        ([1.0, np.nan, 2.0], 0.95, "1 of 3 values of 'norm' are not finite: leave"),
        ([[1.0, 2.0]], 0.95, r"values of 'norm' have shape \(1, 2\): give one number"),
        ([1.0, 2.0], 1.0, "level=1.0 must be between 0 and 1"),
    ],
)
def test_bad_means_are_refused(values, level, message):
    with pytest.raises(DesignError, match=message):
        mean_interval(values, estimand="norm", level=level)


# --- ratios


def test_fieller_limits_are_where_the_t_test_turns_significant():
    interval = fieller_ratio(BEFORE, AFTER, level=0.9, quantity="ratio")
    for limit in (interval.low, interval.high):
        assert stats.ttest_1samp(AFTER - limit * BEFORE, 0).pvalue == pytest.approx(0.1)
    assert stats.ttest_1samp(AFTER - interval.estimate * BEFORE, 0).pvalue == pytest.approx(1)


def test_fieller_limits_of_many_ratios_are_those_of_each(rng):
    a, b = rng.normal(0.4, 1.0, size=(2, 12, 5, 3))
    low, high = fieller_limits(a, b, level=0.9)
    for cell in np.ndindex(5, 3):
        at = (slice(None), *cell)
        own = fieller_ratio(a[at], b[at], level=0.9, quantity="ratio")
        limits = [np.nan if limit is None else limit for limit in (own.low, own.high)]
        np.testing.assert_allclose([low[cell], high[cell]], limits, rtol=1e-12)
    assert np.isnan(low).any()
    assert not np.isnan(low).all()


def test_fieller_is_unbounded_exactly_where_the_denominator_is_not_significant():
    for center in np.linspace(-2, 2, 41):
        baseline = center + np.array([-1.0, 1.0, 0.5, -0.5, 0.3, -0.2])
        significant = stats.ttest_1samp(baseline, 0).pvalue < 0.05
        treated = np.array([1.0, 1.2, 0.9, 1.1, 1.4, 0.8])
        assert fieller_ratio(baseline, treated).unbounded == (not significant)


def test_removed_is_one_minus_the_ratio():
    ratio = fieller_ratio(BEFORE, AFTER, quantity="ratio")
    removed = fieller_ratio(BEFORE, AFTER)
    assert removed.estimate == 1 - ratio.estimate
    assert (removed.low, removed.high) == (1 - ratio.high, 1 - ratio.low)


@given(seed=seeds, a=scales, b=scales, signs=st.sampled_from([(1, 1), (-1, 1), (1, -1), (-1, -1)]))
def test_fieller_scales_with_either_sample_and_follows_their_signs(seed, a, b, signs):
    before, after = pairs(seed)
    plain = fieller_ratio(before, after, quantity="ratio")
    factor = signs[1] * b / (signs[0] * a)
    other = fieller_ratio(signs[0] * a * before, signs[1] * b * after, quantity="ratio")
    expected = sorted([factor * plain.low, factor * plain.high])
    np.testing.assert_allclose((other.low, other.high), expected, rtol=1e-9, atol=1e-12)
    assert other.estimate == pytest.approx(factor * plain.estimate)


@given(seed=seeds)
def test_exchanging_the_samples_inverts_the_ratio(seed):
    before, after = pairs(seed)
    forth = fieller_ratio(before, after, quantity="ratio")
    back = fieller_ratio(after, before, quantity="ratio")
    # Only an interval that stays off 0 has an interval as its inverse.
    assume(not back.unbounded and forth.low > 0)
    np.testing.assert_allclose((1 / back.high, 1 / back.low), (forth.low, forth.high), rtol=1e-9)


@given(seed=seeds)
def test_the_order_of_items_is_no_matter_but_their_pairing_is(seed):
    before, after = pairs(seed)
    order = np.random.default_rng(seed).permutation(len(before))
    plain = fieller_ratio(before, after)
    same = fieller_ratio(before[order], after[order])
    np.testing.assert_allclose((same.low, same.high), (plain.low, plain.high), rtol=1e-9)
    torn = fieller_ratio(np.sort(before), np.sort(after)[::-1])
    assert torn.high - torn.low > plain.high - plain.low


def test_fieller_keeps_its_precision_where_errors_are_tiny():
    """Limits approach those of the linearised ratio, which do not cancel."""
    before, after = 3.0 + 1e-9 * BEFORE, 1.5 + 1e-9 * AFTER
    interval = fieller_ratio(before, after, quantity="ratio")
    spread = (AFTER - 0.5 * BEFORE).std(ddof=1) * 1e-9 / 3.0
    half = stats.t.isf(0.025, 4) * spread / np.sqrt(5)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=1e-5)


def test_log_ratio_agrees_with_fieller_where_the_data_are_good():
    before, after = pairs(0, n=400)
    ours = log_ratio_bootstrap_t(before, after, n_resamples=4000)
    fieller = fieller_ratio(before, after)
    assert ours.estimate == pytest.approx(fieller.estimate)
    width = fieller.high - fieller.low
    np.testing.assert_allclose(
        (ours.low, ours.high), (fieller.low, fieller.high), atol=0.06 * width
    )


def test_log_ratio_is_unbounded_where_a_mean_may_be_zero():
    before = np.array([1.0, -1.0, 2.0, 0.5, -1.5])
    assert log_ratio_bootstrap_t(before, AFTER).unbounded
    assert not log_ratio_bootstrap_t(BEFORE, AFTER).unbounded


def test_log_ratio_of_negative_means_is_that_of_positive_ones():
    plain = log_ratio_bootstrap_t(BEFORE, AFTER)
    both = log_ratio_bootstrap_t(-BEFORE, -AFTER)
    np.testing.assert_allclose((both.low, both.high), (plain.low, plain.high))


# --- many at once


def heads(seed=0, n=30, k=7, mean=0.0):
    rng = np.random.default_rng(seed)
    data = mean + rng.normal(size=(n, k)) + rng.normal(size=(n, 1))
    return data.mean(axis=0), cluster_weights(n, 1000, rng) @ data / n


def test_one_statistic_gets_the_t_interval():
    estimate, draws = heads(k=1)
    draws = 2 * estimate - np.concatenate([draws, 2 * estimate - draws])  # symmetric
    many = max_t(estimate, draws, n=30)
    low, _ = bootstrap_limits(draws, estimate, n=30)
    assert many.critical == pytest.approx(stats.t.isf(0.025, 29), rel=0.05)
    assert many.low[0] == pytest.approx(low[0], abs=0.05 * (estimate[0] - low[0]))


@given(seed=seeds, scale=scales)
def test_max_t_is_wider_than_one_narrower_than_bonferroni_and_scales(seed, scale):
    estimate, draws = heads(seed, k=12)
    many = max_t(estimate, draws, n=30)
    assert stats.t.isf(0.025, 29) < many.critical < 1.05 * stats.t.isf(0.025 / 12, 29)
    other = max_t(scale * estimate, scale * draws, n=30)
    np.testing.assert_allclose(other.low, scale * many.low, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.p_value, many.p_value, atol=2e-3)


def test_perfectly_dependent_statistics_cost_nothing():
    estimate, draws = heads(k=1)
    alone = max_t(estimate, draws, n=30)
    copies = max_t(np.repeat(estimate, 9), np.repeat(draws, 9, axis=1), n=30)
    assert copies.critical == pytest.approx(alone.critical)


def test_standard_errors_of_max_t_are_those_of_means(rng):
    data = rng.normal(size=(4, 3))
    draws = cluster_weights(4, 100_000, rng) @ data / 4
    many = max_t(data.mean(axis=0), draws, n=4)
    np.testing.assert_allclose(many.standard_error, stats.sem(data), rtol=0.02)
    np.testing.assert_allclose(many.high - many.low, 2 * many.critical * many.standard_error)


def test_intervals_and_p_values_of_max_t_tell_the_same():
    estimate, draws = heads(seed=3, k=40, mean=np.linspace(0, 2, 40))
    many = max_t(estimate, draws, n=30)
    excluded = many.low > 0
    assert 0 < excluded.sum() < 40
    np.testing.assert_array_equal(excluded, many.p_value < 0.05)
    shifted = max_t(estimate + 5, draws + 5, n=30, null=5.0)
    np.testing.assert_allclose(shifted.p_value, many.p_value, atol=2e-3)


def test_max_t_keeps_the_shape_of_layers_by_heads():
    estimate, draws = heads(k=6)
    flat = max_t(estimate, draws, n=30)
    many = max_t(estimate.reshape(2, 3), draws.reshape(-1, 2, 3), n=30)
    np.testing.assert_array_equal(many.low, flat.low.reshape(2, 3))
    np.testing.assert_array_equal(many.p_value, flat.p_value.reshape(2, 3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 0.5))
def test_benjamini_hochberg_is_the_step_up_rule(p, q):
    adjusted = benjamini_hochberg(p)
    ordered = np.sort(p)
    assume(np.abs(adjusted - q).min() > 1e-9)
    passing = np.flatnonzero(ordered <= q * np.arange(1, len(p) + 1) / len(p))
    cut = ordered[passing[-1]] if len(passing) else -1.0
    np.testing.assert_array_equal(adjusted <= q, np.asarray(p) <= cut)


def test_benjamini_hochberg_keeps_layers_by_heads():
    p = np.array([[0.01, 0.5], [0.02, 0.03]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.04, 0.5], [0.04, 0.04]])


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_weights(1, 9, 0), "bootstrap over clusters: n=1 independent"),
        (lambda: cluster_weights(5, 0, 0), "n_resamples=0"),
        (lambda: cluster_weights(5, 9, 0, [1, 2]), r"strata have shape \(2,\), there are 5"),
        (lambda: cluster_weights(3, 9, 0, ["a", "a", "b"]), "in stratum b: n=1"),
        (lambda: bootstrap_limits(np.ones(9), 1.0, n=5, level=1.0), "level=1.0"),
        (lambda: bootstrap_limits(np.ones(9), 1.0, n=1), "bootstrap interval: n=1"),
        (lambda: bootstrap_limits(np.ones((9, 2)), 1.0, n=5), r"have shape \(9, 2\), the"),
        (lambda: bootstrap_limits([1.0], 1.0, n=5), "there are 1 bootstrap replicates"),
        (lambda: bootstrap_limits([1.0, np.nan, np.inf], 1.0, n=5), "2 of 3 bootstrap replicates"),
        (lambda: bootstrap_limits([1.0, 2.0], np.nan, n=5), "the estimate itself, are not finite"),
        (lambda: bootstrap_limits([1.0, 2.0], 1.0, n=5, method="BC"), "method 'BC': choose"),
        (lambda: bootstrap_limits([1.0, 2.0], 1.5, n=5, method="bca"), "needs leave_one_out"),
        (
            lambda: bootstrap_limits([1, 2], 1.5, n=5, method="bca", leave_one_out=[1, 2, 3]),
            "3 leave-one-out values for n=5",
        ),
        (
            lambda: bootstrap_limits([1, 2], 9.0, n=3, method="bca", leave_one_out=[1, 2, 3]),
            "on one side of the estimate",
        ),
        (
            lambda: bootstrap_limits([1, 2], 1.5, n=3, method="bca", leave_one_out=[1, 1, 1]),
            "are all equal: BCa has no acceleration",
        ),
        (lambda: bootstrap_interval(np.ones((9, 2)), [1.0, 1.0], n=5), "call bootstrap_limits"),
        (lambda: leave_one_out(np.mean, [1.0]), "jackknife: n=1"),
        (lambda: leave_one_out(np.vdot, [1, 2], [1, 2, 3]), r"lengths \[2, 3\]: pair them"),
        (lambda: pseudo_values(1.0, [1.0, np.nan]), "1 of 2 leave-one-out values"),
        (lambda: jackknife_interval(1, [1, 2], level=0.0, estimand="x"), "level=0.0"),
        (lambda: fieller_ratio([1.0, 2.0], [1.0]), r"lengths \[1, 2\]: pair them by item"),
        (lambda: fieller_ratio([1.0], [1.0]), "paired ratio: n=1"),
        (lambda: fieller_ratio(np.ones((3, 2)), np.ones(3)), r"baseline has shape \(3, 2\)"),
        (lambda: fieller_ratio([1.0, 2.0], [1.0, np.nan]), "treated has 1 values that are not"),
        (lambda: fieller_ratio([1.0, -1.0], [1.0, 2.0]), "is exactly 0, so a ratio"),
        (lambda: fieller_ratio(BEFORE, AFTER, level=2), "level=2"),
        (lambda: fieller_ratio(BEFORE, AFTER, quantity="odds"), "unknown quantity 'odds'"),
        (lambda: log_ratio_bootstrap_t(BEFORE, -AFTER), "has no logarithm: call fieller_ratio"),
        (lambda: log_ratio_bootstrap_t(BEFORE, AFTER, level=0), "level=0"),
        (lambda: log_ratio_bootstrap_t(BEFORE, AFTER, n_resamples=9), "n_resamples=9 is too few"),
        (lambda: Inference(n_resamples=9), "n_resamples=9 is too few for an interval: ask for 10"),
        (lambda: Inference(n_refits=9), "n_refits=9 is too few for an interval"),
        (lambda: max_t([1.0, 2.0], np.full((9, 2), 0.1), n=5), r"statistic \(0,\) is the same"),
        (lambda: max_t([1.0], [[1.0], [2.0]], n=1), "max-T: n=1"),
        (lambda: max_t([1.0], [[1.0], [2.0]], n=5, level=7), "level=7"),
        (lambda: benjamini_hochberg([0.1, np.nan]), "must all be within 0 and 1"),
        (lambda: benjamini_hochberg([]), "must all be within 0 and 1"),
    ],
)
def test_refusals_say_what_is_wrong(call, message):
    with pytest.raises(DesignError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_few_resamples_are_taken_with_a_warning():
    for few in (
        lambda: Inference(n_resamples=99),
        lambda: log_ratio_bootstrap_t(BEFORE, AFTER, n_resamples=10),
    ):
        with pytest.warns(PosprobeWarning, match="fewer than 100 bootstrap samples") as caught:
            few()
        assert len(caught) == 1
    assert Inference(n_resamples=100, n_refits=10).n_refits == 10


def test_weights_of_all_intervals_are_drawn_once_and_nobody_changes_them():
    weights = Inference(n_resamples=100, seed=3).weights(12)
    assert weights is Inference(n_resamples=100, level=0.9, seed=3).weights(12)
    assert weights is not Inference(n_resamples=100, seed=4).weights(12)
    np.testing.assert_array_equal(weights, cluster_weights(12, 100, 3))
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1


# --- p-values: an interval excludes a value where its p-value is below 1 - level, and only there


def studentised(seed, level):
    values = np.random.default_rng(seed).gamma(0.5, size=12)
    weights = cluster_weights(12, 399, rng=seed)
    means = weights @ values / 12
    errors = np.sqrt((weights @ values**2 / 12 - means**2).clip(0) / 11)
    data = dict(estimate=values.mean(), error=values.std(ddof=1) / np.sqrt(12), n=12)
    low, high = studentized_limits(means, errors, level=level, **data)
    bounded = np.isfinite(low)
    return Interval(
        values.mean(), float(low) if bounded else None, float(high) if bounded else None, level,
        "studentised", "mean", 12, lambda value: studentized_p(value, means, errors, **data),
    )  # fmt: skip


def by_bootstrap(seed, level, method):
    values = np.random.default_rng(seed).normal(size=12)
    means = cluster_weights(12, 100, rng=seed) @ values / 12
    return bootstrap_interval(
        means, values.mean(), n=12, level=level, method=method, estimand="mean"
    )


MAKERS = {
    "student": lambda seed, level: mean_interval(pairs(seed)[0] - 2, estimand="m", level=level),
    "jackknife": lambda seed, level: jackknife_interval(
        float(np.mean(pairs(seed)[1])), leave_one_out(np.mean, pairs(seed)[1]), level=level,
        estimand="mean",
    ),
    "t": lambda seed, level: by_bootstrap(seed, level, "t"),
    "normal": lambda seed, level: by_bootstrap(seed, level, "normal"),
    "removed": lambda seed, level: fieller_ratio(*pairs(seed), level=level),
    "ratio": lambda seed, level: fieller_ratio(*pairs(seed), level=level, quantity="ratio"),
    "weak baseline": lambda seed, level: fieller_ratio(
        pairs(seed)[0] - 1.9, pairs(seed)[1], level=level
    ),
    "studentised": studentised,
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
@given(seed=seeds, level=st.floats(0.5, 0.99), value=st.floats(-3, 3))
def test_an_interval_excludes_a_value_where_its_p_value_is_small_and_only_there(
    kind, seed, level, value
):
    interval = MAKERS[kind](seed, level)
    p_value = interval.p_value(value)
    assume(abs(p_value - (1 - level)) > 1e-9)
    assert interval.excludes(value) == (p_value < 1 - level)
    assert 0 <= p_value <= 1


@pytest.mark.parametrize("kind", MAKERS)
def test_at_a_limit_the_p_value_is_that_of_the_level(kind):
    interval = MAKERS[kind](3, 0.9)
    if not interval.unbounded:
        found = interval.p_value(interval.low), interval.p_value(interval.high)
        np.testing.assert_allclose(found, 0.1)


def test_p_values_of_students_interval_are_those_of_scipy(rng):
    sample = rng.normal(0.3, 1.0, size=15)
    theirs = stats.ttest_1samp(sample, 0.1).pvalue
    assert mean_interval(sample, estimand="mean").p_value(0.1) == pytest.approx(theirs)


def test_a_bootstrap_of_399_samples_gives_no_p_value_below_2_in_400():
    assert studentised(0, 0.95).p_value(-1e6) == pytest.approx(2 / 400)


def test_an_interval_without_a_test_or_without_variation_has_no_p_value():
    assert make().p_value(0.0) is None
    assert mean_interval([2.0, 2.0, 2.0], estimand="mean").p_value(0.0) is None
    assert "test" not in mean_interval([1.0, 2.0], estimand="mean").asdict()
