"""GroupRidgeCV and PositionProbe: equal to brute force, at home in scikit-learn, clear refusals."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import LinAlgWarning
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights
from posprobe.probes import ClusterGram, GroupRidgeCV, PositionProbe, VariancePartition, guess_error
from posprobe.probes.controls import with_controls
from posprobe.probes.ridge.design import Design, make_design
from posprobe.probes.ridge.refit import refit_scores, weighted_fits
from posprobe.probes.ridge.scored import replicate_interval

ALPHAS = np.logspace(-1, 4, 12)
MANY = np.logspace(-1, 4, 41)


def make_data(seed=0, sequences=20, rows=16, p=8, signal=3):
    """Rows correlated within sequences; the first features carry the target."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(sequences), rows)
    X = 5 + rng.normal(size=(len(groups), p)) + rng.normal(size=(sequences, p))[groups]
    noise = 2 * rng.normal(size=len(groups)) + rng.normal(size=sequences)[groups]
    return X, X[:, :signal].sum(axis=1) + noise, groups


def make_positions(seed=0, sequences=20, rows=32, p=6, noise=0.2):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(1.0, rows + 1), sequences)
    X = np.log(y)[:, None] + noise * rng.normal(size=(len(y), p))
    X += noise * rng.normal(size=(sequences, p)).repeat(rows, axis=0)
    return X, y, np.repeat(np.arange(sequences), rows)


def scaled_ridge(X, y, scales):
    """Banded ridge by scikit-learn: penalty alpha is penalty 1 on features over sqrt(alpha)."""
    model = Ridge(alpha=1.0).fit(X / np.sqrt(scales), y)
    return model.coef_ / np.sqrt(scales), model.intercept_


@pytest.mark.parametrize("alphas", [ALPHAS, MANY], ids=["cholesky", "eigen"])
@pytest.mark.parametrize("targets", [1, 2])
def test_one_penalty_is_grid_search_over_ridge(alphas, targets):
    X, y, groups = make_data()
    y = y if targets == 1 else np.c_[y, X[:, 0] ** 2]
    ours = GroupRidgeCV(alphas=alphas).fit(X, y, groups=groups)
    grid = GridSearchCV(
        Ridge(), {"alpha": alphas}, cv=GroupKFold(5), scoring="neg_mean_squared_error"
    ).fit(X, y, groups=groups)
    assert ours.alpha_[0] == grid.best_params_["alpha"]
    np.testing.assert_allclose(ours.cv_mse_, -grid.cv_results_["mean_test_score"], rtol=1e-10)
    np.testing.assert_allclose(ours.coef_, grid.best_estimator_.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.intercept_, grid.best_estimator_.intercept_, rtol=1e-8)
    np.testing.assert_allclose(ours.predict(X), grid.predict(X), rtol=1e-8)


def test_the_best_score_is_r2_of_out_of_fold_predictions():
    X, y, groups = make_data()
    ours = GroupRidgeCV(alphas=ALPHAS).fit(X, y, groups=groups)
    out = cross_val_predict(Ridge(alpha=ours.alpha_[0]), X, y, groups=groups, cv=GroupKFold(5))
    assert ours.best_score_ == pytest.approx(r2_score(y, out), abs=1e-10)
    assert ours.best_score_ == ours.cv_scores_.max()


@pytest.mark.parametrize("columns", [[slice(0, 3), slice(3, 8)], [[7, 0, 2, 4, 5], [1, 3, 6]]])
def test_two_penalties_are_ridge_on_rescaled_features_everywhere_on_the_grid(columns):
    X, y, groups = make_data()
    grids = [np.array([0.5, 30.0, 2000.0]), np.array([1.0, 100.0])]
    ours = GroupRidgeCV(alphas=grids, feature_groups=columns).fit(X, y, groups=groups)
    scales, table = np.empty(8), np.empty((3, 2))
    for i, first in enumerate(grids[0]):
        for j, second in enumerate(grids[1]):
            scales[columns[0]], scales[columns[1]] = first, second
            out = cross_val_predict(
                Ridge(alpha=1.0), X / np.sqrt(scales), y, groups=groups, cv=GroupKFold(5)
            )
            table[i, j] = np.mean((y - out) ** 2)
    np.testing.assert_allclose(ours.cv_mse_, table, rtol=1e-10)
    scales[columns[0]], scales[columns[1]] = ours.alpha_
    coef, intercept = scaled_ridge(X, y, scales)
    np.testing.assert_allclose(ours.coef_, coef, rtol=1e-8)
    assert ours.intercept_ == pytest.approx(intercept)


