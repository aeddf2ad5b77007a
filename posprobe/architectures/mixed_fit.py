"""What a mixed model found, and how far it may be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posprobe.errors import DesignError
from posprobe.intervals import Interval

__all__ = ["MixedFit", "likelihood_ratio"]


@dataclass(frozen=True)
class MixedFit:
    """A linear mixed model and how far it may be believed.

    Attributes
    ----------
    status : str
        `"ok"`; `"singular"` (a variance is 0 or a correlation 1: estimates hold, standard errors
        tend to be short); `"not_identified"` or `"failed"` (no estimates).
    reason : str
        Why the status is not `"ok"`, else empty.
    method : str
        `"REML"` or `"ML"`.
    fixed_part : str
        The formula of the fixed effects.
    names : tuple of str
        Fixed effects.
    estimates : ndarray, shape (p,)
    covariance : ndarray, shape (p, p)
    variances : dict of str to float
        Variance of each random effect and of `"residual"`, in the squared unit of the value.
    correlations : dict of str to float
        Between random effects of one group.
    deviance : float
        Minus twice the (restricted) log-likelihood.
    deviances : tuple of float
        The same from each starting point; NaN where the optimiser gave up.
    df : int or None
        Degrees of freedom of the t and F statistics; None for the normal.
    n, n_groups : int
        Rows and groups.
    warnings : tuple of str
        What statsmodels said, each message once.
    """

    status: str
    reason: str
    method: str
    fixed_part: str
    names: tuple[str, ...]
    estimates: NDArray[np.float64]
    covariance: NDArray[np.float64]
    variances: dict[str, float]
    correlations: dict[str, float]
    deviance: float
    deviances: tuple[float, ...]
    df: int | None
    n: int
    n_groups: int
    warnings: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether there are estimates."""
        return self.status in ("ok", "singular")

    def contrast(self, weights: ArrayLike, *, estimand: str, level: float = 0.95) -> Interval:
        """Estimate a weighted sum of the fixed effects.

        Parameters
        ----------
        weights : array_like, shape (p,)
        estimand : str
            What the sum means.
        level : float
            Confidence level.

        Returns
        -------
        Interval
            By t(df); by the normal distribution where `df` is None.

        Raises
        ------
        DesignError
            If the fit has no estimates.
        """
        w = self._weights(weights)
        estimate, se = float(w @ self.estimates), float(np.sqrt(w @ self.covariance @ w))
        tail = 0.5 + level / 2
        quantile = stats.norm.ppf(tail) if self.df is None else stats.t.ppf(tail, self.df)
        name = "normal" if self.df is None else f"t({self.df})"
        half = float(quantile) * se
        method = f"mixed model by {self.method}, {name}"
        return Interval(
            estimate, estimate - half, estimate + half, level, method, estimand, self.n_groups
        )

    def wald(self, weights: ArrayLike) -> tuple[float, float]:
        """Test that several weighted sums of the fixed effects are 0.

        Parameters
        ----------
        weights : array_like, shape (r, p)
            Linearly independent rows.

        Returns
        -------
        statistic, p_value : float
            ``F = (L b)' (L V L')^-1 (L b) / r`` on (r, df); chi-square / r where `df` is None.

        Raises
        ------
        DesignError
            If the fit has no estimates.
        """
        L = np.atleast_2d(self._weights(weights))
        sums = L @ self.estimates
        statistic = float(sums @ np.linalg.solve(L @ self.covariance @ L.T, sums)) / len(L)
        if self.df is None:
            return statistic, float(stats.chi2.sf(statistic * len(L), len(L)))
        return statistic, float(stats.f.sf(statistic, len(L), self.df))

    def table(self, *, level: float = 0.95) -> pd.DataFrame:
        """Give one row per fixed effect and per variance, with the status in each."""
        rows = []
        for weights, name in zip(np.eye(len(self.names)), self.names, strict=True):
            interval = self.contrast(weights, estimand=name, level=level)
            rows.append(
                {
                    "part": "fixed",
                    "term": name,
                    "estimate": interval.estimate,
                    "se": float(np.sqrt(weights @ self.covariance @ weights)),
                    "low": interval.low,
                    "high": interval.high,
                }
            )
        rows += [
            {"part": "variance", "term": name, "estimate": value}
            for name, value in self.variances.items()
        ]
        columns = ["part", "term", "estimate", "se", "low", "high"]
        return pd.DataFrame(rows, columns=columns).assign(status=self.status, reason=self.reason)

    def _check(self) -> None:
        if not self.usable:
            raise DesignError(
                f"the mixed model is {self.status} ({self.reason}): use the two-stage test"
            )

    def _weights(self, weights: ArrayLike) -> NDArray[np.float64]:
        """Weights of sums of the fixed effects, (p,) or (r, p), of a fit that has some."""
        self._check()
        if self.df is not None and self.df < 1:
            raise DesignError(
                f"df={self.df} leaves nothing to judge the effects by: give 1 or more"
            )
        w = np.asarray(weights, dtype=float)
        if w.ndim not in (1, 2) or w.shape[-1] != len(self.estimates) or not np.isfinite(w).all():
            raise DesignError(
                f"weights of shape {w.shape} do not fit {len(self.estimates)} fixed effects: give "
                "one finite weight for each"
            )
        return w


def likelihood_ratio(full: MixedFit, reduced: MixedFit) -> tuple[float, int, float]:
    """Compare two nested mixed models by their deviances.

    Parameters
    ----------
    full, reduced : MixedFit
        The same data; `reduced` has fewer fixed effects.

    Returns
    -------
    statistic : float
        Difference of deviances.
    df : int
        Difference of numbers of fixed effects.
    p_value : float
        By chi-square: too small with few groups, so no primary test here.

    Raises
    ------
    DesignError
        If a fit has no estimates, was made by REML (restricted likelihoods of different fixed
        parts are not comparable), or the models are not nested on the same rows.
    """
    for fit in (full, reduced):
        fit._check()
        if fit.method != "ML":
            raise DesignError(
                f"{fit.fixed_part!r} was fitted by REML, whose likelihoods do not compare fixed "
                "parts: fit both with reml=False"
            )
    df = len(full.names) - len(reduced.names)
    if df < 1 or full.n != reduced.n or not set(reduced.names) < set(full.names):
        raise DesignError(
            f"{reduced.fixed_part!r} is not nested in {full.fixed_part!r} on the same rows: give "
            "the larger model first"
        )
    statistic = reduced.deviance - full.deviance
    return statistic, df, float(stats.chi2.sf(statistic, df))
