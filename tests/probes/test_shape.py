"""The shape of a code for position: brute force, known curves, noise, coverage, alignment."""

import numpy as np
import pytest
from scipy.spatial import procrustes

from posprobe.errors import DesignError
from posprobe.probes import Features, align_shapes, between, position_shape

N, T = 20, 32
Y = np.arange(1.0, T + 1)
CURVES = {
    "line": np.outer(Y, [0.1, 0.2, 0.0]),
    "log": np.outer(np.log1p(Y), [1.0, 0.0, 0.5]),
    "circle": np.c_[np.cos(Y * 2 * np.pi / T), np.sin(Y * 2 * np.pi / T), 0 * Y],
}


def made(curve, n=N, noise=0.1, seed=0):
    """n sequences around a curve of shape (T, d)."""
    rng = np.random.default_rng(seed)
    noise = noise * rng.normal(size=(n, *curve.shape))
    X = (curve + noise).reshape(-1, curve.shape[1])
    return Features(X, np.tile(Y, n), np.repeat(np.arange(n), T), {})


def test_the_kernel_is_that_of_all_pairs_of_different_sequences():
    data = made(CURVES["circle"], n=9, noise=1.0)
    x = data.X.reshape(9, T, 3)
    pairs = [x[s] @ x[t].T for s in range(9) for t in range(9) if s != t]
    centre = np.eye(T) - 1 / T
    found = position_shape(data)
    np.testing.assert_allclose(found.kernel, centre @ np.mean(pairs, 0) @ centre, atol=1e-12)
    assert found.size.estimate == pytest.approx(np.trace(found.kernel) / T)
    assert found.spectrum.sum() == pytest.approx(1)
    assert (found.spectrum < 0).any()  # noise, which is not clipped


def test_without_one_sequence_it_is_the_shape_of_the_others():
    """Limits are those of a jackknife by brute force."""
    data = made(CURVES["log"], n=8, noise=0.5)
    found = position_shape(data).size
    sizes = []
    for s in range(8):
        x = data.X.reshape(8, T, 3)[np.arange(8) != s]
        pairs = np.mean([x[i] @ x[j].T for i in range(7) for j in range(7) if i != j], 0)
        sizes.append(np.trace(pairs) / T - pairs.mean())
    pseudo = 8 * found.estimate - 7 * np.array(sizes)
    half = 2.3646242515927844 * pseudo.std(ddof=1) / np.sqrt(8)  # t(7)
    assert found.high - found.estimate == pytest.approx(half)


@pytest.mark.parametrize(
    ("curve", "dimension", "bend", "basis"),
    [("line", 1, 0.0, "linear"), ("log", 1, None, "log"), ("circle", 2, None, None)],
)
def test_known_curves(curve, dimension, bend, basis):
    shape = position_shape(made(CURVES[curve], noise=0.02))
    assert shape.dimension.estimate == pytest.approx(dimension, rel=0.01)
    shares = shape.shares.set_index("basis")["share"]
    if basis is not None:
        assert shares[:2].idxmax() == basis
        assert shares[basis] == pytest.approx(1, abs=0.01)
    else:
        assert shares["linear and log"] < 0.7
    if bend is not None:
        assert shape.bend.estimate == pytest.approx(bend, abs=0.002)


def test_the_bend_of_a_circle_is_that_of_its_angle():
    shape = position_shape(made(CURVES["circle"], noise=0.01))
    angle = 2 * np.pi * (T // 8) / T  # of the lag: |second| = 2 (1 - cos a), |first| = 2 sin a
    expected = ((1 - np.cos(angle)) / np.sin(angle)) ** 2
    assert shape.bend.estimate == pytest.approx(expected, rel=0.02)


def test_noise_alone_adds_no_size_and_its_means_would():
    sizes, naive = [], []
    for seed in range(40):
        shape = position_shape(made(np.zeros((T, 5)), n=10, noise=1.0, seed=seed))
        sizes.append(shape.size.estimate)
        naive.append(np.mean(np.sum(shape.means**2, 1)))
    assert abs(np.mean(sizes)) < 3 * np.std(sizes) / np.sqrt(40)
    assert np.mean(naive) > 0.4


def test_intervals_cover():
    truth = position_shape(made(CURVES["circle"], n=4000, noise=0.01))
    hits = []
    for seed in range(200):
        found = position_shape(made(CURVES["circle"], noise=0.5, seed=seed))
        pairs = ((found.size, truth.size), (found.bend, truth.bend))
        pairs += ((found.dimension, truth.dimension),)
        hits.append([one.low <= other.estimate <= one.high for one, other in pairs])
    assert (np.mean(hits, 0) > 0.91).all()


def test_an_alignment_is_that_of_procrustes_analysis():
    one, other = (position_shape(made(CURVES[name], noise=0.3)) for name in ("circle", "line"))
    *_, disparity = procrustes(one.means, other.means)
    assert align_shapes(one, other, permutations=9).similarity ** 2 == pytest.approx(1 - disparity)


@pytest.mark.parametrize("width", [3, 50])
def test_rotation_scale_and_width_do_not_matter(width):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    one = position_shape(made(CURVES["circle"], noise=0.0))
    other = position_shape(made(3 * CURVES["circle"] @ turn + 7, noise=0.0))
    found = align_shapes(one, other, permutations=99)
    assert found.similarity == pytest.approx(1)
    assert found.null < 0.6
    assert found.p_value == 0.01


def test_unrelated_codes_are_not_aligned_beyond_chance():
    p_values = []
    for seed in range(60):
        curves = np.random.default_rng(seed).normal(size=(2, T, 3))
        pair = [position_shape(made(curve, noise=0.01)) for curve in curves]
        p_values.append(align_shapes(*pair, permutations=99, seed=seed).p_value)
    assert 0 < np.mean(np.array(p_values) <= 0.2) < 0.36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d._replace(y=d.y + (d.groups == 2)), "sequences have different positions"),
        (lambda d: between(d, 1, 5), "20 sequences of 4 positions: a shape needs at least 8 and 8"),
        (lambda d: made(CURVES["line"], n=7), "7 sequences of 32 positions"),
        (lambda d: made(0 * CURVES["line"], noise=0.0), "features are the same at all positions"),
    ],
)
def test_what_has_no_shape_is_refused(change, message):
    with pytest.raises(DesignError, match=message):
        position_shape(change(made(CURVES["line"])))


def test_codes_of_other_positions_are_not_aligned():
    data = made(CURVES["line"])
    pair = position_shape(data), position_shape(between(data, 1, 17))
    with pytest.raises(DesignError, match="positions 1 to 32 and 1 to 16 differ"):
        align_shapes(*pair)
