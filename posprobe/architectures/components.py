"""The mixed model in closed form: cross-products, profiled deviance, identifiability, boundary.

    y = X b + Z L u + e,     var(u) = s2 I,     var(e) = s2 W^-1

L is block diagonal with one lower triangular factor for each random term, repeated over its groups;
the factors' entries are theta. Everything is computed from cross-products, so rows cost nothing.
Columns are orthonormalised beforehand, X by a QR decomposition and the columns of each random term
too, and y is replaced by what X leaves of it, in units of its size. So the units and origins of
predictors and response change nothing. `posprobe.architectures.optimum` searches for theta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from posprobe.architectures.formulas import Design, RandomTerm
from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = ["Components", "State", "boundary_term", "exact_fit", "gather", "unidentified_term"]

Indices = NDArray[np.intp]
Parts = TypeVar("Parts", bound="Components")

BOUNDARY = 1e-4
RANK_TOLERANCE = 1e-8
ROUNDING = 1e-13
EXACT = 1e-12  # share of squares
STEP = 1e-4  # of theta, in second derivatives
MOST_LEVELS = 4000  # of all random effects: their cross-products are one dense matrix


@dataclass(frozen=True)
class State:
    """The model at given theta, in orthonormal columns and with y in units of its size.

    Attributes
    ----------
    deviance : float
        Minus twice the profiled (restricted) log-likelihood, in the units of the data.
    gradient : ndarray of shape (k,)
        Its derivatives by theta.
    scale : float
        Residual variance s2.
    estimates : ndarray of shape (p,)
        Fixed effects.
    inverse : ndarray of shape (p, p)
        Their covariance divided by s2.
    slopes : ndarray of shape (k, p, p)
        Derivatives by theta of the inverse of `inverse`.
    rest : ndarray of shape (k,)
        Derivatives by theta of the weighted residual sum of squares.
    logs : ndarray of shape (k,)
        Derivatives by theta of the log-determinants.
    effects : ndarray of shape (m,)
        Predicted random effects of the orthonormal columns.
    """

    deviance: float
    gradient: Array
    scale: float
    estimates: Array
    inverse: Array
    slopes: Array
    rest: Array
    logs: Array
    effects: Array


@dataclass(frozen=True)
class Components:
    """Cross-products of a design.

    Attributes
    ----------
    design : Design
        Where they come from.
    ZZ : ndarray of shape (m, m)
        Of the random effects' columns.
    ZC : ndarray of shape (m, p + 1)
        Of these with the orthonormal fixed effects and the response.
    R : ndarray of shape (p, p)
        Triangular factor of X.
    centre : ndarray of shape (p,)
        What X explains of y by least squares, in orthonormal columns.
    size : float
        Unit of the response.
    roots : tuple of ndarray of shape (q, q)
        What turns effects of orthonormal columns into effects of each random term's own.
    Q : ndarray of shape (n, p)
        Orthonormal fixed effects.
    Z : sparse matrix of shape (n, m)
        Columns of the random effects.
    """

    design: Design
    ZZ: Array
    ZC: Array
    R: Array
    centre: Array
    size: float
    roots: tuple[Array, ...]
    Q: Array
    Z: sparse.csr_matrix

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.Q)

    def with_response(self, y: Array) -> Components:
        """Return the same model for another response, of shape (n,)."""
        centre, left, size = _project(self.Q, np.sqrt(self.design.weights) * y)
        ZC = np.column_stack([self.ZC[:, :-1], self.Z.T @ (left / size)])
        design = replace(self.design, y=y)
        return replace(self, design=design, ZC=ZC, centre=centre, size=size)

    @cached_property
    def blocks(self) -> list[tuple[int, int, int]]:
        """First row, number of groups and number of effects of each random term in `ZZ`."""
        found, start = [], 0
        for term in self.design.terms:
            found.append((start, len(term.levels), len(term.effects)))
            start += found[-1][1] * found[-1][2]
        return found

    def factors(self, theta: Array) -> list[Array]:
        """Return the lower triangular factor of each random term."""
        found, start = [], 0
        for _, _, q in self.blocks:
            size = q * (q + 1) // 2
            factor = np.full((q, q), theta[start]) if q == 1 else np.zeros((q, q))
            if q > 1:
                factor[np.tril_indices(q)] = theta[start : start + size]
            found.append(factor)
            start += size
        return found

    @cached_property
    def entries(self) -> list[tuple[Indices, Indices, bool]]:
        """Rows and columns of L that hold each theta, and whether these are on the diagonal."""
        found = []
        for start, levels, q in self.blocks:
            first = start + q * np.arange(levels)
            found += [(first + a, first + b, a == b) for a in range(q) for b in range(a + 1)]
        return found

    def covariances(self, theta: Array) -> list[Array]:
        """Return each random term's covariance, divided by the residual variance."""
        found = []
        for root, factor in zip(self.roots, self.factors(theta), strict=True):
            half = root @ factor
            found.append(half @ half.T)
        return found

    @cached_property
    def half(self) -> Array:
        """A matrix F of shape (m, r) with ``F F' = ZZ``."""
        values, vectors = linalg.eigh(self.ZZ)
        kept = values > ROUNDING * values[-1]
        return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))

    @cached_property
    def across(self) -> Array:
        """A matrix G of shape (m, r) with ``F' G = I``: the columns of Z G are orthonormal."""
        return self.half / np.sum(self.half**2, axis=0)

    def between(self, theta: Array) -> Array:
        """Return ``F' D F``, (r, r), with D the random effects' covariance over s2."""
        rows = self.transposed(self.factors(theta), self.half)
        return np.asarray(rows.T @ rows)

    def draw(self, theta: Array, rng: np.random.Generator) -> Array:
        """Draw what random effects and residuals bring to the rows, (n,), in units of s."""
        noise = rng.normal(size=self.n)
        inner = self.across.T @ (self.Z.T @ noise)
        root = linalg.cholesky(self.between(theta) + np.eye(len(inner)), lower=True)
        moved = noise + self.Z @ (self.across @ (root @ inner - inner))
        return np.asarray(moved / np.sqrt(self.design.weights))

    def transposed(self, factors: list[Array], matrix: Array) -> Array:
        """Multiply a matrix by L' from the left."""
        parts = []
        for (start, levels, q), factor in zip(self.blocks, factors, strict=True):
            part = matrix[start : start + levels * q].reshape(levels, q, -1)
            parts.append((factor.T @ part).reshape(levels * q, -1))
        return np.concatenate(parts)

    def at(self, theta: Array, *, reml: bool) -> State:
        """Evaluate the model at theta.

        Parameters
        ----------
        theta : ndarray of shape (k,)
            Entries of the relative factors.
        reml : bool
            Use the restricted likelihood.

        Returns
        -------
        State
        """
        factors = self.factors(theta)
        left = self.transposed(factors, self.ZZ)
        inner = self.transposed(factors, left.T) + np.eye(len(left))
        factor = linalg.cho_factor(inner, lower=True)
        small = self.transposed(factors, self.ZC)
        both = linalg.cho_solve(factor, np.column_stack([small, left]))
        solved, K = np.split(both, [small.shape[1]], axis=1)
        left_over = self.ZC - left.T @ solved
        changes, logs = [], []
        for rows, columns, _ in self.entries:
            product = left_over[rows].T @ solved[columns]
            changes.append(-(product + product.T))
            logs.append(2 * K[columns, rows].sum())
        return self.profiled(
            small.T @ solved,
            2 * float(np.log(np.diag(factor[0])).sum()),
            np.array(changes),
            np.array(logs),
            self.transposed([one.T for one in factors], solved),
            reml=reml,
        )

    def curves(self, theta: Array, *, reml: bool) -> tuple[Array, Array]:
        """Return the derivatives by theta of a state's `logs` and `rest`, (k, k) each."""
        steps = STEP * np.eye(len(theta))
        states = [[self.at(theta + sign * one, reml=reml) for sign in (1, -1)] for one in steps]
        found = [
            np.array([getattr(up, name) - getattr(down, name) for up, down in states]) / (2 * STEP)
            for name in ("logs", "rest")
        ]
        return (found[0] + found[0].T) / 2, (found[1] + found[1].T) / 2

    def profiled(
        self, taken: Array, logarithm: float, changes: Array, logs: Array, effects: Array, *,
        reml: bool,
    ) -> State:  # fmt: skip
        """Put a state together, with fixed effects and s2 at their best.

        Parameters
        ----------
        taken : ndarray of shape (p + 1, p + 1)
            What random effects take from the cross-products H of fixed effects and response.
        logarithm : float
            Of the determinant of the rows' covariance over s2, weights aside.
        changes : ndarray of shape (k, p + 1, p + 1)
            Derivatives of H by the parameters.
        logs : ndarray of shape (k,)
            Those of `logarithm`.
        effects : ndarray of shape (m, p + 1)
            Random effects that each column of fixed effects and response would have.
        reml : bool
            Use the restricted likelihood.

        Returns
        -------
        State
        """
        p = len(self.R)
        corner = np.eye(p + 1)
        corner[p, p] = self.n
        H = corner - taken
        inverse = linalg.inv(H[:p, :p])
        estimates = inverse @ H[:p, p]
        v = np.append(-estimates, 1.0)
        squares = max(float(v @ H @ v), np.finfo(float).tiny)
        df = self.n - p if reml else self.n
        scale = squares / df
        deviance = logarithm + df * (np.log(2 * np.pi * scale) + 1 + 2 * np.log(self.size))
        deviance -= float(np.log(self.design.weights).sum())
        if reml:
            deviance += float(np.linalg.slogdet(H[:p, :p])[1])
            deviance += 2 * float(np.log(np.abs(np.diag(self.R))).sum())
        slopes = changes[:, :p, :p]
        rest = changes @ v @ v
        if reml:
            logs = logs + np.sum(inverse * slopes, axis=(1, 2))
        return State(
            deviance=float(deviance),
            gradient=logs + rest / scale,
            scale=scale,
            estimates=estimates,
            inverse=inverse,
            slopes=slopes,
            rest=rest,
            logs=logs,
            effects=effects @ v,
        )


