r"""Partition of R2 between feature groups: what each predicts alone, and what they share.

Every set U of groups is one model. All models use the same folds of sequences, and each has one
penalty per group. With the out-of-fold :math:`R^2_U`, k groups and J the set of all of them,

.. math::

    \text{unique}_g &= R^2_J - R^2_{J \setminus g} \\
    \text{shared} &= R^2_J - \sum_g \text{unique}_g \\
    \text{Shapley}_g &= \sum_{U \not\ni g} \frac{|U|!\,(k - |U| - 1)!}{k!}
        \left(R^2_{U \cup g} - R^2_U\right)

For two groups N and R, the shared part is :math:`R^2_N + R^2_R - R^2_J`. Values are not clipped: a
negative shared part means suppression, and a negative unique part means that the joint model
overfits more. All parts are linear contrasts of the R2 of the models.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, column_or_1d

from posprobe.errors import DesignError
from posprobe.intervals import Array, check_resamples
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.probes.ridge.group import Rows
from posprobe.probes.ridge.scored import (
    Estimand,
    Models,
    SequenceScoredRidge,
    replicate_interval,
)

__all__ = ["VariancePartition"]

Subset = tuple[int, ...]
MIN_ORDERS = 16


class VariancePartition(SequenceScoredRidge):
    r"""Partition of out-of-fold R2 between feature groups.

    With :math:`R^2_U` that of the model of the groups U, J all groups and k their number,

    .. math::

        \text{unique}_g &= R^2_J - R^2_{J \setminus g} \\
        \text{shared} &= R^2_J - \sum_g \text{unique}_g \\
        \text{Shapley}_g &= \sum_{U \not\ni g} \frac{|U|!\,(k - |U| - 1)!}{k!}
            \left(R^2_{U \cup g} - R^2_U\right)

    All models are ridge regressions on the same folds of sequences, with one penalty per group.

    Parameters
    ----------
    feature_groups : dict, list, or array of int, default=None
        A dictionary from names to columns (indices, a slice, or names of DataFrame columns), a
        list with the columns of each group, or one integer label for each column. By default all
        columns are one group.
    alphas : None, array-like, or list of array-like, default=None
        As in `posprobe.probes.GroupRidgeCV`.
    cv : int, splitter, iterable of (train, test), or "in-sample", default=5
        As in `posprobe.probes.GroupRidgeCV`.
    max_exact : int, default=4
        Largest number of groups for which every set of groups is fitted. With more groups, Shapley
        values are averages over sampled orders of the groups.
    n_orders : int, default=128
        Number of sampled orders, rounded up to an even number. Each random order is followed by its
        reverse.
    random_state : int or Generator, default=0
        Seed of the orders, or a random generator.
    keep_gram : bool, default=True
        Keep the Gram of each of S sequences, 8 S (p + 2)^2 bytes for p features, which refit
        intervals need.

    Attributes
    ----------
    table_ : pandas.DataFrame
        One row for each quantity, with the columns ``quantity`` ("R2", "unique", "shared",
        "shapley"), ``group`` (names joined by ``+``), ``estimate`` (part of R2, without unit),
        ``n_features`` (number of columns of these groups) and ``mc_se`` (Monte Carlo standard
        error of a sampled Shapley value; 0 for other quantities).
    models_ : list of tuple of str
        Groups of each of the M fitted models; the last model has all groups.
    r2_ : ndarray of shape (M,)
        Out-of-fold R2 of each model.
    mae_ : ndarray of shape (M,)
        Out-of-fold mean absolute error of each model, in the unit of y. It exists only after `fit`,
        and after `fit_gram` with ``verify``.
    penalties_ : pandas.DataFrame of shape (M, k)
        Chosen penalty of each group in each model; infinite if the group is left out.
    sequence_sse_ : ndarray of shape (S, M)
        Out-of-fold sum of squared errors of each sequence under each model.
    sequence_sst_ : ndarray of shape (S,)
        Sum of squared deviations of each sequence from the mean over all sequences.
    sequence_scores_ : ndarray of shape (S, M)
        ``1 - sequence_sse_ / mean(sequence_sst_)``. The means of its columns are ``r2_``, and every
        quantity is a linear contrast of the columns.
    coef_, intercept_, alpha_, feature_groups_, group_dims_, ...
        Attributes of the joint model, as in `posprobe.probes.GroupRidgeCV`.

    Notes
    -----
    ``groups`` are sequences. Without them every row is a sequence of its own, and `intervals` is
    not available.

    References
    ----------
    Lindeman, Merenda and Gold (1980), Introduction to Bivariate and Multivariate Analysis, whose
    LMG measure is the Shapley value of R2.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe import VariancePartition
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 3))
    >>> X = np.c_[z[:, 0] + z[:, 2], z[:, 1] + z[:, 2]]
    >>> partition = VariancePartition({"N": [0], "R": [1]})
    >>> partition = partition.fit(X, z.sum(axis=1), groups=np.repeat(np.arange(40), 10))
    >>> partition.table_["quantity"].tolist()
    ['R2', 'R2', 'R2', 'unique', 'unique', 'shared', 'shapley', 'shapley']
    >>> partition.table_["group"].tolist()
    ['N', 'R', 'N+R', 'N', 'R', 'N+R', 'N', 'R']
    """

    def __init__(
        self,
        feature_groups: Any = None,
        alphas: Any = None,
        cv: Any = 5,
        max_exact: int = 4,
        n_orders: int = 128,
        random_state: Any = 0,
        keep_gram: bool = True,
    ) -> None:
        super().__init__(alphas=alphas, feature_groups=feature_groups, cv=cv)
        self.max_exact = max_exact
        self.n_orders = n_orders
        self.random_state = random_state
        self.keep_gram = keep_gram

    def fit(
        self,
        X: Any,
        y: Any,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> VariancePartition:
        """Fit every model on rows of features.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features of all groups.
        y : array-like of shape (n,)
            Target, for instance position in tokens.
        groups : array-like of shape (n,), optional
            Sequence of every row; by default every row is a sequence of its own.
        sample_weight : array-like of shape (n,), optional
            How often each row counts, in the fits and in all scores; see
            `posprobe.probes.GroupRidgeCV.fit`.

        Returns
        -------
        VariancePartition
            The fitted estimator.

        Raises
        ------
        DesignError
            If y is constant, if there are too few orders to sample, or for the reasons given in
            `posprobe.probes.GroupRidgeCV.fit`.
        """
        X, y, names, folds, w = self._rows(X, y, groups, sample_weight)
        y = column_or_1d(y, dtype=np.float64, warn=True)
        predicted = self._fit_rows(X, y, names, folds, w, groups is not None)
        self.mae_ = np.array([np.average(np.abs(y - own), weights=w) for own in predicted])
        return self

    def _fit_clusters(self, gram: ClusterGram, folds: NDArray[np.intp]) -> None:
        """Fit on statistics, from which absolute errors cannot be computed."""
        self.__dict__.pop("mae_", None)
        super()._fit_clusters(gram, folds)

    def _verify(self, rows: Iterable[Rows], folds: NDArray[np.intp], weights: Array) -> None:
        """Score by residuals over the data, which give absolute errors too."""
        sse, self.mae_ = self._residual_sums(rows, folds, weights)
        self._set_sequences(sse, self.sequence_sst_)

    def intervals(
        self,
        estimand: Estimand | Iterable[Estimand] = ("refit", "fixed_probe"),
        *,
        level: float = 0.95,
        n_resamples: int | None = None,
        random_state: Any = 0,
        weights: ArrayLike | None = None,
        n_jobs: int | None = None,
    ) -> pd.DataFrame:
        """Compute confidence intervals of every quantity, over sequences.

        All quantities use the same replicates.

        Parameters
        ----------
        estimand : {"refit", "fixed_probe"} or several of them
            See `posprobe.PositionProbe.interval`.
        level : float, default=0.95
            Nominal coverage.
        n_resamples : int, optional
            Number of replicates, at least 10; by default 200 for "refit" and 2000 for
            "fixed_probe".
        random_state : int or Generator, default=0
            Seed of the replicates, or a random generator.
        weights : array-like of shape (B, S), optional
            Weights of the sequences in each replicate, if they are to be shared, for instance
            with other layers. They replace `n_resamples` and `random_state`.
        n_jobs : int, optional
            Number of processes for "refit", as in joblib.

        Returns
        -------
        pandas.DataFrame
            Columns quantity, group, n_features, mc_se, estimate, low, high, level, method,
            estimand, n (sequences).

        Raises
        ------
        DesignError
            As in `posprobe.PositionProbe.interval`.

        Warns
        -----
        PosprobeWarning
            If `n_resamples` is below 100.

        Notes
        -----
        The limits of sampled Shapley values include the error of sampling the orders. For this,
        independent noise is added to every replicate: ``mc_se`` times Student's t, whose degrees of
        freedom are the number of pairs of orders less one.
        """
        check_is_fitted(self)
        if n_resamples is not None:
            check_resamples(n_resamples)
        rng, orders = np.random.default_rng(0), self._models.orders
        kinds = [estimand] if isinstance(estimand, str) else list(estimand)
        rows = []
        for kind in kinds:
            draws = self.replicates(
                kind, n_resamples=n_resamples, random_state=random_state, weights=weights,
                n_jobs=n_jobs,
            )  # fmt: skip
            for row, own in zip(self.table_.to_dict("records"), draws.T, strict=True):
                estimate, mc_se = row["estimate"], row["mc_se"]
                if orders is not None:
                    own = own + mc_se * rng.standard_t(len(orders) // 2 - 1, len(own))
                interval = replicate_interval(estimate, own, self.n_sequences_, kind, level)
                named = {name: row[name] for name in ("quantity", "group", "n_features", "mc_se")}
                rows.append({**named, **interval.asdict()})
        return pd.DataFrame(rows).astype({"low": float, "high": float})

    def replicates(
        self,
        estimand: Estimand = "refit",
        *,
        n_resamples: int | None = None,
        random_state: Any = 0,
        weights: ArrayLike | None = None,
        n_jobs: int | None = None,
    ) -> Array:
        """Compute bootstrap replicates of every row of ``table_``, for intervals over many layers.

        Parameters
        ----------
        estimand, n_resamples, random_state, weights, n_jobs
            As in `intervals`, for a single estimand.

        Returns
        -------
        ndarray of shape (B, number of rows)
            NaN where a replicate has no fit.
        """
        check_is_fitted(self)
        draws = self._replicates(estimand, n_resamples, random_state, weights, n_jobs)
        return np.asarray(draws @ self._contrasts.T)

    def _choose_models(self, n_groups: int) -> Models:
        if n_groups <= self.max_exact:
            return Models(_every_subset(n_groups))
        if self.n_orders < MIN_ORDERS:
            raise DesignError(
                f"n_orders is {self.n_orders}: use at least {MIN_ORDERS} for an error estimate"
            )
        orders = _draw_orders(n_groups, self.n_orders, self.random_state)
        return Models(_subsets_along(orders), orders)

    def _set_sequences(self, sse: Array, sst: Array) -> None:
        super()._set_sequences(sse, sst)
        names = self._design.names
        subsets = self._models.subsets
        self.sequence_sse_ = sse
        self.sequence_scores_ = 1 - sse / sst.mean()
        self.r2_ = self._r2
        self.models_ = [tuple(names[g] for g in subset) for subset in subsets]
        self.penalties_ = pd.DataFrame(
            [choice.penalties for choice in self._choices],
            index=["+".join(model) for model in self.models_],
            columns=list(names),
        )
        self._set_table(subsets)

    def _set_table(self, subsets: list[Subset]) -> None:
        names, sizes = self._design.names, np.array(self._design.sizes)
        k, place = len(names), {subset: m for m, subset in enumerate(subsets)}
        contrasts = [
            *(("R2", subset, _unit(place, subset)) for subset in subsets),
            *(("unique", (g,), _unique(place, k, g)) for g in range(k)),
            ("shared", tuple(range(k)), _shared(place, k)),
            *(("shapley", (g,), self._gains(place, k, g).mean(axis=0)) for g in range(k)),
        ]
        errors = [0.0] * (len(contrasts) - k) + [
            self._sampling_error(place, k, g) for g in range(k)
        ]
        self._contrasts = np.array([row for _, _, row in contrasts])
        self.table_ = pd.DataFrame(
            {
                "quantity": [quantity for quantity, _, _ in contrasts],
                "group": ["+".join(names[g] for g in subset) for _, subset, _ in contrasts],
                "estimate": self._contrasts @ self.r2_,
                "n_features": [int(sizes[list(subset)].sum()) for _, subset, _ in contrasts],
                "mc_se": errors,
            }
        )

    def _gains(self, place: dict[Subset, int], k: int, g: int) -> Array:
        """Return contrasts (orders, M) whose mean over rows is the Shapley value of group g.

        The row of a sampled order is what the group adds to the groups before it. There is a single
        row if no orders are sampled.
        """
        if self._models.orders is None:
            return _shapley(place, k, g)[None]
        rows = []
        for order in self._models.orders.tolist():
            before = order[: order.index(g)]
            rows.append(_unit(place, (*before, g)) - _unit(place, before))
        return np.array(rows)

    def _sampling_error(self, place: dict[Subset, int], k: int, g: int) -> float:
        """Return the Monte Carlo standard error of the Shapley value of group g; 0 if exact."""
        gains = self._gains(place, k, g) @ self.r2_
        if len(gains) == 1:
            return 0.0
        pairs = gains.reshape(-1, 2).mean(axis=1)
        return float(pairs.std(ddof=1) / np.sqrt(len(pairs)))


def _every_subset(n_groups: int) -> list[Subset]:
    """Return every set of groups except the empty one, in order of size."""
    return [
        subset for size in range(1, n_groups + 1) for subset in combinations(range(n_groups), size)
    ]


def _draw_orders(n_groups: int, n_orders: int, random_state: Any) -> NDArray[np.intp]:
    """Draw random orders of the groups, each followed by its reverse, as (n_orders, k).

    A group that is late in one order is early in its reverse. The means of pairs therefore vary
    less, and are close to normal even if one group repeats another.
    """
    rng = np.random.default_rng(random_state)
    drawn = [rng.permutation(n_groups) for _ in range(-(-n_orders // 2))]
    return np.array([order for one in drawn for order in (one, one[::-1])])


def _subsets_along(orders: NDArray[np.intp]) -> list[Subset]:
    """Return the beginnings of all orders, single groups, all but one, and all, by size."""
    n_groups = orders.shape[1]
    everything = frozenset(range(n_groups))
    wanted = {everything} | {everything - {g} for g in everything}
    wanted |= {frozenset(order[:i].tolist()) for order in orders for i in range(1, n_groups)}
    wanted |= {frozenset([g]) for g in everything}
    return sorted((tuple(sorted(u)) for u in wanted), key=lambda u: (len(u), u))


def _unit(place: dict[Subset, int], subset: Iterable[int]) -> Array:
    """Return the contrast that picks the R2 of one model; the empty model has R2 = 0."""
    row, key = np.zeros(len(place)), tuple(sorted(subset))
    if key:
        row[place[key]] = 1.0
    return row


def _unique(place: dict[Subset, int], k: int, g: int) -> Array:
    others = [h for h in range(k) if h != g]
    return _unit(place, range(k)) - _unit(place, others)


def _shared(place: dict[Subset, int], k: int) -> Array:
    return _unit(place, range(k)) - np.sum([_unique(place, k, g) for g in range(k)], axis=0)


def _shapley(place: dict[Subset, int], k: int, g: int) -> Array:
    others = [h for h in range(k) if h != g]
    row = np.zeros(len(place))
    for size in range(k):
        weight = factorial(size) * factorial(k - size - 1) / factorial(k)
        for subset in combinations(others, size):
            row += weight * (_unit(place, (*subset, g)) - _unit(place, subset))
    return row
