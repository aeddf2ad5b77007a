"""Bad input is handled right, or refused in one clear line."""

from unittest import mock

import numpy as np
import pytest
from ridge_data import ALPHAS, make_data, make_positions
from scipy.linalg import LinAlgWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GroupKFold,
)

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights
from posprobe.probes import ClusterGram, GroupRidgeCV, PositionProbe, VariancePartition
from posprobe.probes.controls import with_controls
from posprobe.probes.ridge.design import Design
from posprobe.probes.ridge.scored import replicate_interval


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
@pytest.mark.parametrize("what", ["X", "y", "groups"])
def test_complex_numbers_are_refused_in_one_line(estimator, what):
    X, y, groups = make_data()
    given = {"X": X, "y": y, "groups": groups}
    given[what] = given[what] + 1j
    with pytest.raises(DesignError, match=r"^Complex data not supported") as caught:
        estimator.fit(**given)
    assert "\n" not in caught.value.args[0]


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
    assert ours.interval(n_resamples=100) == without.interval(n_resamples=100)


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
    with pytest.warns(UserWarning, match="target 1 is the same in every row, so it has no R2"):
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
    found = probe.interval(estimand, weights=np.ones((20, 20)))
    assert found.unbounded
    assert found.method == "none: 20 equal replicates"
    with pytest.raises(DesignError, match=r"weights \(0, 20\) for 20 sequences: give one row"):
        probe.interval(estimand, weights=np.ones((0, 20)))


def test_a_probe_without_features_is_surely_at_zero():
    X, y, groups = make_positions()
    found = PositionProbe(alphas=[np.inf]).fit(X, y, groups=groups).interval()
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-12)
    assert found.low <= found.estimate <= found.high