def gather(design: Design, kind: type[Parts]) -> Parts:
    """Compute the cross-products of a design.

    Parameters
    ----------
    design : Design
        The matrices.
    kind : type
        `Components`, or a class of it with other parameters.

    Returns
    -------
    Components

    Raises
    ------
    DesignError
        If the fixed effects are collinear, or there are too many random effects.
    """
    levels = sum(len(term.levels) * len(term.effects) for term in design.terms)
    if levels > MOST_LEVELS:
        raise DesignError(
            f"{levels} random effects are too many (at most {MOST_LEVELS}): average over the "
            "smallest groups first"
        )
    root = np.sqrt(design.weights)
    Q, R = _orthonormal(design, root)
    centre, left, size = _project(Q, root * design.y)
    made = [_random_columns(term, root) for term in design.terms]
    Z = sparse.hstack([columns for columns, _ in made], format="csr")
    C = np.column_stack([Q, left / size])
    return kind(
        design=design,
        ZZ=np.asarray((Z.T @ Z).todense()),
        ZC=np.asarray(Z.T @ C),
        R=R,
        centre=centre,
        size=size,
        roots=tuple(back for _, back in made),
        Q=Q,
        Z=Z,
    )


def _project(Q: Array, y: Array) -> tuple[Array, Array, float]:
    """Return what the fixed effects explain of y, what they leave, and the size of that."""
    centre = Q.T @ y
    left = y - Q @ centre
    more = Q.T @ left  # a second pass: y may be far from 0
    left = left - Q @ more
    size = float(np.linalg.norm(left)) / np.sqrt(len(y))
    if size <= ROUNDING * float(np.abs(y).max()) or size == 0:
        return centre + more, np.zeros_like(y), 1.0
    return centre + more, left, size


