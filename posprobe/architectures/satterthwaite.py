"""Tests of fixed effects with Satterthwaite's degrees of freedom.

A weighted sum of fixed effects has the estimated variance v(theta, sigma). Satterthwaite takes it
for a multiple of chi-square with the same two moments,

    df = 2 v^2 / (g' A g),     g = dv / d(theta, sigma),     A = 2 (d2 deviance)^-1.

An F test of r sums rotates them to independent ones; with their degrees of freedom v_m,
df = 2 E / (E - r) and E = sum v_m / (v_m - 2). In balanced designs these are the classical numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from posprobe.architectures.components import Components
from posprobe.intervals import Array

__all__ = ["Inference", "infer"]

FLAT = 1e-9  # a direction of the deviance with less curvature than this share is left out


@dataclass(frozen=True)
class Inference:
    """Fixed effects with all that their tests need, in the units of the data.

    Attributes
    ----------
    estimates : ndarray of shape (p,)
        Fixed effects.
    covariance : ndarray of shape (p, p)
        Their covariance.
    slopes : ndarray of shape (k + 1, p, p)
        Its derivatives by theta and sigma.
    spread : ndarray of shape (k + 1, k + 1)
        Covariance of theta and sigma.
    """

    estimates: Array
    covariance: Array
    slopes: Array
    spread: Array

    def df(self, weights: Array) -> float:
        """Return the degrees of freedom of a weighted sum, for weights of shape (p,)."""
        variance = float(weights @ self.covariance @ weights)
        slope = self.slopes @ weights @ weights
        noise = float(slope @ self.spread @ slope)
        return 2 * variance**2 / noise if noise > 0 else float("inf")

    def f_test(self, weights: Array) -> tuple[float, int, float, float]:
        """Test that the sums with weights of shape (r, p) are 0: F, r, df and p-value.

        ``F = (L b)' (L V L')^-1 (L b) / r``, as in lmerTest. Sums that the others imply count once.
        """
        L = np.atleast_2d(weights)
        values, vectors = linalg.eigh(L @ self.covariance @ L.T)
        kept = values > 1e-10 * values[-1]
        rotated = vectors[:, kept].T @ L
        r = len(rotated)
        statistic = float(np.sum((rotated @ self.estimates) ** 2 / values[kept]) / r)
        df = _pool(np.array([self.df(one) for one in rotated]))
        return statistic, r, df, float(stats.f.sf(statistic, r, min(df, 1e10)))


def _pool(dfs: Array) -> float:
    if np.ptp(dfs) <= 1e-4 * dfs[0] or not np.isfinite(dfs).all():
        return float(dfs.mean()) if np.isfinite(dfs).all() else float(dfs.min())
    if (dfs <= 2).any():
        return 2.0
    expected = float(np.sum(dfs / (dfs - 2)))
    return 2 * expected / (expected - len(dfs))


def infer(parts: Components, theta: Array, *, reml: bool) -> Inference:
    """Evaluate fixed effects, their covariance and what Satterthwaite needs at the optimum.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.
    theta : ndarray of shape (k,)
        The optimum.
    reml : bool
        Whether it is that of the restricted likelihood.

    Returns
    -------
    Inference
    """
    state = parts.at(theta, reml=reml)
    sigma, k, p = np.sqrt(state.scale), len(theta), len(parts.R)
    df = parts.n - p if reml else parts.n
    curve = np.empty((k + 1, k + 1))
    logs, rest = parts.curves(theta, reml=reml)
    curve[:k, :k] = logs + rest / state.scale
    curve[:k, k] = curve[k, :k] = -2 * state.rest / sigma**3
    curve[k, k] = 4 * df / state.scale
    back = parts.size * linalg.inv(parts.R)
    slopes = np.empty((k + 1, p, p))
    for i in range(k):
        slopes[i] = -state.scale * state.inverse @ state.slopes[i] @ state.inverse
    slopes[k] = 2 * sigma * state.inverse
    return Inference(
        estimates=linalg.solve_triangular(parts.R, parts.centre + parts.size * state.estimates),
        covariance=state.scale * back @ state.inverse @ back.T,
        slopes=back @ slopes @ back.T,
        spread=2 * _inverse(curve),
    )


def _inverse(curve: Array) -> Array:
    """Invert the curvature of the deviance where it has one."""
    size = np.sqrt(np.maximum(np.abs(np.diag(curve)), np.finfo(float).tiny))
    values, vectors = linalg.eigh(curve / np.outer(size, size))
    kept = values > FLAT * values[-1]
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    return np.asarray(inverse / np.outer(size, size))