def test_three_penalties_reach_a_point_that_no_single_change_improves():
    X, y, groups = make_data()
    grid = np.append(np.logspace(-1, 4, 6), np.inf)
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    ours = GroupRidgeCV(alphas=grid, feature_groups=labels).fit(X, y, groups=groups)
    best = float(ours.cv_mse_)
    for g in range(3):
        for alpha in grid:
            fixed = ours.alpha_.copy()
            fixed[g] = alpha
            one = GroupRidgeCV(alphas=[[a] for a in fixed], feature_groups=labels)
            assert float(one.fit(X, y, groups=groups).cv_mse_) >= best - 1e-10
    assert ours.best_score_ >= GroupRidgeCV(alphas=grid).fit(X, y, groups=groups).best_score_


def test_the_end_of_the_grid_leaves_a_group_out_exactly():
    X, y, groups = make_data()
    out = GroupRidgeCV(alphas=[[3.0], [np.inf]], feature_groups=[slice(0, 3), slice(3, 8)])
    alone = GroupRidgeCV(alphas=[3.0]).fit(X[:, :3], y, groups=groups)
    out.fit(X, y, groups=groups)
    np.testing.assert_allclose(out.coef_[:3], alone.coef_, rtol=1e-10)
    assert (out.coef_[3:] == 0).all()
    assert out.best_score_ == pytest.approx(alone.best_score_)
    empty = GroupRidgeCV(alphas=[np.inf]).fit(X, y, groups=groups)
    assert (empty.coef_ == 0).all()
    assert empty.intercept_ == pytest.approx(y.mean())
    assert empty.best_score_ <= 0


def test_the_default_penalties_follow_the_scale_of_the_data():
    X, y, groups = make_data()
    small, large = (GroupRidgeCV().fit(X * c, y, groups=groups) for c in (1e-4, 1e4))
    np.testing.assert_allclose(small.coef_ * 1e-4, large.coef_ * 1e4, rtol=1e-7)
    assert small.best_score_ == pytest.approx(large.best_score_, abs=1e-10)


def test_no_penalty_is_least_squares():
    X, y, groups = make_data()
    ours = GroupRidgeCV(alphas=[0.0]).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.coef_, LinearRegression().fit(X, y).coef_, rtol=1e-8)


def test_statistics_give_the_fit_of_the_data():
    X, y, groups = make_data()
    columns = [slice(0, 3), slice(3, 8)]
    rows = GroupRidgeCV(feature_groups=columns).fit(X, y, groups=groups)
    gram = ClusterGram.from_arrays(X, y, groups)
    ours = GroupRidgeCV(feature_groups=columns).fit_gram(gram)
    np.testing.assert_allclose(ours.coef_, rows.coef_, rtol=1e-9)
    np.testing.assert_allclose(ours.fold_mse_, rows.fold_mse_, rtol=1e-9)
    assert ours.predict(X) == pytest.approx(rows.predict(X))


def test_sequence_weights_are_repetitions_of_sequences():
    X, y, groups = make_data()
    weights = np.random.default_rng(1).integers(0, 3, size=20)
    folds = np.arange(20) % 4
    rows = np.concatenate(
        [np.flatnonzero(groups == s) for s in range(20) for _ in range(weights[s])]
    )
    ours = GroupRidgeCV(alphas=ALPHAS).fit_gram(
        ClusterGram.from_arrays(X, y, groups), weights=weights, folds=folds
    )
    split = PredefinedSplit(folds[groups[rows]])
    repeated = GroupRidgeCV(alphas=ALPHAS, cv=split).fit(X[rows], y[rows], groups=groups[rows])
    np.testing.assert_allclose(ours.coef_, repeated.coef_, rtol=1e-9)
    assert ours.best_score_ == pytest.approx(repeated.best_score_)


@pytest.mark.parametrize("targets", [1, 3])
def test_many_weighted_fits_are_ridge_with_sample_weights(targets, monkeypatch):
    X, y, groups = make_data()
    y = np.c_[y, X[:, 0] ** 2, X[:, 1]][:, :targets]
    monkeypatch.setattr("posprobe.probes.ridge.refit.BATCH_BYTES", 5000)
    gram = ClusterGram.from_arrays(X, y, groups)
    before, weights = gram.grams.copy(), cluster_weights(20, 12, 0)
    coef, intercept = weighted_fits(gram, weights, 3.0)
    for b, w in enumerate(weights):
        ridge = Ridge(alpha=3.0).fit(X, y, sample_weight=w[groups])
        np.testing.assert_allclose(coef[b], np.reshape(ridge.coef_, (targets, -1)).T, atol=1e-10)
        np.testing.assert_allclose(intercept[b], ridge.intercept_, atol=1e-9)
    np.testing.assert_array_equal(gram.grams, before)


