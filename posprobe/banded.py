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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from posprobe.errors import DesignError

__all__ = ["Choice", "Moments", "Split", "centre", "make_splits", "search", "solve"]

Array = NDArray[np.float64]
Columns = slice | NDArray[np.intp]

# Below this share of a column's own (penalised) sum of squares that the other columns leave
# unexplained, the solution of the normal equations has fewer than about four good digits.
PIVOT_TOLERANCE = 1e-12
# Penalties from which one eigendecomposition is cheaper than a Cholesky factor for each (measured
# between 15 at 768 columns and 28 at 64).
MANY_PENALTIES = 20


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


@dataclass(frozen=True)
class Choice:
    """What a search chose: penalties of all groups, squared errors, how much was refused.

    Attributes
    ----------
    penalties : ndarray of shape (k,)
        Chosen penalty of each group, infinite where the group is left out.
    index : tuple of int
        Position of each penalty in its grid (-1: left out).
    sse : ndarray of shape (K, t)
        Squared error on the test rows of each fold.
    table : ndarray of shape (grid lengths..., t)
        Pooled mean squared error over the grid (infinite where refused, NaN where the search did
        not look). More than two groups: of the chosen point alone, shape (t,).
    n_refused : int
        Grid points refused because a training Gram is nearly singular there.
    """

    penalties: Array
    index: tuple[int, ...]
    sse: Array
    table: Array
    n_refused: int


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
    gram = total[:p, :p] - np.outer(total[p, :p], means[:p])
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
    gram, rhs = _block(train.gram, active, active), train.rhs[active]
    factor = _factor(gram, each[active], gram.diagonal())
    if factor is None:
        raise _near_singular(penalties)
    coef[active], _ = lapack.dpotrs(factor, rhs, lower=1)
    return coef


def search(
    splits: Sequence[Split],
    sizes: Sequence[int],
    grids: Sequence[Array],
    subsets: Sequence[tuple[int, ...]],
    start: Sequence[tuple[int, ...]] | None = None,
) -> list[Choice]:
    """Choose penalties by pooled out-of-fold squared error, for several subsets of the groups.

    Up to two groups the whole grid is searched. Three or more: from the best common grid position,
    one group's whole grid after another until nothing improves.

    Parameters
    ----------
    splits : sequence of Split
        Folds; features ordered by group.
    sizes : sequence of int
        Number of features of each group.
    grids : sequence of ndarray
        Penalties to try, per group.
    subsets : sequence of tuple of int
        Groups of each model, ascending; the others are left out.
    start : sequence of tuple of int, optional
        Grid positions to start from, per subset: only neighbours are tried then, as long as they
        improve (for bootstrap replicates, where the optimum moves little).

    Returns
    -------
    list of Choice

    Raises
    ------
    DesignError
        If every penalty leaves a Gram nearly singular.
    """
    starts = [None] * len(subsets) if start is None else list(start)
    if len(sizes) == 2:
        table = _Table(splits, sizes, grids)
        return [table.choose(s, at) for s, at in zip(subsets, starts, strict=True)]
    choices = []
    for subset, at in zip(subsets, starts, strict=True):
        part, offsets = _restrict(splits, sizes, subset), list(subset)
        own_sizes, own_grids = [sizes[g] for g in subset], [grids[g] for g in subset]
        inside = tuple(range(len(subset)))
        own_at = None if at is None else tuple(at[g] for g in subset)
        if len(subset) <= 2:
            choice = _Table(part, own_sizes, own_grids).choose(inside, own_at)
        else:
            choice = _descend(part, own_sizes, own_grids, own_at)
        penalties, index = np.full(len(sizes), np.inf), [-1] * len(sizes)
        penalties[offsets] = choice.penalties
        for g, i in zip(subset, choice.index, strict=True):
            index[g] = i
        choices.append(
            Choice(penalties, tuple(index), choice.sse, choice.table, choice.n_refused)
        )
    return choices


