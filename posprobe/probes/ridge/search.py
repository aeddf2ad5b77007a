"""Choose penalties by pooled out-of-fold squared error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.intervals import Array
from posprobe.probes.ridge.banded import Moments, Split, line_errors, many_penalties, near_singular

__all__ = ["Choice", "search"]


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes
    ----------
    penalties : ndarray of shape (k,)
        Chosen penalty of each group; infinite if the group is left out.
    index : tuple of int
        Position of each penalty in its grid; -1 if the group is left out.
    sse : ndarray of shape (K, t)
        Sum of squared errors on the test rows of each fold.
    table : ndarray of shape (grid lengths..., t)
        Pooled mean squared error over the grid: infinite where refused, NaN where not evaluated.
        With more than two groups, only that of the chosen penalties, of shape (t,).
    n_refused : int
        Number of grid points refused because a training Gram is nearly singular.
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

    For one or two groups the whole grid is searched. For more, the search starts at the best grid
    position common to all groups, and then goes through the whole grid of one group after another
    until nothing improves.

    Parameters
    ----------
    splits : sequence of Split
        Cross-validation splits, with features ordered by group.
    sizes : sequence of int
        Number of features of each group.
    grids : sequence of ndarray
        Penalties to try for each group.
    subsets : sequence of tuple of int
        Groups of each model, in ascending order; the others are left out.
    start : sequence of tuple of int, optional
        Grid position from which to start, for each subset. The search of one or two groups then
        only moves to neighbours that are better. This serves bootstrap replicates, whose optimum
        is close to that of the data.

    Returns
    -------
    list of Choice
        One for each subset.

    Raises
    ------
    DesignError
        If every penalty leaves a Gram nearly singular.
    """
    starts = [None] * len(subsets) if start is None else list(start)
    if len(sizes) == 2:
        table = _Table(splits, sizes, grids)  # its edges are the models of a single group
        return [table.choose(s, at) for s, at in zip(subsets, starts, strict=True)]
    return [
        _search_subset(splits, sizes, grids, subset, at)
        for subset, at in zip(subsets, starts, strict=True)
    ]


def _search_subset(
    splits: Sequence[Split],
    sizes: Sequence[int],
    grids: Sequence[Array],
    subset: tuple[int, ...],
    start: tuple[int, ...] | None,
) -> Choice:
    """Choose the penalties of the groups in ``subset``, without the features of the others."""
    own_splits = _restrict(splits, sizes, subset)
    own_sizes, own_grids = [sizes[g] for g in subset], [grids[g] for g in subset]
    own_start = None if start is None else tuple(start[g] for g in subset)
    if len(subset) <= 2:
        everything = tuple(range(len(subset)))
        choice = _Table(own_splits, own_sizes, own_grids).choose(everything, own_start)
    else:
        choice = _descend(own_splits, own_sizes, own_grids, own_start)
    position = dict(zip(subset, choice.index, strict=True))
    penalty = dict(zip(subset, choice.penalties, strict=True))
    return replace(
        choice,
        penalties=np.array([penalty.get(g, np.inf) for g in range(len(sizes))]),
        index=tuple(position.get(g, -1) for g in range(len(sizes))),
    )


@dataclass(frozen=True)
class _Axis:
    """The penalties of one group, as one side of a table.

    Attributes
    ----------
    group : int or None
        Index of the group; None for the missing side of a table with one group.
    columns : slice
        Columns of the group.
    penalties : ndarray
        Grid of the group, to which infinity is appended for the model without the group.
    """

    group: int | None
    columns: slice
    penalties: Array

    @property
    def left_out(self) -> int:
        """The position of the penalty that leaves the group out."""
        return len(self.penalties) - 1

    def tried(self, subset: tuple[int, ...]) -> NDArray[np.intp]:
        """Return the positions to try for a model with the groups in ``subset``."""
        if self.group in subset:
            return np.arange(self.left_out)
        return np.array([self.left_out])