def test_weighted_fits_know_constant_features_and_refuse_collinear_ones():
    X, y, groups = make_data()
    X[:, 4] = 1.0 + (groups == 3)
    gram = ClusterGram.from_arrays(X, y, groups)
    weights = np.ones((1, 20)) - np.eye(20)[[3]]
    coef, _ = weighted_fits(gram, weights, 0.0)
    rest = groups != 3
    expected = LinearRegression().fit(np.delete(X, 4, axis=1)[rest], y[rest])
    assert coef[0, 4, 0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.delete(coef[0, :, 0], 4), expected.coef_, rtol=1e-8)
    X[:, 4] = X[:, 5]
    with pytest.raises(DesignError, match="nearly singular"):
        weighted_fits(ClusterGram.from_arrays(X, y, groups), weights, 0.0)


def test_a_second_pass_restores_what_the_quadratic_form_cancels():
    X, y, groups = make_data()
    y = X[:, :3].sum(axis=1) + 1e-9 * np.random.default_rng(1).normal(size=len(X))
    gram = ClusterGram.from_arrays(X, y, groups)
    out = cross_val_predict(LinearRegression(), X, y, groups=groups, cv=GroupKFold(5))
    exact = np.mean((y - out) ** 2)
    blind = GroupRidgeCV(alphas=[0.0]).fit_gram(gram)
    sure = GroupRidgeCV(alphas=[0.0]).fit_gram(gram, verify=[(X, y, groups)])
    assert abs(blind.fold_mse_.mean() / exact - 1) > 1e-3
    assert sure.fold_mse_.mean() == pytest.approx(exact, rel=1e-3)


# --- scikit-learn's own checks, on the real classes


@parametrize_with_checks([GroupRidgeCV(), PositionProbe()])
def test_scikit_learn_conventions(estimator, check, monkeypatch):
    # Without it the array API check would skip itself.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


def test_it_works_in_a_pipeline_a_grid_search_and_cross_validation_with_routed_groups():
    X, y, groups = make_data()
    with config_context(enable_metadata_routing=True):
        ridge = GroupRidgeCV(alphas=ALPHAS, cv=3).set_fit_request(groups=True)
        pipe = make_pipeline(StandardScaler(), ridge)
        scores = cross_validate(pipe, X, y, cv=GroupKFold(4), params={"groups": groups})
        search = GridSearchCV(pipe, {"groupridgecv__cv": [2, 4]}, cv=GroupKFold(4), n_jobs=2)
        search.fit(X, y, groups=groups)
    assert (scores["test_score"] > 0.2).all()
    assert search.best_estimator_[-1].n_sequences_ == 20
    assert search.score(X, y) > 0.4


def test_routed_groups_reach_the_folds():
    X, y, groups = make_data()
    direct = make_pipeline(StandardScaler(), GroupRidgeCV()).fit(X, y, groupridgecv__groups=groups)
    assert direct[-1].n_sequences_ == 20
    assert make_pipeline(StandardScaler(), GroupRidgeCV()).fit(X, y)[-1].n_sequences_ == len(X)


def test_pandas_names_select_features():
    X, y, groups = make_data()
    frame = pd.DataFrame(X, columns=[f"x{j}" for j in range(8)])
    named = {"signal": ["x2", "x0", "x1"], "rest": [f"x{j}" for j in range(3, 8)]}
    ours = GroupRidgeCV(feature_groups=named).fit(frame, pd.Series(y), groups=pd.Series(groups))
    plain = GroupRidgeCV(feature_groups=[[0, 1, 2], slice(3, 8)]).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.coef_, plain.coef_)
    assert ours.feature_names_in_.tolist() == list(frame.columns)
    assert ours.group_dims_ == {"signal": 3, "rest": 5}
    scaled = make_pipeline(StandardScaler().set_output(transform="pandas"), ours)
    assert scaled.fit(frame, y)[-1].group_dims_ == {"signal": 3, "rest": 5}


def test_clone_keeps_parameters_and_forgets_the_fit():
    X, y, groups = make_data()
    probe = PositionProbe(target="log_position", alphas=[1.0, 10.0], cv=4)
    fresh = clone(probe.fit(X, np.abs(y), groups=groups))
    assert fresh.get_params() == probe.get_params()
    assert not hasattr(fresh, "coef_")


