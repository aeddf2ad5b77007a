"""Closed forms of the mixed model: generalised least squares, identifiability and boundary.

Rows that share random effects form a group. The model of group g is

    y_g = X_g b + Z_g u_g + sum_k W_gk v_gk + e_g,
    var(u_g) = s2 Psi,  var(v_gk) = s2 phi_k I,  var(e_g) = s2 I.

Psi and phi are therefore *relative* to the residual variance s2. This module evaluates the model at
given (Psi, phi); `posprobe.architectures.mixed_model` searches for their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy import linalg

from posprobe.intervals import Array

__all__ = ["Components", "GLSFit", "boundary_term", "exact_fit", "gls", "unidentified_term"]

BOUNDARY = 1e-4
RANK_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Components:
    """The matrices of a mixed model, one entry for each group.

    Attributes
    ----------
    y : list of ndarray of shape (n_g,)
        The response.
    X : list of ndarray of shape (n_g, p)
        The design matrix of the fixed effects.
    Z : list of ndarray of shape (n_g, q)
        The design matrix of the correlated random effects (intercept and slopes); q may be 0.
    W : dict of str to list of ndarray of shape (n_g, c_gk)
        The design matrices of the independent variance components, by name.
    effects : tuple of str
        Names of the q columns of Z.
    """

    y: list[Array]
    X: list[Array]
    Z: list[Array]
    W: dict[str, list[Array]]
    effects: tuple[str, ...]

    @property
    def n(self) -> int:
        """The number of rows in all groups."""
        return sum(len(rows) for rows in self.y)


@dataclass(frozen=True)
class GLSFit:
    """The result of generalised least squares at given variance components.

    Attributes
    ----------
    estimates : ndarray of shape (p,)
        Fixed effects b.
    covariance : ndarray of shape (p, p)
        Covariance of the estimates.
    scale : float
        Residual variance s2, in the squared unit of y.
    deviance : float
        Minus twice the log-likelihood (ML) or restricted log-likelihood (REML).
    """

    estimates: Array
    covariance: Array
    scale: float
    deviance: float


def gls(parts: Components, psi: Array, phi: Array, *, reml: bool = True) -> GLSFit:
    """Evaluate fixed effects, their covariance and the deviance at (Psi, phi).

    This function factorises V itself, which is exact on the boundary too. statsmodels inverts Psi
    and replaces the inverse by 0 where Psi vanishes. It thereby treats a missing random effect as
    an infinite one, and its fixed effects are silently 0 (statsmodels #10239).

    Parameters
    ----------
    parts : Components
        The matrices of the model.
    psi : ndarray of shape (q, q)
        Relative covariance of the random effects.
    phi : ndarray of shape (K,)
        Relative variance components, in the order of `parts.W`.
    reml : bool
        Use the restricted likelihood (REML); otherwise the full one (ML).

    Returns
    -------
    GLSFit
    """
    p = parts.X[0].shape[1]
    gram: Array = np.zeros((p + 1, p + 1))
    logdet = 0.0
    for g, (y, X) in enumerate(zip(parts.y, parts.X, strict=True)):
        V = np.eye(len(y)) + parts.Z[g] @ psi @ parts.Z[g].T
        for share, blocks in zip(phi, parts.W.values(), strict=True):
            V += share * (blocks[g] @ blocks[g].T)
        factor = linalg.cholesky(V, lower=True)
        white = linalg.solve_triangular(factor, np.column_stack([X, y]), lower=True)
        gram += white.T @ white
        logdet += 2 * float(np.log(np.diag(factor)).sum())
    inverse = linalg.inv(gram[:p, :p])
    estimates = inverse @ gram[:p, p]
    rest = float(gram[p, p] - gram[:p, p] @ estimates)
    df = parts.n - p if reml else parts.n
    scale = max(rest, 0.0) / df
    with np.errstate(divide="ignore"):
        deviance = df * float(np.log(2 * np.pi * scale)) + df + logdet
    if reml:
        deviance += float(np.linalg.slogdet(gram[:p, :p])[1])
    return GLSFit(estimates, scale * inverse, scale, deviance)


def unidentified_term(parts: Components) -> str | None:
    """Find a variance component that the data cannot identify, before any fit.

    The fixed effects absorb a component if rank [X, Z_k] = rank X. The remaining components are
    identified if the matrices ``P D_k P`` are linearly independent, because the restricted
    likelihood depends on V only through them. P projects onto the orthogonal complement of X, and
    D_k is the derivative of V with respect to component k (the identity for the residual). A random
    effect with one level for each row fails, since its D_k is the identity too. Without this
    check, statsmodels returns the starting value of an unidentified component with
    ``converged=True``.

    Parameters
    ----------
    parts : Components
        The matrices of the model.

    Returns
    -------
    str or None
        The reason, or None if all components are identified.
    """
    blocks = _term_matrices(parts)
    X = np.concatenate(parts.X)
    base, _ = linalg.qr(X, mode="economic")
    free = parts.n - X.shape[1]
    if free < 1:
        return "no row is left after the fixed effects"
    projected = {name: Z - base @ (base.T @ Z) for name, Z in blocks.items()}
    for name, Z in projected.items():
        if np.linalg.norm(Z) <= RANK_TOLERANCE * np.linalg.norm(blocks[name]):
            return f"the fixed effects absorb the random effect of {name}"
    return _dependent_term(parts, projected, free)


def exact_fit(parts: Components) -> str | None:
    """Check whether fixed and random effects fit every row exactly.

    There is then no residual, and the likelihood is unbounded.

    Parameters
    ----------
    parts : Components
        The matrices of the model.

    Returns
    -------
    str or None
        The reason, or None if there is a residual.
    """
    y = np.concatenate(parts.y)
    design = np.column_stack([np.concatenate(parts.X), *_term_matrices(parts).values()])
    rest = y - design @ linalg.lstsq(design, y)[0]
    if np.linalg.norm(rest) <= RANK_TOLERANCE * np.linalg.norm(y):
        return "fixed and random effects fit every row exactly: no residual is left"
    return None


def _term_matrices(parts: Components) -> dict[str, Array]:
    """Stack each random effect over groups, as (n, levels); levels are nested in groups."""
    blocks = {
        name: linalg.block_diag(*[Z[:, [k]] for Z in parts.Z])
        for k, name in enumerate(parts.effects)
    }
    for name, component in parts.W.items():
        blocks[name] = linalg.block_diag(*component)
    return blocks


def _dependent_term(parts: Components, projected: dict[str, Array], free: int) -> str | None:
    pairs = [*combinations_with_replacement(parts.effects, 2), *((k, k) for k in parts.W)]
    pairs.sort(key=lambda pair: pair[0] != pair[1])
    traces = [float(np.sum(projected[a] * projected[b])) for a, b in pairs]
    size = len(pairs) + 1
    inner = np.empty((size, size))
    inner[0, 0], inner[0, 1:], inner[1:, 0] = free, traces, traces
    for i, (a, b) in enumerate(pairs, start=1):
        for j, (c, d) in enumerate(pairs, start=1):
            straight = _trace(projected, a, b, c, d)
            inner[i, j] = (straight + _trace(projected, a, b, d, c)) / 2
    norms = np.sqrt(np.diag(inner))
    for k, (a, b) in enumerate(pairs, start=2):
        scale = np.where(norms[:k] > 0, norms[:k], 1.0)
        cosines = inner[:k, :k] / np.outer(scale, scale)
        if np.linalg.eigvalsh(cosines)[0] < RANK_TOLERANCE:
            term = a if a == b else f"{a} with {b}"
            return f"the data cannot tell the variance of {term} from the other components"
    return None


def _trace(Z: dict[str, Array], a: str, b: str, c: str, d: str) -> float:
    """Compute tr(Z_a Z_b' Z_c Z_d') without forming an n x n matrix."""
    return float(np.sum((Z[d].T @ Z[a]) * (Z[b].T @ Z[c]).T))


def boundary_term(parts: Components, psi: Array, phi: Array) -> str | None:
    """Find a random effect on the boundary of the parameter space, by a scale-free rule.

    A variance is on the boundary if it contributes less than 1e-4 of the residual variance to the
    variance of the rows. A covariance is on the boundary if the smallest eigenvalue of the
    correlation matrix is below 1e-4. (The threshold in statsmodels is an absolute 0.01, so on the
    scale of R2 it would warn every time.)

    Parameters
    ----------
    parts : Components
        The matrices of the model.
    psi : ndarray of shape (q, q)
        Relative covariance of the random effects.
    phi : ndarray of shape (K,)
        Relative variance components, in the order of `parts.W`.

    Returns
    -------
    str or None
        The reason, or None if (Psi, phi) is inside the parameter space.
    """
    rows = np.concatenate(parts.Z) if parts.effects else np.empty((parts.n, 0))
    shares = dict(zip(parts.effects, np.diag(psi) * np.mean(rows**2, axis=0), strict=True))
    for share, (name, blocks) in zip(phi, parts.W.items(), strict=True):
        shares[name] = share * sum(float(np.sum(W**2)) for W in blocks) / parts.n
    for name, share in shares.items():
        if share < BOUNDARY:
            return (
                f"the variance of {name} is {max(float(share), 0.0):.1g} of the residual variance"
            )
    if len(parts.effects) > 1:
        spread = np.sqrt(np.diag(psi))
        if np.linalg.eigvalsh(psi / np.outer(spread, spread))[0] < BOUNDARY:
            return f"{' and '.join(parts.effects)} are perfectly correlated"
    return None
