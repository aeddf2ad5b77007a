"""A stored file as X, y, groups: every number where it belongs, and nothing that tells too much."""

import numpy as np
import pytest
import synthetic

from posprobe.errors import DesignError, StoreError
from posprobe.probes import feature_blocks, features
from posprobe.probes.feature_matrix import FEATURES
from posprobe.store import ActivationStore


@pytest.fixture
def arrays(rng):
    shape = (2, 3, 12, 2)
    scores = rng.normal(size=(*shape, 2))
    scores[:, :, :1, :, 0] = np.nan
    scores[:, :, :3, :, 1] = np.nan
    return {
        "normalizer": rng.normal(size=shape),
        "offset_score": scores,
        "residual": rng.normal(size=(3, 3, 12, 5)) * 7,
    }


def natural(path, arrays, **fields):
    index = dict(item=[4, 5, 6], sequence_id=np.arange(3), tokens=np.ones((3, 12)))
    index |= dict(prefix_length=np.zeros(3), query_start=np.zeros(3))
    return synthetic.write(path / "a.h5", arrays, index=index, offsets=(1, 3), **fields)


def unit(stream):
    return stream / np.sqrt(np.mean(stream**2, axis=-1, keepdims=True))


def test_joint_features_row_by_row(arrays, tmp_path):
    X, y, groups, feature_groups = features(natural(tmp_path, arrays), 1)
    assert X.shape == (3 * 11, 2 + 5)
    assert X.dtype == y.dtype == np.float64
    assert feature_groups == {"normalizer": slice(0, 2), "residual": slice(2, 7)}
    assert y.tolist() == list(range(1, 12)) * 3  # position 0 is left out
    assert groups.tolist() == [4] * 11 + [5] * 11 + [6] * 11
    for row in range(33):
        sequence, position = groups[row] - 4, int(y[row])
        z = arrays["normalizer"][1, sequence, position]
        np.testing.assert_allclose(X[row, :2], z, rtol=1e-6)
        stream = arrays["residual"][1, sequence, position]
        np.testing.assert_allclose(X[row, 2:], unit(stream), rtol=1e-5)


@pytest.mark.parametrize("which", ["normalizer", "residual"])
def test_one_group_is_its_part_of_the_joint_features(which, arrays, tmp_path):
    store = natural(tmp_path, arrays)
    joint, alone = features(store, 0), features(store, 0, which)
    assert np.array_equal(alone.X, joint.X[:, joint.feature_groups[which]])
    assert alone.feature_groups == {which: slice(0, alone.X.shape[1])}
    assert np.array_equal(alone.y, joint.y)


@pytest.mark.parametrize("which", ["residual", "joint"])
def test_kept_positions_are_rows_of_all(which, arrays, tmp_path):
    """The residual stream of some positions, with the normalizers of the same ones."""
    whole = features(natural(tmp_path, arrays), 1, which)
    rows = [0, 3, 11]
    some = arrays | {"residual": arrays["residual"][:, :, rows]}
    store = natural(tmp_path, some, residual_queries=rows)
    found, chosen = features(store, 1, which), np.isin(whole.y, rows)
    for one, other in zip(found[:3], whole[:3], strict=True):
        assert np.array_equal(one, other[chosen])
    assert np.array_equal(features(store, 1, "normalizer").y, np.tile(np.arange(1, 12), 3))


def test_attention_features_leave_key_0_out(arrays, tmp_path):
    store = natural(tmp_path, arrays)
    attention, scores = features(store, 0, "attention"), features(store, 0, "scores")
    assert attention.y.tolist() == list(range(4, 12)) * 3  # position 3 has key 0 at offset 3
    raw = arrays["offset_score"][0, :, 4:]
    np.testing.assert_allclose(scores.X, raw.reshape(24, 4), rtol=1e-6)
    weights = raw - arrays["normalizer"][0, :, 4:, :, None]
    np.testing.assert_allclose(attention.X, weights.reshape(24, 4), rtol=1e-5, atol=1e-6)