def test_any_splitter_that_keeps_sequences_whole_serves():
    X, y, groups = make_data()
    a = GroupRidgeCV(alphas=ALPHAS).fit(X, y, groups=groups)
    b = GroupRidgeCV(alphas=ALPHAS, cv=GroupKFold(5)).fit(X, y, groups=groups)
    c = GroupRidgeCV(alphas=ALPHAS, cv=list(GroupKFold(5).split(X, groups=groups)))
    assert a.best_score_ == b.best_score_ == c.fit(X, y, groups=groups).best_score_
    with pytest.raises(DesignError, match="cv splits sequence 0 between folds"):
        GroupRidgeCV(cv=KFold(5, shuffle=True, random_state=0)).fit(X, y, groups=groups)
    with pytest.raises(DesignError, match="cv leaves rows untested"):
        GroupRidgeCV(cv=list(GroupKFold(5).split(X, groups=groups))[:3]).fit(X, y, groups=groups)
    twice = [*GroupKFold(5).split(X, groups=groups)] * 2
    with pytest.raises(DesignError, match="test sets of cv overlap"):
        GroupRidgeCV(cv=twice).fit(X, y, groups=groups)


def test_rows_may_come_in_any_order():
    X, y, groups = make_data()
    order = np.random.default_rng(1).permutation(len(X))
    a = PositionProbe().fit(X, y, groups=groups)
    b = PositionProbe().fit(X[order], y[order], groups=groups[order])
    np.testing.assert_allclose(b.coef_, a.coef_, rtol=1e-8)
    np.testing.assert_allclose(b.sequence_sse_, a.sequence_sse_, rtol=1e-8)


# --- the position probe


def test_the_probe_is_scored_on_sequences_it_has_not_seen():
    X, y, groups = make_positions()
    probe = PositionProbe(alphas=ALPHAS).fit(X, y, groups=groups)
    out = cross_val_predict(Ridge(alpha=probe.alpha_[0]), X, y, groups=groups, cv=GroupKFold(5))
    assert probe.r2_ == pytest.approx(r2_score(y, out), abs=1e-10)
    assert probe.mae_ == pytest.approx(np.abs(y - out).mean())
    expected = [np.sum((y - out)[groups == s] ** 2) for s in range(20)]
    np.testing.assert_allclose(probe.sequence_sse_, expected)
    # Equal lengths, target = position: the sum of squares is T (T^2 - 1) / 12 in each sequence.
    np.testing.assert_allclose(probe.sequence_sst_, 32 * (32**2 - 1) / 12)
    assert probe.sequence_scores_.mean() == pytest.approx(probe.r2_)


def test_log_positions_are_regressed_as_logs_and_predicted_as_positions():
    X, y, groups = make_positions(noise=0.05)
    log = PositionProbe(target="log_position", alphas=ALPHAS).fit(X, y, groups=groups)
    plain = PositionProbe(alphas=ALPHAS).fit(X, np.log1p(y), groups=groups)
    assert log.r2_ == pytest.approx(plain.r2_)
    np.testing.assert_allclose(log.predict(X), np.expm1(plain.predict(X)))
    assert log.mae_ < PositionProbe(alphas=ALPHAS).fit(X, y, groups=groups).mae_ < log.mae_guess_


def test_unequal_lengths_give_a_ratio_of_sums():
    X, y, groups = make_positions()
    keep = y <= 8 + groups
    X, y, groups = X[keep], y[keep], groups[keep]
    probe = PositionProbe(alphas=[1.0]).fit(X, y, groups=groups)
    out = np.empty(len(y))
    for train, test in GroupKFold(5).split(X, groups=groups):
        out[test] = Ridge(alpha=1.0).fit(X[train], y[train]).predict(X[test])
    assert probe.r2_ == pytest.approx(r2_score(y, out), abs=1e-10)


@pytest.mark.parametrize("n", [2, 7, 255])
def test_the_error_of_a_guess_has_a_closed_form(n):
    positions = np.arange(5, 5 + n)
    brute = np.abs(positions[:, None] - positions).mean()
    assert guess_error(np.tile(positions, 3)) == pytest.approx((n * n - 1) / (3 * n))
    assert guess_error(positions) == pytest.approx(brute)


