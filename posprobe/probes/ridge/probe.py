"""How well a linear probe tells position, and how sure that is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, column_or_1d

from posprobe.errors import DesignError
from posprobe.intervals import Array, Interval
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.ridge.scored import Estimand, SequenceScoredRidge, replicate_interval

__all__ = ["PositionProbe", "guess_error"]


def guess_error(positions: ArrayLike) -> float:
    r"""Mean absolute error of guessing a position at random, in tokens.

    Guess and truth are independent and uniform over the distinct positions. For n consecutive
    ones this is :math:`(n^2 - 1) / (3 n)`.

    Parameters
    ----------
    positions : array-like
        Positions; repetitions count once.

    Returns
    -------
    float

    Examples
    --------
    >>> from posprobe.probes.ridge.probe import guess_error
    >>> guess_error(range(1, 5)), (4 * 4 - 1) / (3 * 4)
    (1.25, 1.25)
    """
    distinct = np.unique(np.asarray(positions, dtype=float))
    n = len(distinct)
    # Sum over pairs of the absolute difference, from the sorted values.
    return float(2 * (distinct @ (2 * np.arange(n) - n + 1.0)) / n**2)


class PositionProbe(SequenceScoredRidge):
    r"""Ridge probe of absolute position, scored on sequences that it has not seen.

    .. math:: R^2 = 1 - \sum_s \mathrm{SSE}_s / \sum_s \mathrm{SST}_s ,

    with the squared error :math:`\mathrm{SSE}_s` of sequence s under the fit of the folds that do
    not hold s, and deviations :math:`\mathrm{SST}_s` from the mean over all sequences. With equal
    lengths and the same positions in each sequence this is a mean of scores per sequence.

    Parameters
    ----------
    target : {"position", "log_position"}, default="position"
        What is regressed: the position, or log(1 + position). `predict` gives positions for both.
    alphas, feature_groups, cv
        As in `GroupRidgeCV`.
    keep_gram : bool, default=True
        Keep one Gram per sequence, 8 S (p + 2)^2 bytes, which ``interval(estimand="refit")``
        needs.

    Attributes
    ----------
    r2_ : float
        Out-of-fold R2 of the target (of log(1 + position) with ``target="log_position"``, where
        `score` is the R2 of positions in tokens, and differs).
    mae_ : float
        Out-of-fold mean absolute error, in tokens; NaN after `fit_gram`, since no quadratic form
        gives it.
    mae_guess_ : float
        The same of a random guess; see `guess_error`.
    sequences_ : ndarray of shape (S,)
        Sequence labels, sorted.
    sequence_sse_, sequence_sst_ : ndarray of shape (S,)
        Out-of-fold squared error and squared deviation of each sequence.
    sequence_scores_ : ndarray of shape (S,)
        ``1 - sequence_sse_ / mean(sequence_sst_)``, whose mean is ``r2_``.
    gram_ : ClusterGram or None
        Statistics per sequence.
    fold_of_sequence_ : ndarray of shape (S,)
        Fold of each sequence.
    coef_, intercept_, alpha_, cv_mse_, cv_scores_, ...
        As in `GroupRidgeCV`, in the units of the target.

    Notes
    -----
    `fit_gram` takes statistics whose target already is position, or log(1 + position).
    ``groups`` are sequences. Without them every row is a sequence of its own; then nothing is kept
    for `interval`, since positions within a sequence are not independent.

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

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> PositionProbe:
        """Fit on rows of features and their positions.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.
        y : array-like of shape (n,)
            Absolute positions, in tokens.
        groups : array-like of shape (n,), optional
            Sequence of every row; by default every row is a sequence of its own.

        Returns
        -------
        PositionProbe
            Itself.

        Raises
        ------
        DesignError
            As `GroupRidgeCV.fit`; also an unknown target, positions below 0 for
            ``"log_position"``, or all positions equal.
        """
        X, y, names = self._validate(X, y, groups)
        y = column_or_1d(y, dtype=np.float64, warn=True)
        z = self._to_target(y)
        predicted = self._fit_rows(X, z, names, groups is not None)[-1]
        self.mae_ = float(np.abs(y - self._to_position(predicted)).mean())
        self.mae_guess_ = guess_error(y)
        return self

    def predict(self, X: Any) -> Array:
        """Predict positions, in tokens.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.

        Returns
        -------
        ndarray of shape (n,)
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
        """Confidence interval of ``r2_`` over sequences.

        Parameters
        ----------
        estimand : {"refit", "fixed_probe"}, default="refit"
            ``"refit"``: the average probe at this number of sequences; every replicate fits and
            chooses penalties anew, and the interval is estimate +- t(S - 1) x bootstrap standard
            error. ``"fixed_probe"``: this probe; only scores are resampled (percentiles).
        level : float, default=0.95
            Confidence level.
        n_resamples : int, optional
            Replicates: by default 200 for ``"refit"`` (its standard error is then known to 5%),
            2000 for ``"fixed_probe"``.
        random_state : int or Generator, default=0
            Seed.
        weights : array-like of shape (B, S), optional
            Sequence weights of the replicates instead: the same for several probes makes their
            replicates comparable.
        n_jobs : int, optional
            Processes for ``"refit"``.

        Returns
        -------
        Interval

        Raises
        ------
        DesignError
            If fitted without ``groups``, or for ``"refit"`` with ``keep_gram=False``.
        """
        check_is_fitted(self)
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
