"""Ridge with a penalty per group of features, against scikit-learn's."""

import numpy as np
import pytest
from ridge_data import ALPHAS, MANY, make_data
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    PredefinedSplit,
    cross_val_predict,
)

from posprobe.errors import DesignError
from posprobe.probes import ClusterGram, GroupRidgeCV


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


@pytest.mark.parametrize(
    "feature_groups", [None, [[0, 1, 2], slice(3, 8)], [[0], [1, 2], slice(3, 8)]]
)
def test_a_penalty_for_each_target_is_that_of_the_target_alone(feature_groups, rng):
    X, y, groups = make_data()
    Y = np.c_[y, 0.1 * y + rng.normal(size=len(y)), rng.normal(size=len(y))]
    both = GroupRidgeCV(feature_groups=feature_groups, alpha_per_target=True)
    both.fit(X, Y, groups=groups)
    alone = [GroupRidgeCV(feature_groups=feature_groups).fit(X, t, groups=groups) for t in Y.T]
    np.testing.assert_array_equal(both.alpha_, [one.alpha_ for one in alone])
    assert len(np.unique(both.alpha_, axis=0)) == 3
    np.testing.assert_allclose(both.coef_, [one.coef_ for one in alone], atol=1e-12)
    np.testing.assert_allclose(both.intercept_, [one.intercept_ for one in alone])
    assert both.best_score_ == pytest.approx(np.mean([one.best_score_ for one in alone]))
    np.testing.assert_allclose(both.fold_mse_, np.hstack([one.fold_mse_ for one in alone]))
    np.testing.assert_allclose(both.cv_mse_, np.mean([one.cv_mse_ for one in alone], axis=0))
    gram = ClusterGram.from_arrays(X, Y, groups)
    again = GroupRidgeCV(feature_groups=feature_groups, alpha_per_target=True)
    again.fit_gram(gram, verify=[(X, Y, groups)])
    np.testing.assert_allclose(again.coef_, both.coef_)
    np.testing.assert_allclose(again.fold_mse_, both.fold_mse_)
    with pytest.raises(DesignError, match="target 3 is not among 0 to 2"):
        gram.target(3)


def test_one_target_has_one_penalty_for_each_group():
    X, y, groups = make_data()
    one = GroupRidgeCV(alpha_per_target=True).fit(X, y, groups=groups)
    assert one.alpha_.shape == (1,)
