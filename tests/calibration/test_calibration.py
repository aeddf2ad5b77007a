"""Intervals keep their promise, controls stay at chance, and the gate can fail.

Reduced forms of `posprobe selfcheck`. `gate` widens with the binomial error of fewer repetitions:
at 50 it starts at 0.861, at 300 at 0.914. So a correct interval passes here as surely as it does
over 1,000 repetitions, and what is seen is a coverage below about 0.75 (at 50) or 0.87 (at 300);
intervals that take tokens for independent cover 0.35. Of R2 the standard error is checked besides:
a mean of widths tells more than a few hits and misses. Full gates are in the tests marked slow.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.cross_decomposition import PLSRegression
from sklearn.model_selection import GroupKFold

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights, fieller_ratio, max_t
from posprobe.probes import PositionProbe, with_controls
from posprobe.workflows.selfcheck import STUDIES, Study, gate, run, run_study, simulate_sequences


def check(table):
    assert table["passed"].all(), table.to_string()


def observed(study, n, repetitions):
    """Rate of each measure, whatever its gate says."""
    table = run_study(study, n, repetitions, np.random.SeedSequence(0))
    return dict(zip(study.measures, table["observed"], strict=True)), table["passed"].tolist()


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("study", ["paired ratio", "many heads", "curves"])
def test_coverage(study, n):
    check(run(repetitions=300, sizes=[n], studies=[study], progress=False))


@pytest.mark.parametrize("n", [20, 40])
def test_limits_of_any_regressor_cover_the_score_of_its_folds_on_new_sequences(n):
    """R2 of partial least squares, against the same fold probes on 400 sequences."""
    covered, repetitions = 0, 60
    for seed in np.random.SeedSequence(n).spawn(repetitions):
        rng = np.random.default_rng(seed)
        X, y, groups = simulate_sequences(n, rng)
        new_X, new_y, _ = simulate_sequences(400, rng)
        row = with_controls(PLSRegression(2), X, y, groups).iloc[0]
        scores = [
            1 - np.square(new_y - fold.predict(new_X).ravel()).sum()
            / np.square(new_y - new_y.mean()).sum()
            for fold in (
                PLSRegression(2).fit(X[train], y[train])
                for train, _ in GroupKFold(5).split(X, y, groups)
            )
        ]  # fmt: skip
        covered += row["low"] <= np.mean(scores) <= row["high"]
    low, _ = gate(0.95, repetitions)
    assert low <= covered / repetitions


@pytest.fixture(scope="module")
def position_r2():
    return run(repetitions=50, sizes=[30], studies=["position R2"], progress=False)


def test_coverage_of_position_r2(position_r2):
    check(position_r2)


@pytest.mark.parametrize("n", [30, 100])
def test_the_refit_standard_error_is_the_spread_over_new_data(n):
    """That of the scores alone is smaller: it leaves out what another fit would change."""
    seeds = np.random.SeedSequence(n).spawn(500)
    spread = np.std(
        [STUDIES["position R2"].draw(n, np.random.default_rng(seed)) for seed in seeds], ddof=1
    )
    errors = []
    for seed in np.random.SeedSequence(n + 1).spawn(20):
        rng = np.random.default_rng(seed)
        X, position, groups = simulate_sequences(n, rng)
        probe = PositionProbe().fit(X, position, groups=groups)
        refit = probe.interval("refit", n_resamples=100, random_state=rng)
        scores = probe.interval("fixed_probe", random_state=rng)
        half = np.array([refit.high - refit.low, scores.high - scores.low]) / 2
        errors.append(half / stats.t.isf(0.025, n - 1) / [1, np.sqrt(n / (n - 12))])
    refit, scores = np.mean(errors, axis=0) / spread
    assert 0.95 < refit < 1.2
    assert refit > 1.08 * scores


@pytest.mark.parametrize("items", ["normal", "skewed", "log-normal"])
def test_limits_of_variances_cover_however_rough_items_are(items):
    check(run(repetitions=200, sizes=[32], studies=[f"{items} items"], progress=False))


def test_no_variance_is_claimed_where_effects_are_absent():
    check(run(repetitions=100, sizes=[32], studies=["absent effects"], progress=False))


def test_fixed_probes_have_their_r2_on_new_sequences_in_their_interval():
    """With few sequences, where the factor for shared training data is largest."""
    check(run(repetitions=300, sizes=[24], studies=["fixed probes"], progress=False))


def test_controls_are_at_chance():
    check(run(repetitions=40, sizes=[30], studies=["controls"], progress=False))


def test_level_of_the_tests_across_architectures():
    check(run_study(STUDIES["architectures"], 3, 60, np.random.SeedSequence(0)))


def test_study_of_architectures_has_sizes_of_its_own():
    table = run(repetitions=2, sizes=[30], studies=["architectures"], progress=False)
    assert table["S"].unique().tolist() == [3, 5, 8]


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_calibration_in_full(study):
    check(run(repetitions=1000, studies=[study], progress=False))


# --- the gate can fail


def test_gate_is_that_of_the_full_study_at_a_thousand():
    assert gate(0.95, 1000) == pytest.approx((0.93, 0.97), abs=1e-4)
    assert gate(0.95, 10**6) == (pytest.approx(0.93), pytest.approx(0.97))
    assert gate(0.95, 100) == (pytest.approx(0.887, abs=1e-3), 1.0)


def test_tokens_taken_for_sequences_fail_the_gate(position_r2):
    """On the same fits: what must be below 0.6 is far from passing for an interval."""
    refit, tokens = position_r2.to_dict("records")
    assert tokens["method"].startswith("i.i.d. tokens")
    assert tokens["observed"] < refit["gate_low"] - 0.2


def test_ratio_of_unpaired_items_fails_the_gate():
    """Fieller on torn pairs is too wide, and on repeated items too narrow."""

    def repeat(n, rng, truth):
        effect = rng.gamma(4.0, 0.25, size=n)
        a, b = effect + rng.normal(0, 0.1, size=(2, n)), 0.6 * effect
        return {
            "torn": not fieller_ratio(a[0], rng.permutation(b)).excludes(0.4),
            "repeated": not fieller_ratio(np.tile(a[0], 6), np.tile(b, 6)).excludes(0.4),
        }

    fieller = STUDIES["paired ratio"].measures["fieller"]
    study = Study({"torn": fieller, "repeated": fieller}, repeat)
    rates, passed = observed(study, 30, 1000)
    assert rates["torn"] > 0.97
    assert rates["repeated"] < 0.7
    assert passed == [False, False]


def test_one_interval_for_each_head_fails_the_gate():
    def repeat(n, rng, truth):
        heads = rng.normal(size=(n, 12))
        draws = cluster_weights(n, 300, rng) @ heads / n
        each = [max_t(heads[:, k].mean(), draws[:, k], n=n) for k in range(12)]
        return {"all": all(one.low <= 0 <= one.high for one in each)}

    study = dataclasses.replace(STUDIES["many heads"], repeat=repeat)
    rates, passed = observed(study, 30, 100)
    assert rates["all"] < 0.75
    assert passed == [False]


def test_a_probe_that_finds_position_is_no_control():
    def repeat(n, rng, truth):
        X, position, groups = simulate_sequences(n, rng)
        probe = PositionProbe().fit(X, position, groups=groups)
        return {"shifted": probe.interval("fixed_probe").low > 0, "permuted": probe.r2_}

    rates, passed = observed(dataclasses.replace(STUDIES["controls"], repeat=repeat), 30, 10)
    assert passed == [False, False]
    assert rates["shifted"] == 1.0


# --- the table


def test_same_seed_same_table_and_rows_do_not_depend_on_what_else_is_run():
    both = run(repetitions=20, sizes=[10], studies=["paired ratio", "many heads"], progress=False)
    alone = run(repetitions=20, sizes=[10], studies=["many heads"], progress=False)
    parallel = run(repetitions=20, sizes=[10], studies=["many heads"], progress=False, n_jobs=2)
    assert both.iloc[2:].reset_index(drop=True).equals(alone)
    assert parallel.equals(alone)
    assert not run(
        repetitions=20, sizes=[10], studies=["paired ratio"], progress=False, seed=1
    ).equals(both.iloc[:2])


def test_every_study_gives_a_row_for_each_measure_and_ticks_every_repetition():
    ticks = []
    for study in STUDIES.values():
        table = run_study(study, 10, 3, np.random.SeedSequence(0), tick=lambda: ticks.append(1))
        assert list(table["method"]) == [m.method for m in study.measures.values()]
        assert table["passed"].dtype == bool
    assert len(ticks) == 3 * len(STUDIES)


def test_monte_carlo_error_is_that_of_a_share():
    table = run(repetitions=200, sizes=[30], studies=["many heads"], progress=False)
    rate, error = table[["observed", "standard_error"]].iloc[0]
    assert error == pytest.approx(np.sqrt(rate * (1 - rate) / 199))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"studies": ["ratio"]}, "no calibration study 'ratio': choose from paired ratio"),
        ({"repetitions": 1}, "repetitions=1: a rate"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(DesignError, match=message):
        run(progress=False, **arguments)
