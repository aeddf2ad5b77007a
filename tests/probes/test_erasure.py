"""Erasing a concept from features: theorems in both directions, least change, refusals."""

import numpy as np
import pytest

from posprobe.errors import DesignError
from posprobe.probes import ClusterGram, fit_eraser, position_slope


def data(rng, n=400, p=6, t=2):
    """Correlated features of different scales, of which the targets are part."""
    Z = rng.normal(size=(n, t)) + 3
    mix, noise = rng.normal(size=(t, p)), rng.normal(size=(p, p))
    return Z @ mix + rng.normal(size=(n, p)) @ noise - 5, Z


def gram_of(X, Z):
    return ClusterGram.from_arrays(X, Z, groups=np.arange(len(X)) % 20)


def r2(X, z):
    """R2 of least squares on the fitting data itself."""
    A = np.column_stack([X, np.ones(len(X))])
    fitted = A @ np.linalg.lstsq(A, z, rcond=None)[0]
    return 1 - ((z - fitted) ** 2).sum(0) / ((z - z.mean(0)) ** 2).sum(0)


def test_an_erased_concept_has_an_r2_of_0_on_the_fitting_data_and_had_more(rng):
    X, Z = data(rng)
    assert r2(X, Z).min() > 0.3
    erased = fit_eraser(gram_of(X, Z))(X)
    assert np.abs(r2(erased, Z)).max() < 1e-10
    assert np.abs(r2(erased, Z @ rng.normal(size=(2, 3)))).max() < 1e-10  # and what is made of it


def test_what_does_not_covary_is_not_changed(rng):
    X, Z = data(rng)
    other = rng.normal(size=(len(X), 2))
    other -= np.column_stack([X, Z, np.ones(len(X))]) @ np.linalg.lstsq(
        np.column_stack([X, Z, np.ones(len(X))]), other, rcond=None
    )[0]  # fmt: skip
    both = np.column_stack([X, other])
    erased = fit_eraser(gram_of(both, Z))(both)
    np.testing.assert_allclose(erased[:, 6:], other, atol=1e-10)
    assert np.abs(erased[:, :6] - X).max() > 0.1


def test_no_other_eraser_changes_less(rng):
    X, Z = data(rng)
    eraser = fit_eraser(gram_of(X, Z))
    least = ((eraser(X) - X) ** 2).sum()
    centred = X - X.mean(0)
    cross = centred.T @ (Z - Z.mean(0))
    for draw in range(20):  # projections along the covariances, the orthogonal one first
        kernel = rng.normal(size=(2, 6)) if draw else cross.T
        inward = np.linalg.solve(kernel @ cross, kernel).T
        other = X - centred @ inward @ cross.T
        assert np.abs(r2(other, Z)).max() < 1e-8
        assert ((other - X) ** 2).sum() > least


def test_mean_and_rank_are_kept_and_erasing_twice_is_erasing_once(rng):
    X, Z = data(rng)
    eraser = fit_eraser(gram_of(X, Z))
    erased = eraser(X)
    assert eraser.rank == 2
    np.testing.assert_allclose(erased.mean(0), X.mean(0), atol=1e-10)
    np.testing.assert_allclose(eraser(erased), erased, atol=1e-10)
    assert np.linalg.matrix_rank(erased - erased.mean(0), tol=1e-8) == 4


def test_dependent_targets_count_once_and_dependent_features_do_no_harm(rng):
    X, Z = data(rng)
    eraser = fit_eraser(gram_of(X, np.column_stack([Z, Z.sum(1)])))
    assert eraser.rank == 2
    twice = np.column_stack([X, X[:, :2], np.ones(len(X))])
    assert np.abs(r2(fit_eraser(gram_of(twice, Z))(twice), Z)).max() < 1e-8


def test_a_control_erases_as_many_directions_and_leaves_the_concept(rng):
    X, Z = data(rng, p=30)
    control = fit_eraser(gram_of(X, Z), random_rank=2, seed=1)
    erased = control(X)
    assert control.rank == 2
    assert np.linalg.matrix_rank(erased - erased.mean(0), tol=1e-8) == 28
    assert r2(erased, Z).min() > 0.2
    read = (X - X.mean(0)) @ control.inward
    np.testing.assert_allclose(read.T @ read / len(X), np.eye(2), atol=1e-10)
    again, other = (fit_eraser(gram_of(X, Z), random_rank=2, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.inward, control.inward)
    assert np.abs(other.inward - control.inward).max() > 0.1


def test_the_slope_is_the_regression_of_features_on_targets(rng):
    X, Z = data(rng)
    expected = np.linalg.lstsq(Z - Z.mean(0), X - X.mean(0), rcond=None)[0]
    np.testing.assert_allclose(position_slope(gram_of(X, Z)), expected, atol=1e-10)


def test_another_width_is_refused(rng):
    eraser = fit_eraser(gram_of(*data(rng)))
    with pytest.raises(DesignError, match="features have width 5, the eraser 6: fit one on these"):
        eraser(np.zeros((3, 5)))


def test_nothing_to_erase_is_refused(rng):
    X, Z = data(rng)
    with pytest.raises(DesignError, match="no feature varies"):
        fit_eraser(gram_of(np.ones_like(X), Z))
    with pytest.raises(DesignError, match="the targets do not covary with the features"):
        fit_eraser(gram_of(X, np.ones(len(X))))
    with pytest.raises(DesignError, match="random_rank is 7: the features have 1 to 6 directions"):
        fit_eraser(gram_of(X, Z), random_rank=7)
    with pytest.raises(DesignError, match="the targets are linearly dependent"):
        position_slope(gram_of(X, np.column_stack([Z, Z[:, 0]])))
