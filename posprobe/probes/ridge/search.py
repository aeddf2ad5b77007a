"""Choosing penalties by pooled out-of-fold squared error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posprobe.intervals import Array
from posprobe.probes.ridge.banded import Moments, Split, line_errors, many_penalties, near_singular

__all__ = ["Choice", "search"]


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
        choices.append(Choice(penalties, tuple(index), choice.sse, choice.table, choice.n_refused))
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
                [line_errors(s, outer, inner, alpha, alphas) for s in self.splits]
            )
        return self.rows[i]

    def fill(self) -> None:
        """Evaluate the whole grid, by one factorisation per fold where there is one group."""
        alphas = self.grids[self.outer]
        whole, none = self.columns[self.outer], self.columns[1 - self.outer]
        if self.k == 1 and len(alphas) >= many_penalties(whole.stop):
            errors = np.stack([line_errors(s, none, whole, np.inf, alphas) for s in self.splits])
            self.rows = {i: errors[:, [i]] for i in range(len(alphas))}
        for i in range(len(alphas)):
            self.row(i)

    def mse(self, i: int) -> Array:
        """Pooled mean squared error (inner penalties, t)."""
        return np.asarray(self.row(i).sum(axis=0) / self.n_test)

    def choose(self, subset: tuple[int, ...], start: tuple[int, ...] | None) -> Choice:
        """Return the best penalties of the groups in ``subset``, the others left out."""
        out = [len(g) - 1 for g in self.grids]
        tried = [np.arange(out[g]) if g in subset else np.array([out[g]]) for g in range(2)]
        outer, inner = tried[self.outer], tried[1 - self.outer]

        def best_of_row(i: int) -> tuple[float, int]:
            values = self.mse(i)[inner].mean(axis=-1)
            return float(values.min()), int(inner[values.argmin()])

        if start is None:
            if len(outer) > 1:
                self.fill()
            i = int(outer[np.argmin([best_of_row(int(i))[0] for i in outer])])
        else:
            first = start[self.outer] if self.outer in subset else out[self.outer]
            i = _climb(first, outer, lambda i: best_of_row(i)[0])
        value, j = best_of_row(i)
        if not np.isfinite(value):
            raise near_singular(self.grids[self.outer][outer])
        return self._choice(subset, i, j, outer, inner)

    def _choice(self, subset: tuple[int, ...], i: int, j: int, outer: Any, inner: Any) -> Choice:
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
    at, refused = (list(start), 0) if start else _best_diagonal(splits, sizes, grids, n_test)
    best, sse = np.inf, np.zeros((len(splits), splits[0].train.rhs.shape[1]))
    changed = True
    while changed:
        changed = False
        for g in range(len(sizes)):
            each = np.repeat([grids[h][at[h]] for h in range(len(sizes))], sizes)
            each[edges[g] : edges[g + 1]] = np.inf
            outer = np.flatnonzero(np.isfinite(each))
            inner = np.arange(edges[g], edges[g + 1])
            errors = np.stack([line_errors(s, outer, inner, each[outer], grids[g]) for s in splits])
            values = errors.sum(axis=0).mean(axis=-1) / n_test
            refused += int(np.isinf(values).sum())
            i = int(values.argmin())
            # Rounding alone must not keep the walk going.
            if values[i] < best * (1 - 1e-12):
                changed = changed or i != at[g]
                best, at[g], sse = float(values[i]), i, errors[:, i]
    if not np.isfinite(best):
        raise near_singular(np.concatenate(list(grids)))
    penalties = np.array([grids[g][at[g]] for g in range(len(sizes))])
    return Choice(penalties, tuple(at), sse, sse.sum(axis=0) / n_test, refused)


def _best_diagonal(
    splits: Sequence[Split], sizes: Sequence[int], grids: Sequence[Array], n_test: float
) -> tuple[list[int], int]:
    """Best grid position common to all groups that all grids have, and how many are refused."""
    everything = np.arange(sum(sizes))
    values = []
    for i in range(min(len(grid) for grid in grids)):
        each = np.repeat([grid[i] for grid in grids], sizes)
        outer = everything[np.isfinite(each)]
        nothing, out = everything[:0], np.array([np.inf])
        errors = [line_errors(s, outer, nothing, each[outer], out) for s in splits]
        values.append(np.sum(errors) / n_test)
    return [int(np.argmin(values))] * len(grids), int(np.isinf(values).sum())


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
        train = Moments(m.gram[np.ix_(kept, kept)], m.rhs[kept], m.x_mean[kept], m.y_mean)
        out.append(Split(s.fold, train, s.test[np.ix_(rows, rows)]))
    return out
