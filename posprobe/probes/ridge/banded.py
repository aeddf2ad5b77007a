r"""Solvers of banded ridge regression, which work on moments rather than on data.

For feature groups :math:`g = 1..k` with penalties :math:`\alpha_g` the fit minimises

.. math:: \|y - b_0 - \sum_g X_g b_g\|^2 + \sum_g \alpha_g \|b_g\|^2 ,

with :math:`b_0` not penalised. Everything is computed from centred training moments and an
uncentred test Gram. The basic operation evaluates a *line*: all penalties of one (inner) group
at given penalties of the other (outer) groups. With the Cholesky factor
:math:`LL^\top = G_{oo} + D_o` and :math:`W = L^{-1} G_{oi}`,

.. math:: (S + \alpha I)\, b_i = r_i - W^\top L^{-1} r_o, \qquad S = G_{ii} - W^\top W ,

so a line costs one factorisation of the outer block and one of the inner block. A grid over two
groups has one line for each penalty of the larger group. An infinite penalty leaves a group out.
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
# If the other columns leave less than this share of a column's (penalised) sum of squares
# unexplained, the solution of the normal equations has fewer than about four correct digits.
PIVOT_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Moments:
    """Centred training moments of p features and t targets.

    Attributes
    ----------
    gram : ndarray of shape (p, p)
        Centred sums of products of the features; rows of constant features are zero.
    rhs : ndarray of shape (p, t)
        Centred sums of products of features and targets.
    x_mean, y_mean : ndarray of shape (p,), (t,)
        Means less the shift of the Gram.
    """

    gram: Array
    rhs: Array
    x_mean: Array
    y_mean: Array


@dataclass(frozen=True)
class Split:
    """A fold, its training moments and the Gram (p + 1 + t, p + 1 + t) of its test rows."""

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
        A feature whose centred sum of squares is at most this counts as constant, and its
        coefficient is zero.

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
    """Turn summed Grams of K folds into K splits, where training = total - test.

    Parameters
    ----------
    folds : ndarray of shape (K, p + 1 + t, p + 1 + t)
        Summed Gram of each fold; folds without rows are left out.
    n_features : int
        Number p of features.
    floor : float or ndarray of shape (p,)
        As in :func:`centre`.
    in_sample : bool
        Return a single split that trains and tests on all rows.

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
    # If a feature is constant in the training rows but not in the others, centring leaves the
    # rounding error of total - test.
    level = total[n_features, :n_features] ** 2 / total[n_features, n_features]
    floors = np.maximum(floor, 1e-13 * (total.diagonal()[:n_features] - level))
    return [Split(k, centre(total - folds[k], n_features, floors), folds[k]) for k in full]


def solve(train: Moments, sizes: Sequence[int], penalties: Array) -> Array:
    """Fit at given penalties.

    Parameters
    ----------
    train : Moments
        Training moments, with features ordered by group.
    sizes : sequence of int
        Number of features of each group.
    penalties : ndarray of shape (k,)
        Penalty of each group; an infinite one leaves the group out.

    Returns
    -------
    ndarray of shape (p, t)
        Coefficients.

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
    """Return the number of penalties from which an eigendecomposition is faster than Cholesky.

    One eigendecomposition serves all penalties, while Cholesky needs a factor for each. Measured on
    one thread: 7 penalties at 9 features, 10 at 32, 16 at 64, 18 at 96, and 15 to 29 above.
    """
    return 8 if n_features <= 32 else 18


def line_errors(
    split: Split, outer: Columns, inner: Columns, penalty: Array | float, alphas: Array
) -> Array:
    """Return the test errors (inner penalties, t) along a line; infinite where refused."""
    n_targets = split.train.rhs.shape[1]
    fits, good = _line(split.train, outer, inner, penalty, alphas)
    errors = _test_errors(split, fits, n_targets).reshape(len(alphas), n_targets)
    errors[~good] = np.inf
    return errors


def _line(
    train: Moments, outer: Columns, inner: Columns, penalty: Array | float, alphas: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Return coefficients (inner penalties x t, p), and which penalties have accurate ones."""
    gram, rhs = train.gram, train.rhs
    p, t = rhs.shape
    fits = np.zeros((len(alphas) * t, p))
    g_oo, g_ii = _block(gram, outer, outer), _block(gram, inner, inner)
    reference = g_ii.diagonal()
    if len(g_oo) == 0 or np.isposinf(penalty).all():
        fits[:, inner], good = _shifted_solves(g_ii, rhs[inner], alphas, reference)
        return fits, good
    factor = _factor(g_oo, penalty, g_oo.diagonal())
    if factor is None:
        return fits, np.zeros(len(alphas), dtype=bool)
    right = np.concatenate([_block(gram, inner, outer), rhs[outer].T])
    solved = blas.dtrsm(1.0, factor, right.T, lower=1, overwrite_b=1)
    w, u = solved[:, : len(g_ii)], solved[:, len(g_ii) :]
    b_inner, good = _shifted_solves(g_ii - w.T @ w, rhs[inner] - w.T @ u, alphas, reference)
    left = np.tile(u.T, (len(alphas), 1)) - b_inner @ w.T
    fits[:, inner] = b_inner
    fits[:, outer] = blas.dtrsm(1.0, factor, left.T, lower=1, trans_a=1, overwrite_b=1).T
    return fits, good


