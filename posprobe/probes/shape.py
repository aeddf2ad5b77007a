r"""The shape of the code for position: the mean residual stream by position, content averaged out.

With features :math:`x_{sp}` of sequence s at position p, S sequences and :math:`m_p` the mean over
texts, products of different sequences give the Gram matrix of the means without bias, at p = q too:

.. math::

    G_{pq} = \frac{1}{S (S - 1)} \sum_{s \ne t} x_{sp} \cdot x_{tq}, \qquad
    K = H G H, \quad H = I - \tfrac{1}{P} 1 1^\top

K says everything of the shape but where it lies and how it is turned: distances between positions
are :math:`|m_p - m_q|^2 = K_{pp} + K_{qq} - 2 K_{pq}`. Noise can make some of its eigenvalues
negative; they are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.errors import DesignError, Telling
from posprobe.intervals import Array, Interval, jackknife_interval
from posprobe.probes.feature_matrix import Features

__all__ = ["BASES", "Alignment", "PositionShape", "align_shapes", "position_shape"]

LEAST_SEQUENCES = 8
LEAST_POSITIONS = 8
PERMUTATIONS = 999
BASES = ("linear", "log", "linear and log")


@dataclass(frozen=True, repr=False, eq=False)
class PositionShape(Telling):
    """The result of `position_shape`.

    Attributes
    ----------
    positions : ndarray of shape (P,)
        In tokens.
    means : ndarray of shape (P, d)
        Mean features by position, centred; their own Gram matrix is biased by noise, `kernel` not.
    kernel : ndarray of shape (P, P)
        K, in squared units of the features.
    size : Interval
        ``tr(K) / P``, the mean squared distance of positions from their centre.
    dimension : Interval
        Participation ratio ``tr(K)^2 / tr(K^2)``: 1 for a straight line, k for k equal directions.
        ``tr(K^2)`` is estimated without bias from two halves of the sequences.
    bend : Interval
        ``sum |m_{p+h} - 2 m_p + m_{p-h}|^2 / sum |m_{p+h} - m_{p-h}|^2`` with h an eighth of the
        positions: 0 for a straight line at even speed, 1 for a quarter turn in 2 h.
    shares : pandas.DataFrame
        `share` of ``tr(K)`` that functions of position explain, with `low` and `high`, for each of
        `BASES`.
    """

    positions: Array
    means: Array
    kernel: Array
    size: Interval
    dimension: Interval
    bend: Interval
    shares: pd.DataFrame

    @property
    def spectrum(self) -> Array:
        """Eigenvalues of K over their sum, from the largest; noise makes some negative."""
        values = np.linalg.eigvalsh(self.kernel)[::-1]
        return np.asarray(values / values.sum())

    def _line(self) -> str:
        said = ", ".join(f"{b} {s:.2f}" for b, s in self.shares[["basis", "share"]].to_numpy())
        return (
            f"{len(self.positions)} positions, effective dimension {self.dimension}, shares: {said}"
        )

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"shares of tr(K)": self.shares}


def position_shape(data: Features, *, level: float = 0.95) -> PositionShape:
    """Estimate the shape of the mean features by position.

    Parameters
    ----------
    data : Features
        Rows of the natural design, from `posprobe.probes.features`: the same positions in every
        sequence.
    level : float
        Nominal coverage of the jackknife intervals over sequences.

    Returns
    -------
    PositionShape

    Raises
    ------
    DesignError
        If there are fewer than 8 sequences or 8 positions, if sequences have other positions, or if
        features do not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.probes import Features, position_shape
    >>> rng = np.random.default_rng(0)
    >>> y, groups = np.tile(np.arange(1.0, 33), 20), np.repeat(np.arange(20), 32)
    >>> X = np.outer(np.log1p(y), [1.0, 0, 0]) + 0.1 * rng.normal(size=(640, 3))
    >>> shape = position_shape(Features(X, y, groups, {}))
    >>> print(f"{shape.dimension.estimate:.2f}", shape.shares["share"].round(2).tolist())
    1.00 [0.89, 1.0, 1.0]
    """
    x, positions = _by_sequence(data)
    n_positions = len(positions)
    x = x - x.mean(axis=(0, 1))  # which changes no distance, and keeps digits
    bases, lag = _bases(positions), max(1, n_positions // 8)
    sets = [_Sums.of(part) for part in (x, x[::2], x[1::2])]
    kernel = sets[0].kernel()
    if not kernel.any():
        raise DesignError("features are the same at all positions: they have no code to describe")

    def summary(whole: Array, one: Array, other: Array) -> list[float]:
        total = np.trace(whole)
        shares = [np.trace(basis.T @ whole @ basis) / total for basis in bases]
        dimension = total**2 / np.sum(one * other)
        return [total / n_positions, dimension, _ratio_of_differences(whole, lag), *shares]

    found_whole = summary(*(part.kernel() for part in sets))
    without = []
    for s, own in enumerate(x):
        halves = [sets[1 + k].without(own) if s % 2 == k else sets[1 + k] for k in (0, 1)]
        parts = (sets[0].without(own), *halves)
        without.append(summary(*(part.kernel() for part in parts)))
    names = ("size of the code", "effective dimension", "bend", *BASES)
    found = [
        jackknife_interval(estimate, each, level=level, estimand=name)
        for estimate, each, name in zip(found_whole, np.transpose(without), names, strict=True)
    ]
    rows = [{"basis": name} | one.row("share") for name, one in zip(BASES, found[3:], strict=True)]
    means = x.mean(axis=0)
    size, dimension, bend = found[:3]
    means -= means.mean(axis=0)
    return PositionShape(positions, means, kernel, size, dimension, bend, pd.DataFrame(rows))


@dataclass(frozen=True)
class Alignment:
    """How well two codes for position are one shape, up to rotation and scale.

    Attributes
    ----------
    similarity : float
        ``|A' B|_* / (|A| |B|)`` with the nuclear norm of centred means A and B: 1 for the same
        shape, the best correlation that an orthogonal map can give (orthogonal Procrustes).
    null : float
        Mean similarity where the positions of one code are permuted.
    p_value : float
        Share of permutations, the given order among them, that are at least as similar.
    """

    similarity: float
    null: float
    p_value: float


def align_shapes(
    one: PositionShape, other: PositionShape, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Alignment:
    """Turn one code onto another as well as an orthogonal map can, and test it by permutation.

    Parameters
    ----------
    one, other : PositionShape
        Of the same positions; features may differ in number.
    permutations : int
        Permutations of positions for the null.
    seed : int
        Their seed.

    Returns
    -------
    Alignment

    Raises
    ------
    DesignError
        If the positions differ.

    Notes
    -----
    Give codes of different sequences: those of the same ones share the noise of their means, which
    aligns them whether or not there is a code. The null says that position p of one code has
    nothing to do with position p of the other. Codes that are both smooth differ from it easily;
    compare `similarity` with 1, not only p with 0.

    References
    ----------
    Schoenemann (1966), Psychometrika 31, 1; Peres-Neto and Jackson (2001), Oecologia 129, 169.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.probes import Features, align_shapes, position_shape
    >>> rng = np.random.default_rng(0)
    >>> y, groups = np.tile(np.arange(1.0, 33), 20), np.repeat(np.arange(20), 32)
    >>> code = np.c_[np.log1p(y), np.cos(y / 9)]
    >>> turned = code @ [[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]  # another order, scale and width
    >>> pair = [
    ...     position_shape(Features(c + 0.05 * rng.normal(size=c.shape), y, groups, {}))
    ...     for c in (code, turned)
    ... ]
    >>> found = align_shapes(*pair)
    >>> bool(found.similarity > 0.99), found.p_value
    (True, 0.001)
    """
    if not np.array_equal(one.positions, other.positions):
        raise DesignError(
            f"positions {one.positions.min():g} to {one.positions.max():g} and "
            f"{other.positions.min():g} to {other.positions.max():g} differ: take those that both "
            "have (posprobe.probes.between)"
        )
    a, b = (_turned(shape.means) for shape in (one, other))
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    rng = np.random.default_rng(seed)

    def similarity(order: NDArray[np.intp]) -> float:
        return float(np.linalg.norm(a.T @ b[order], "nuc") / scale)

    given = similarity(np.arange(len(b)))
    null = np.array([similarity(rng.permutation(len(b))) for _ in range(permutations)])
    p_value = (1 + np.sum(null >= given)) / (1 + permutations)
    return Alignment(given, float(null.mean()), float(p_value))


def _turned(means: Array) -> Array:
    """The same shape in at most as many coordinates as positions."""
    if means.shape[1] <= means.shape[0]:
        return means
    _, triangle = np.linalg.qr(means.T)
    return np.asarray(triangle.T)


def _by_sequence(data: Features) -> tuple[Array, Array]:
    """Features as (sequences, positions, features)."""
    labels, counts = np.unique(data.groups, return_counts=True)
    order = np.lexsort((data.y, data.groups))
    y = data.y[order]
    n, p = len(labels), int(counts[0])
    if (counts != p).any() or (y.reshape(n, p) != y[:p]).any():
        raise DesignError("sequences have different positions: use a capture of the natural design")
    if n < LEAST_SEQUENCES or p < LEAST_POSITIONS:
        raise DesignError(
            f"{n} sequences of {p} positions: a shape needs at least {LEAST_SEQUENCES} and "
            f"{LEAST_POSITIONS}"
        )
    return data.X[order].reshape(n, p, -1), y[:p]


@dataclass(frozen=True, eq=False)
class _Sums:
    """What K needs of n sequences: their sum (P, d), and the sum of their own Gram matrices."""

    n: int
    total: Array
    own: Array

    @classmethod
    def of(cls, x: Array) -> _Sums:
        own = np.zeros((x.shape[1],) * 2)
        for each in x:
            own += each @ each.T
        return cls(len(x), x.sum(axis=0), own)

    def without(self, one: Array) -> _Sums:
        return _Sums(self.n - 1, self.total - one, self.own - one @ one.T)

    def kernel(self) -> Array:
        gram = (self.total @ self.total.T - self.own) / (self.n * (self.n - 1))
        centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
        return np.asarray(centred)


def _bases(positions: Array) -> list[Array]:
    """Orthonormal functions of position, without a constant, for each of `BASES`."""
    line, log = positions, np.log1p(positions)
    columns = (line[:, None], log[:, None], np.column_stack([line, log]))
    return [np.linalg.qr(each - each.mean(axis=0))[0] for each in columns]


def _ratio_of_differences(kernel: Array, lag: int) -> float:
    """`bend`, from second and first differences at a lag."""
    n = len(kernel)
    eye = np.eye(n)
    ahead, here, behind = eye[2 * lag :], eye[lag : n - lag], eye[: n - 2 * lag]
    second, first = ahead - 2 * here + behind, ahead - behind
    sums = [np.einsum("ap,pq,aq->", rows, kernel, rows, optimize=True) for rows in (second, first)]
    return float(sums[0] / sums[1])
