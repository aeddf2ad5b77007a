"""Ridge regressions scored by sequence, for several models on the same folds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Tags

from posprobe.errors import DesignError
from posprobe.intervals import (
    LEAST_RESAMPLES,
    Array,
    Interval,
    bootstrap_interval,
    cluster_weights,
)
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.ridge.design import resolve_columns
from posprobe.probes.ridge.group import GroupRidgeCV, Rows
from posprobe.probes.ridge.refit import refit_scores

__all__ = ["Estimand", "Models", "SequenceScoredRidge", "replicate_interval"]

Estimand = Literal["refit", "fixed_probe"]
_RESAMPLES = {"refit": 200, "fixed_probe": 2000}
LEAST_SEQUENCES: dict[Estimand, int] = {"refit": 3, "fixed_probe": 13}
OVERLAP = 12  # sequences that the shared training data of five folds cost, found by simulation
KEPT = 0.95
ROUNDING = 1e-12


@dataclass(frozen=True)
class Models:
    """The models that are fitted on the same folds.

    Attributes
    ----------
    subsets : list of tuple of int
        Feature groups of each model, in ascending order; the last model has all groups.
    orders : ndarray of shape (O, k) or None
        Sampled orders of the k groups, each followed by its reverse. All their beginnings are among
        the models. None if no orders were sampled.
    """

    subsets: list[tuple[int, ...]]
    orders: NDArray[np.intp] | None = None


class SequenceScoredRidge(GroupRidgeCV):
    r"""Ridge regression that keeps the out-of-fold squared error of every sequence and model.

    This is the base class of `PositionProbe`, which has one model, and `VariancePartition`, which
    has one model for each set of feature groups. The R2 of model m is

    .. math:: R^2_m = 1 - \sum_s \mathrm{SSE}_{sm} / \sum_s \mathrm{SST}_s

    with the sum of squared errors :math:`\mathrm{SSE}_{sm}` of sequence s under model m, and its
    sum of squared deviations :math:`\mathrm{SST}_s` from the mean over all sequences.

    Attributes
    ----------
    sequences_ : ndarray of shape (S,)
        Sequence labels, sorted.
    fold_of_sequence_ : ndarray of shape (S,)
        Fold of each sequence.
    gram_ : ClusterGram or None
        The statistics of each sequence, if they were kept.
    """

    keep_gram: bool

    def _fit_rows(
        self,
        X: NDArray[Any],
        z: Array,
        names: NDArray[Any],
        folds: NDArray[np.intp],
        weights: Array | None,
        grouped: bool,
    ) -> list[Array]:
        """Fit all models; return their out-of-fold predictions (n,), the joint model last."""
        if np.ptp(z) == 0:
            raise DesignError(f"y is {z[0]:g} in every row: give rows that differ")
        self._grouped = grouped
        keep = self.keep_gram and grouped
        labels = names if keep else folds
        gram = ClusterGram.from_arrays(X, z, labels, names=names, weights=weights)
        self.sequences_, first, sequence = np.unique(names, return_index=True, return_inverse=True)
        self.fold_of_sequence_ = folds[first]
        self.gram_ = gram if keep else None
        columns = resolve_columns(self.feature_groups, X.shape[1], self._names())
        folded = gram.merge(self.fold_of_sequence_) if keep else gram
        self._models = self._choose_models(len(columns))
        self._fit_folds(folded, columns, self._models.subsets)
        # Use residuals, since quadratic forms lose digits as R2 approaches 1.
        out = [self._out_of_fold(X, folds, m)[:, 0] for m in range(len(self._choices))]
        w = 1.0 if weights is None else weights
        sse = np.stack([_sums(sequence, w * (z - o) ** 2) for o in out], axis=1)
        mean = np.average(z, weights=weights)
        self._set_sequences(sse, _sums(sequence, w * (z - mean) ** 2))
        return out

    def _choose_models(self, n_groups: int) -> Models:
        """Choose the models to fit to this number of feature groups."""
        return Models([tuple(range(n_groups))])

    def _fit_clusters(self, gram: ClusterGram, folds: NDArray[np.intp]) -> None:
        """Fit all models on statistics, and score by quadratic forms."""
        if gram.n_targets != 1:
            raise DesignError(f"the Gram has {gram.n_targets} targets: build it with one")
        p = gram.n_features
        total = gram.sum()
        if total[-1, -1] - total[p, -1] ** 2 / total[p, p] <= 1e-14 * total[-1, -1]:
            raise DesignError("the target is the same in every row: give rows that differ")
        self.sequences_, self._grouped, self.gram_ = gram.groups, True, gram
        self.fold_of_sequence_ = folds
        columns = resolve_columns(self.feature_groups, gram.n_features)
        self._models = self._choose_models(len(columns))
        self._fit_folds(gram.merge(folds), columns, self._models.subsets)
        sse = np.empty((len(gram), len(self._choices)))
        for row, k in enumerate(self._fold_ids):
            here = np.flatnonzero(folds == k)
            part = ClusterGram(gram.grams[here], gram.groups[here], gram.shift, 1)
            for m, (coef, intercept) in enumerate(self._fold_fits):
                sse[here, m] = part.sse(coef[row], intercept[row])[:, 0]
        self._set_sequences(sse, _deviations(gram))

    def _verify(self, rows: Iterable[Rows], folds: NDArray[np.intp], weights: Array) -> None:
        """Score by residuals over the data instead of quadratic forms."""
        sse, _ = self._residual_sums(rows, folds, weights)
        self._set_sequences(sse, self.sequence_sst_)

    def _residual_sums(
        self, rows: Iterable[Rows], folds: NDArray[np.intp], weights: Array
    ) -> tuple[Array, Array]:
        """Compute out-of-fold squared errors (S, M) and mean absolute errors (M,)."""
        sse = np.zeros_like(self._sse)
        absolute, total = np.zeros(sse.shape[1]), 0.0
        for X, z, sequence in rows:
            total += weights[sequence].sum()
            for m in range(sse.shape[1]):
                residual = (z - self._out_of_fold(X, folds[sequence], m))[:, 0]
                np.add.at(sse[:, m], sequence, weights[sequence] * residual**2)
                absolute[m] += weights[sequence] @ np.abs(residual)
        return sse, absolute / total

    def _set_sequences(self, sse: Array, sst: Array) -> None:
        self._sse, self.sequence_sst_ = sse, sst
        self.n_sequences_ = len(self.sequences_)
        self._r2 = 1 - sse.sum(axis=0) / sst.sum()
        self.best_score_ = float(self._r2[-1])
        self._set_coef(1)

    def _replicates(
        self,
        estimand: Estimand,
        n_resamples: int | None,
        random_state: Any,
        weights: ArrayLike | None,
        n_jobs: int | None,
    ) -> Array:
        """Compute bootstrap replicates (B, M) of R2, with the same weights for all models."""
        if estimand not in _RESAMPLES:
            raise DesignError(f"estimand {estimand!r} is unknown: use 'refit' or 'fixed_probe'")
        if not self._grouped:
            raise DesignError(
                "rows were not grouped into sequences, so nothing can be resampled: call "
                "fit(X, y, groups=...) with the sequence of every row"
            )
        if weights is None:
            size = _RESAMPLES[estimand] if n_resamples is None else n_resamples
            weights = cluster_weights(self.n_sequences_, size, random_state)
        w = np.asarray(weights, dtype=np.float64)
        if w.ndim != 2 or w.shape[1] != self.n_sequences_ or not len(w):
            raise DesignError(
                f"weights {w.shape} for {self.n_sequences_} sequences: give one row per replicate "
                "and one column per sequence"
            )
        if not (w >= 0).all() or not np.isfinite(w).all() or not w.any(axis=1).all():
            raise DesignError("weights of replicates must be finite, >= 0, and not all 0 in one")
        if estimand == "fixed_probe":
            return np.asarray(1 - (w @ self._sse) / (w @ self.sequence_sst_)[:, None])
        if self.gram_ is None:
            raise DesignError(
                "refitting needs one Gram per sequence: fit with keep_gram=True, or ask for "
                "estimand='fixed_probe'"
            )
        start = [choice.index for choice in self._choices]
        subsets = self._models.subsets
        return refit_scores(
            self.gram_, self.fold_of_sequence_, self._design, subsets, start, w, n_jobs
        )

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that there is only one target."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


def _sums(sequence: NDArray[np.intp], values: Array) -> Array:
    return np.asarray(np.bincount(sequence, values), dtype=np.float64)


def _deviations(gram: ClusterGram) -> Array:
    """Sum the squared deviations of the target from its overall mean, by sequence."""
    p = gram.n_features
    rows, sums, squares = gram.grams[:, p, p], gram.grams[:, p, p + 1], gram.grams[:, -1, -1]
    mean = sums.sum() / rows.sum()
    return np.asarray(squares - 2 * mean * sums + rows * mean**2)


def replicate_interval(
    estimate: float, draws: Array, n: int, estimand: Estimand, level: float
) -> Interval:
    """Turn replicates of R2, or of a contrast of R2, into an interval.

    Parameters
    ----------
    estimate : float
        Estimate from the original data.
    draws : ndarray of shape (B,)
        Bootstrap replicates. NaN marks a replicate without a fit, because fewer than two folds kept
        a sequence, or because the kept sequences are collinear.
    n : int
        Number of sequences.
    estimand : {"refit", "fixed_probe"}
        Both take limits from the standard error and t(n - 1). That of "fixed_probe" is multiplied
        by sqrt(n / (n - 12)): each sequence is scored by one of five probes, and trains the four
        others.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval
        Replicates without a fit are left out. If they are more than a twentieth, if there are fewer
        than 10 replicates in all, or if the others do not differ, the interval is unbounded and its
        method gives the reason. So it is with fewer than 3 sequences ("refit") or 13
        ("fixed_probe").
    """
    kept = draws[np.isfinite(draws)]
    if len(kept) < KEPT * len(draws):
        why = f"none: {len(draws) - len(kept)} of {len(draws)} replicates have no fit"
        return Interval(estimate, None, None, level, why, estimand, n)
    if len(draws) < LEAST_RESAMPLES:
        why = f"none: {len(draws)} replicates"
        return Interval(estimate, None, None, level, why, estimand, n)
    if n < LEAST_SEQUENCES[estimand]:
        return Interval(estimate, None, None, level, f"none: {n} sequences", estimand, n)
    if len(kept) > 1 and np.ptp(kept) < ROUNDING:
        # A model without features (all penalties infinite) has R2 = 0 in every replicate.
        if abs(estimate) < ROUNDING and np.abs(kept).max() < ROUNDING:
            return Interval(estimate, estimate, estimate, level, "t", estimand, n)
        return Interval(
            estimate, None, None, level, f"none: {len(kept)} equal replicates", estimand, n
        )
    if estimand == "fixed_probe":
        kept = estimate + (kept - estimate) * np.sqrt(n / (n - OVERLAP))
    return bootstrap_interval(kept, estimate, n=n, level=level, estimand=estimand)
