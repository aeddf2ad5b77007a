"""Resolve feature groups, penalty grids and folds for a cross-validated ridge."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupKFold, check_cv

from posprobe.errors import DesignError
from posprobe.intervals import Array
from posprobe.probes.gram.rows import distinct
from posprobe.probes.ridge.banded import Moments, Split, centre, make_splits, solve
from posprobe.probes.ridge.search import Choice, search

__all__ = [
    "DEFAULT_ALPHAS",
    "Design",
    "fold_labels",
    "make_design",
    "resolve_columns",
    "sequence_folds",
]

# In units of a group's mean sum of squares per feature, so rescaling the data has no effect. The
# last entry leaves the group out.
DEFAULT_ALPHAS = np.append(np.logspace(-8, 2, 16), np.inf)


@dataclass(frozen=True)
class Design:
    """Feature groups with their penalties, to be applied to summed Grams.

    Attributes
    ----------
    names : tuple of str
        Name of each feature group.
    columns : tuple of ndarray of int
        Columns of each group.
    grids : tuple of ndarray
        Penalties to try for each group.
    shift : ndarray of shape (p + t,)
        Shift of the Grams.
    floor : ndarray of shape (p,)
        Centred sum of squares up to which a feature counts as constant; features are ordered by
        group.
    in_sample : bool
        Whether models are scored on the training rows.
    """

    names: tuple[str, ...]
    columns: tuple[NDArray[np.intp], ...]
    grids: tuple[Array, ...]
    shift: Array
    floor: Array
    in_sample: bool = False

    @property
    def sizes(self) -> list[int]:
        """The number of features of each group."""
        return [len(c) for c in self.columns]

    @property
    def n_features(self) -> int:
        """The number of features."""
        return sum(self.sizes)

    def sort(self, gram: Array) -> Array:
        """Order the features of a Gram, or of a stack of them, by group."""
        p = self.n_features
        order = np.concatenate([*self.columns, np.arange(p, gram.shape[-1])])
        if np.array_equal(order, np.arange(len(order))):
            return gram
        return np.asarray(gram[..., order[:, None], order])

    def splits(self, folds: Array) -> list[Split]:
        """Return cross-validation splits of summed fold Grams (K, q, q), ordered by group."""
        return make_splits(self.sort(folds), self.n_features, self.floor, self.in_sample)

    def search(
        self,
        splits: Sequence[Split],
        subsets: Sequence[tuple[int, ...]],
        start: Sequence[tuple[int, ...]] | None = None,
    ) -> list[Choice]:
        """Choose penalties for each subset of groups; see `posprobe.probes.ridge.search.search`."""
        return search(splits, self.sizes, self.grids, subsets, start)

    def fit(self, total: Array, penalties: Array) -> tuple[Array, Array]:
        """Fit a summed Gram; return coefficients (p, t) and intercepts (t,) in data units."""
        return self.coefficients(centre(self.sort(total), self.n_features, self.floor), penalties)

    def coefficients(self, train: Moments, penalties: Array) -> tuple[Array, Array]:
        """Fit training moments; return coefficients (p, t) and intercepts (t,) in data units."""
        sorted_coef = solve(train, self.sizes, penalties)
        coef = np.empty_like(sorted_coef)
        coef[np.concatenate(self.columns)] = sorted_coef
        p = self.n_features
        level = train.y_mean - train.x_mean @ sorted_coef
        return coef, level + self.shift[p:] - self.shift[:p] @ coef


def make_design(
    total: Array,
    shift: Array,
    groups: Mapping[str, NDArray[np.intp]],
    alphas: Any,
    in_sample: bool = False,
) -> Design:
    """Combine feature groups and penalties, scaled to the data.

    Parameters
    ----------
    total : ndarray of shape (p + 1 + t, p + 1 + t)
        Summed Gram of all rows.
    shift : ndarray of shape (p + t,)
        Shift of the Gram.
    groups : mapping of str to ndarray of int
        Columns of each feature group.
    alphas : None, array-like, or one array-like per group
        Penalties to try. None means `DEFAULT_ALPHAS` times the mean centred sum of squares of the
        features of each group.
    in_sample : bool
        Whether to score on the training rows.

    Returns
    -------
    Design

    Raises
    ------
    DesignError
        If a penalty is negative or not a number, a grid is empty, or there are neither one grid
        nor as many grids as groups.
    """
    columns = tuple(groups.values())
    p = sum(len(c) for c in columns)
    n = total[p, p]
    squares = total.diagonal()[:p] - total[p, :p] ** 2 / n
    grids = _grids(alphas, len(columns))
    if grids is None:
        scales = [squares[c].mean() for c in columns]
        grids = [DEFAULT_ALPHAS * (scale if scale > 0 else 1.0) for scale in scales]
    # Raw values and the shift are rounded at a relative 1e-16 of the level of the column.
    floor = 1e-29 * n * shift[:p] ** 2
    return Design(
        tuple(groups), columns, tuple(grids), shift, floor[np.concatenate(columns)], in_sample
    )


def _grids(alphas: Any, n_groups: int) -> list[Array] | None:
    if alphas is None:
        return None
    alphas = [alphas] if np.isscalar(alphas) else alphas
    if any(np.ndim(grid) for grid in alphas):
        grids = [np.asarray(grid, dtype=float) for grid in alphas]
    else:
        grids = [np.asarray(alphas, dtype=float)] * n_groups
    if len(grids) != n_groups:
        raise DesignError(
            f"alphas has {len(grids)} grids for {n_groups} feature groups: give one grid for all, "
            "or one per group"
        )
    for grid in grids:
        if grid.size == 0 or np.isnan(grid).any() or (grid < 0).any():
            raise DesignError(
                f"alphas {grid.tolist()}: give penalties >= 0 (np.inf leaves a group out)"
            )
    return grids


def resolve_columns(
    feature_groups: Any, n_features: int, feature_names: Sequence[str] | None = None
) -> dict[str, NDArray[np.intp]]:
    """Name the columns of every feature group.

    Parameters
    ----------
    feature_groups : None, mapping, list, or array of int
        A mapping from names to columns (indices, a slice, or names), a list with the columns of
        each group, or one integer label for each column. None means a single group "all".
    n_features : int
        Number of columns.
    feature_names : sequence of str, optional
        Names of the columns.

    Returns
    -------
    dict of str to ndarray of int
        Indices of the columns of each group.

    Raises
    ------
    DesignError
        If a column is in no group, in two groups, or unknown, or a group is empty.
    """
    if feature_groups is None:
        return {"all": np.arange(n_features)}
    if not isinstance(feature_groups, Mapping):
        feature_groups = _as_mapping(feature_groups, n_features)
    names = None if feature_names is None else list(feature_names)
    if not feature_groups:
        raise DesignError("feature_groups is empty: name at least one group, or give None for one")
    out = {
        str(name): _columns(str(name), chosen, n_features, names)
        for name, chosen in feature_groups.items()
    }
    counts = np.bincount(np.concatenate(list(out.values())), minlength=n_features)
    for what, bad in (("no feature group", counts == 0), ("two feature groups", counts > 1)):
        if bad.any():
            where = np.flatnonzero(bad)[:5].tolist()
            raise DesignError(
                f"columns {where} are in {what}: put every column of X into exactly one"
            )
    return out


def _as_mapping(feature_groups: Any, n_features: int) -> dict[Any, Any]:
    items = list(feature_groups)
    if items and all(isinstance(i, int | np.integer) for i in items):
        labels = np.asarray(items)
        if len(labels) != n_features:
            raise DesignError(
                f"feature_groups labels {len(labels)} columns, X has {n_features}: give one label "
                "per column"
            )
        return {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    return dict(enumerate(items))


def _columns(name: str, chosen: Any, n_features: int, names: list[str] | None) -> NDArray[np.intp]:
    everything = np.arange(n_features)
    if isinstance(chosen, slice):
        columns = everything[chosen]
    else:
        columns = np.atleast_1d(np.asarray(chosen))
        if columns.dtype.kind in "UO":
            unknown = [c for c in columns if names is None or c not in names]
            if unknown:
                raise DesignError(
                    f"feature group {name!r}: X has no column named {str(unknown[0])!r}: pass a "
                    "DataFrame with that column, or column numbers"
                )
            columns = np.array([(names or []).index(c) for c in columns])
    if len(columns) == 0:
        raise DesignError(f"feature group {name!r} has no columns: leave it out")
    if columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= n_features:
        raise DesignError(
            f"feature group {name!r}: columns must be integers from 0 to {n_features - 1}"
        )
    return columns.astype(np.intp)


def fold_labels(cv: Any, groups: NDArray[Any]) -> NDArray[np.intp]:
    """Assign rows to folds, keeping sequences whole.

    Parameters
    ----------
    cv : int, splitter, or iterable of (train, test)
        An integer is the number of folds of :class:`sklearn.model_selection.GroupKFold`. Test sets
        must partition the rows and keep sequences whole.
    groups : ndarray of shape (n,)
        Sequence of every row.

    Returns
    -------
    ndarray of shape (n,)
        Fold of every row, from 0 to K - 1.

    Raises
    ------
    DesignError
        If there are fewer sequences than folds, a sequence is split, or test sets do not
        partition the rows.
    """
    labels, sequence = distinct(groups)
    if isinstance(cv, int | np.integer) and not isinstance(cv, bool):
        if not 2 <= cv <= len(labels):
            raise DesignError(
                f"{cv} folds over {len(labels)} sequences (n_samples={len(groups)}): cv must be "
                "between 2 and the number of sequences"
            )
        splitter: Any = GroupKFold(int(cv))
    else:
        splitter = check_cv(cv)
    folds = np.full(len(groups), -1, dtype=np.intp)
    with warnings.catch_warnings():
        # The result is checked below, so a splitter may ignore the groups.
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        tests = [test for _, test in splitter.split(np.zeros(len(groups)), groups=sequence)]
    for k, test in enumerate(tests):
        if (folds[test] >= 0).any():
            raise DesignError("test sets of cv overlap: use folds that partition the sequences")
        folds[test] = k
    if (folds < 0).any():
        raise DesignError("cv leaves rows untested: use folds that partition the sequences")
    first = np.zeros(len(labels), dtype=np.intp)
    first[sequence] = folds
    split = np.flatnonzero(first[sequence] != folds)
    if len(split):
        raise DesignError(
            f"cv splits sequence {groups[split[0]]!s} between folds: use GroupKFold, or cv=5"
        )
    # Number only folds that have rows.
    return np.unique(folds, return_inverse=True)[1]


def sequence_folds(cv: Any, n_rows: ArrayLike) -> NDArray[np.intp]:
    """Assign sequences to folds, as :func:`fold_labels` assigns their rows.

    Parameters
    ----------
    cv : int, splitter, or iterable of (train, test)
        As in :func:`fold_labels`.
    n_rows : array-like of shape (S,)
        Number of rows of each sequence.

    Returns
    -------
    ndarray of shape (S,)
        Fold of every sequence.
    """
    counts = np.asarray(n_rows)
    rows = np.repeat(np.arange(len(counts)), counts)
    return fold_labels(cv, rows)[np.r_[0, np.cumsum(counts)[:-1]]]