def test_attention_features_leave_out_what_a_sliding_window_hides(arrays, tmp_path):
    store = natural(tmp_path, arrays, layer_window=(3, 0))
    for which in ("attention", "scores"):
        windowed, full = features(store, 0, which), features(store, 1, which)
        assert windowed.X.shape == (3 * 10, 2)  # offset 3 is hidden from a window of 3
        assert windowed.y.min() == 2
        assert full.X.shape == (3 * 8, 4)
    raw = arrays["offset_score"][0, :, 2:, :, 0]
    np.testing.assert_allclose(features(store, 0, "scores").X, raw.reshape(30, 2), rtol=1e-6)


def test_items_are_the_groups_of_the_shifted_design(rng, tmp_path):
    index = synthetic.shifted_index(2, (1, 4), 3)
    store = synthetic.write(
        tmp_path / "a.h5",
        {"normalizer": rng.normal(size=(1, 4, 3, 1))},
        index=index,
        design="shifted",
        length=7,
    )
    found = features(store, 0, "normalizer")
    assert found.groups.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert found.y.tolist() == [1, 2, 3] * 2 + [4, 5, 6] * 2


def test_half_precision_comes_in_double(arrays, tmp_path):
    store = natural(tmp_path, arrays, dtype="float16")
    found = features(store, 0, "residual")
    assert found.X.dtype == np.float64
    np.testing.assert_allclose(np.mean(found.X**2, axis=1), 1, rtol=1e-12)


def test_a_residual_stream_of_zeros_stays_zero(arrays, tmp_path):
    arrays["residual"][0, 1, 3] = 0
    found = features(natural(tmp_path, arrays), 0, "residual")
    row = (found.groups == 5) & (found.y == 3)
    assert (found.X[row] == 0).all()


def test_what_is_not_finite_is_named(arrays, tmp_path):
    arrays["offset_score"][1, 2, 7, 0, 1] = np.nan
    path = natural(tmp_path, arrays).path
    store = ActivationStore(path, verify=False)
    with pytest.raises(DesignError, match="attention of layer 1, sequence 2, is not finite"):
        features(store, 1, "attention")
    store = ActivationStore(path)
    with pytest.raises(StoreError, match="'offset_score' at layer 1, head 0, sequence 2, query 7"):
        features(store, 1, "attention")
    features(store, 0, "attention")


def test_refusals(arrays, tmp_path):
    store = natural(tmp_path, arrays)
    with pytest.raises(
        DesignError, match=f"features 'keys' are unknown; use one of {', '.join(FEATURES)}"
    ):
        features(store, 0, "keys")
    with pytest.raises(StoreError, match="layer 2 of 'normalizer' is not in the file"):
        features(store, 2)
    del arrays["residual"]
    with pytest.raises(StoreError, match="'residual' is not in"):
        features(natural(tmp_path, arrays), 0)


def test_refuses_what_leaves_no_row_or_no_offset(arrays, tmp_path):
    short = {"normalizer": arrays["normalizer"][:, :, :1]}
    store = synthetic.write(tmp_path / "short.h5", short)
    with pytest.raises(DesignError, match=r"short\.h5 has no query from position 1 on; capture"):
        features(store, 0, "normalizer")
    said = r"layer 0 of short\.h5 has no score at an offset that its queries see; capture"
    with pytest.raises(DesignError, match=said):
        features(store, 0, "attention")


@pytest.mark.parametrize("which", FEATURES)
def test_blocks_are_the_features_in_parts(which, arrays, tmp_path):
    store = natural(tmp_path, arrays)
    whole, blocks = features(store, 1, which), list(feature_blocks(store, 1, which, n_sequences=2))
    assert [np.unique(block.groups).tolist() for block in blocks] == [[4, 5], [6]]
    for name in ("X", "y", "groups"):
        together = np.concatenate([getattr(block, name) for block in blocks])
        assert np.array_equal(together, getattr(whole, name))
    assert all(block.feature_groups == whole.feature_groups for block in blocks)


def test_value_that_is_not_finite_has_the_number_of_its_sequence_in_every_block(arrays, tmp_path):
    arrays["offset_score"][1, 2, 7, 0, 1] = np.nan
    store = ActivationStore(natural(tmp_path, arrays).path, verify=False)
    with pytest.raises(DesignError, match="scores of layer 1, sequence 2, is not finite"):
        list(feature_blocks(store, 1, "scores", n_sequences=2))
