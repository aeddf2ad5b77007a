"""The optimum of the deviance, from two starting points."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from posprobe.architectures.components import Components, State
from posprobe.architectures.signed import SignedComponents
from posprobe.intervals import Array

__all__ = ["SAME_DEVIANCE", "search"]

STARTS = (1.0, 0.2, 5.0)  # standard deviations of the random effects over the residual one
SAME_DEVIANCE = 1e-5


def search(parts: Components, *, reml: bool, starts: int = 2) -> tuple[Array, tuple[float, ...]]:
    """Minimise the deviance over theta.

    The gradient is exact. From each starting point L-BFGS-B runs until nothing changes. On the
    boundary every derivative by a diagonal entry is 0, minimum or not, so entries at 0 are pushed
    inside, and the search goes on from there if the deviance falls. Variances of either sign have
    no boundary but where the rows' covariance ends: Newton steps in a trust region, which shrinks
    there, take the place of L-BFGS-B.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.
    reml : bool
        Use the restricted likelihood.
    starts : int
        Number of starting points, 1 or 2; if two disagree, a third follows.

    Returns
    -------
    theta : ndarray of shape (k,)
        The best entries found, of the factors or of `SignedComponents`.
    deviances : tuple of float
        What was reached from each starting point; the lowest two should agree.
    """
    diagonal = np.array([on for _, _, on in parts.entries])

    def descend(start: float) -> tuple[Array, float]:
        if isinstance(parts, SignedComponents):
            return _newton(parts, start**2 * diagonal, reml)
        return _descend(parts, start * diagonal, diagonal, reml)

    found = [descend(start) for start in STARTS[:starts]]
    if starts > 1 and abs(found[0][1] - found[1][1]) > SAME_DEVIANCE:
        found.append(descend(STARTS[2]))
    best = min(found, key=lambda one: one[1])
    return best[0], tuple(deviance for _, deviance in found)


def _descend(
    parts: Components, start: Array, diagonal: NDArray[np.bool_], reml: bool
) -> tuple[Array, float]:
    theta, deviance = _minimise(parts, start, diagonal, reml)
    for _ in range(len(theta) + 2):
        edge = diagonal & (theta < 1e-3)
        if not edge.any():
            break
        pushed = np.where(edge, 0.03, theta)
        again, lower = _minimise(parts, pushed, diagonal, reml)
        gain = deviance - lower
        if gain > 0:
            theta, deviance = again, lower
        if gain < 1e-10:
            break
    return theta, deviance


def _minimise(
    parts: Components, start: Array, diagonal: NDArray[np.bool_], reml: bool
) -> tuple[Array, float]:
    base = parts.at(start, reml=reml).deviance

    def rise(theta: Array) -> tuple[float, Array]:
        state = parts.at(theta, reml=reml)
        return state.deviance - base, state.gradient

    found = optimize.minimize(
        rise,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1e6) if on else (-1e6, 1e6) for on in diagonal],
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500},
    )
    return found.x, float(found.fun) + base


def _newton(parts: SignedComponents, start: Array, reml: bool) -> tuple[Array, float]:
    """Minimise over variances sinh(x), of any size and sign; outside their space it is infinite."""
    base = parts.at(start, reml=reml).deviance
    df = parts.n - len(parts.R) * reml

    @lru_cache(maxsize=2)
    def evaluated(x: tuple[float, ...]) -> State | None:
        try:
            return parts.at(np.sinh(x), reml=reml)
        except linalg.LinAlgError:
            return None

    def height(x: Array) -> float:
        state = evaluated(tuple(x))
        return np.inf if state is None else state.deviance - base

    def gradient(x: Array) -> Array:
        state = evaluated(tuple(x))
        return np.zeros(len(x)) if state is None else np.cosh(x) * state.gradient

    def curvature(x: Array) -> Array:
        state = evaluated(tuple(x))
        if state is None:
            return np.eye(len(x))  # of a step that is not taken
        logs, rest = parts.curves(np.sinh(x), reml=reml)
        ratio = state.rest / state.scale
        curve = logs + rest / state.scale - np.outer(ratio, ratio) / df
        slope = np.cosh(x)
        return np.outer(slope, slope) * curve + np.diag(np.sinh(x) * state.gradient)

    found = optimize.minimize(
        height,
        np.arcsinh(start),
        jac=gradient,
        hess=curvature,
        method="trust-exact",
        options={"gtol": 1e-9, "maxiter": 200},
    )
    last = found.x - linalg.lstsq(curvature(found.x), gradient(found.x))[0]
    best = last if height(last) < found.fun + SAME_DEVIANCE else found.x
    return np.sinh(best), height(best) + base