def _shifted_solves(
    gram: Array, rhs: Array, alphas: Array, reference: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Solve (gram + alpha I) b = rhs for all alphas, as (A t, p); say which are accurate."""
    out, good = np.zeros((len(alphas), *rhs.T.shape)), np.ones(len(alphas), dtype=bool)
    todo = np.isfinite(alphas) if len(gram) else np.zeros_like(good)
    # Eigenvalues are accurate to about 1e-16 of the largest, so small penalties need Cholesky.
    easy = todo & (alphas >= 1e-10 * reference.max(initial=0.0))
    if easy.sum() >= many_penalties(len(gram)):
        values, vectors = np.linalg.eigh(gram)
        scaled = (rhs.T @ vectors) / (np.maximum(values, 0.0) + alphas[easy, None])[:, None]
        out[easy] = scaled @ vectors.T
        todo &= ~easy
    for a in np.flatnonzero(todo):
        factor = _factor(gram, alphas[a], reference)
        if factor is None:
            good[a] = False
        else:
            out[a] = lapack.dpotrs(factor, rhs, lower=1)[0].T
    return out.reshape(len(alphas) * rhs.shape[1], len(gram)), good


def _factor(gram: Array, penalty: Array | float, reference: Array) -> Array | None:
    """Return the lower Cholesky factor of gram + penalty; None if that is nearly singular."""
    matrix = np.array(gram)
    diagonal = matrix.diagonal() + penalty
    scale = reference + penalty
    # A constant feature without penalty has zero products, so any pivot makes its coefficient 0.
    empty = scale == 0
    matrix.flat[:: len(matrix) + 1] = np.where(empty, 1.0, diagonal)
    factor, info = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        return None
    pivots = factor.diagonal() ** 2
    trusted = (pivots > PIVOT_TOLERANCE * np.where(empty, 0.0, scale)).all()
    return factor if trusted else None


def _test_errors(split: Split, fits: Array, n_targets: int) -> Array:
    """Return the squared errors (A t,) of coefficients (A t, p) on the test rows."""
    train, test = split.train, split.test
    n_models, p = len(fits) // n_targets, fits.shape[1]
    levels = np.tile(train.y_mean, n_models) - fits @ train.x_mean
    used = np.append(fits.any(axis=0), True)
    rows = slice(p + 1) if used.all() else np.flatnonzero(used)
    columns = np.column_stack([fits, levels])[:, rows]
    targets = np.tile(test[p + 1 :, rows], (n_models, 1))
    errors = np.einsum("mq,mq->m", columns, columns @ _block(test, rows, rows) - 2 * targets)
    return np.maximum(errors + np.tile(test.diagonal()[p + 1 :], n_models), 0.0)


def _block(matrix: Array, rows: Columns, columns: Columns) -> Array:
    return matrix[rows][:, columns]


def near_singular(penalties: Array) -> DesignError:
    """Return the error for a Gram matrix that is nearly singular at every penalty."""
    return DesignError(
        f"the Gram matrix is nearly singular at every penalty tried (largest "
        f"{np.max(penalties):.3g}): use larger alphas, or drop collinear features"
    )
