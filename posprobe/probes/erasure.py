r"""Erase a concept from features by the smallest linear change, or move features along it.

With features x of mean :math:`\mu` and covariance :math:`\Sigma_{xx}`, a concept z of t columns,
:math:`W = \Sigma_{xx}^{-1/2}` (pseudo-inverse) and U an orthonormal basis of the columns of
:math:`W \Sigma_{xz}`,

.. math:: r(x) = x - W^{+} U U^\top W (x - \mu)

leaves no covariance with z, so no linear predictor of z from r(x) has an R2 above 0 on these
features, and of all affine functions that do so it changes x the least in mean square (LEACE). Only
sums of products are needed, which `posprobe.probes.ClusterGram` holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from posprobe.errors import DesignError
from posprobe.intervals import Array
from posprobe.probes.gram.cluster_gram import ClusterGram

__all__ = ["Eraser", "fit_eraser", "position_slope"]

TOLERANCE = 1e-10  # of eigenvalues and singular values, relative to the largest


@dataclass(frozen=True, eq=False)
class Eraser:
    r"""The change :math:`r(x) = x - (x - \mu) A B`, with A of r columns and B of r rows.

    Attributes
    ----------
    mean : ndarray of shape (p,)
        Mean :math:`\mu` of the features.
    inward : ndarray of shape (p, r)
        A, which reads r coordinates. They have variance 1 and no covariance.
    outward : ndarray of shape (r, p)
        B, which writes them.
    """

    mean: Array
    inward: Array
    outward: Array

    @property
    def rank(self) -> int:
        """The number r of directions that are erased."""
        return len(self.outward)

    def __call__(self, X: ArrayLike) -> Array:
        """Erase from features.

        Parameters
        ----------
        X : array-like of shape (n, p)

        Returns
        -------
        ndarray of shape (n, p)

        Raises
        ------
        DesignError
            If the features have another width.
        """
        X = np.asarray(X, dtype=float)
        if X.shape[-1:] != self.mean.shape:
            raise DesignError(
                f"features have width {X.shape[-1] if X.ndim else 0}, the eraser "
                f"{len(self.mean)}: fit one on these features"
            )
        return np.asarray(X - (X - self.mean) @ self.inward @ self.outward)


def fit_eraser(gram: ClusterGram, *, random_rank: int | None = None, seed: int = 0) -> Eraser:
    """Fit the eraser of the targets of a Gram, or a control that erases random directions.

    Parameters
    ----------
    gram : ClusterGram
        Statistics of features and targets. The targets are the concept.
    random_rank : int or None
        Erase this many random directions instead, drawn uniformly where features have variance 1
        and no covariance. This is the control of an eraser of the same rank.
    seed : int
        Seed of the random directions.

    Returns
    -------
    Eraser
        Its rank is the number of linearly independent targets that covary with the features.

    Raises
    ------
    DesignError
        If no feature varies, no target covaries with the features, or there are fewer directions
        than are to be erased.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.probes import ClusterGram, fit_eraser
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 1))
    >>> X = z + rng.normal(size=(200, 3))
    >>> eraser = fit_eraser(ClusterGram.from_arrays(X, z, groups=np.arange(200)))
    >>> eraser.rank, bool(abs(np.cov(eraser(X).T, z.T)[:3, 3]).max() < 1e-12)
    (1, True)
    """
    mean, covariance, cross = _moments(gram)
    sizes, vectors = np.linalg.eigh(covariance)
    kept = sizes > TOLERANCE * max(float(sizes[-1]), 0.0)
    if not kept.any():
        raise DesignError("no feature varies, so there is nothing to erase; give other features")
    spread, vectors = np.sqrt(sizes[kept]), vectors[:, kept]
    if random_rank is None:
        directions = vectors.T @ cross / spread[:, None]  # of W cov(x, z), where W is diagonal
        scale = np.sqrt(np.trace(_target_covariance(gram)))
        basis, strengths, _ = np.linalg.svd(directions, full_matrices=False)
        basis = basis[:, strengths > TOLERANCE * scale]
        if not basis.shape[1]:
            raise DesignError(
                "the targets do not covary with the features, so there is nothing to erase; give "
                "other targets"
            )
    else:
        if not 1 <= random_rank <= len(spread):
            raise DesignError(
                f"random_rank is {random_rank}: the features have 1 to {len(spread)} directions"
            )
        draw = np.random.default_rng(seed).normal(size=(len(spread), random_rank))
        basis = np.linalg.qr(draw)[0]
    return Eraser(mean, vectors / spread @ basis, basis.T * spread @ vectors.T)


def position_slope(gram: ClusterGram) -> Array:
    r"""Regress features on targets: the change of the mean features for one unit of each target.

    .. math:: \beta = \Sigma_{zz}^{-1} \Sigma_{zx}

    Parameters
    ----------
    gram : ClusterGram
        Statistics of features and t targets.

    Returns
    -------
    ndarray of shape (t, p)

    Raises
    ------
    DesignError
        If the targets are linearly dependent.
    """
    _, _, cross = _moments(gram)
    variance = _target_covariance(gram)
    if np.linalg.matrix_rank(variance, hermitian=True) < len(variance):
        raise DesignError("the targets are linearly dependent; leave one of them out")
    return np.asarray(np.linalg.solve(variance, cross.T), dtype=float)


def _moments(gram: ClusterGram) -> tuple[Array, Array, Array]:
    """Return mean and covariance of the features, and their covariance with the targets."""
    p, total = gram.n_features, gram.sum()
    mean = total[p] / total[p, p]
    centred = total / total[p, p] - np.outer(mean, mean)
    return mean[:p] + gram.shift[:p], centred[:p, :p], centred[:p, p + 1 :]


def _target_covariance(gram: ClusterGram) -> Array:
    p, total = gram.n_features, gram.sum()
    mean = total[p] / total[p, p]
    return np.asarray((total / total[p, p] - np.outer(mean, mean))[p + 1 :, p + 1 :])