def _make_axes(sizes: Sequence[int], grids: Sequence[Array]) -> tuple[_Axis, _Axis]:
    """Return the axes of the larger and of the smaller of at most two groups."""
    edges = np.cumsum([0, *sizes])
    axes = [
        _Axis(g, slice(edges[g], edges[g + 1]), np.append(grid, np.inf))
        for g, grid in enumerate(grids)
    ]
    nothing = _Axis(None, slice(edges[-1], edges[-1]), np.array([np.inf]))
    axes += [nothing] * (2 - len(axes))
    if len(sizes) == 2 and sizes[1] > sizes[0]:
        return axes[1], axes[0]
    return axes[0], axes[1]


class _Table:
    """Squared errors over the penalties of at most two groups, computed line by line on demand.

    A line has one penalty of the outer group, which is the larger one, and all penalties of the
    inner group. All of them share one factorisation; see `posprobe.probes.ridge.banded`.
    """

    def __init__(
        self, splits: Sequence[Split], sizes: Sequence[int], grids: Sequence[Array]
    ) -> None:
        self.splits = splits
        self.outer, self.inner = _make_axes(sizes, grids)
        self.n_groups, p = len(sizes), sum(sizes)
        self.n_test = sum(s.test[p, p] for s in splits)
        self.lines: dict[int, Array] = {}

    def line(self, position: int) -> Array:
        """Return the errors (K, inner penalties, t) at one outer penalty; infinite if refused."""
        if position not in self.lines:
            penalty = self.outer.penalties[position]
            self.lines[position] = np.stack(
                [
                    line_errors(
                        split, self.outer.columns, self.inner.columns, penalty, self.inner.penalties
                    )
                    for split in self.splits
                ]
            )
        return self.lines[position]

    def fill(self) -> None:
        """Evaluate the whole grid; for a single group, one factorisation per fold may suffice."""
        n_penalties = len(self.outer.penalties)
        if self.n_groups == 1 and n_penalties >= many_penalties(self.outer.columns.stop):
            self.lines = self._lines_of_one_group()
        for position in range(n_penalties):
            self.line(position)

    def _lines_of_one_group(self) -> dict[int, Array]:
        """Return all lines at once, by putting the only group in the place of the inner one."""
        errors = np.stack(
            [
                line_errors(
                    split, self.inner.columns, self.outer.columns, np.inf, self.outer.penalties
                )
                for split in self.splits
            ]
        )  # (K, outer penalties, t)
        return {position: errors[:, [position]] for position in range(errors.shape[1])}

    def mse(self, position: int) -> Array:
        """Return the pooled mean squared error (inner penalties, t) of a line."""
        return np.asarray(self.line(position).sum(axis=0) / self.n_test)

    def choose(self, subset: tuple[int, ...], start: tuple[int, ...] | None) -> Choice:
        """Choose the penalties of the groups in ``subset``, leaving the others out."""
        outer_tried, inner_tried = self.outer.tried(subset), self.inner.tried(subset)

        def errors(position: int) -> Array:
            """Average the errors of a line over targets: (inner_tried,)."""
            return np.asarray(self.mse(position)[inner_tried].mean(axis=-1))

        if start is None:
            if len(outer_tried) > 1:
                self.fill()
            lowest = [errors(position).min() for position in outer_tried.tolist()]
            at_outer = int(outer_tried[np.argmin(lowest)])
        else:
            first = start[self.outer.group] if self.outer.group in subset else self.outer.left_out
            at_outer = _climb(first, outer_tried, lambda position: float(errors(position).min()))
        last = errors(at_outer)
        if not np.isfinite(last.min()):
            raise near_singular(self.outer.penalties[outer_tried])
        at_inner = int(inner_tried[last.argmin()])
        return self._choice(subset, at_outer, at_inner)

    def _choice(self, subset: tuple[int, ...], at_outer: int, at_inner: int) -> Choice:
        chosen = {self.outer.group: at_outer, self.inner.group: at_inner}
        axes = {axis.group: axis for axis in (self.outer, self.inner)}
        groups = range(self.n_groups)
        table = self._searched(subset)
        return Choice(
            penalties=np.array([axes[g].penalties[chosen[g]] for g in groups]),
            index=tuple(chosen[g] if g in subset else -1 for g in groups),
            sse=self.line(at_outer)[:, at_inner],
            table=table,
            n_refused=int(np.isinf(table[..., 0]).sum()),
        )

    def _searched(self, subset: tuple[int, ...]) -> Array:
        """Return mean squared errors (grid lengths of the subset..., t); NaN if not evaluated."""
        outer_tried, inner_tried = self.outer.tried(subset), self.inner.tried(subset)
        n_targets = self.splits[0].train.rhs.shape[1]
        unknown = np.full((len(self.inner.penalties), n_targets), np.nan)
        table = np.array(
            [self.mse(i) if i in self.lines else unknown for i in outer_tried.tolist()]
        )[:, inner_tried]  # (outer tried, inner tried, t)
        if self.outer.group == 1:
            table = table.swapaxes(0, 1)
        lengths = {axis.group: axis.left_out for axis in (self.outer, self.inner)}
        return table.reshape([*(lengths[g] for g in subset), -1])