class _Table:
    """Squared errors over the penalties of at most two groups, filled row by row on demand."""

    def __init__(
        self, splits: Sequence[Split], sizes: Sequence[int], grids: Sequence[Array]
    ) -> None:
        self.splits = splits
        self.outer = int(np.argmax(sizes)) if len(sizes) else 0
        self.k = len(sizes)
        sizes = [*sizes, *[0] * (2 - self.k)]
        # The last entry leaves the group out, whether or not the user's grid does.
        self.grids = [np.append(grid, np.inf) for grid in grids]
        self.grids += [np.array([np.inf])] * (2 - self.k)
        edges = np.cumsum([0, *sizes])
        self.columns = [slice(edges[g], edges[g + 1]) for g in (0, 1)]
        self.n_test = sum(s.test[edges[-1], edges[-1]] for s in splits)
        self.rows: dict[int, Array] = {}

    def row(self, i: int) -> Array:
        """Errors (K, inner penalties, t) at outer penalty i; infinite where refused."""
        if i not in self.rows:
            outer, inner = self.columns[self.outer], self.columns[1 - self.outer]
            alpha, alphas = self.grids[self.outer][i], self.grids[1 - self.outer]
            self.rows[i] = np.stack(
                [_line_errors(s, outer, inner, alpha, alphas) for s in self.splits]
            )
        return self.rows[i]

    def fill(self) -> None:
        """Evaluate the whole grid, by one factorisation per fold where there is one group."""
        alphas = self.grids[self.outer]
        if self.k == 1 and len(alphas) > MANY_PENALTIES:
            whole, none = self.columns[self.outer], self.columns[1 - self.outer]
            errors = np.stack([_line_errors(s, none, whole, np.inf, alphas) for s in self.splits])
            self.rows = {i: errors[:, [i]] for i in range(len(alphas))}
        for i in range(len(alphas)):
            self.row(i)

    def mse(self, i: int) -> Array:
        """Pooled mean squared error (inner penalties, t)."""
        return np.asarray(self.row(i).sum(axis=0) / self.n_test)

    def choose(self, subset: tuple[int, ...], start: tuple[int, ...] | None) -> Choice:
        """Return the best penalties of the groups in ``subset``, the others left out."""
        out = [len(g) - 1 for g in self.grids]
        tried = [
            np.arange(out[g]) if g in subset else np.array([out[g]]) for g in range(2)
        ]
        outer, inner = tried[self.outer], tried[1 - self.outer]

        def best_of_row(i: int) -> tuple[float, int]:
            values = self.mse(i)[inner].mean(axis=-1)
            return float(values.min()), int(inner[values.argmin()])

        if start is None:
            if len(outer) > 1:
                self.fill()
            i = int(outer[np.argmin([best_of_row(i)[0] for i in outer])])
        else:
            first = start[self.outer] if self.outer in subset else out[self.outer]
            i = _climb(first, outer, lambda i: best_of_row(i)[0])
        value, j = best_of_row(i)
        if not np.isfinite(value):
            raise _near_singular(self.grids[self.outer][outer])
        return self._choice(subset, i, j, outer, inner)

    def _choice(
        self, subset: tuple[int, ...], i: int, j: int, outer: Any, inner: Any
    ) -> Choice:
        at = (i, j) if self.outer == 0 else (j, i)
        nothing = np.full(self.mse(i).shape, np.nan)
        table = np.array([self.mse(i) if i in self.rows else nothing for i in outer])[:, inner]
        refused = int(np.isinf(table[..., 0]).sum())
        table = (table if self.outer == 0 else table.swapaxes(0, 1)).reshape(
            [*(len(self.grids[g]) - 1 for g in subset), -1]
        )
        penalties = np.array([self.grids[g][at[g]] for g in range(self.k)])
        index = tuple(at[g] if g in subset else -1 for g in range(self.k))
        return Choice(penalties, index, self.row(i)[:, j], table, refused)


