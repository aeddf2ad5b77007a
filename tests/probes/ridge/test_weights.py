"""Sample weights: a row that counts twice is one given twice, a row that counts 0 is not there."""

import numpy as np
import pytest
from ridge_data import make_data
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit

from posprobe import GroupRidgeCV, PositionProbe, VariancePartition
from posprobe.errors import DesignError
from posprobe.probes import ClusterGram

X, Y, GROUPS = make_data()
FOLDS = GROUPS % 4
NAMES = {"N": [0, 1], "R": slice(2, X.shape[1])}
KINDS = {
    "ridge": lambda cv: GroupRidgeCV(cv=cv, feature_groups=NAMES),
    "probe": lambda cv: PositionProbe(cv=cv),
    "log probe": lambda cv: PositionProbe(cv=cv, target="log_position"),
    "partition": lambda cv: VariancePartition(NAMES, cv=cv),
}
RESULTS = ("coef_", "intercept_", "alpha_", "best_score_", "cv_mse_", "fold_mse_", "fold_coef_")
RESULTS += ("r2_", "mae_", "sequence_sse_", "sequence_sst_", "sequence_scores_", "sequences_")


def fitted(kind, rows, weights=None):
    estimator = KINDS[kind](PredefinedSplit(FOLDS[rows]))
    return estimator.fit(X[rows], np.abs(Y[rows]), groups=GROUPS[rows], sample_weight=weights)


def assert_same(one, other):
    for name in RESULTS:
        assert hasattr(one, name) == hasattr(other, name)
        if hasattr(one, name):
            found, expected = (np.asarray(getattr(x, name)) for x in (one, other))
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_weights_repeat_rows_and_zeros_leave_them_out(kind, rng):
    weights = rng.integers(0, 4, len(X))
    weights[GROUPS == 3] = 0  # a whole sequence
    repeated = np.repeat(np.arange(len(X)), weights)
    weighted, plain = fitted(kind, np.arange(len(X)), weights), fitted(kind, repeated)
    assert_same(weighted, plain)
    if kind == "probe":
        draws = dict(n_resamples=100, random_state=1)
        for estimand in ("refit", "fixed_probe"):
            found, expected = (e.interval(estimand, **draws) for e in (weighted, plain))
            np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_change_nothing_but_the_scale_of_penalties(kind):
    every = np.arange(len(X))
    twice, plain = fitted(kind, every, np.full(len(X), 2.0)), fitted(kind, every)
    np.testing.assert_allclose(twice.coef_, plain.coef_, rtol=1e-7)
    np.testing.assert_allclose(twice.alpha_, 2 * plain.alpha_)
    assert twice.best_score_ == pytest.approx(plain.best_score_)


def test_coefficients_are_those_of_a_weighted_ridge(rng):
    weights = rng.uniform(0.1, 3, len(X))
    ours = GroupRidgeCV(alphas=[2.0]).fit(X, Y, groups=GROUPS, sample_weight=weights)
    theirs = Ridge(2.0).fit(X, Y, sample_weight=weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_)
    assert ours.intercept_ == pytest.approx(theirs.intercept_)


def test_statistics_of_weighted_rows_are_weighted_sums(rng):
    weights = rng.uniform(0.1, 3, len(X))
    order = rng.permutation(len(X))  # rows of a sequence need not be adjacent
    gram = ClusterGram.from_arrays(X[order], Y[order], GROUPS[order], weights=weights[order])
    one = np.column_stack([X, np.ones(len(X)), Y])
    shift = np.insert(gram.shift, X.shape[1], 0.0)
    for label, found in zip(gram.groups, gram.grams, strict=True):
        rows = (one - shift)[label == GROUPS]
        np.testing.assert_allclose(found, rows.T * weights[label == GROUPS] @ rows, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(len(X)), "at least one non-zero number|of a fold are 0"),
        ((FOLDS != 2).astype(float), "all sample weights of a fold are 0: lower cv"),
        (np.where(GROUPS == 1, -1.0, 1.0), "Negative values in data passed to"),
        (np.where(GROUPS == 1, np.nan, 1.0), "Input sample_weight contains NaN"),
        (np.ones(3), r"sample_weight.shape == \(3,\), expected"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_line(weights, message):
    with pytest.raises(DesignError, match=message) as caught:
        fitted("probe", np.arange(len(X)), weights)
    assert "\n" not in str(caught.value)
