"""Intervals of probes and of the scores of held-out sequences."""

import numpy as np
import pytest
from ridge_data import make_positions
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights
from posprobe.probes import PositionProbe


def test_the_two_estimands_have_their_own_intervals():
    X, y, groups = make_positions()
    probe = PositionProbe().fit(X, y, groups=groups)
    refit, fixed = probe.interval(), probe.interval("fixed_probe")
    assert (refit.estimand, refit.method, refit.n) == ("refit", "t", 20)
    assert (fixed.estimand, fixed.method, fixed.n) == ("fixed_probe", "t", 20)
    assert refit.estimate == fixed.estimate == probe.r2_
    assert refit.low + refit.high == pytest.approx(2 * probe.r2_)
    assert not refit.excludes(probe.r2_)
    # The scores of a held probe: resampling them is resampling a mean of 20 numbers.
    # Each also trains four of the five probes, which costs the factor.
    error = probe.sequence_scores_.std(ddof=1) / np.sqrt(20) * np.sqrt(20 / 8)
    wide = 2 * stats.t.isf(0.025, 19) * error
    assert fixed.high - fixed.low == pytest.approx(wide, rel=0.05)


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
