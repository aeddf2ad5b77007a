"""The position probe: scores on sequences that it has not seen."""

import numpy as np
import pytest
from ridge_data import ALPHAS, make_positions
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GroupKFold,
    cross_val_predict,
)

from posprobe.errors import DesignError
from posprobe.probes import ClusterGram, PositionProbe, guess_error


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
