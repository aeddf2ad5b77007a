"""scikit-learn's own checks and customs, on the real classes."""

import numpy as np
import pandas as pd
import pytest
from ridge_data import ALPHAS, make_data
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from posprobe.errors import DesignError
from posprobe.probes import GroupRidgeCV, PositionProbe


@parametrize_with_checks([GroupRidgeCV(), GroupRidgeCV(alpha_per_target=True), PositionProbe()])
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


def test_column_names_of_several_types_are_taken_as_text():
    X, y, groups = make_data()
    frame = pd.DataFrame(X, columns=["a", 1, "b", 2, 3.5, ("c", 1), None, "d"])
    ours = GroupRidgeCV(feature_groups={"N": ["a", 1], "R": ["b", 2, 3.5, "('c', 1)", "None", "d"]})
    ours.fit(frame, y, groups=groups)
    assert ours.feature_names_in_.tolist() == ["a", "1", "b", "2", "3.5", "('c', 1)", "None", "d"]
    plain = GroupRidgeCV(feature_groups=[[0, 1], slice(2, 8)]).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.predict(frame), plain.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        ours.predict(frame.rename(columns={"a": "z"}))
    kinds = pd.Series(pd.Categorical(groups, categories=range(99)))
    assert PositionProbe().fit(frame, y, groups=kinds).n_sequences_ == 20


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
