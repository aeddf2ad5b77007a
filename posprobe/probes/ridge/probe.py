"""A linear probe of absolute position, with intervals over sequences."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, column_or_1d

from posprobe.errors import DesignError
from posprobe.intervals import Array, Interval, check_resamples
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.ridge.scored import Estimand, SequenceScoredRidge, replicate_interval

__all__ = ["PositionProbe", "guess_error"]


def guess_error(positions: ArrayLike) -> float:
    r"""Compute the mean absolute error of guessing a position at random.

    Guess and truth are independent and uniform over the distinct positions. For n consecutive
    positions the error is :math:`(n^2 - 1) / (3 n)`.

    Parameters
    ----------
    positions : array-like of shape (n,)
        Positions; repeated ones count once.

    Returns
    -------
    float
        In tokens.

    Examples
    --------
    >>> from posprobe.probes.ridge.probe import guess_error
    >>> guess_error(range(1, 5)), (4 * 4 - 1) / (3 * 4)
    (1.25, 1.25)
    """
    distinct = np.unique(np.asarray(positions, dtype=float))
    n = len(distinct)
    # The sum of absolute differences over all pairs, from the sorted values.
    return float(2 * (distinct @ (2 * np.arange(n) - n + 1.0)) / n**2)


class PositionProbe(SequenceScoredRidge):
    r"""Ridge probe of absolute position, scored on sequences that it was not trained on.

    .. math:: R^2 = 1 - \sum_s \mathrm{SSE}_s / \sum_s \mathrm{SST}_s

    :math:`\mathrm{SSE}_s` is the sum of squared errors in sequence s under the fit to the folds
    without s, and :math:`\mathrm{SST}_s` the sum of squared deviations from the mean over all
    sequences. If all sequences have the same positions, R2 is a mean of scores of sequences.

    Parameters
    ----------
    target : {"position", "log_position"}, default="position"
        The regression target: the position, or log(1 + position). `predict` returns positions in
        both cases.
    alphas, feature_groups, cv
        As in `GroupRidgeCV`.
    keep_gram : bool, default=True
        Keep the Gram of each of S sequences, 8 S (p + 2)^2 bytes for p features, which
        ``interval(estimand="refit")`` needs.

    Attributes
    ----------
    r2_ : float
        Out-of-fold R2 of the target. With ``target="log_position"`` it is the R2 of
        log(1 + position), while `score` returns that of the position.
    mae_ : float
        Out-of-fold mean absolute error, in tokens; NaN after `fit_gram`, since statistics do not
        determine it.
    mae_guess_ : float
        Mean absolute error of a random guess, in tokens (see `guess_error`); NaN after `fit_gram`.
    sequences_ : ndarray of shape (S,)
        Sequence labels, sorted.
    sequence_sse_, sequence_sst_ : ndarray of shape (S,)
        Out-of-fold sum of squared errors, and sum of squared deviations, of each sequence.
    sequence_scores_ : ndarray of shape (S,)
        ``1 - sequence_sse_ / mean(sequence_sst_)``, whose mean is ``r2_``.
    gram_ : ClusterGram or None
        The statistics of each sequence, if they were kept.
    fold_of_sequence_ : ndarray of shape (S,)
        Fold of each sequence.
    coef_, intercept_, alpha_, cv_mse_, cv_scores_, ...
        As in `GroupRidgeCV`, in the units of the target.

    Notes
    -----
    ``groups`` are sequences. Without them every row counts as a sequence of its own, and `interval`
    is not available, because rows of one sequence are not independent. The target of the statistics
    that `fit_gram` takes must already be transformed as `target` says.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe import PositionProbe
    >>> rng = np.random.default_rng(0)
    >>> position = np.tile(np.arange(1, 33), 20)
    >>> groups = np.repeat(np.arange(20), 32)
    >>> X = np.log(position)[:, None] + 0.1 * rng.normal(size=(640, 3))
    >>> probe = PositionProbe(target="log_position").fit(X, position, groups=groups)
    >>> bool(probe.r2_ > 0.98), bool(probe.mae_ < 0.2 * probe.mae_guess_)
    (True, True)
    """

    def __init__(
        self,
        target: Literal["position", "log_position"] = "position",
        alphas: Any = None,
        feature_groups: Any = None,
        cv: Any = 5,
        keep_gram: bool = True,
    ) -> None:
        super().__init__(alphas=alphas, feature_groups=feature_groups, cv=cv)
        self.target = target
        self.keep_gram = keep_gram

    def fit(
        self,
        X: Any,
        y: Any,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> PositionProbe:
        """Fit on rows of features and their positions.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.
        y : array-like of shape (n,)
            Absolute positions, in tokens.
        groups : array-like of shape (n,), optional
            Sequence of every row; by default every row is a sequence of its own.
        sample_weight : array-like of shape (n,), optional
            How often each row counts, in the fit and in all scores; see `GroupRidgeCV.fit`.

        Returns
        -------
        PositionProbe
            The fitted estimator.

        Raises
        ------
        DesignError
            If the target is unknown, a position is below 0 with "log_position", or all positions
            are equal, or for the reasons given in `GroupRidgeCV.fit`.
        """
        X, y, names, folds, w = self._rows(X, y, groups, sample_weight)
        y = column_or_1d(y, dtype=np.float64, warn=True)
        z = self._to_target(y)
        predicted = self._fit_rows(X, z, names, folds, w, groups is not None)[-1]
        missed = np.abs(y - self._to_position(predicted))
        self.mae_ = float(np.average(missed, weights=w))
        self.mae_guess_ = guess_error(y)
        return self

    def predict(self, X: Any) -> Array:
        """Predict positions.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.

        Returns
        -------
        ndarray of shape (n,)
            In tokens, for both targets.
        """
        return self._to_position(super().predict(X))

    def interval(
        self,
        estimand: Estimand = "refit",
        *,
        level: float = 0.95,
        n_resamples: int | None = None,
        random_state: Any = 0,
        weights: ArrayLike | None = None,
        n_jobs: int | None = None,
    ) -> Interval:
        """Compute a confidence interval of ``r2_`` over sequences.

        Parameters
        ----------
        estimand : {"refit", "fixed_probe"}, default="refit"
            "refit" is the mean R2 of probes fitted to this number of sequences. Every replicate
            fits and chooses penalties again, and the interval is that of t(S - 1) and the bootstrap
            standard error. "fixed_probe" is the R2 of this probe on new sequences. Only its scores
            are resampled, and the standard error is multiplied by sqrt(S / (S - 12)), since
            sequences score some folds' probes and train the others. It needs 13 sequences.
        level : float, default=0.95
            Nominal coverage.
        n_resamples : int, optional
            Number of replicates, at least 10; by default 200 for "refit", which gives its standard
            error to about 5%, and 2000 for "fixed_probe".
        random_state : int or Generator, default=0
            Seed of the replicates, or a random generator.
        weights : array-like of shape (B, S), optional
            Weights of the sequences in each replicate, for instance the same for several probes to
            make their replicates comparable. They replace `n_resamples` and `random_state`.
        n_jobs : int, optional
            Number of processes for "refit", as in joblib.

        Returns
        -------
        Interval
            Unbounded if more than a twentieth of the replicates have no fit, or if all replicates
            are equal.

        Raises
        ------
        DesignError
            If the probe was fitted without ``groups``, or with ``keep_gram=False`` for "refit", or
            if the estimand, the weights or the number of replicates are not valid.

        Warns
        -----
        PosprobeWarning
            If `n_resamples` is below 100.
        """
        check_is_fitted(self)
        if n_resamples is not None:
            check_resamples(n_resamples)
        draws = self._replicates(estimand, n_resamples, random_state, weights, n_jobs)
        return replicate_interval(self.r2_, draws[:, 0], self.n_sequences_, estimand, level)

    def _to_target(self, y: Array) -> Array:
        if self.target not in ("position", "log_position"):
            raise DesignError(
                f"target {self.target!r} is unknown: use 'position' or 'log_position'"
            )
        if self.target == "position":
            return y
        if y.min() < 0:
            raise DesignError(
                f"position {y.min():g} has no log(1 + position): use target='position'"
            )
        return np.log1p(y)

    def _to_position(self, z: Array) -> Array:
        return z if self.target == "position" else np.expm1(z)

    def _fit_clusters(self, gram: ClusterGram, folds: NDArray[np.intp]) -> None:
        super()._fit_clusters(gram, folds)
        self.mae_ = self.mae_guess_ = np.nan

    def _set_sequences(self, sse: Array, sst: Array) -> None:
        super()._set_sequences(sse, sst)
        self.sequence_sse_ = sse[:, 0]
        self.sequence_scores_ = 1 - self.sequence_sse_ / sst.mean()
        self.r2_ = self.best_score_
