"""The result of fitting a mixed model, with a status that says whether to rely on it."""

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
    """A fitted linear mixed model, with a status.

    Attributes
    ----------
    status : {"ok", "singular", "not_identified", "failed"}
        "singular" means that a variance is 0 or a correlation is 1; estimates are then valid, but
        standard errors tend to be too small. "not_identified" and "failed" come without
        estimates.
    reason : str
        Why the status is not "ok"; empty if it is.
    method : {"REML", "ML"}
        The likelihood that was maximised.
    fixed_part : str
        Formula of the fixed effects.
    names : tuple of str
        Names of the p fixed effects.
    estimates : ndarray of shape (p,)
        Estimates of the fixed effects, in the unit of the response.
    covariance : ndarray of shape (p, p)
        Covariance of the estimates.
    variances : dict of str to float
        Variance of each random effect and of "residual", in the squared unit of the response.
    correlations : dict of str to float
        Correlation of each pair of random effects.
    deviance : float
        Minus twice the (restricted) log-likelihood.
    deviances : tuple of float
        The deviance reached from each starting point.
    df : int or None
        Degrees of freedom of t and F statistics; None stands for the normal distribution.
    n, n_groups : int
        Numbers of rows and groups.
    warnings : tuple of str
        Warnings of statsmodels, each message once.
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
        """Whether the fit has estimates."""
        return self.status in ("ok", "singular")

    def contrast(self, weights: ArrayLike, *, estimand: str, level: float = 0.95) -> Interval:
        """Estimate a weighted sum of the fixed effects.

        Parameters
        ----------
        weights : array-like of shape (p,)
            Weight of each fixed effect.
        estimand : str
            Name of what is estimated.
        level : float
            Nominal coverage.

        Returns
        -------
        Interval
            Based on t(df), or on the normal distribution if `df` is None.

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
        """Test that several weighted sums of the fixed effects are all 0.

        ``F = (L b)' (L V L')^-1 (L b) / r`` is referred to F(r, df), and r F to chi-square(r) if
        `df` is None.

        Parameters
        ----------
        weights : array-like of shape (r, p)
            The matrix L, with linearly independent rows.

        Returns
        -------
        statistic, p_value : float
            F and its p-value.

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
        """Return one row for each fixed effect and each variance.

        Parameters
        ----------
        level : float
            Nominal coverage of the intervals of the fixed effects.

        Returns
        -------
        pandas.DataFrame
            Columns part, term, estimate, se, low, high, status and reason.
        """
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
    """Compare two nested mixed models by a likelihood-ratio test.

    Parameters
    ----------
    full, reduced : MixedFit
        Fits to the same data by maximum likelihood; `reduced` has fewer fixed effects.

    Returns
    -------
    statistic : float
        ``deviance(reduced) - deviance(full)``.
    df : int
        Difference of the numbers of fixed effects.
    p_value : float
        From chi-square(df). It is too small if there are few groups, so posprobe does not use it
        as a primary test.

    Raises
    ------
    DesignError
        If a fit has no estimates or was made by REML (restricted likelihoods of different fixed
        parts are not comparable), or if the models are not nested on the same rows.
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
