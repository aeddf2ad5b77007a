"""Ridge regression with one penalty per feature group."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from posprobe.errors import DesignError
from posprobe.intervals import Array
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.gram.rows import Block, as_block, column_means, distinct, refuse_nonfinite
from posprobe.probes.ridge.banded import Split
from posprobe.probes.ridge.design import fold_labels, make_design, resolve_columns, sequence_folds
from posprobe.probes.ridge.search import Choice

__all__ = ["GroupRidgeCV", "Rows"]

# X, targets (n, t), and the index of the sequence of every row.
Rows = tuple[NDArray[Any], Array, NDArray[np.intp]]


class GroupRidgeCV(RegressorMixin, BaseEstimator):
    r"""Linear regression with one ridge penalty per feature group, chosen by cross-validation.

    The coefficients minimise

    .. math:: \|y - b_0 - \sum_g X_g b_g\|^2 + \sum_g \alpha_g \|b_g\|^2

    and the intercept is not penalised. The penalties minimise the squared error pooled over the
    test rows of all folds of sequences, averaged over targets. Everything is computed in float64
    from one pass over the data. For one or two groups the whole grid is searched; for more, one
    group is searched at a time.

    Parameters
    ----------
    alphas : None, array-like, or list of array-like, default=None
        Penalties to try: one grid for all groups, or one grid for each; ``np.inf`` leaves a group
        out. None means 16 penalties and infinity, scaled by the mean centred sum of squares of the
        features of each group (see `posprobe.probes.ridge.design.DEFAULT_ALPHAS`).
    feature_groups : None, dict, list, or array of int, default=None
        A dictionary from names to columns (indices, a slice, or names of DataFrame columns), a
        list with the columns of each group, or one integer label for each column. By default all
        columns have one penalty.
    cv : int, splitter, iterable of (train, test), or "in-sample", default=5
        An integer is the number of folds of `sklearn.model_selection.GroupKFold`. "in-sample"
        scores on the training rows, which is optimistic and serves only to reproduce such figures.
    alpha_per_target : bool, default=False
        Choose the penalties of each target by its own error, rather than the same for all.

    Attributes
    ----------
    coef_ : ndarray of shape (p,) or (t, p)
        Coefficients of the fit to all rows.
    intercept_ : float or ndarray of shape (t,)
        Intercept of the fit to all rows.
    alpha_ : ndarray of shape (k,) or (t, k)
        Chosen penalty of each feature group; for each target with ``alpha_per_target``.
    alphas_ : list of ndarray
        Penalties that were tried for each group.
    cv_mse_ : ndarray of shape (len(alphas_[0]), ..., len(alphas_[k - 1]))
        Pooled out-of-fold mean squared error over the grid, averaged over targets; infinite where
        a training Gram is nearly singular. With three groups or more, only that of the chosen
        penalties.
    cv_scores_ : ndarray of the same shape
        Out-of-fold R2 over the grid, averaged over targets. R2 is 1 less the ratio of the squared
        error to the squared deviation from the overall mean.
    best_score_ : float
        Out-of-fold R2 at the chosen penalties.
    fold_mse_ : ndarray of shape (K, t)
        Mean squared error in each of K folds at the chosen penalties.
    fold_coef_, fold_intercept_ : ndarray of shape (K, p, t), (K, t)
        Fits to the training rows of each fold at the chosen penalties.
    feature_groups_ : dict of str to ndarray of int
        Columns of each feature group.
    group_dims_ : dict of str to int
        Number of columns of each feature group.
    n_sequences_ : int
        Number of sequences.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str
        Names of the features, if X has them.

    Notes
    -----
    ``groups`` are sequences. Without them every row counts as a sequence of its own, which is
    correct only if rows are independent.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.probes.ridge import GroupRidgeCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 6))
    >>> y = X[:, 0] + rng.normal(size=200)
    >>> ridge = GroupRidgeCV(feature_groups={"signal": [0], "noise": slice(1, 6)})
    >>> ridge = ridge.fit(X, y, groups=np.repeat(np.arange(20), 10))
    >>> ridge.group_dims_, bool(ridge.alpha_[1] > ridge.alpha_[0])
    ({'signal': 1, 'noise': 5}, True)
    """

    _coef: Array
    _fold_ids: list[int]
    _fold_rows: Array
    fold_coef_: Array
    fold_intercept_: Array

    def __init__(
        self,
        alphas: Any = None,
        feature_groups: Any = None,
        cv: Any = 5,
        alpha_per_target: bool = False,
    ) -> None:
        self.alphas = alphas
        self.feature_groups = feature_groups
        self.cv = cv
        self.alpha_per_target = alpha_per_target

    def fit(
        self,
        X: Any,
        y: Any,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> GroupRidgeCV:
        """Fit on rows of features.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.
        y : array-like of shape (n,) or (n, t)
            Targets.
        groups : array-like of shape (n,), optional
            Sequence of every row; by default every row is a sequence of its own.
        sample_weight : array-like of shape (n,), optional
            How often each row counts, in the fit and in all scores: with whole numbers, as if it
            were repeated in its fold. Sequences remain the unit of folds.

        Returns
        -------
        GroupRidgeCV
            The fitted estimator.

        Raises
        ------
        DesignError
            If there are fewer sequences than folds, a value is NaN or infinite (the message names
            its sequence and column), the parameters do not match the data, or a training Gram is
            nearly singular at every penalty.
        """
        X, y, names, folds, w = self._rows(X, y, groups, sample_weight)
        gram = ClusterGram.from_arrays(X, y, folds, names=names, weights=w)
        self._fit_folds(gram, resolve_columns(self.feature_groups, X.shape[1], self._names()))
        self.n_sequences_ = len(np.unique(names))
        self._set_coef(y.ndim)
        return self

    def fit_gram(
        self,
        gram: ClusterGram,
        *,
        weights: ArrayLike | None = None,
        folds: ArrayLike | None = None,
        verify: Iterable[Block] | None = None,
    ) -> GroupRidgeCV:
        """Fit on sufficient statistics.

        Parameters
        ----------
        gram : ClusterGram
            The Gram matrices of S sequences.
        weights : array-like of shape (S,), optional
            Weight of each sequence; a weight of 0 leaves it out.
        folds : array-like of shape (S,), optional
            Fold of each sequence; by default from ``cv``, as in :meth:`fit`.
        verify : iterable of (X, y, groups, ...), optional
            All rows of the data once more. Scores are then computed from residuals instead of
            quadratic forms, which lose digits if R2 is close to 1.

        Returns
        -------
        GroupRidgeCV
            The fitted estimator.

        Raises
        ------
        DesignError
            If there is not one weight and one fold for each sequence, if rows of ``verify`` are
            missing or not finite, or for the reasons given in :meth:`fit`.
        """
        if not isinstance(gram, ClusterGram):
            raise DesignError(
                f"fit_gram takes a ClusterGram, not {type(gram).__name__}: use fit(X, y, groups=)"
            )
        w = np.ones(len(gram)) if weights is None else np.asarray(weights, dtype=float)
        if w.shape != (len(gram),) or not (np.isfinite(w).all() and (w >= 0).all()):
            raise DesignError(
                f"weights {w.shape} for {len(gram)} sequences: give one finite weight >= 0 each"
            )
        labels = self._sequence_folds(gram) if folds is None else np.asarray(folds)
        if labels.shape != w.shape or (labels.dtype.kind == "f" and np.isnan(labels).any()):
            raise DesignError(
                f"folds {labels.shape} for {len(gram)} sequences: give one fold to each, never NaN"
            )
        kept = np.flatnonzero(w > 0)
        if not len(kept):
            raise DesignError("all weights are 0: give some sequence a weight above 0")
        labels = np.unique(labels[kept], return_inverse=True)[1]
        grams = gram.grams if (w == 1).all() else gram.grams[kept] * w[kept, None, None]
        weighted = ClusterGram(grams, gram.groups[kept], gram.shift, gram.n_targets)
        self.n_features_in_ = gram.n_features
        self.__dict__.pop("feature_names_in_", None)
        self._fit_clusters(weighted, labels)
        if verify is not None:
            rows = self._known_rows(verify, gram.groups[kept], gram.n_rows[kept])
            self._verify(rows, labels, w[kept])
        return self

    def predict(self, X: Any) -> Array:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.

        Returns
        -------
        ndarray of shape (n,) or (n, t)
            Predictions, in the units of the targets.
        """
        check_is_fitted(self)
        X = validate_data(self, _text_names(X), reset=False, dtype=np.float64)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that several targets are allowed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _validate(
        self, X: Any, y: Any, groups: ArrayLike | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Check inputs, except for values of X that are not finite, which are found later."""
        any_value = {"ensure_all_finite": False, "ensure_min_samples": 2}
        with _in_one_line():
            X, y = validate_data(
                self, _text_names(X), y,
                validate_separately=(
                    {**any_value, "dtype": [np.float64, np.float32, np.float16]},
                    {**any_value, "dtype": np.float64, "ensure_2d": False},
                ),
            )  # fmt: skip
        names = np.arange(len(X))
        if groups is not None:
            with _in_one_line():
                names = check_array(groups, ensure_2d=False, dtype=None, input_name="groups")
            if names.ndim != 1:
                raise DesignError(
                    f"groups {names.shape}: give one sequence label per row, ({len(X)},)"
                )
            if names.dtype.kind == "O":
                distinct(names)  # raises an error if labels cannot be sorted
        check_consistent_length(X, y, names)
        if not np.isfinite(y).all():
            refuse_nonfinite(X, y.reshape(len(y), -1), names)
        return X, y, names

    def _rows(
        self, X: Any, y: Any, groups: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.intp], Array | None]:
        """Check inputs; return rows that count, with their sequences, folds and weights if any."""
        X, y, names = self._validate(X, y, groups)
        folds = self._row_folds(names)
        if sample_weight is None:
            return X, y, names, folds, None
        with _in_one_line():
            w = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        kept = w > 0
        if len(np.unique(folds[kept])) < len(np.unique(folds)):
            raise DesignError("all sample weights of a fold are 0: lower cv, or leave its rows out")
        return X[kept], y[kept], names[kept], folds[kept], w[kept]

    def _names(self) -> list[str] | None:
        return getattr(self, "feature_names_in_", None)

    def _in_sample(self) -> bool:
        return isinstance(self.cv, str) and self.cv == "in-sample"

    def _sequence_folds(self, gram: ClusterGram) -> NDArray[np.intp]:
        if self._in_sample():
            return np.zeros(len(gram), dtype=np.intp)
        return sequence_folds(self.cv, gram.n_rows)

    def _row_folds(self, names: NDArray[Any]) -> NDArray[np.intp]:
        if self._in_sample():
            return np.zeros(len(names), dtype=np.intp)
        return fold_labels(self.cv, names)

    def _fit_folds(
        self,
        gram: ClusterGram,
        groups: dict[str, NDArray[np.intp]],
        subsets: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        """Choose penalties and fit all models, from one Gram per fold; report the last model."""
        if self.alpha_per_target and gram.n_targets > 1:
            self._fit_targets(gram, groups)
            return
        total = gram.sum()
        design = make_design(total, gram.shift, groups, self.alphas, self._in_sample())
        splits = design.splits(gram.grams)
        choices = design.search(splits, subsets or [tuple(range(len(groups)))])
        _warn_refused(sum(choice.n_refused for choice in choices))
        self._design, self._choices, choice = design, choices, choices[-1]
        self._coef, self._intercept = design.fit(total, choice.penalties)
        self._set_folds(splits)
        p = gram.n_features
        sst = total.diagonal()[p + 1 :] - total[p, p + 1 :] ** 2 / total[p, p]
        self._sst = np.where(sst > 0, sst, np.nan)
        _warn_constant(np.flatnonzero(~(sst > 0)))
        self._set_scores(choice, total[p, p])

    def _fit_targets(self, gram: ClusterGram, groups: dict[str, NDArray[np.intp]]) -> None:
        """Choose penalties and fit for one target at a time, and join the results."""
        parts = []
        for target in range(gram.n_targets):
            part = GroupRidgeCV(self.alphas, self.feature_groups, self.cv)
            part._fit_folds(gram.target(target), groups)
            parts.append(part)
        found = [part._choices[-1] for part in parts]
        choice = Choice(
            penalties=np.stack([one.penalties for one in found]),
            index=(),
            sse=np.concatenate([one.sse for one in found], axis=1),
            table=np.concatenate([one.table for one in found], axis=-1),
            n_refused=sum(one.n_refused for one in found),
        )
        self._design, self._choices = parts[0]._design, [choice]
        self._fold_ids, self._fold_rows = parts[0]._fold_ids, parts[0]._fold_rows
        self._coef = np.concatenate([part._coef for part in parts], axis=1)
        self._intercept, self._sst = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("_intercept", "_sst")
        )
        self.fold_coef_ = np.concatenate([part.fold_coef_ for part in parts], axis=2)
        self.fold_intercept_ = np.concatenate([part.fold_intercept_ for part in parts], axis=1)
        self._fold_fits = [(self.fold_coef_, self.fold_intercept_)]
        p = gram.n_features
        self._set_scores(choice, gram.sum()[p, p])

    def _set_folds(self, splits: list[Split]) -> None:
        """Fit every model to the training rows of every fold."""
        p = self._design.n_features
        self._fold_ids = [s.fold for s in splits]
        self._fold_rows = np.array([s.test[p, p] for s in splits])
        self._fold_fits = []
        for choice in self._choices:
            fits = [self._design.coefficients(s.train, choice.penalties) for s in splits]
            self._fold_fits.append((np.stack([f[0] for f in fits]), np.stack([f[1] for f in fits])))
        self.fold_coef_, self.fold_intercept_ = self._fold_fits[-1]

    def _set_scores(self, choice: Choice, n: float) -> None:
        self.fold_mse_ = choice.sse / self._fold_rows[:, None]
        self.best_score_ = float(np.mean(1 - choice.sse.sum(axis=0) / self._sst))
        self.cv_mse_ = choice.table.mean(axis=-1)
        self.cv_scores_ = np.mean(1 - choice.table * n / self._sst, axis=-1)

    def _fit_clusters(self, gram: ClusterGram, folds: NDArray[np.intp]) -> None:
        """Fit on one Gram per sequence, given the fold of each."""
        columns = resolve_columns(self.feature_groups, gram.n_features)
        self._fit_folds(gram.merge(folds), columns)
        self.n_sequences_ = len(gram)
        self._set_coef(1 if gram.n_targets == 1 else 2)

    def _verify(self, rows: Iterable[Rows], folds: NDArray[np.intp], weights: Array) -> None:
        """Score by residuals over the data instead of quadratic forms."""
        sse = np.zeros_like(self._choices[-1].sse)
        for X, z, sequence in rows:
            squares = (z - self._out_of_fold(X, folds[sequence])) ** 2
            np.add.at(sse, folds[sequence], weights[sequence, None] * squares)
        self.fold_mse_ = sse / self._fold_rows[:, None]
        self.best_score_ = float(np.mean(1 - sse.sum(axis=0) / self._sst))

    @staticmethod
    def _known_rows(
        blocks: Iterable[Block], sequences: NDArray[Any], n_rows: NDArray[np.int64]
    ) -> Iterator[Rows]:
        """Yield the rows of fitted sequences; raise an error if rows are missing or surplus."""
        number = {label: s for s, label in enumerate(sequences.tolist())}
        seen = np.zeros(len(sequences), dtype=np.int64)
        for block in blocks:
            X, y, groups = as_block(*block[:3])
            if not (np.isfinite(column_means(X)).all() and np.isfinite(column_means(y)).all()):
                refuse_nonfinite(X, y, groups)
            labels = groups.tolist()
            known = np.array([label in number for label in labels])
            sequence = np.array([number[label] for label in labels if label in number], np.intp)
            seen += np.bincount(sequence, minlength=len(seen))
            yield X[known], y[known].astype(float), sequence
        if (seen != n_rows).any():
            s = int(np.argmax(seen != n_rows))
            raise DesignError(
                f"verify holds {seen[s]} rows of sequence {sequences[s]!s}, the statistics "
                f"{n_rows[s]}: give all rows once more"
            )

    def _out_of_fold(self, X: NDArray[Any], folds: NDArray[np.intp], model: int = -1) -> Array:
        """Predict each row by the fit that was not trained on it, as (n, t)."""
        coef, intercept = self._fold_fits[model]
        out = np.full((len(X), coef.shape[2]), np.nan)
        for row, k in enumerate(self._fold_ids):
            here = folds == k
            out[here] = X[here].astype(float, copy=False) @ coef[row] + intercept[row]
        return out

    def _set_coef(self, y_ndim: int) -> None:
        self.alpha_ = self._choices[-1].penalties
        self.alphas_ = list(self._design.grids)
        self.feature_groups_ = dict(zip(self._design.names, self._design.columns, strict=True))
        self.group_dims_ = {name: len(c) for name, c in self.feature_groups_.items()}
        self.coef_ = self._coef[:, 0] if y_ndim == 1 else self._coef.T.copy()
        self.intercept_ = float(self._intercept[0]) if y_ndim == 1 else self._intercept


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Say in one line what scikit-learn refuses: some of its messages print the data."""
    try:
        yield
    except ValueError as error:
        raise DesignError(" ".join(str(error).split())) from error


def _text_names(X: Any) -> Any:
    """Make column names text where only some are, since scikit-learn takes no such table."""
    if isinstance(X, pd.DataFrame) and len({type(name) for name in X.columns}) > 1:
        return X.rename(columns=str)
    return X


def _warn_constant(targets: NDArray[np.intp]) -> None:
    if len(targets):
        warnings.warn(
            f"target {targets[0]} is the same in every row, so it has no R2: leave it out",
            UserWarning,
            stacklevel=4,
        )


def _warn_refused(n_refused: int) -> None:
    if n_refused:
        warnings.warn(
            f"{n_refused} penalties refused: with them a training Gram is nearly singular "
            "(collinear features); use larger alphas",
            LinAlgWarning,
            stacklevel=4,
        )
