"""Replicates: every fit and every choice of a penalty is repeated."""

import numpy as np
import pytest
from ridge_data import ALPHAS, MANY, make_data, make_positions
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    PredefinedSplit,
    cross_val_predict,
)

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights
from posprobe.probes import ClusterGram, PositionProbe
from posprobe.probes.ridge.design import make_design
from posprobe.probes.ridge.refit import refit_scores, weighted_fits


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


def brute_force_replicate(X, y, groups, folds, weights, alphas):
    """Repeat sequences, keep their folds, search the whole grid with scikit-learn."""
    rows = np.concatenate(
        [np.flatnonzero(groups == s) for s in range(len(weights)) for _ in range(int(weights[s]))]
    )
    X, y, split = X[rows], y[rows], PredefinedSplit(folds[groups[rows]])
    targets = np.tile(y[:, None], len(alphas))  # one for each penalty: scikit-learn fits them all
    predicted = cross_val_predict(Ridge(alpha=alphas), X, targets, cv=split)
    return max(r2_score(targets, predicted, multioutput="raw_values"))


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
    whole = probe.interval(n_resamples=100)
    monkeypatch.setattr("posprobe.probes.ridge.refit.BATCH_BYTES", 5000)
    again = probe.interval(n_resamples=100, n_jobs=2)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), rel=1e-9)