def _climb(start: int, allowed: Any, value: Callable[[int], float]) -> int:
    """Walk downhill on the integers ``allowed`` (contiguous) from ``start``."""
    low, high = int(allowed[0]), int(allowed[-1])
    i = min(max(start, low), high)
    while True:
        near = [j for j in (i, i - 1, i + 1) if low <= j <= high]
        best = near[int(np.argmin([value(j) for j in near]))]
        if best == i:
            return i
        i = best


def _descend(
    splits: Sequence[Split],
    sizes: Sequence[int],
    grids: Sequence[Array],
    start: tuple[int, ...] | None,
) -> Choice:
    """Coordinate descent over the penalties of three groups or more."""
    p = sum(sizes)
    edges = np.cumsum([0, *sizes])
    n_test = sum(s.test[p, p] for s in splits)
    at = list(start) if start is not None else _best_diagonal(splits, sizes, grids, n_test)
    best, sse, refused = np.inf, np.zeros((len(splits), splits[0].train.rhs.shape[1])), 0
    changed = True
    while changed:
        changed = False
        for g in range(len(sizes)):
            each = np.repeat([grids[h][at[h]] for h in range(len(sizes))], sizes)
            each[edges[g] : edges[g + 1]] = np.inf
            outer = np.flatnonzero(np.isfinite(each))
            inner = np.arange(edges[g], edges[g + 1])
            errors = np.stack(
                [_line_errors(s, outer, inner, each[outer], grids[g]) for s in splits]
            )
            values = errors.sum(axis=0).mean(axis=-1) / n_test
            refused += int(np.isinf(values).sum())
            i = int(values.argmin())
            # Rounding alone must not keep the walk going.
            if values[i] < best * (1 - 1e-12):
                changed = changed or i != at[g]
                best, at[g], sse = float(values[i]), i, errors[:, i]
    if not np.isfinite(best):
        raise _near_singular(np.concatenate(list(grids)))
    penalties = np.array([grids[g][at[g]] for g in range(len(sizes))])
    return Choice(penalties, tuple(at), sse, sse.sum(axis=0) / n_test, refused)


def _best_diagonal(
    splits: Sequence[Split], sizes: Sequence[int], grids: Sequence[Array], n_test: float
) -> list[int]:
    """Best grid position common to all groups (the positions all grids have)."""
    everything = np.arange(sum(sizes))
    values = []
    for i in range(min(len(grid) for grid in grids)):
        each = np.repeat([grid[i] for grid in grids], sizes)
        outer = everything[np.isfinite(each)]
        nothing, out = everything[:0], np.array([np.inf])
        errors = [_line_errors(s, outer, nothing, each[outer], out) for s in splits]
        values.append(np.sum(errors) / n_test)
    return [int(np.argmin(values))] * len(grids)


def _line_errors(
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
    if len(easy) > MANY_PENALTIES:
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


def _restrict(
    splits: Sequence[Split], sizes: Sequence[int], subset: tuple[int, ...]
) -> list[Split]:
    """Splits with the features of some groups only."""
    if len(subset) == len(sizes):
        return list(splits)
    kept = np.flatnonzero(np.isin(np.repeat(np.arange(len(sizes)), sizes), subset))
    p, q = sum(sizes), len(splits[0].test)
    rows = np.concatenate([kept, np.arange(p, q)])
    out = []
    for s in splits:
        m = s.train
        train = Moments(_block(m.gram, kept, kept), m.rhs[kept], m.x_mean[kept], m.y_mean)
        out.append(Split(s.fold, train, _block(s.test, rows, rows)))
    return out


def _near_singular(penalties: Array) -> DesignError:
    return DesignError(
        f"the Gram matrix is nearly singular at every penalty tried (largest "
        f"{np.max(penalties):.3g}): use larger alphas, or drop collinear features"
    )