def _orthonormal(design: Design, root: Array) -> tuple[Array, Array]:
    X = root[:, None] * design.X
    norms = np.linalg.norm(X, axis=0)
    norms[norms == 0] = 1.0
    # a shift of a predictor must not look like collinearity with the intercept
    rank = int(np.linalg.matrix_rank(X / norms, tol=1e-10))
    if rank < X.shape[1]:
        raise DesignError(
            f"the fixed effects of {design.fixed_part!r} have rank {rank} of {X.shape[1]}: drop a "
            "term that the others imply"
        )
    Q, R = linalg.qr(X / norms, mode="economic")
    return Q, R * norms


def _random_columns(term: RandomTerm, root: Array) -> tuple[sparse.csr_matrix, Array]:
    """Spread a random term over its groups in orthonormal columns, with the way back."""
    n, q = term.columns.shape
    columns = root[:, None] * term.columns
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0] = 1.0
    _, R = linalg.qr(columns / norms, mode="economic")
    if len(R) < q or np.abs(np.diag(R)).min() <= 1e-10:
        back = np.diag(1 / norms)  # found out as not identified
    else:
        back = linalg.inv(R * norms)
    back = back * np.sqrt(n)
    values = columns @ back
    places = q * term.codes[:, None] + np.arange(q)
    where = (np.repeat(np.arange(n), q), places.ravel())
    shape = (n, q * len(term.levels))
    return sparse.csr_matrix((values.ravel(), where), shape=shape), back


