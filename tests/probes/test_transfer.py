"""A probe scored elsewhere: sums by brute force, known answers, no leak, coverage, refusals."""

import numpy as np
import pytest
from sklearn.base import clone

from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights, studentized_means
from posprobe.probes import Features, PositionProbe, between, transfer_scores
from posprobe.probes.transfer import MEASURES

N, T = 20, 24


def made(code, n=N, noise=0.3, seed=0, first=0, width=3):
    """Features that hold `code` of the position, of n sequences."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(1.0, T + 1), n)
    groups = np.repeat(np.arange(first, first + n), T)
    own = rng.normal(0, noise, (n, 1, width))
    X = code(y)[:, None] + (own + rng.normal(0, noise, (n, T, width))).reshape(-1, width)
    return Features(X, y, groups, {})


def line(y):
    return y / 4


def test_measures_are_those_of_brute_force_over_other_sequences():
    source, target = made(line), made(lambda y: y / 5 + 1, n=15, seed=1, first=100)
    probe = PositionProbe(alphas=[1.0])
    (row,) = transfer_scores(probe, source, {"there": target}, same_sequences=False).itertuples()
    found = clone(probe).fit(source.X, source.y, groups=source.groups).predict(target.X)
    y = target.y
    assert row.sequences == 15
    assert row.r2 == pytest.approx(1 - np.sum((y - found) ** 2) / np.sum((y - y.mean()) ** 2))
    assert row.error == pytest.approx(np.abs(y - found).mean())
    assert row.bias == pytest.approx((found - y).mean())
    each = found.reshape(15, T) @ (y[:T] - y[:T].mean()) / np.sum((y[:T] - y[:T].mean()) ** 2)
    assert row.slope == pytest.approx(each.mean())
    limits = studentized_means(each, cluster_weights(15, 2000, 0))
    np.testing.assert_allclose((row.slope_low, row.slope_high), limits)
    assert row.guess == pytest.approx((T * T - 1) / (3 * T))


def test_the_same_rows_give_the_score_of_the_probe_itself():
    """Each sequence is scored by a probe that never saw it, with the probe's own folds."""
    source = made(line)
    probe = PositionProbe(alphas=[1.0])
    row = transfer_scores(probe, source, {"itself": source}, same_sequences=True).iloc[0]
    fitted = clone(probe).fit(source.X, source.y, groups=source.groups)
    own = fitted.interval("fixed_probe")
    assert row["r2"] == pytest.approx(fitted.r2_)
    assert row["error"] == pytest.approx(fitted.mae_)
    assert row["r2_low"] == pytest.approx(own.low, abs=0.01)


def test_a_sequence_trains_no_probe_that_scores_it():
    """Features that only tell sequences apart: a probe that saw a sequence knows its positions."""
    rng = np.random.default_rng(0)
    y, groups = rng.permuted(np.tile(np.arange(8.0), (30, 1)), axis=1).ravel(), np.arange(240) // 8
    X = rng.normal(size=(240, 200))  # memorised, not generalised
    data = Features(X, y, groups, {})
    probe = PositionProbe(alphas=[1e-3])
    told = transfer_scores(probe, data, {"a": data}, same_sequences=False)["r2"][0]
    held = transfer_scores(probe, data, {"a": data}, same_sequences=True)["r2"][0]
    assert told > 0.5
    assert held < 0


@pytest.mark.parametrize(
    ("code", "slope", "bias"),
    [
        (line, 1.0, 0.0),
        (lambda y: np.minimum(y, 12) / 4, 0.0, -6.5),
        (lambda y: line(y) - 1, 1.0, -4),
    ],
    ids=["goes on", "saturates", "shifted"],
)
def test_slope_and_bias_say_how_a_code_goes_on(code, slope, bias):
    near = between(made(line, n=60, noise=0.02), 1, 13)
    far = between(made(code, n=60, noise=0.02, first=100), 13, T + 1)
    row = transfer_scores(PositionProbe(), near, {"far": far}, same_sequences=False).iloc[0]
    assert row["slope"] == pytest.approx(slope, abs=0.03)
    assert row["bias"] == pytest.approx(bias, abs=0.15)


@pytest.mark.parametrize("same", [True, False])
def test_intervals_cover_what_new_sequences_give(same):
    """Fixed probes on many new sequences, against the interval from 30."""
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(80):
        seeds = rng.integers(2**31, size=3)
        source = made(line, n=30, noise=1.0, seed=seeds[0], width=4)
        target = source if same else made(line, n=30, noise=1.0, seed=seeds[1], width=4)
        new = made(line, n=1000, noise=1.0, seed=seeds[2], width=4, first=1000)
        probe = PositionProbe(alphas=[1.0])
        found = transfer_scores(
            probe, source, {"a": target, "new": new}, same_sequences=same
        ).set_index("target")
        row, truth = found.loc["a"], found.loc["new"]
        hits.append([row[f"{m}_low"] <= truth[m] <= row[f"{m}_high"] for m in MEASURES])
    assert (np.mean(hits, axis=0) >= 0.85).all()


def test_few_sequences_have_no_interval_where_they_train_too():
    data = made(line, n=12)
    row = transfer_scores(PositionProbe(), data, {"a": data}, same_sequences=True).iloc[0]
    assert np.isnan([row["r2_low"], row["slope_high"]]).all()
    assert np.isfinite(row["r2"])


def test_rows_of_some_positions_are_kept():
    found = between(made(line), 5, 8)
    assert set(found.y) == {5, 6, 7}
    assert len(found.X) == len(found.groups) == 3 * N


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d._replace(X=d.X[:, :2]), "target 'a' has 2 features, the probe 3"),
        (lambda d: between(d, 4, 5), r"target 'a' has one position \(4\)"),
        (lambda d: between(made(line, n=1), 1, 9), "one sequence has no spread"),
        (
            lambda d: between(d, 50, 60, name="natural.h5"),
            r"natural\.h5: no position from 50 to 59",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    data = made(line)
    with pytest.raises(DesignError, match=message):
        transfer_scores(PositionProbe(), data, {"a": change(data)}, same_sequences=False)
