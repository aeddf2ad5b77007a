"""The refit bootstrap over sequences, which fits and chooses penalties again in every replicate.

A replicate is a set of sequence weights. Sequences keep their folds, so all copies of a sequence
share one; otherwise probes would be tested on copies of their training sequences. A batch of
replicates costs one matrix product, and each replicate a few Cholesky factors. The cost does not
depend on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

from posprobe.errors import DesignError
from posprobe.intervals import Array, in_processes
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.ridge.banded import PIVOT_TOLERANCE, centre, solve
from posprobe.probes.ridge.design import Design

__all__ = ["refit_scores", "weighted_fits"]

# Largest size in bytes of the summed Grams of one batch of replicates.
BATCH_BYTES = 1 << 27


def weighted_fits(gram: ClusterGram, weights: ArrayLike, alpha: float) -> tuple[Array, Array]:
    r"""Fit ridge regressions at one penalty under many sets of sequence weights.

    Each fit, with its intercept, takes one Cholesky factor of :math:`[X, 1]^\top [X, 1]`, with the
    penalty added to the diagonal of the features. Only the upper triangles of the weighted sums
    are computed.

    Parameters
    ----------
    gram : ClusterGram
        The Gram matrices of S sequences.
    weights : array-like of shape (B, S)
        Sets of sequence weights.
    alpha : float
        Penalty of all features.

    Returns
    -------
    coef : ndarray of shape (B, p, t)
        Coefficients.
    intercept : ndarray of shape (B, t)
        Intercepts.

    Raises
    ------
    DesignError
        If a weighted Gram is nearly singular.
    """
    w, p = np.asarray(weights, dtype=np.float64), gram.n_features
    size = max(1, BATCH_BYTES // gram.grams[0].nbytes)
    slopes = np.concatenate([_fits(gram, w[i : i + size], alpha) for i in range(0, len(w), size)])
    coef, level = slopes[:, :p], slopes[:, p]
    return coef, level + gram.shift[p:] - gram.shift[:p] @ coef


def _fits(gram: ClusterGram, weights: Array, alpha: float) -> Array:
    """Return coefficients and intercepts of the shifted data, as (B, p + 1, t)."""
    p = gram.n_features
    factors, fits = _normal_equations(gram, weights)
    diagonals = np.einsum("bqq->bq", factors)
    diagonals[:, :p] += alpha
    least = PIVOT_TOLERANCE * diagonals
    failed = [
        lapack.dposv(matrix.T, right.T, lower=1, overwrite_a=1, overwrite_b=1)[2] != 0
        for matrix, right in zip(factors, fits, strict=True)
    ]
    for b in np.flatnonzero(failed | (diagonals**2 <= least).any(axis=1)):
        fits[b] = _careful_fit(gram.sum(weights[b]), p, alpha).T
    return fits.transpose(0, 2, 1)


def _normal_equations(gram: ClusterGram, weights: Array) -> tuple[Array, Array]:
    """Return upper triangles (B, p + 1, p + 1) and right-hand sides (B, t, p + 1) of the sums."""
    q = gram.n_features + 1
    matrices = np.empty((len(weights), q, q))
    for i in range(q):
        np.matmul(weights, gram.grams[:, i, i:q], out=matrices[:, i, i:])
    right = weights @ gram.grams[:, q:, :q].reshape(len(gram), -1)
    return matrices, right.reshape(len(weights), -1, q)


def _careful_fit(total: Array, p: int, alpha: float) -> Array:
    """Fit one set of sums, allowing for constant features; raise an error if it is singular."""
    train = centre(total, p)
    coef = solve(train, [p], np.array([alpha]))
    return np.vstack([coef, train.y_mean - train.x_mean @ coef])


def refit_scores(
    gram: ClusterGram,
    folds: NDArray[np.intp],
    design: Design,
    subsets: Sequence[tuple[int, ...]],
    start: Sequence[tuple[int, ...]],
    weights: Array,
    n_jobs: int | None = None,
) -> Array:
    """Compute the cross-validated R2 of refitted models under each set of sequence weights.

    Penalties are chosen again in every replicate. The search starts from the grid position
    ``start`` and moves to a neighbour as long as that is better.

    Parameters
    ----------
    gram : ClusterGram
        The Gram matrices of S sequences.
    folds : ndarray of shape (S,)
        Fold of each sequence, from 0 to K - 1.
    design : Design
        Feature groups and penalties.
    subsets : sequence of tuple of int
        Feature groups of each of M models.
    start : sequence of tuple of int
        Grid position of each model in the original data.
    weights : ndarray of shape (B, S)
        Sequence weights of each replicate.
    n_jobs : int, optional
        Number of processes, as in joblib.

    Returns
    -------
    ndarray of shape (B, M)
        R2 averaged over targets; NaN if fewer than two folds have weight, or if no penalty gives a
        fit.
    """
    size = max(1, BATCH_BYTES // ((folds.max() + 1) * gram.grams[0].nbytes))
    batches = [weights[i : i + size] for i in range(0, len(weights), size)]
    calls = ((gram, folds, design, subsets, start, batch) for batch in batches)
    return np.concatenate(list(in_processes(_batch_scores, calls, n_jobs)))


def _batch_scores(
    gram: ClusterGram,
    folds: NDArray[np.intp],
    design: Design,
    subsets: Sequence[tuple[int, ...]],
    start: Sequence[tuple[int, ...]],
    weights: Array,
) -> Array:
    members = [np.flatnonzero(folds == k) for k in range(folds.max() + 1)]
    flat = gram.grams.reshape(len(gram), -1)
    sums = np.empty((len(members), len(weights), *gram.grams.shape[1:]))
    for own, fold_sums in zip(members, sums, strict=True):
        np.matmul(weights[:, own], flat[own], out=fold_sums.reshape(len(weights), -1))
    each = sums.swapaxes(0, 1)
    return np.stack([_replicate(fold_sums, design, subsets, start) for fold_sums in each])


def _replicate(
    fold_sums: Array,
    design: Design,
    subsets: Sequence[tuple[int, ...]],
    start: Sequence[tuple[int, ...]],
) -> Array:
    p = design.n_features
    if not design.in_sample and (fold_sums[:, p, p] > 0).sum() < 2:
        return np.full(len(subsets), np.nan)
    try:
        choices = design.search(design.splits(fold_sums), subsets, start)
    except DesignError:  # the drawn sequences are nearly singular at every penalty
        return np.full(len(subsets), np.nan)
    total = fold_sums.sum(axis=0)
    sst = total.diagonal()[p + 1 :] - total[p, p + 1 :] ** 2 / total[p, p]
    return np.array([np.mean(1 - choice.sse.sum(axis=0) / sst) for choice in choices])