def unidentified_term(parts: Components) -> str | None:
    """Find a variance component that the data cannot identify, before any fit.

    The fixed effects absorb a component if rank [X, Z_k] = rank X. The remaining components are
    identified if the matrices ``P D_k P`` are linearly independent, because the restricted
    likelihood depends on V only through them. P projects onto the orthogonal complement of X, and
    D_k is the derivative of V with respect to component k (the identity for the residual). A random
    effect with one level for each row fails, since its D_k is the identity too.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.

    Returns
    -------
    str or None
        The reason, or None if all components are identified.
    """
    free = parts.n - len(parts.R)
    if free < 1:
        return "no row is left after the fixed effects"
    p = len(parts.R)
    left = parts.ZZ - parts.ZC[:, :p] @ parts.ZC[:, :p].T
    own: list[tuple[str, np.ndarray]] = []
    pairs: list[tuple[int, int]] = []
    for (start, levels, q), term in zip(parts.blocks, parts.design.terms, strict=True):
        first = start + q * np.arange(levels)
        pairs += combinations_with_replacement(range(len(own), len(own) + q), 2)
        own += [(name, first + k) for k, name in enumerate(term.names)]
    for name, rows in own:
        whole = np.trace(parts.ZZ[np.ix_(rows, rows)])
        if np.trace(left[np.ix_(rows, rows)]) <= RANK_TOLERANCE * whole:
            return f"the fixed effects absorb the random effect of {name}"
    return _dependent_term(left, own, pairs, free)


def exact_fit(parts: Components) -> str | None:
    """Check whether fixed and random effects fit every row exactly.

    There is then no residual, and the likelihood is unbounded.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.

    Returns
    -------
    str or None
        The reason, or None if there is a residual.
    """
    p = len(parts.R)
    left = parts.ZZ - parts.ZC[:, :p] @ parts.ZC[:, :p].T
    fitted = parts.ZC[:, p]
    explained = float(fitted @ linalg.lstsq(left, fitted, cond=1e-12)[0])
    if not fitted.any() or parts.n - explained <= EXACT * parts.n:
        return "fixed and random effects fit every row exactly: no residual is left"
    return None


def _dependent_term(
    left: Array, own: list[tuple[str, np.ndarray]], pairs: list[tuple[int, int]], free: int
) -> str | None:
    def cut(a: int, b: int) -> Array:
        return np.asarray(left[np.ix_(own[a][1], own[b][1])])

    pairs = sorted(pairs, key=lambda pair: pair[0] != pair[1])
    size = len(pairs) + 1
    inner = np.empty((size, size))
    inner[0, 0] = free
    inner[0, 1:] = inner[1:, 0] = [float(np.trace(cut(a, b))) for a, b in pairs]
    for i, (a, b) in enumerate(pairs, start=1):
        for j, (c, d) in enumerate(pairs, start=1):
            straight = np.sum(cut(d, a) * cut(b, c).T)
            inner[i, j] = (straight + np.sum(cut(c, a) * cut(b, d).T)) / 2
    norms = np.sqrt(np.abs(np.diag(inner)))
    for k, (a, b) in enumerate(pairs, start=2):
        scale = np.where(norms[:k] > 0, norms[:k], 1.0)
        if np.linalg.eigvalsh(inner[:k, :k] / np.outer(scale, scale))[0] < RANK_TOLERANCE:
            term = own[a][0] if a == b else f"{own[a][0]} with {own[b][0]}"
            return f"the data cannot tell the variance of {term} from the other components"
    return None


def boundary_term(parts: Components, theta: Array) -> str | None:
    """Find a random effect on the boundary of the parameter space, by a scale-free rule.

    A variance is on the boundary if it contributes less than 1e-4 of the residual variance to the
    variance of the rows. Several correlated effects are on it if some weighted sum of them is: the
    columns are orthonormal, so units and origins do not matter.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.
    theta : ndarray of shape (k,)
        Entries of the relative factors.

    Returns
    -------
    str or None
        The reason, or None if theta is inside the parameter space.
    """
    for term, factor in zip(parts.design.terms, parts.factors(theta), strict=True):
        shares = np.linalg.eigvalsh(factor @ factor.T)
        if shares[-1] < BOUNDARY or (len(shares) == 1 and shares[0] < BOUNDARY):
            share = max(float(shares[-1]), 0.0)
            return f"the variance of {term.names[0]} is {share:.1g} of the residual variance"
        if shares[0] < BOUNDARY:
            return (
                f"{' and '.join(term.names)} are perfectly correlated, or one of their variances "
                "is 0"
            )
    return None
