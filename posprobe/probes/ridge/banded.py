r"""Banded ridge from moments: pure solvers, no estimators and no data.

For feature groups :math:`g = 1..k` with penalties :math:`\alpha_g` the fit minimises

.. math:: \|y - b_0 - \sum_g X_g b_g\|^2 + \sum_g \alpha_g \|b_g\|^2 ,

with :math:`b_0` free. Everything is computed from centred training moments and from an
uncentred test Gram. The one primitive is a *line*: all penalties of one (inner) group for
given penalties of the others (outer). With the Cholesky factor :math:`LL^\top = G_{oo} + D_o`
and :math:`W = L^{-1} G_{oi}`,

.. math:: (S + \alpha I)\, b_i = r_i - W^\top L^{-1} r_o, \qquad S = G_{ii} - W^\top W ,

so a line costs one factorisation of the outer block and one of the inner. A grid over two
groups is one line per penalty of the larger; its ends (an infinite penalty) are the models that
leave a group out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = [
    "PIVOT_TOLERANCE",
    "Moments",
    "Split",
    "centre",
    "line_errors",
    "make_splits",
    "many_penalties",
    "near_singular",
    "solve",
]

Columns = slice | NDArray[np.intp]
# Below this share of a column's own (penalised) sum of squares that the other columns leave
# unexplained, the solution of the normal equations has fewer than about four good digits.
PIVOT_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Moments:
    """Centred training moments of p features and t targets, about the Gram's shift.

    Attributes
    ----------
    gram : ndarray of shape (p, p)
        Centred sums of products of the features; rows of constant features are zero.
    rhs : ndarray of shape (p, t)
        Centred sums of products of features and targets.
    x_mean, y_mean : ndarray of shape (p,), (t,)
        Means less the shift.
    """

    gram: Array
    rhs: Array
    x_mean: Array
    y_mean: Array


@dataclass(frozen=True)
class Split:
    """Fold number, its training moments, its test rows' Gram (p + 1 + t, p + 1 + t)."""

    fold: int
    train: Moments
    test: Array


def centre(total: Array, n_features: int, floor: Array | float = 0.0) -> Moments:
    """Centre a Gram matrix [X, 1, y]'[X, 1, y].

    Parameters
    ----------
    total : ndarray of shape (p + 1 + t, p + 1 + t)
        Summed Gram of the training rows.
    n_features : int
        Number p of features.
    floor : float or ndarray of shape (p,)
        A feature whose centred sum of squares is at most this is taken as constant: it gets
        coefficient zero.

    Returns
    -------
    Moments
    """
    p = n_features
    n = total[p, p]
    means = total[p] / n
    gram = np.outer(total[p, :p], means[:p])
    np.subtract(total[:p, :p], gram, out=gram)
    rhs = total[:p, p + 1 :] - np.outer(total[p, :p], means[p + 1 :])
    constant = np.flatnonzero(gram.diagonal() <= floor)
    gram[constant] = 0.0
    gram[:, constant] = 0.0
    rhs[constant] = 0.0
    return Moments(gram, rhs, means[:p].copy(), means[p + 1 :].copy())


def make_splits(
    folds: Array, n_features: int, floor: Array | float = 0.0, in_sample: bool = False
) -> list[Split]:
    """Turn summed Grams of K folds into K splits, training = total - test.

    Parameters
    ----------
    folds : ndarray of shape (K, p + 1 + t, p + 1 + t)
        Summed Gram of each fold; folds without rows are left out.
    n_features : int
        Number p of features.
    floor : float or ndarray of shape (p,)
        As in :func:`centre`.
    in_sample : bool
        Train and test on everything instead: one split.

    Returns
    -------
    list of Split

    Raises
    ------
    DesignError
        If fewer than two folds have rows.
    """
    total = folds.sum(axis=0)
    if in_sample:
        return [Split(0, centre(total, n_features, floor), total)]
    full = [k for k, fold in enumerate(folds) if fold[n_features, n_features] > 0]
    if len(full) < 2:
        raise DesignError("fewer than two folds have rows: use more sequences, or fewer folds")
    # What centring leaves of a feature that is constant in the training rows but not elsewhere is
    # the rounding error of total - test.
    level = total[n_features, :n_features] ** 2 / total[n_features, n_features]
    floors = np.maximum(floor, 1e-13 * (total.diagonal()[:n_features] - level))
    return [Split(k, centre(total - folds[k], n_features, floors), folds[k]) for k in full]


def solve(train: Moments, sizes: Sequence[int], penalties: Array) -> Array:
    """Fit at given penalties.

    Parameters
    ----------
    train : Moments
        Training moments, features ordered by group.
    sizes : sequence of int
        Number of features of each group.
    penalties : ndarray of shape (k,)
        Penalty of each group; infinite leaves it out.

    Returns
    -------
    ndarray of shape (p, t)

    Raises
    ------
    DesignError
        If the penalised Gram is nearly singular.
    """
    each = np.repeat(penalties, sizes)
    active = np.flatnonzero(np.isfinite(each))
    coef = np.zeros_like(train.rhs)
    if len(active) == 0:
        return coef
    everything = len(active) == len(each)
    gram = train.gram if everything else _block(train.gram, active, active)
    rhs = train.rhs[active]
    factor = _factor(gram, each[active], gram.diagonal())
    if factor is None:
        raise near_singular(penalties)
    coef[active], _ = lapack.dpotrs(factor, rhs, lower=1)
    return coef