def test_a_probe_from_statistics_has_the_same_scores():
    X, y, groups = make_positions()
    rows = PositionProbe().fit(X, y, groups=groups)
    gram = ClusterGram.from_arrays(X, y, groups)
    probe = PositionProbe().fit_gram(gram)
    np.testing.assert_allclose(probe.sequence_sse_, rows.sequence_sse_, rtol=1e-8)
    np.testing.assert_allclose(probe.sequence_sst_, rows.sequence_sst_, rtol=1e-8)
    assert np.isnan(probe.mae_)
    sure = PositionProbe().fit_gram(gram, verify=[(X, y, groups)])
    np.testing.assert_allclose(sure.sequence_sse_, rows.sequence_sse_, rtol=1e-10)
    with pytest.raises(DesignError, match="the Gram has 2 targets"):
        PositionProbe().fit_gram(ClusterGram.from_arrays(X, np.c_[y, y], groups))


# --- intervals of the probe


def brute_force_replicate(X, y, groups, folds, weights, alphas):
    """Repeat sequences, keep their folds, search the whole grid with scikit-learn."""
    rows = np.concatenate(
        [np.flatnonzero(groups == s) for s in range(len(weights)) for _ in range(int(weights[s]))]
    )
    X, y, split = X[rows], y[rows], PredefinedSplit(folds[groups[rows]])
    scores = [r2_score(y, cross_val_predict(Ridge(alpha=a), X, y, cv=split)) for a in alphas]
    return max(scores)


@pytest.mark.parametrize("alphas", [ALPHAS, MANY])
def test_a_refit_replicate_repeats_everything(alphas):
    X, y, groups = make_data()
    probe = PositionProbe(alphas=alphas).fit(X, y, groups=groups)
    weights = cluster_weights(20, 10, 0)
    gram, folds = probe.gram_, probe.fold_of_sequence_
    design = make_design(gram.sum(), gram.shift, probe.feature_groups_, alphas)
    ours = refit_scores(gram, folds, design, [(0,)], [(3,)], weights.astype(float))
    brute = [brute_force_replicate(X, y, groups, folds, w, alphas) for w in weights]
    np.testing.assert_allclose(ours[:, 0], brute, rtol=1e-9)


def test_replicates_do_not_depend_on_batches_or_processes(monkeypatch):
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    whole = probe.interval(n_resamples=12)
    monkeypatch.setattr("posprobe.probes.ridge.refit.BATCH_BYTES", 5000)
    again = probe.interval(n_resamples=12, n_jobs=2)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), rel=1e-9)


def test_the_two_estimands_have_their_own_intervals():
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    refit, fixed = probe.interval(), probe.interval("fixed_probe")
    assert (refit.estimand, refit.method, refit.n) == ("refit", "t", 20)
    assert (fixed.estimand, fixed.method, fixed.n) == ("fixed_probe", "percentile", 20)
    assert refit.estimate == fixed.estimate == probe.r2_
    assert refit.low + refit.high == pytest.approx(2 * probe.r2_)
    assert not refit.excludes(probe.r2_)
    # The scores of a held probe: resampling them is resampling a mean of 20 numbers.
    error = probe.sequence_scores_.std() / np.sqrt(20)
    assert fixed.high - fixed.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_shared_weights_give_the_same_replicates():
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    weights = cluster_weights(20, 2000, 0)
    given = probe.interval("fixed_probe", weights=weights)
    assert given == probe.interval("fixed_probe", random_state=0)
    assert given != probe.interval("fixed_probe", random_state=1)
    with pytest.raises(DesignError, match=r"weights \(5, 19\) for 20 sequences"):
        probe.interval(weights=np.ones((5, 19)))


def test_what_cannot_be_resampled_is_said():
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    with pytest.raises(DesignError, match="estimand 'both' is unknown"):
        probe.interval("both")
    with pytest.raises(DesignError, match="rows were not grouped into sequences"):
        PositionProbe().fit(X, y).interval()
    light = PositionProbe(keep_gram=False).fit(X, y, groups=groups)
    assert light.r2_ == pytest.approx(probe.r2_)
    assert light.interval("fixed_probe").n == 20
    with pytest.raises(DesignError, match="fit with keep_gram=True"):
        light.interval()


# --- bad input: right, or refused in one clear line


def test_a_constant_feature_gets_no_weight_with_and_without_penalty():
    X, y, groups = make_data()
    X[:, 4] = 1e5 + 1 / 3
    for alphas in ([0.0], ALPHAS, None):
        ours = GroupRidgeCV(alphas=alphas).fit(X, y, groups=groups)
        without = GroupRidgeCV(alphas=alphas).fit(np.delete(X, 4, axis=1), y, groups=groups)
        assert ours.coef_[4] == 0
        if alphas is not None:
            np.testing.assert_allclose(np.delete(ours.coef_, 4), without.coef_, rtol=1e-8)


