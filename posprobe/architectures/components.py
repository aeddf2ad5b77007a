"""Variance components without an optimiser: are they identified, on the boundary, how good a fit.

The model of one group (of rows that share random effects) is

    y_g = X_g b + Z_g u_g + sum_k W_gk v_gk + e_g,
    var(u_g) = s2 Psi,  var(v_gk) = s2 phi_k I,  var(e_g) = s2 I,

so that Psi and phi are *relative* to the residual variance s2. Everything here is a closed form in
(Psi, phi); `posprobe.architectures.mixed_model` looks for their values.
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
    """The matrices of a mixed model, one entry per group.

    Attributes
    ----------
    y : list of ndarray, shape (n_g,)
    X : list of ndarray, shape (n_g, p)
    Z : list of ndarray, shape (n_g, q)
        Correlated random effects (intercept, slopes); q may be 0.
    W : dict of str to list of ndarray, shape (n_g, c_gk)
        Independent variance components by name.
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
        """Rows in all groups."""
        return sum(len(rows) for rows in self.y)


@dataclass(frozen=True)
class GLSFit:
    """Generalised least squares at given variance components.

    Attributes
    ----------
    estimates : ndarray, shape (p,)
    covariance : ndarray, shape (p, p)
        Covariance of the estimates, in the squared unit of y.
    scale : float
        Residual variance s2.
    deviance : float
        Minus twice the log-likelihood (ML) or the restricted one (REML).
    """

    estimates: Array
    covariance: Array
    scale: float
    deviance: float


def gls(parts: Components, psi: Array, phi: Array, *, reml: bool = True) -> GLSFit:
    """Evaluate fixed effects, their covariance and the deviance at (Psi, phi).

    statsmodels inverts Psi, replaces the inverse by 0 where Psi vanishes, and so takes no random
    effect for an infinite one: its fixed effects are then silently 0 (statsmodels #10239). Here V
    itself is factored, which is exact on the boundary too.

    Parameters
    ----------
    parts : Components
    psi : ndarray, shape (q, q)
        Relative covariance of the random effects.
    phi : ndarray, shape (K,)
        Relative variance components, in the order of `parts.W`.
    reml : bool
        Restricted likelihood; otherwise full maximum likelihood.

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
    """Say which variance component the data cannot tell apart, before any fit.

    A component is absorbed by the fixed effects if rank [X, Z_k] = rank X. The others are
    identified if the matrices ``P D_k P``, P the projection off X and D_k the derivative of V by
    component k (the identity for the residual), are linearly independent: the restricted
    likelihood sees V through them alone. A random effect with one level per row fails, since its
    D_k is the identity. Without this check an unidentified component comes back as its starting
    value with ``converged=True``.

    Parameters
    ----------
    parts : Components

    Returns
    -------
    str or None
        The reason, or None where everything is identified.
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
    """Say whether fixed and random effects leave no residual, so the likelihood is unbounded.

    Parameters
    ----------
    parts : Components

    Returns
    -------
    str or None
        The reason, or None where there is a residual.
    """
    y = np.concatenate(parts.y)
    design = np.column_stack([np.concatenate(parts.X), *_term_matrices(parts).values()])
    rest = y - design @ linalg.lstsq(design, y)[0]
    if np.linalg.norm(rest) <= RANK_TOLERANCE * np.linalg.norm(y):
        return "fixed and random effects fit every row exactly: no residual is left"
    return None


def _term_matrices(parts: Components) -> dict[str, Array]:
    """Stack each random effect over groups, shape (n, levels): levels are nested in groups."""
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
    """Give tr(Z_a Z_b' Z_c Z_d') without an n x n matrix."""
    return float(np.sum((Z[d].T @ Z[a]) * (Z[b].T @ Z[c]).T))


def boundary_term(parts: Components, psi: Array, phi: Array) -> str | None:
    """Say which random effect lies on the boundary, by a rule without units.

    A variance lies there if the part of the rows' variance that it makes is below 1e-4 of the
    residual variance; a covariance, if the smallest eigenvalue of the correlation matrix is below
    1e-4. (statsmodels warns below an absolute 0.01, which on an R2 scale is always.)

    Parameters
    ----------
    parts : Components
    psi : ndarray, shape (q, q)
    phi : ndarray, shape (K,)

    Returns
    -------
    str or None
        The reason, or None inside the parameter space.
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