def many_penalties(n_features: int) -> int:
    """Return from how many penalties one eigendecomposition beats a Cholesky factor for each.

    Measured on one thread: 7 at 9 features, 10 at 32, 16 at 64, 18 at 96, 15 to 29 above.
    """
    return 8 if n_features <= 32 else 18


def line_errors(
    split: Split, outer: Columns, inner: Columns, penalty: Array | float, alphas: Array
) -> Array:
    """Test errors (inner penalties, t) along a line; infinite where refused."""
    coefs, good = _line(split.train, outer, inner, penalty, alphas)
    errors = _test_errors(split, coefs)
    errors[~good] = np.inf
    return errors


def _line(
    train: Moments, outer: Columns, inner: Columns, penalty: Array | float, alphas: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Coefficients (inner penalties, p, t) and which of them are to be trusted."""
    gram, rhs = train.gram, train.rhs
    coefs = np.zeros((len(alphas), *rhs.shape))
    g_oo, g_ii = _block(gram, outer, outer), _block(gram, inner, inner)
    reference = g_ii.diagonal()
    if len(g_oo) == 0 or np.isposinf(penalty).all():
        coefs[:, inner], good = _shifted_solves(g_ii, rhs[inner], alphas, reference)
        return coefs, good
    factor = _factor(g_oo, penalty, g_oo.diagonal())
    if factor is None:
        return coefs, np.zeros(len(alphas), dtype=bool)
    p_inner, t = len(g_ii), rhs.shape[1]
    right = np.concatenate([_block(gram, outer, inner), rhs[outer]], axis=1)
    right = blas.dtrsm(1.0, factor, right, lower=1)
    w, u = right[:, :p_inner], right[:, p_inner:]
    schur = g_ii - w.T @ w
    b_inner, good = _shifted_solves(schur, rhs[inner] - w.T @ u, alphas, reference)
    flat = b_inner.transpose(1, 0, 2).reshape(p_inner, len(alphas) * t)
    left = np.tile(u, (1, len(alphas))) - w @ flat
    b_outer = blas.dtrsm(1.0, factor, left, lower=1, trans_a=1)
    coefs[:, outer] = b_outer.reshape(len(u), len(alphas), t).transpose(1, 0, 2)
    coefs[:, inner] = b_inner
    return coefs, good


def _shifted_solves(
    gram: Array, rhs: Array, alphas: Array, reference: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Solve (gram + alpha I) b = rhs for all alphas: (A, p, t), and which to trust."""
    out, good = np.zeros((len(alphas), *rhs.shape)), np.ones(len(alphas), dtype=bool)
    if len(gram) == 0:
        return out, good
    todo = np.flatnonzero(np.isfinite(alphas))
    # An eigenvalue is known to about 1e-16 of the largest: small penalties need Cholesky.
    easy = todo[alphas[todo] >= 1e-10 * reference.max()]
    if len(easy) >= many_penalties(len(gram)):
        values, vectors = np.linalg.eigh(gram)
        scaled = (vectors.T @ rhs) / (np.maximum(values, 0.0) + alphas[easy, None])[:, :, None]
        out[easy] = vectors @ scaled
        todo = np.setdiff1d(todo, easy)
    for a in todo:
        factor = _factor(gram, alphas[a], reference)
        if factor is None:
            good[a] = False
        else:
            out[a], _ = lapack.dpotrs(factor, rhs, lower=1)
    return out, good


def _factor(gram: Array, penalty: Array | float, reference: Array) -> Array | None:
    """Cholesky factor (lower, Fortran order) of gram + penalty, None if nearly singular."""
    matrix = np.array(gram)
    diagonal = matrix.diagonal() + penalty
    scale = reference + penalty
    # A constant feature without penalty: nothing couples to it, so any pivot gives it zero.
    empty = scale == 0
    matrix.flat[:: len(matrix) + 1] = np.where(empty, 1.0, diagonal)
    factor, info = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        return None
    pivots = factor.diagonal() ** 2
    trusted = (pivots > PIVOT_TOLERANCE * np.where(empty, 0.0, scale)).all()
    return factor if trusted else None


def _test_errors(split: Split, coefs: Array) -> Array:
    """Squared errors (A, t) of coefficients (A, p, t) on the test rows."""
    n_models, p, t = coefs.shape
    train, test = split.train, split.test
    flat = np.concatenate([coefs.transpose(1, 0, 2).reshape(p, -1), np.empty((1, n_models * t))])
    flat[p] = np.tile(train.y_mean, n_models) - train.x_mean @ flat[:p]
    targets = np.tile(test[: p + 1, p + 1 :], (1, n_models))
    errors = np.einsum("qm,qm->m", flat, test[: p + 1, : p + 1] @ flat - 2 * targets)
    squares = test.diagonal()[p + 1 :]
    return np.maximum(errors.reshape(n_models, t) + squares, 0.0)


def _block(matrix: Array, rows: Columns, columns: Columns) -> Array:
    return matrix[rows][:, columns]


def near_singular(penalties: Array) -> DesignError:
    """The refusal of a Gram matrix that no penalty tried makes safe to solve."""
    return DesignError(
        f"the Gram matrix is nearly singular at every penalty tried (largest "
        f"{np.max(penalties):.3g}): use larger alphas, or drop collinear features"
    )