def test_a_group_that_varies_in_one_sequence_only_is_missing_from_that_fold():
    X, y, groups = make_data()
    X[:, 3:] = np.where((groups == 7)[:, None], X[:, 3:], 2.0)
    ours = GroupRidgeCV(alphas=[[1.0], [0.0]], feature_groups=[slice(0, 3), slice(3, 8)])
    ours.fit(X, y, groups=groups)
    assert np.isfinite(ours.best_score_)
    fold = next(
        k for k, (_, test) in enumerate(GroupKFold(5).split(X, groups=groups)) if 7 in groups[test]
    )
    assert (ours.fold_coef_[fold, 3:] == 0).all()
    assert (ours.fold_coef_[fold - 1, 3:] != 0).all()


@pytest.mark.parametrize("feature_groups", [None, [slice(0, 8), slice(8, 11)]])
def test_collinear_features_are_refused_without_penalty_and_said_within_a_grid(feature_groups):
    X, y, groups = make_data()
    X = np.c_[X, X[:, :3] @ np.ones((3, 3)) + X[:, 5:8]]
    X[:, 9] = X[:, 8]
    with pytest.raises(DesignError, match="nearly singular at every penalty tried"):
        GroupRidgeCV(alphas=[0.0], feature_groups=feature_groups).fit(X, y, groups=groups)
    ours = GroupRidgeCV(alphas=[0.0, 10.0], feature_groups=feature_groups)
    with pytest.warns(LinAlgWarning, match="penalties refused: with them a training Gram"):
        ours.fit(X, y, groups=groups)
    assert np.isinf(ours.cv_mse_.ravel()[0])
    assert np.isfinite(ours.best_score_)


def test_collinear_features_in_three_groups_are_refused_and_said_too():
    X, y, groups = make_data()
    X[:, 7] = X[:, :3].sum(axis=1)
    three = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    with pytest.raises(DesignError, match="nearly singular at every penalty tried"):
        GroupRidgeCV(alphas=[0.0], feature_groups=three).fit(X, y, groups=groups)
    ours = GroupRidgeCV(alphas=[0.0, 10.0], feature_groups=three)
    with pytest.warns(LinAlgWarning, match="penalties refused"):
        ours.fit(X, y, groups=groups)
    assert np.isfinite(ours.best_score_)


def test_equal_groups_share_the_weight():
    X, y, groups = make_data()
    both = GroupRidgeCV(alphas=[10.0], feature_groups=[slice(0, 8), slice(8, 16)])
    both.fit(np.c_[X, X], y, groups=groups)
    np.testing.assert_allclose(both.coef_[:8], both.coef_[8:], rtol=1e-8)
    single = GroupRidgeCV(alphas=[5.0]).fit(X, y, groups=groups)
    np.testing.assert_allclose(2 * both.coef_[:8], single.coef_, rtol=1e-8)


def test_more_features_than_rows():
    X, y, groups = make_data(sequences=6, rows=4, p=60)
    ours = GroupRidgeCV(alphas=[3.0], cv=3).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.coef_, Ridge(alpha=3.0).fit(X, y).coef_, rtol=1e-7, atol=1e-10)
    assert np.isfinite(GroupRidgeCV(cv=3).fit(X, y, groups=groups).best_score_)
    with pytest.raises(DesignError, match="nearly singular at every penalty"):
        GroupRidgeCV(alphas=[0.0], cv=3).fit(X, y, groups=groups)


def test_float16_features_are_as_good_as_their_values():
    X, y, groups = make_data()
    narrow = X.astype(np.float16)
    a = PositionProbe(alphas=ALPHAS).fit(narrow, y, groups=groups)
    b = PositionProbe(alphas=ALPHAS).fit(narrow.astype(float), y, groups=groups)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-12)
    assert a.r2_ == pytest.approx(b.r2_, rel=1e-12)


@pytest.mark.parametrize("estimator", [GroupRidgeCV(), PositionProbe()])
def test_bad_rows_are_refused_with_the_sequence(estimator):
    X, y, groups = make_data()
    names = np.array([f"text {s}" for s in range(20)])[groups]
    X[40, 5] = np.nan
    with pytest.raises(DesignError, match="sequence text 2: column 5 of X is NaN"):
        estimator.fit(X, y, groups=names)
    X[40, 5] = -np.inf
    with pytest.raises(DesignError, match="sequence text 2: column 5 of X is inf"):
        estimator.fit(X, y, groups=names)