def _climb(start: int, allowed: Any, value: Callable[[int], float]) -> int:
    """Walk downhill from ``start`` over the contiguous integers ``allowed``, up before down.

    Replicates have fewer distinct sequences than the data, so their penalties are rather larger.
    """
    low, high = int(allowed[0]), int(allowed[-1])
    i = min(max(start, low), high)
    for step in (1, -1):
        while low <= i + step <= high and value(i + step) < value(i):
            i += step
    return i


def _descend(
    splits: Sequence[Split],
    sizes: Sequence[int],
    grids: Sequence[Array],
    start: tuple[int, ...] | None,
) -> Choice:
    """Choose the penalties of three groups or more by coordinate descent."""
    p = sum(sizes)
    n_test = sum(s.test[p, p] for s in splits)
    position, refused = (list(start), 0) if start else _best_diagonal(splits, sizes, grids, n_test)
    best, sse = np.inf, np.zeros((len(splits), splits[0].train.rhs.shape[1]))
    changed = True
    while changed:
        changed = False
        for group in range(len(sizes)):
            errors = _errors_along(splits, sizes, grids, position, group)
            values = errors.sum(axis=0).mean(axis=-1) / n_test
            refused += int(np.isinf(values).sum())
            lowest = int(values.argmin())
            # Require more than a rounding error, or the descent might not end.
            if values[lowest] < best * (1 - 1e-12):
                changed = changed or lowest != position[group]
                best, position[group], sse = float(values[lowest]), lowest, errors[:, lowest]
    if not np.isfinite(best):
        raise near_singular(np.concatenate(list(grids)))
    penalties = np.array([grid[i] for grid, i in zip(grids, position, strict=True)])
    return Choice(penalties, tuple(position), sse, sse.sum(axis=0) / n_test, refused)


def _errors_along(
    splits: Sequence[Split],
    sizes: Sequence[int],
    grids: Sequence[Array],
    position: Sequence[int],
    group: int,
) -> Array:
    """Return the errors (K, grid length, t) over the grid of one group, the others fixed."""
    penalties = np.repeat([grid[i] for grid, i in zip(grids, position, strict=True)], sizes)  # (p,)
    own = np.repeat(np.arange(len(sizes)), sizes) == group
    outer, inner = np.flatnonzero(~own & np.isfinite(penalties)), np.flatnonzero(own)
    return np.stack([line_errors(s, outer, inner, penalties[outer], grids[group]) for s in splits])


def _best_diagonal(
    splits: Sequence[Split], sizes: Sequence[int], grids: Sequence[Array], n_test: float
) -> tuple[list[int], int]:
    """Find the best grid position common to all groups, and count the refused positions."""
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
    """Return the splits with only the features of some groups."""
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
