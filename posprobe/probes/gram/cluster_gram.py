r"""Sufficient statistics of each sequence, which allow any linear fit after one pass over the data.

For sequence :math:`s` with rows :math:`Z_s = [X_s - c_x, 1, y_s - c_y]` the statistic is

.. math:: G_s = Z_s^\top Z_s ,

in float64 for inputs of any type. The shift :math:`c` is common to all sequences and close to the
mean, which avoids cancellation when the sums are centred later. Fits, folds, bootstrap replicates
and the jackknife need only weighted sums of the :math:`G_s`; a sum of squared errors is
:math:`v^\top G_s v`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posprobe.errors import DesignError, StoreError, Telling
from posprobe.intervals import Array
from posprobe.probes.gram.rows import (
    Block,
    as_block,
    clusters,
    column_means,
    distinct,
    products,
    refuse_nonfinite,
)

__all__ = ["ClusterGram"]

_FORMAT = "posprobe.ClusterGram"
_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class ClusterGram(Telling):
    r"""Gram matrices :math:`[X, 1, y]^\top [X, 1, y]` of S sequences with p features and t targets.

    Build one with :meth:`from_arrays` or :meth:`from_blocks`. Sequences are sorted by their labels,
    so the order in which the data arrive has no effect. Memory is ``8 S (p + 1 + t)^2`` bytes,
    whatever the number of rows. If that is too much, merge sequences with :meth:`merge`.

    Parameters
    ----------
    grams : ndarray of shape (S, p + 1 + t, p + 1 + t)
        Symmetric matrices, with columns in the order features, ones, targets.
    groups : ndarray of shape (S,)
        Distinct sequence labels, sorted.
    shift : ndarray of shape (p + t,)
        The values that were subtracted from features and targets.
    n_targets : int
        Number t of targets.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.probes.gram import ClusterGram
    >>> X = np.arange(12.0).reshape(6, 2) ** 2
    >>> gram = ClusterGram.from_arrays(X, np.arange(6.0), groups=[0, 0, 0, 1, 1, 1])
    >>> len(gram), gram.n_features, gram.n_rows.tolist()
    (2, 2, [3, 3])
    """

    grams: Array
    groups: NDArray[Any]
    shift: Array
    n_targets: int

    def _line(self) -> str:
        return (
            f"{len(self)} sequences, {self.n_features} features, {self.n_targets} targets, "
            f"{int(self.n_rows.sum())} rows, {self.grams.nbytes / 2**20:.3g} MiB"
        )

    @classmethod
    def from_arrays(
        cls,
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike,
        *,
        shift: ArrayLike | None = None,
        names: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> ClusterGram:
        """Compute the statistics of arrays in memory.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features of any real type; products are computed in float64.
        y : array-like of shape (n,) or (n, t)
            Targets.
        groups : array-like of shape (n,)
            Sequence label of every row. The rows of a sequence need not be adjacent.
        shift : array-like of shape (p + t,), optional
            Common shift; by default the mean of about 64 rows.
        names : array-like of shape (n,), optional
            Sequence labels for error messages, if ``groups`` are not sequences but, for instance,
            folds.
        weights : array-like of shape (n,), optional
            How often each row counts, above 0; `n_rows` are then sums of these.

        Returns
        -------
        ClusterGram

        Raises
        ------
        DesignError
            If lengths differ, an array is empty, or a value is NaN or infinite (the message names
            its sequence and column).
        """
        X, y, groups = as_block(X, y, groups)
        if shift is None:
            # Any vector near the mean will do, and a sample of rows saves a pass over the data.
            step = max(1, len(X) // 64)
            c = np.concatenate([column_means(X[::step]), column_means(y[::step])])
        else:
            c = _shift(shift, X.shape[1] + y.shape[1])
        if not np.isfinite(c).all():
            refuse_nonfinite(X, y, groups if names is None else np.asarray(names))
        labels, rows = clusters(groups)
        w = None if weights is None else np.asarray(weights, dtype=float)
        gram = cls(products(X, y, c, rows, w), labels, c, y.shape[1])
        if not gram._finite():
            refuse_nonfinite(X, y, groups if names is None else np.asarray(names))
        return gram

    @classmethod
    def from_blocks(cls, blocks: Iterable[Block], *, shift: ArrayLike | None = None) -> ClusterGram:
        """Compute the statistics of a stream of blocks, with one block in memory at a time.

        Parameters
        ----------
        blocks : iterable of (X, y, groups, ...)
            Arrays as in :meth:`from_arrays`. ``groups`` may be a single label for the whole block,
            and a sequence may be spread over several blocks. Further elements are ignored, so a
            file is read with ``from_blocks(posprobe.probes.feature_blocks(store, layer))``.
        shift : array-like of shape (p + t,), optional
            Common shift; by default the mean of the first block.

        Returns
        -------
        ClusterGram

        Raises
        ------
        DesignError
            If there is no block or blocks differ in their number of columns, or for the reasons
            given in :meth:`from_arrays`.
        """
        sums: dict[Any, Array] = {}
        c: Array | None = None
        columns: tuple[int, int] | None = None
        for block in blocks:
            X, y, groups = as_block(*block[:3])
            columns = columns or (X.shape[1], y.shape[1])
            if columns != (X.shape[1], y.shape[1]):
                raise DesignError(
                    f"block of sequence {groups[0]!s} has {X.shape[1]} features and {y.shape[1]} "
                    f"targets, the first block {columns[0]} and {columns[1]}: give every block "
                    "the same columns"
                )
            if not (np.isfinite(column_means(X)).all() and np.isfinite(column_means(y)).all()):
                refuse_nonfinite(X, y, groups)
            if c is None and shift is not None:
                c = _shift(shift, sum(columns))
            c = np.concatenate([column_means(X), column_means(y)]) if c is None else c
            labels, rows = clusters(groups)
            for label, product in zip(labels.tolist(), products(X, y, c, rows), strict=True):
                sums[label] = sums[label] + product if label in sums else product
        if c is None or columns is None:
            raise DesignError("the stream has no blocks: pass at least one (X, y, groups)")
        return _stack(sums, c, columns[1])

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.groups)

    @property
    def n_features(self) -> int:
        """The number p of features."""
        return self.grams.shape[1] - 1 - self.n_targets

    @property
    def n_rows(self) -> NDArray[np.int64]:
        """The number of rows of each sequence, of shape (S,)."""
        return np.rint(self.grams[:, self.n_features, self.n_features]).astype(np.int64)

    def __add__(self, other: ClusterGram) -> ClusterGram:
        """Combine two sets of statistics; a sequence in both gets the sum of its parts."""
        if not isinstance(other, ClusterGram):
            return NotImplemented
        mine, theirs = (self.n_features, self.n_targets), (other.n_features, other.n_targets)
        if mine != theirs:
            raise DesignError(
                f"cannot add statistics of {mine[0]} features and {mine[1]} targets to "
                f"{theirs[0]} and {theirs[1]}: build both from the same columns"
            )
        sums = dict(zip(self.groups.tolist(), self.grams, strict=True))
        moved = other.rebase(self.shift)
        for label, gram in zip(moved.groups.tolist(), moved.grams, strict=True):
            sums[label] = sums[label] + gram if label in sums else gram
        return _stack(sums, self.shift, self.n_targets)

    def rebase(self, shift: ArrayLike) -> ClusterGram:
        r"""Return the same statistics with another shift, :math:`G \mapsto T^\top G T`.

        Parameters
        ----------
        shift : array-like of shape (p + t,)
            The new shift.

        Returns
        -------
        ClusterGram

        Raises
        ------
        DesignError
            If the shift has another shape, or is not finite and real.
        """
        c = _shift(shift, len(self.shift))
        if np.array_equal(c, self.shift):
            return self
        p = self.n_features
        move = np.insert(self.shift - c, p, 0.0)
        # [x - c', 1, y - c'] = [x - c, 1, y - c] + move, a rank-two change of each Gram.
        edge = self.grams[:, p, :]
        count = edge[:, p][:, None, None]
        change = edge[:, :, None] * move
        grams = self.grams + change + change.transpose(0, 2, 1) + count * np.outer(move, move)
        return ClusterGram(grams, self.groups, c, self.n_targets)

    def target(self, number: int) -> ClusterGram:
        """Return the statistics with one of the targets, by its number from 0.

        Raises
        ------
        DesignError
            If there is no such target.
        """
        if not 0 <= number < self.n_targets:
            raise DesignError(f"target {number} is not among 0 to {self.n_targets - 1}")
        p = self.n_features
        kept = np.append(np.arange(p + 1), p + 1 + number)
        grams = self.grams[:, kept[:, None], kept]
        return ClusterGram(grams, self.groups, self.shift[np.append(np.arange(p), p + number)], 1)

    def take(self, columns: ArrayLike) -> ClusterGram:
        """Return the statistics of some of the features.

        Parameters
        ----------
        columns : array-like of int
            Indices of the features to keep, in the desired order.

        Returns
        -------
        ClusterGram

        Raises
        ------
        DesignError
            If a column is not the index of a feature.
        """
        chosen = np.asarray(columns)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise DesignError(
                f"columns are {chosen.dtype} of shape {chosen.shape}: list the numbers of the "
                "features to keep"
            )
        outside = chosen[(chosen < 0) | (chosen >= self.n_features)]
        if len(outside):
            raise DesignError(f"feature {outside[0]} is not among 0 to {self.n_features - 1}")
        kept = np.concatenate([chosen, np.arange(self.n_features, self.grams.shape[1])])
        targets = np.arange(self.n_features, len(self.shift))
        grams = self.grams[:, kept[:, None], kept]
        return ClusterGram(
            grams, self.groups, self.shift[np.concatenate([chosen, targets])], self.n_targets
        )

    def merge(self, labels: ArrayLike) -> ClusterGram:
        """Merge sequences into coarser clusters, such as folds.

        Parameters
        ----------
        labels : array-like of shape (S,)
            New label of each sequence.

        Returns
        -------
        ClusterGram

        Raises
        ------
        DesignError
            If there is not one label for each sequence.
        """
        found = np.asarray(labels)
        if found.shape != (len(self),):
            raise DesignError(f"{found.shape} labels for {len(self)} sequences: give one for each")
        coarse, inverse = distinct(found)
        grams = np.zeros((len(coarse), *self.grams.shape[1:]))
        for number, gram in zip(inverse.tolist(), self.grams, strict=True):
            grams[number] += gram
        return ClusterGram(grams, coarse, self.shift, self.n_targets)

    def sum(self, weights: ArrayLike | None = None) -> Array:
        r"""Compute weighted sums :math:`\sum_s w_s G_s`.

        Parameters
        ----------
        weights : array-like of shape (S,) or (B, S), optional
            Sequence weights, or B sets of them, which take a single matrix product. By default
            all weights are 1.

        Returns
        -------
        ndarray of shape (p + 1 + t, p + 1 + t) or (B, p + 1 + t, p + 1 + t)

        Raises
        ------
        DesignError
            If there is not one weight for each sequence.
        """
        w = np.ones(len(self)) if weights is None else np.asarray(weights, dtype=float)
        if w.shape[-1:] != (len(self),):
            raise DesignError(
                f"{w.shape} weights for {len(self)} sequences: give one weight per sequence"
            )
        flat = self.grams.reshape(len(self), -1)
        return np.asarray((w @ flat).reshape(*w.shape[:-1], *self.grams.shape[1:]))

    def sse(self, coef: ArrayLike, intercept: ArrayLike) -> Array:
        r"""Sum the squared errors of a linear predictor in each sequence, :math:`v^\top G_s v`.

        The quadratic form loses digits as R2 approaches 1: its relative error is about
        ``1e-16 / (1 - R2)``. If the data are available, sum squared residuals instead.

        Parameters
        ----------
        coef : array-like of shape (p, t)
            Coefficients, in the units of the data.
        intercept : array-like of shape (t,)
            Intercepts, in the units of the targets.

        Returns
        -------
        ndarray of shape (S, t)
            In squared units of the targets.

        Raises
        ------
        DesignError
            If the coefficients or intercepts have another shape.
        """
        p, t = self.n_features, self.n_targets
        b = np.asarray(coef, dtype=float)
        if b.shape not in ((p, t), (p,) if t == 1 else (p, t)):
            raise DesignError(f"coef has shape {b.shape}: give one row per feature, ({p}, {t})")
        b, start = b.reshape(p, t), np.asarray(intercept, dtype=float)
        if start.shape not in ((), (t,)):
            raise DesignError(f"intercept has shape {start.shape}: give one per target, ({t},)")
        level = start + self.shift[:p] @ b - self.shift[p:]
        v = np.vstack([b, level.reshape(1, t), -np.eye(t)])
        products = (self.grams.reshape(-1, p + 1 + t) @ v).reshape(len(self), p + 1 + t, t)
        return np.asarray(np.maximum(np.einsum("qt,sqt->st", v, products), 0.0))

    def to_hdf5(self, group: Any) -> None:
        """Write the statistics into an open, empty HDF5 group.

        Parameters
        ----------
        group : h5py.Group
            The group, or any object with its interface. It receives the data sets ``grams``,
            ``groups`` and ``shift``, and the attributes ``format``, ``version`` and ``n_targets``.
            Text labels are stored as UTF-8.
        """
        text = self.groups.dtype.kind == "U"
        group.create_dataset("grams", data=self.grams)
        group.create_dataset(
            "groups", data=np.char.encode(self.groups, "utf-8") if text else self.groups
        )
        group.create_dataset("shift", data=self.shift)
        group.attrs.update(format=_FORMAT, version=_VERSION, n_targets=self.n_targets)

    @classmethod
    def from_hdf5(cls, group: Any) -> ClusterGram:
        """Read statistics that :meth:`to_hdf5` wrote.

        Parameters
        ----------
        group : h5py.Group
            The group that was written.

        Returns
        -------
        ClusterGram

        Raises
        ------
        StoreError
            If the group has another format or version, lacks a data set, or its arrays do not match
            in shape.
        """
        found = (group.attrs.get("format"), group.attrs.get("version"))
        if found != (_FORMAT, _VERSION):
            raise StoreError(
                f"group {group.name!r} holds format {found[0]!r} version {found[1]}, not "
                f"{_FORMAT!r} version {_VERSION}: write it with ClusterGram.to_hdf5"
            )
        missing = {"grams", "groups", "shift"} - set(group)
        if missing:
            raise StoreError(
                f"group {group.name!r} has no {sorted(missing)[0]!r}: the file is damaged, write "
                "it again"
            )
        grams, labels, shift = (group[name][()] for name in ("grams", "groups", "shift"))
        t = int(group.attrs["n_targets"])
        q = len(shift) + 1
        if grams.shape != (len(labels), q, q):
            raise StoreError(
                f"group {group.name!r}: grams has shape {grams.shape}, expected "
                f"{(len(labels), q, q)}: the file is damaged, write it again"
            )
        if labels.dtype.kind == "S":
            labels = np.char.decode(labels, "utf-8")
        return cls(grams, labels, shift, t)

    def _finite(self) -> bool:
        return bool(np.isfinite(np.einsum("sqq->sq", self.grams)).all())


def _shift(shift: ArrayLike, n_columns: int) -> Array:
    c = np.asarray(shift)
    if c.shape != (n_columns,):
        raise DesignError(
            f"shift has shape {c.shape}: give one number per feature and target, ({n_columns},)"
        )
    if c.dtype.kind not in "biuf" or not np.isfinite(c).all():
        raise DesignError("shift must be finite and real: give the mean of some rows")
    return c.astype(float)


def _stack(sums: dict[Any, Array], shift: Array, n_targets: int) -> ClusterGram:
    labels, inverse = distinct(np.array(list(sums)))
    grams = np.empty((len(labels), *next(iter(sums.values())).shape))
    for s, label in zip(inverse, list(sums), strict=True):
        grams[s] = sums.pop(label)
    gram = ClusterGram(grams, labels, shift, n_targets)
    if not gram._finite():
        bad = int(np.flatnonzero(~np.isfinite(np.einsum("sqq->sq", grams)).all(axis=1))[0])
        raise DesignError(f"sequence {labels[bad]!s}: squares overflow float64: rescale the data")
    return gram