@pytest.mark.parametrize("estimator", [GroupRidgeCV(), PositionProbe(), VariancePartition()])
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_bad_targets_are_refused_with_the_sequence(estimator, value, said):
    X, y, groups = make_data()
    y[40] = value
    match = f"sequence 2: column 0 of y is {said} .* give every row a finite target"
    with pytest.raises(DesignError, match=match):
        estimator.fit(X, y, groups=groups)
    with pytest.raises(DesignError, match=match):
        with_controls(estimator, X, y, groups)


def test_a_second_pass_must_hold_the_same_rows():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    for estimator in (GroupRidgeCV(), PositionProbe()):
        with pytest.raises(DesignError, match="verify holds 15 rows of sequence 0, the stat"):
            estimator.fit_gram(gram, verify=[(X[1:], y[1:], groups[1:])])
        bad = X.copy()
        bad[-1, 3] = np.nan
        with pytest.raises(DesignError, match="sequence 19: column 3 of X is NaN"):
            estimator.fit_gram(gram, verify=[(bad, y, groups)])


def test_a_fold_without_rows_is_no_fold():
    X, y, groups = make_positions()
    halves = [np.flatnonzero(groups % 2 == k) for k in (0, 1)]
    cv = [(halves[1], halves[0]), (halves[0], halves[0][:0]), (halves[0], halves[1])]
    ours, without = (PositionProbe(cv=c).fit(X, y, groups=groups) for c in (cv, cv[::2]))
    assert ours.r2_ == without.r2_
    assert ours.interval(n_resamples=10) == without.interval(n_resamples=10)


