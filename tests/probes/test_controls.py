"""Control tasks: at chance, and one call for any probe."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from posprobe.errors import DesignError
from posprobe.probes import GroupRidgeCV, PositionProbe, permute_positions, shift_positions
from posprobe.probes.controls import with_controls


def make_positions(seed=0, sequences=40, rows=48, p=6, noise=0.3):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(1.0, rows + 1), sequences)
    X = np.log(y)[:, None] + noise * rng.normal(size=(len(y), p))
    return X, y, np.repeat(np.arange(sequences), rows)


@given(seed=st.integers(0, 1000), sequences=st.integers(1, 4), rows=st.integers(1, 9))
def test_one_permutation_serves_all_sequences(seed, sequences, rows):
    y = np.tile(np.arange(rows), sequences)
    permuted = permute_positions(y, seed).reshape(sequences, rows)
    assert (permuted == permuted[0]).all()
    assert sorted(permuted[0]) == list(range(rows))


@given(seed=st.integers(0, 1000), order=st.permutations(range(12)))
def test_shifts_are_circular_within_each_sequence(seed, order):
    y, groups = np.tile(np.arange(4), 3), np.repeat(np.arange(3), 4)
    # Sequences may be interleaved; what counts is the order of each one's rows.
    mixed = np.argsort(np.array(order) % 3, kind="stable")
    for rows in (np.arange(12), mixed[np.argsort(groups[mixed], kind="stable")]):
        shifted = shift_positions(y[rows], groups[rows], seed)
        for s in range(3):
            before, after = y[rows][groups[rows] == s], shifted[groups[rows] == s]
            assert any((np.roll(before, k) == after).all() for k in range(4))


def test_shifts_differ_between_sequences():
    y, groups = np.tile(np.arange(100), 20), np.repeat(np.arange(20), 100)
    first = shift_positions(y, groups, 0).reshape(20, 100)[:, 0]
    assert len(set(first.tolist())) > 10


def test_controls_are_at_chance_and_the_probe_is_not():
    table = with_controls(PositionProbe(), *make_positions()).set_index("control")
    assert table.index.tolist() == ["position", "permuted", "shifted"]
    assert table.loc["position", "r2"] > 0.7
    assert table.loc["permuted", "r2"] < 0.1
    assert abs(table.loc["shifted", "r2"]) < 0.05
    assert table.loc["permuted", "selectivity"] > 0.6
    assert table.loc["position", "selectivity"] == 0
    assert (table["low"] <= table["r2"] + 1e-9).all()


def test_a_probe_that_memorises_shows_in_its_selectivity():
    # One-hot positions: any relabelling can be learnt by heart, only the shift is at chance.
    rows, sequences = 24, 30
    y = np.tile(np.arange(rows), sequences)
    X, groups = np.eye(rows)[y], np.repeat(np.arange(sequences), rows)
    table = with_controls(PositionProbe(), X, y.astype(float), groups).set_index("control")
    assert table.loc["permuted", "selectivity"] < 0.01
    assert table.loc["shifted", "r2"] < 0.05


@pytest.mark.parametrize(
    "probe", [Ridge(), KNeighborsRegressor(), GroupRidgeCV(), PositionProbe("log_position")]
)
def test_any_probe_takes_controls_in_one_call(probe):
    table = with_controls(probe, *make_positions()).set_index("control")
    assert table.loc["position", "r2"] > 0.5 > 0.2 > table.loc["shifted", "r2"]
    assert (table["mae"] > 0).all()
    assert not hasattr(probe, "n_features_in_")
    assert (table["low"] < table["r2"]).all()
    assert (table["r2"] < table["high"]).all()


def test_the_interval_of_any_regressor_is_over_sequences():
    X, y, groups = make_positions(sequences=20, noise=3.0)
    ridge, same = (
        with_controls(probe, X, y, groups).loc[0, ["r2", "low", "high"]].astype(float)
        for probe in (PositionProbe(alphas=[1.0]), Ridge(alpha=1.0))
    )
    np.testing.assert_allclose(same, ridge, atol=0.02)
    # The same rows twice are no more sequences, and so no more certain.
    doubled = (np.repeat(each, 2, axis=0) for each in (X, y, groups))
    twice = with_controls(Ridge(alpha=1.0), *doubled).loc[0, ["r2", "low", "high"]]
    np.testing.assert_allclose(twice.astype(float), same, atol=0.02)


def test_too_few_sequences_have_no_interval():
    few = with_controls(Ridge(), *make_positions(sequences=12))
    assert few[["low", "high"]].isna().all(axis=None)


def test_the_same_seed_gives_the_same_controls():
    X, y, groups = make_positions(sequences=10)
    a, b, c = (with_controls(Ridge(), X, y, groups, random_state=seed) for seed in (1, 1, 2))
    assert a.equals(b)
    assert not a.equals(c)


def test_positions_without_sequences_are_refused():
    for groups in (np.arange(3), None):
        with pytest.raises(
            DesignError, match=r"groups .* for y \(4,\): give the sequence of every"
        ):
            shift_positions(np.arange(4), groups)
    with pytest.raises(DesignError, match="groups mix labels of several types"):
        shift_positions(np.arange(2), np.array([1, "a"], dtype=object))


def test_rows_without_a_sequence_are_refused():
    X, y, groups = make_positions()
    with pytest.raises(DesignError, match="groups contain NaN: give every row"):
        with_controls(Ridge(), X, y, np.where(groups == 3, np.nan, groups))
