"""ClusterGram: the same statistic, however the data arrive, and the same fit from it."""

import pickle

import h5py
import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posprobe.errors import DesignError, StoreError
from posprobe.probes import ClusterGram


def make_data(seed=0, sequences=6, rows=8, p=4, t=2, offset=100.0):
    """Features far from zero, so that a lost shift would show."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(sequences), rows)
    X = rng.normal(offset, 1.0, size=(len(groups), p))
    y = X[:, :t] @ rng.normal(size=(t, t)) + rng.normal(size=(len(groups), t))
    return X, y, groups


def centred(gram):
    """Centred cross-products of all sequences: what every fit depends on."""
    total, p = gram.sum(), gram.n_features
    keep = np.delete(np.arange(len(total)), p)
    edge = total[p, keep]
    return total[np.ix_(keep, keep)] - np.outer(edge, edge) / total[p, p]


def least_squares(gram):
    """Coefficients of the unpenalised fit."""
    products, p = centred(gram), gram.n_features
    return np.linalg.solve(products[:p, :p], products[:p, p:])


def test_the_products_are_those_of_the_shifted_columns():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    for s in range(6):
        rows = groups == s
        Z = np.c_[X[rows] - gram.shift[:4], np.ones(rows.sum()), y[rows] - gram.shift[4:]]
        np.testing.assert_allclose(gram.grams[s], Z.T @ Z, rtol=1e-12, atol=1e-12)
    assert gram.n_rows.tolist() == [8] * 6
    assert (gram.n_features, gram.n_targets, len(gram)) == (4, 2, 6)


def test_the_fit_is_least_squares():
    X, y, groups = make_data()
    expected = np.linalg.lstsq(np.c_[X, np.ones(len(X))], y, rcond=None)[0][:-1]
    np.testing.assert_allclose(
        least_squares(ClusterGram.from_arrays(X, y, groups)), expected, rtol=1e-8
    )


@given(
    order=st.permutations(range(48)),
    cuts=st.lists(st.integers(1, 47), max_size=5, unique=True).map(sorted),
    split=st.integers(1, 47),
)
def test_any_order_and_any_split_give_the_same_fit(order, cuts, split):
    X, y, groups = make_data()
    whole = ClusterGram.from_arrays(X, y, groups)
    rows = np.array(order)
    blocks = [(X[part], y[part], groups[part]) for part in np.split(rows, cuts)]
    streamed = ClusterGram.from_blocks(blocks)
    a, b = rows[:split], rows[split:]
    first = ClusterGram.from_arrays(X[a], y[a], groups[a])
    second = ClusterGram.from_arrays(X[b], y[b], groups[b])
    for other in (streamed, first + second, second + first):
        assert other.groups.tolist() == whole.groups.tolist()
        assert other.n_rows.tolist() == whole.n_rows.tolist()
        np.testing.assert_allclose(least_squares(other), least_squares(whole), rtol=1e-8, atol=1e-9)
        moved = other.rebase(whole.shift).grams
        np.testing.assert_allclose(moved, whole.grams, rtol=1e-7, atol=1e-7)


def test_the_shift_matters_not_to_the_fit_and_rebasing_is_exact():
    X, y, groups = make_data()
    near, at_zero = (
        ClusterGram.from_arrays(X, y, groups),
        ClusterGram.from_arrays(X, y, groups, shift=np.zeros(6)),
    )
    np.testing.assert_allclose(near.rebase(np.zeros(6)).grams, at_zero.grams, rtol=1e-10)
    assert near.rebase(near.shift) is near


def test_without_the_shift_centring_would_cancel():
    X, y, groups = make_data(offset=1e7)
    expected = centred(ClusterGram.from_arrays(X - 1e7, y, groups))[:4, :4]
    shifted = centred(ClusterGram.from_arrays(X, y, groups))[:4, :4]
    raw = centred(ClusterGram.from_arrays(X, y, groups, shift=np.zeros(6)))[:4, :4]
    assert abs(shifted - expected).max() < 1e-6
    assert abs(raw - expected).max() > 1e-3


def test_a_block_may_be_one_sequence_and_sequences_may_be_text():
    X, y, groups = make_data()
    names = np.array(["b", "a", "c", "d", "e", "f"])
    streamed = ClusterGram.from_blocks((X[groups == s], y[groups == s], names[s]) for s in range(6))
    assert streamed.groups.tolist() == sorted(names)
    assert streamed.n_rows.sum() == 48


def test_weighted_sums_in_one_product_are_those_one_by_one():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    weights = np.random.default_rng(1).integers(0, 3, size=(5, 6))
    together = gram.sum(weights)
    for b in range(5):
        repeated = np.concatenate(
            [np.flatnonzero(groups == s).repeat(weights[b, s]) for s in range(6)]
        )
        one = ClusterGram.from_arrays(X[repeated], y[repeated], 0 * repeated, shift=gram.shift)
        np.testing.assert_allclose(together[b], one.grams[0], rtol=1e-10, atol=1e-9)


def test_squared_errors_need_no_data():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    coef = np.random.default_rng(1).normal(size=(4, 2))
    intercept = np.array([3.0, -200.0])
    squares = (y - X @ coef - intercept) ** 2
    expected = np.array([squares[groups == s].sum(axis=0) for s in range(6)])
    np.testing.assert_allclose(gram.sse(coef, intercept), expected, rtol=1e-9)


def test_fewer_features_and_coarser_clusters():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    part = ClusterGram.from_arrays(X[:, [3, 1]], y, groups, shift=gram.shift[[3, 1, 4, 5]])
    np.testing.assert_allclose(gram.take([3, 1]).grams, part.grams, rtol=1e-12, atol=1e-10)
    merged = gram.merge([1, 1, 0, 0, 1, 0])
    assert merged.n_rows.tolist() == [24, 24]
    np.testing.assert_allclose(merged.grams[1], gram.grams[[0, 1, 4]].sum(axis=0))


def test_float16_input_accumulates_in_float64():
    rng = np.random.default_rng(0)
    X = rng.normal(200.0, 1.0, size=(4096, 2)).astype(np.float16)
    gram = ClusterGram.from_arrays(X, X[:, 0], np.zeros(4096))
    wide = ClusterGram.from_arrays(X.astype(float), X[:, 0].astype(float), np.zeros(4096))
    np.testing.assert_array_equal(gram.grams, wide.grams)
    # In float16 the sum of squares would already have overflowed.
    assert gram.rebase(np.zeros(3)).grams.max() > np.finfo(np.float16).max


def test_it_survives_pickling_and_processes():
    gram = ClusterGram.from_arrays(*make_data())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(gram)).grams, gram.grams)
    sums = joblib.Parallel(n_jobs=2)(joblib.delayed(ClusterGram.sum)(gram) for _ in range(2))
    np.testing.assert_array_equal(sums[1], gram.sum())


@pytest.mark.parametrize("labels", [[3, 1, 2], ["α", "b", "a much longer name"]])
def test_hdf5_gives_back_what_was_written(tmp_path, labels):
    X, y, groups = make_data(sequences=3)
    gram = ClusterGram.from_arrays(X, y, np.array(labels)[groups])
    with h5py.File(tmp_path / "grams.h5", "w") as file:
        gram.to_hdf5(file.create_group("layer0"))
    with h5py.File(tmp_path / "grams.h5") as file:
        back = ClusterGram.from_hdf5(file["layer0"])
    assert back.groups.tolist() == gram.groups.tolist() == sorted(labels)
    np.testing.assert_array_equal(back.grams, gram.grams)
    np.testing.assert_array_equal(back.shift, gram.shift)
    assert (back + gram).n_rows.tolist() == [16] * 3


def test_hdf5_of_another_format_or_with_damage_is_refused(tmp_path):
    with h5py.File(tmp_path / "grams.h5", "w") as file:
        group = file.create_group("layer0")
        with pytest.raises(StoreError, match="'/layer0' holds format None"):
            ClusterGram.from_hdf5(group)
        ClusterGram.from_arrays(*make_data()).to_hdf5(group)
        del group["shift"]
        with pytest.raises(StoreError, match="has no 'shift'"):
            ClusterGram.from_hdf5(group)
        group.create_dataset("shift", data=np.zeros(3))
        with pytest.raises(StoreError, match=r"grams has shape \(6, 7, 7\), expected \(6, 4, 4\)"):
            ClusterGram.from_hdf5(group)
        group.attrs["version"] = 2
        with pytest.raises(StoreError, match="version 2, not"):
            ClusterGram.from_hdf5(group)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_values_that_are_not_finite_are_named(value, dtype):
    X, y, groups = make_data()
    X = X.astype(dtype)
    X[8 * 3 + 2, 1] = value
    match = f"sequence 3: column 1 of X is {'NaN' if np.isnan(value) else 'inf'}"
    with pytest.raises(DesignError, match=match):
        ClusterGram.from_arrays(X, y, groups)
    with pytest.raises(DesignError, match=match):
        ClusterGram.from_blocks([(X[:16], y[:16], groups[:16]), (X[16:], y[16:], groups[16:])])
    y[10, 0] = value
    with pytest.raises(DesignError, match=r"sequence 1: column 0 of y .* give every row a finite"):
        ClusterGram.from_arrays(X[:24], y[:24], groups[:24])


def test_what_is_not_a_number_is_refused_or_read():
    X, y, groups = make_data()
    mixed = y.astype(object)
    same = ClusterGram.from_arrays(X, mixed, groups)
    np.testing.assert_array_equal(same.grams, ClusterGram.from_arrays(X, y, groups).grams)
    mixed[10, 0] = None
    with pytest.raises(DesignError, match="sequence 1: column 0 of y is NaN"):
        ClusterGram.from_arrays(X, mixed, groups)
    with pytest.raises(DesignError, match="y holds <U1, not numbers: convert it to float"):
        ClusterGram.from_arrays(X, np.full(len(X), "a"), groups)


def test_messages_can_name_sequences_where_clusters_are_folds():
    X, y, groups = make_data()
    X[20, 0] = np.nan
    with pytest.raises(DesignError, match="sequence 2: column 0"):
        ClusterGram.from_arrays(X, y, groups % 2, names=groups)


def test_finite_values_whose_squares_overflow_are_refused():
    X, y, groups = make_data()
    X[20, 0] = 1e200
    with pytest.raises(DesignError, match="squares of the data overflow"):
        ClusterGram.from_arrays(X, y, groups)
    with pytest.raises(DesignError, match="sequence 2: squares overflow"):
        ClusterGram.from_blocks([(X, y, groups)], shift=np.zeros(6))


def test_shapes_that_do_not_fit_are_refused():
    X, y, groups = make_data()
    gram = ClusterGram.from_arrays(X, y, groups)
    with pytest.raises(DesignError, match="X has 48 rows, y 47, groups 48"):
        ClusterGram.from_arrays(X, y[1:], groups)
    with pytest.raises(DesignError, match="pass X with two axes"):
        ClusterGram.from_arrays(X[0], y, groups)
    for empty, rows in ((X[:0], 0), (X[:, :0], len(X))):
        with pytest.raises(DesignError, match="pass at least one row and one column"):
            ClusterGram.from_arrays(empty, y[:rows], groups[:rows])
    with pytest.raises(DesignError, match="the stream has no blocks"):
        ClusterGram.from_blocks([])
    with pytest.raises(DesignError, match="block of sequence 0 has 3 features"):
        ClusterGram.from_blocks([(X, y, groups), (X[:, :3], y, groups)])
    with pytest.raises(DesignError, match="cannot add statistics of 4 features"):
        gram + gram.take([0, 1])
    with pytest.raises(DesignError, match=r"\(5,\) weights for 6 sequences"):
        gram.sum(np.ones(5))
    with pytest.raises(DesignError, match="groups contain NaN"):
        ClusterGram.from_arrays(X, y, np.where(groups == 0, np.nan, groups))
    with pytest.raises(DesignError, match="groups mix labels"):
        ClusterGram.from_arrays(X, y, np.array([None, "a"], dtype=object)[groups % 2])
    with pytest.raises(TypeError):
        gram + 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda gram: gram.take([-1]), "feature -1 is not among 0 to 3"),
        (lambda gram: gram.take([7]), "feature 7 is not among 0 to 3"),
        (lambda gram: gram.take([True, False]), r"columns are bool of shape \(2,\): list the num"),
        (lambda gram: gram.take(0), r"columns are int64 of shape \(\): list the numbers"),
        (lambda gram: gram.rebase([0.0]), r"shift has shape \(1,\): give one number .* \(6,\)"),
        (lambda gram: gram.rebase([np.nan] * 6), "shift must be finite and real"),
        (lambda gram: gram.rebase([1j] * 6), "shift must be finite and real"),
        (
            lambda gram: gram.sse(np.ones((4, 2)), [0, 0, 0]),
            r"intercept has shape \(3,\): .* \(2,\)",
        ),
        (lambda gram: gram.sum(1.0), r"\(\) weights for 6 sequences: give one weight per"),
        (lambda gram: gram.merge([0, 1]), r"\(2,\) labels for 6 sequences: give one for each"),
        (lambda gram: gram.sse(np.ones((3, 2)), [0, 0]), r"coef has shape \(3, 2\): .* \(4, 2\)"),
    ],
)
def test_what_would_mix_up_columns_is_refused(call, said):
    gram = ClusterGram.from_arrays(*make_data())
    with pytest.raises(DesignError, match=said):
        call(gram)


def test_arrays_that_would_lose_something_are_refused():
    X, y, groups = make_data()
    for build in (
        lambda **options: ClusterGram.from_arrays(X, y, groups, **options),
        lambda **options: ClusterGram.from_blocks([(X, y, groups)], **options),
    ):
        with pytest.raises(DesignError, match=r"shift has shape \(1,\)"):
            build(shift=[0.0])
    with pytest.raises(DesignError, match="X has complex numbers: pass real and imaginary parts"):
        ClusterGram.from_arrays(X + 1j, y, groups)
    mixed = np.array([*groups[:-1].tolist(), "last"], dtype=object)
    with pytest.raises(DesignError, match="groups mix labels of several types: use only integers"):
        ClusterGram.from_arrays(X, y, mixed)


def test_numbers_or_text_of_several_types_are_labels():
    X, y, groups = make_data()
    plain = ClusterGram.from_arrays(X, y, groups)
    boxed = [int(s) if s % 2 else np.int64(s) for s in groups]
    same = ClusterGram.from_arrays(X, y, np.array(boxed, dtype=object))
    np.testing.assert_array_equal(same.grams, plain.grams)