@pytest.mark.parametrize("sequences", [1, 3])
def test_too_few_sequences_are_refused(sequences):
    X, y, groups = make_data()
    with pytest.raises(DesignError, match=f"5 folds over {sequences} sequences"):
        GroupRidgeCV().fit(X, y, groups=groups % sequences)
    with pytest.raises(DesignError, match=f"5 folds over {sequences} sequences"):
        GroupRidgeCV().fit_gram(ClusterGram.from_arrays(X, y, groups % sequences))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"alphas": [1.0, -1.0]}, "give penalties >= 0"),
        ({"alphas": [np.nan]}, "give penalties >= 0"),
        ({"alphas": []}, "give penalties >= 0"),
        ({"alphas": [[1.0], [2.0]]}, "alphas has 2 grids for 1 feature groups"),
        ({"feature_groups": [[0, 1], [1, 2, 3, 4, 5, 6, 7]]}, r"columns \[1\] are in two"),
        ({"feature_groups": [[0, 1]]}, r"columns \[2, 3, 4, 5, 6\] are in no feature group"),
        ({"feature_groups": [0, 1, 0]}, "labels 3 columns, X has 8"),
        ({"feature_groups": {"N": ["z"]}}, "'N': X has no column named 'z'"),
        ({"feature_groups": {"N": slice(0, 8), "R": []}}, "'R' has no columns"),
        ({"feature_groups": {"N": slice(0, 8), "R": [9]}}, "'R': columns must be integers from 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, match):
    X, y, groups = make_data()
    with pytest.raises(DesignError, match=match):
        GroupRidgeCV(**parameters).fit(X, y, groups=groups)


def test_targets_that_make_no_sense_are_refused():
    X, y, groups = make_positions()
    with pytest.raises(DesignError, match="target 'depth' is unknown"):
        PositionProbe(target="depth").fit(X, y, groups=groups)
    with pytest.raises(DesignError, match=r"position -3 has no log\(1 \+ position\)"):
        PositionProbe(target="log_position").fit(X, y - 4, groups=groups)
    with pytest.raises(DesignError, match="y is 0 in every row"):
        PositionProbe().fit(X, 0 * y, groups=groups)


def test_weights_that_make_no_sense_are_refused():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    for weights in (np.ones(19), -np.ones(20), np.full(20, np.nan)):
        with pytest.raises(DesignError, match="give one finite weight >= 0 each"):
            GroupRidgeCV().fit_gram(gram, weights=weights)
    with pytest.raises(DesignError, match="fewer than two folds have rows"):
        GroupRidgeCV().fit_gram(gram, folds=np.zeros(20))
    for folds in (np.arange(3), np.full(20, np.nan)):
        with pytest.raises(DesignError, match="for 20 sequences: give one fold to each"):
            GroupRidgeCV().fit_gram(gram, folds=folds)


def test_two_sequences_have_no_refit_interval():
    X, y, groups = make_positions(sequences=2)
    found = PositionProbe(cv=2).fit(X, y, groups=groups).interval()
    assert found.unbounded
    assert "of 200 replicates have no fit" in found.method


def test_replicates_without_a_fit_are_no_interval():
    X, y, groups = make_positions(sequences=3)
    found = PositionProbe(cv=3).fit(X, y, groups=groups).interval()
    assert found.unbounded
    assert "replicates have no fit" in found.method
    assert not PositionProbe(cv=5).fit(*make_positions(sequences=6)[:2],
        groups=make_positions(sequences=6)[2]).interval().unbounded  # fmt: skip


def failing_once(search):
    """A search that meets a collinear draw the first time it is asked."""
    calls = iter([True])

    def fails(*arguments):
        if next(calls, False):
            raise DesignError("nearly singular at every penalty")
        return search(*arguments)

    return fails


def test_a_collinear_replicate_does_not_take_the_others_along():
    X, y, groups = make_positions(sequences=8, p=2)
    probe = PositionProbe(alphas=[0.0], cv=4).fit(X, y, groups=groups)
    weights = cluster_weights(8, 100, rng=0)
    refitted = [np.isfinite(probe.interval(weights=weights).low)]
    with mock.patch.object(Design, "search", failing_once(Design.search)):
        refitted.append(np.isfinite(probe.interval(weights=weights).low))
    assert refitted == [True, True]


def test_a_constant_target_is_said():
    X, y, groups = make_data()
    both = np.column_stack([y, np.ones(len(y))])
    with pytest.warns(UserWarning, match="target 1 is the same in every row, so that it has no R2"):
        GroupRidgeCV().fit(X, both, groups=groups)
    gram = ClusterGram.from_arrays(X, np.full(len(y), 7.0), groups)
    with pytest.raises(DesignError, match="the target is the same in every row"):
        PositionProbe().fit_gram(gram)


def test_arguments_that_make_no_sense_are_refused():
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    for weights in (-np.ones((3, 20)), np.full((3, 20), np.nan), np.zeros((3, 20))):
        with pytest.raises(DesignError, match="weights of replicates must be finite, >= 0"):
            probe.interval(weights=weights)
    for empty in ({}, []):
        with pytest.raises(DesignError, match="feature_groups is empty: name at least one group"):
            GroupRidgeCV(feature_groups=empty).fit(X, y, groups=groups)
    with pytest.raises(DesignError, match="fit_gram takes a ClusterGram, not ndarray: use fit"):
        PositionProbe().fit_gram(X)
    with pytest.raises(DesignError, match="all weights are 0: give some sequence a weight"):
        PositionProbe().fit_gram(ClusterGram.from_arrays(X, y, groups), weights=np.zeros(20))
    mixed = np.array(["a", *groups[1:].tolist()], dtype=object)
    with pytest.raises(DesignError, match="groups mix labels of several types"):
        PositionProbe().fit(X, y, groups=mixed)
    with pytest.raises(DesignError, match=r"groups .* for y .*: give the sequence of every"):
        with_controls(PositionProbe(), X, y, None)


def test_what_differs_by_rounding_alone_has_its_estimate_in_its_interval():
    draws = 1.2e-15 + 1e-16 * np.arange(200)
    found = replicate_interval(1e-15, draws, 20, "fixed_probe", 0.95)
    assert found.low == found.estimate == found.high


@pytest.mark.parametrize("estimator", [GroupRidgeCV(), PositionProbe(cv="in-sample")])
def test_groups_that_are_no_labels_of_rows_are_refused(estimator):
    X, y, groups = make_positions()
    for bad in (np.c_[groups, groups], groups[:, None]):
        with pytest.raises(
            DesignError, match=r"groups \(640, .\): give one sequence label per row"
        ):
            estimator.fit(X, y, groups=bad)
    lost = groups.astype(object)
    lost[3] = None
    with pytest.raises(DesignError, match="groups mix labels of several types"):
        estimator.fit(X, y, groups=lost)


@pytest.mark.parametrize("estimand", ["refit", "fixed_probe"])
def test_equal_replicates_are_no_interval(estimand):
    probe = PositionProbe().fit(*make_positions()[:2], groups=make_positions()[2])
    found = probe.interval(estimand, weights=np.ones((5, 20)))
    assert found.unbounded
    assert found.method == "none: 5 equal replicates"
    with pytest.raises(DesignError, match=r"weights \(0, 20\) for 20 sequences: give one row"):
        probe.interval(estimand, weights=np.ones((0, 20)))


def test_a_probe_without_features_is_surely_at_zero():
    X, y, groups = make_positions()
    found = PositionProbe(alphas=[np.inf]).fit(X, y, groups=groups).interval()
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-12)
    assert found.low <= found.estimate <= found.high
