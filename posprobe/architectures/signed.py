"""The mixed model whose variances may be negative: what rows of one group share, of either sign.

    var(y) = s2 (W^-1 + sum_k t_k Z_k Z_k')

with one number t_k for each random effect, of any sign that leaves this positive definite. Then the
model says of the rows' covariance only what data can say: rows of one group may agree less than
rows of different groups do. On balanced data the restricted likelihood gives the mean squares of
the analysis of variance, and tests are the classical ones. With variances kept at 0 or above they
are not where a group's mean square is below the residual one: the two are pooled, and the test
that was planned becomes another.

References
----------
Nelder (1954), The interpretation of negative components of variance, Biometrika 41, 544;
Molenberghs and Verbeke (2011), A note on a hierarchical interpretation for negative variance
components, Stat. Modelling 11, 389.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import linalg

from posprobe.architectures.components import Components, Indices, State
from posprobe.intervals import Array

__all__ = ["SignedComponents"]


class SignedComponents(Components):
    """Cross-products of a design, with theta the variances t over the residual one.

    Every random effect has its own variance; correlated ones are refused by `fit_mixed`.
    """

    @cached_property
    def effect_rows(self) -> list[Indices]:
        """Rows of `ZZ` that belong to each random effect."""
        return [start + np.arange(levels) for start, levels, _ in self.blocks]

    def _spread(self, theta: Array) -> Array:
        """Spread the variances over the rows of `ZZ`, (m, 1)."""
        return np.repeat(theta, [levels for _, levels, _ in self.blocks])[:, None]

    def covariances(self, theta: Array) -> list[Array]:
        """Return each random effect's variance, divided by the residual one, as (1, 1)."""
        return [variance * root @ root.T for root, variance in zip(self.roots, theta, strict=True)]

    def between(self, theta: Array) -> Array:
        """Return ``F' D F``, (r, r), with D the random effects' covariance over s2."""
        return np.asarray(self.half.T @ (self._spread(theta) * self.half))

    def at(self, theta: Array, *, reml: bool) -> State:
        """Evaluate the model at theta.

        Parameters
        ----------
        theta : ndarray of shape (k,)
            Variances over the residual one.
        reml : bool
            Use the restricted likelihood.

        Returns
        -------
        State

        Raises
        ------
        LinAlgError
            If the rows' covariance is not positive definite there.
        """
        return self._evaluated(theta, reml)[0]

    def smallest(self, theta: Array) -> float:
        """Return the smallest eigenvalue of the rows' covariance over s2, weights aside."""
        return 1 + min(0.0, float(linalg.eigvalsh(self.between(theta))[0]))

    def _evaluated(self, theta: Array, reml: bool) -> tuple[State, Array, Array]:
        """Return the state, ``Z' V^-1 Z`` and ``Z' V^-1 [X, y]``, weights aside and s2 being 1."""
        lower = linalg.cholesky(self.between(theta) + np.eye(self.half.shape[1]), lower=True)
        inside = self.across.T @ self.ZC  # of the columns, what groups explain
        thin, kept = (linalg.solve_triangular(lower, x, lower=True) for x in (self.half.T, inside))
        shared, left = thin.T @ thin, thin.T @ kept
        state = self.profiled(
            inside.T @ inside - kept.T @ kept,
            2 * float(np.log(np.diag(lower)).sum()),
            np.array([-left[rows].T @ left[rows] for rows in self.effect_rows]),
            np.array([shared[rows, rows].sum() for rows in self.effect_rows]),
            self._spread(theta) * left,
            reml=reml,
        )
        return state, shared, left

    def curves(self, theta: Array, *, reml: bool) -> tuple[Array, Array]:
        """Return the derivatives by theta of a state's `logs` and `rest`, (k, k) each."""
        state, shared, left = self._evaluated(theta, reml)
        p = len(self.R)
        v = np.append(-state.estimates, 1.0)
        parts = [left[rows] for rows in self.effect_rows]
        turned = np.array([part.T @ (part @ v) for part in parts])[:, :p]
        logs = np.empty((len(theta), len(theta)))
        rest = -2 * turned @ state.inverse @ turned.T
        for j, rows in enumerate(self.effect_rows):
            both = state.inverse @ state.slopes[j] @ state.inverse
            for k, columns in enumerate(self.effect_rows):
                between = shared[np.ix_(rows, columns)]
                logs[j, k] = -np.sum(between**2)
                rest[j, k] += 2 * (parts[j] @ v) @ between @ (parts[k] @ v)
                if reml:
                    change = 2 * parts[j].T @ between @ parts[k]
                    logs[j, k] += np.sum(state.inverse * change[:p, :p])
                    logs[j, k] -= np.sum(both * state.slopes[k])
        return logs, rest
