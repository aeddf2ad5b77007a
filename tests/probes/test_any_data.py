"""Any data for the probes: the right numbers, or a refusal in one line."""

import traceback
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from ridge_data import make_positions
from scipy.linalg import LinAlgWarning

from posprobe import GroupRidgeCV, PositionProbe, VariancePartition
from posprobe.errors import PosprobeError
from posprobe.intervals import cluster_weights

X, Y, GROUPS = make_positions(sequences=6, rows=8, p=4)
FEATURE_GROUPS = {"N": [0, 1], "R": [2, 3]}
ESTIMATORS = {
    "ridge": lambda: GroupRidgeCV(cv=3),
    "grouped": lambda: GroupRidgeCV(cv=3, feature_groups=FEATURE_GROUPS),
    "probe": lambda: PositionProbe(cv=3),
    "partition": lambda: VariancePartition(FEATURE_GROUPS, cv=3),
}
KINDS = st.sampled_from([*ESTIMATORS])
HOSTILE = ["$a_b^c$", "=1+1", "new\nline", "\x1b]0;t\x07", "\u202e", "", " ", "a" * 300, "<b>"]


def attempt(kind, X, y, groups):
    """Predictions and scores of an estimator, or why it refuses."""
    reason = None
    try:
        with warnings.catch_warnings():
            for said in (UserWarning, LinAlgWarning):  # in words of their own
                warnings.simplefilter("ignore", said)
            found = fit(ESTIMATORS[kind](), X, y, groups)
    except PosprobeError as error:
        reason = str(error)
    except (TypeError, ValueError) as error:
        if not is_of_scikit_learn(error):
            raise
        reason = str(error)  # in the words that scikit-learn's own checks ask for
    if reason is None:
        assert all(np.isfinite(values).all() for values in found)
        return found, None
    assert "\n" not in reason, reason
    event(f"refused: {reason[:60]}")
    return None, reason


def fit(estimator, X, y, groups):
    estimator.fit(X, y, groups=groups)
    weights = cluster_weights(estimator.n_sequences_, 10, 0)
    if isinstance(estimator, PositionProbe):
        estimator.interval(weights=weights)
    if isinstance(estimator, VariancePartition):
        estimator.intervals(weights=weights)
    return estimator.predict(X), np.ravel(estimator.coef_)


def is_of_scikit_learn(error):
    """Whether an error comes from scikit-learn's validation of its input."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name in ("validate_data", "check_array") for frame in frames)


REFERENCE = {kind: attempt(kind, X, Y, GROUPS)[0] for kind in ESTIMATORS}


def framed(draw):
    """The same numbers as a DataFrame under hostile names, with any index."""
    names = draw(st.permutations(HOSTILE))[: X.shape[1]]
    frame = pd.DataFrame(X, columns=names, index=draw(st.sampled_from([None, [0] * len(X)])))
    return frame.astype(draw(st.sampled_from(["f8", "Float64", object])))


def labelled(draw):
    """The same sequences under other names, in the same order."""
    names = draw(
        st.sampled_from(
            [
                np.arange(6) * 10.0 - 30,
                np.array([f"s{n}" for n in range(6)]),
                np.array([f"{n}\x1b]0;\n" for n in range(6)], dtype=object),
                pd.Categorical.from_codes(range(6), [*"abcdef", "unused"]),
                pd.Series([*"abcdef"], index=[0] * 6),
                pd.date_range("2000", periods=6),
                np.arange(6, dtype=np.uint8),
            ]
        )
    )
    return names.iloc[GROUPS] if isinstance(names, pd.Series) else names[GROUPS]


@given(kind=KINDS, data=st.data())
@settings(max_examples=60)
def test_form_changes_nothing(kind, data):
    y = data.draw(st.sampled_from([Y, Y[:, None], pd.Series(Y, index=[0] * len(Y)), Y.tolist()]))
    found, reason = attempt(kind, framed(data.draw), y, labelled(data.draw))
    assert reason is None
    for values, expected in zip(found, REFERENCE[kind], strict=True):
        np.testing.assert_allclose(np.ravel(values), np.ravel(expected), rtol=1e-9, atol=1e-12)


@given(scale=st.integers(-140, 300), column=st.integers(0, 3))
@settings(max_examples=60)
def test_the_unit_of_a_feature_changes_nothing_or_is_refused(scale, column):
    feature = X[:, [column]]
    found, reason = attempt("ridge", feature * 10.0**scale, Y, GROUPS)
    if reason is None:
        np.testing.assert_allclose(found[0], attempt("ridge", feature, Y, GROUPS)[0][0], rtol=1e-6)
    else:
        assert scale > 150, reason


ODD = [np.nan, np.inf, -np.inf, None, 0.0, 1e308, -1e308, 5e-324, "1", "x", True, 1j, pd.NaT, (1,)]
ODD += [np.float32(3), b"x", [], 2**70, -(2**70)]
SHAPES = ["cells", "constant columns", "constant target", "one group", "groups", "few", "twice"]


@st.composite
def spoiled(draw):
    """Features, targets and groups of which something is odd."""
    x, y, groups = X.astype(object), Y.astype(object), GROUPS.astype(object)
    for kind in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)):
        value = draw(st.sampled_from(ODD))
        if kind == "cells":
            x[draw(st.integers(0, len(x) - 1)), draw(st.integers(0, 3))] = value
        elif kind == "constant columns":
            for column in draw(st.sets(st.integers(0, 3), min_size=1)):
                x[:, column] = 1.0 if isinstance(value, list | tuple) else value
        elif kind == "constant target":
            y[:] = 1.0 if isinstance(value, list | tuple) else value
        elif kind == "one group":
            groups[:] = 0
        elif kind == "groups":
            groups[draw(st.integers(0, len(x) - 1))] = value
        elif kind == "few":
            n = draw(st.integers(0, 20))
            x, y, groups = x[:n], y[:n], groups[:n]
        else:
            x, y, groups = np.r_[x, x], np.r_[y, y], np.r_[groups, groups]
        if not len(x):
            break
    if draw(st.booleans()):
        x = pd.DataFrame(x).infer_objects()
        y, groups = pd.Series(y).infer_objects(), pd.Series(groups).infer_objects()
    return x, y, groups if draw(st.booleans()) else None


@given(KINDS, spoiled())
@settings(max_examples=150)
def test_any_data_are_fitted_or_refused(kind, data):
    attempt(kind, *data)


@pytest.mark.slow
@given(KINDS, spoiled())
@settings(max_examples=3000)
def test_very_many_data_are_fitted_or_refused(kind, data):
    attempt(kind, *data)
