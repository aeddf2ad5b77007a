"""The result of fitting a mixed model, with a status that says whether to rely on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from patsy import build_design_matrices
from scipy import stats

from posprobe.architectures.components import (
    Components,
    boundary_term,
    exact_fit,
    gather,
    unidentified_term,
)
from posprobe.architectures.marginal import (
    ADJUSTMENTS,
    adjusted,
    compared,
    marginal_weights,
    type_three,
)
from posprobe.architectures.optimum import SAME_DEVIANCE, search
from posprobe.architectures.satterthwaite import Inference, infer
from posprobe.architectures.signed import SignedComponents
from posprobe.architectures.tables import plain_table
from posprobe.errors import DesignError, Telling
from posprobe.intervals import Array, Interval, check_resamples

__all__ = ["MixedFit", "fit_parts", "likelihood_ratio"]

EDGE = 1e-6  # where variances of either sign end: the smallest share of the residual variance


@dataclass(frozen=True, repr=False)
class MixedFit(Telling):
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
    parts : Components
        The cross-products of the design, and the design itself.
    theta : ndarray of shape (k,) or None
        The relative covariance factors at the optimum.
    inference : Inference or None
        Fixed effects with what their tests need.
    deviances : tuple of float
        Minus twice the log-likelihood that each starting point reached.
    """

    status: str
    reason: str
    method: str
    parts: Components
    theta: Array | None = None
    inference: Inference | None = None
    deviances: tuple[float, ...] = ()

    def _line(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.method} of {self.fixed_part}, {self.status}{why}"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"fixed effects": self.fixed()} if self.usable else {}

    @property
    def usable(self) -> bool:
        """Whether the fit has estimates."""
        return self.status in ("ok", "singular")

    @property
    def fixed_part(self) -> str:
        """Formula of the fixed effects."""
        return self.parts.design.fixed_part

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.parts.n

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p fixed effects; none if the fit has no estimates."""
        return tuple(self.parts.design.info.column_names) if self.usable else ()

    @property
    def estimates(self) -> Array:
        """Fixed effects, (p,), in the unit of the response."""
        return np.empty(0) if self.inference is None else self.inference.estimates

    @property
    def covariance(self) -> Array:
        """Covariance of the fixed effects, (p, p)."""
        return np.empty((0, 0)) if self.inference is None else self.inference.covariance

    @property
    def deviance(self) -> float:
        """Minus twice the (restricted) log-likelihood; NaN if the fit has no estimates."""
        return min(self.deviances) if self.usable else float("nan")

    @cached_property
    def _scale(self) -> float:
        _, theta = self._fitted()
        return self.parts.at(theta, reml=self.method == "REML").scale * self.parts.size**2

    def _fitted(self) -> tuple[Inference, Array]:
        if self.inference is None or self.theta is None:
            raise DesignError(
                f"the mixed model is {self.status} ({self.reason}): use the two-stage test"
            )
        return self.inference, self.theta

    @property
    def variances(self) -> dict[str, float]:
        """Variance of each random effect and of "residual", in the squared unit."""
        return {} if self.theta is None else _variances(self.parts, self.theta, self._scale)

    @property
    def correlations(self) -> dict[str, float]:
        """Correlation of each pair of correlated random effects."""
        if self.theta is None:
            return {}
        found = {}
        covariances = self.parts.covariances(self.theta)
        for term, psi in zip(self.parts.design.terms, covariances, strict=True):
            spread = np.sqrt(np.diag(psi))
            for i, j in zip(*np.triu_indices(len(psi), 1), strict=True):
                if spread[i] * spread[j] > 0:
                    name = f"{term.names[i]} with {term.names[j]}"
                    found[name] = float(psi[i, j] / (spread[i] * spread[j]))
        return found

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
            Based on t, with Satterthwaite's degrees of freedom.

        Raises
        ------
        DesignError
            If the fit has no estimates, or the weights do not fit them.
        """
        w = self._weights(weights, 1)
        row = self._sums(w[None], level).iloc[0]
        method = f"mixed model by {self.method}, t({row.df:.1f})"
        return Interval(row.estimate, row.low, row.high, level, method, estimand, self.n)

    def f_test(self, weights: ArrayLike) -> tuple[float, int, float, float]:
        """Test that several weighted sums of the fixed effects are all 0.

        ``F = (L b)' (L V L')^-1 (L b) / r`` is referred to F(r, df), with Satterthwaite's df.

        Parameters
        ----------
        weights : array-like of shape (r, p)
            The matrix L.

        Returns
        -------
        statistic : float
            F.
        r : int
            Rank of L V L'.
        df, p_value : float
            Degrees of freedom of the denominator, and the p-value.

        Raises
        ------
        DesignError
            If the fit has no estimates, or the weights do not fit them.
        """
        L = self._weights(weights, 1, 2)
        return self._fitted()[0].f_test(L)

    def fixed(self, *, level: float = 0.95) -> pd.DataFrame:
        """Return the fixed effects with estimate, se, df, t, p_value, low and high."""
        size = len(self.parts.R)
        table = self._sums(np.eye(size), level)
        table.insert(0, "term", self.names)
        return table

    def anova(self) -> pd.DataFrame:
        """Test each term of the fixed effects (type III), by F with Satterthwaite's df.

        Returns
        -------
        pandas.DataFrame
            Columns term, statistic, df_between, df_within and p_value.
        """
        found, _ = self._fitted()
        names = ("statistic", "df_between", "df_within", "p_value")
        return pd.DataFrame(
            [
                {"term": term, **dict(zip(names, found.f_test(L), strict=True))}
                for term, L in type_three(self.parts.design).items()
            ]
        )

    def means(self, by: str | Sequence[str], *, level: float = 0.95) -> pd.DataFrame:
        """Estimate marginal means of the levels of categorical fixed effects.

        Levels of the other categorical columns weigh equally, and numeric columns are at their
        mean.

        Parameters
        ----------
        by : str or sequence of str
            Column or columns.
        level : float
            Nominal coverage.

        Returns
        -------
        pandas.DataFrame
            The levels, then estimate, se, df, t, p_value, low and high.
        """
        levels, weights = marginal_weights(self.parts.design, [by] if isinstance(by, str) else by)
        return pd.concat([levels, self._sums(weights, level)], axis=1)

    def contrasts(
        self, by: str | Sequence[str], *, adjust: str = "tukey", level: float = 0.95
    ) -> pd.DataFrame:
        """Compare marginal means: all pairs, or with "dunnett" all levels against the first.

        Parameters
        ----------
        by : str or sequence of str
            Column or columns.
        adjust : {"tukey", "holm", "dunnett", "none"}
            Adjustment of the p-values for their number.
        level : float
            Nominal coverage of the limits, which are not adjusted.

        Returns
        -------
        pandas.DataFrame
            Columns contrast, estimate, se, df, t, p_value, low, high and p_adjusted.

        Raises
        ------
        DesignError
            If the adjustment or a column is unknown.
        """
        if adjust not in ADJUSTMENTS:
            raise DesignError(f"adjust={adjust!r} is unknown: use {', '.join(ADJUSTMENTS)}")
        levels, weights = marginal_weights(self.parts.design, [by] if isinstance(by, str) else by)
        labels, L = compared(levels, weights, adjust)
        table = self._sums(L, level)
        table.insert(0, "contrast", labels)
        covariance = L @ self.covariance @ L.T
        spread = np.sqrt(np.diag(covariance))
        return table.assign(
            p_adjusted=adjusted(
                table["t"].to_numpy(),
                table["df"].to_numpy(),
                adjust,
                means=len(levels),
                correlation=covariance / np.outer(spread, spread),
            )
        )

    def random_effects(self) -> pd.DataFrame:
        """Predict the random effects (BLUPs): columns group, level, effect and prediction."""
        _, theta = self._fitted()
        found = []
        for term, blocks in zip(self.parts.design.terms, self._predicted(theta), strict=True):
            for level, values in zip(term.levels, blocks, strict=True):
                found += [
                    {"group": term.group, "level": level, "effect": effect, "prediction": value}
                    for effect, value in zip(term.effects, values.tolist(), strict=True)
                ]
        return pd.DataFrame(found)

    def _predicted(self, theta: Array) -> list[Array]:
        u = self.parts.at(theta, reml=self.method == "REML").effects * self.parts.size
        return [
            u[start : start + levels * q].reshape(levels, q) @ root.T
            for (start, levels, q), root in zip(self.parts.blocks, self.parts.roots, strict=True)
        ]

    @property
    def fitted(self) -> Array:
        """Fixed effects and predicted random effects of each row, (n,)."""
        inference, theta = self._fitted()
        design = self.parts.design
        total = design.X @ inference.estimates
        for term, blocks in zip(design.terms, self._predicted(theta), strict=True):
            total = total + np.sum(term.columns * blocks[term.codes], axis=1)
        return np.asarray(total)

    @property
    def residuals(self) -> Array:
        """What fixed and random effects leave of each row, (n,)."""
        return np.asarray(self.parts.design.y - self.fitted)

    def predict(self, data: pd.DataFrame) -> Array:
        """Predict rows of another table by the fixed effects alone."""
        return np.asarray(self.rows(data) @ self._fitted()[0].estimates)

    def rows(self, data: pd.DataFrame) -> Array:
        """Return the weights of the fixed effects that predict rows of a table, (rows, p)."""
        plain = plain_table(data)
        names = plain.select_dtypes("category").columns
        labels = plain.astype({name: object for name in names})  # of some levels, perhaps
        (rows,) = build_design_matrices([self.parts.design.info], labels)
        return np.asarray(rows)

    def _shares(self) -> tuple[float, float, float]:
        """Variance of rows that fixed effects, random effects and residuals bring."""
        inference, theta = self._fitted()
        design = self.parts.design
        fixed = float(np.var(design.X @ inference.estimates))
        random = sum(
            float(np.mean(np.sum((term.columns @ psi) * term.columns, axis=1)))
            for term, psi in zip(design.terms, self.parts.covariances(theta), strict=True)
        )
        return fixed, random * self._scale, self._scale

    @property
    def icc(self) -> float:
        """Share of the random effects in the variance that fixed effects leave."""
        _, random, rest = self._shares()
        return random / (random + rest)

    @property
    def r2_marginal(self) -> float:
        """Share of the fixed effects in the variance of rows (Nakagawa and Johnson)."""
        fixed, random, rest = self._shares()
        return fixed / (fixed + random + rest)

    @property
    def r2_conditional(self) -> float:
        """Share of fixed and random effects in the variance of rows."""
        fixed, random, rest = self._shares()
        return (fixed + random) / (fixed + random + rest)

    def components(
        self, *, replicates: int = 0, level: float = 0.95, seed: int = 0
    ) -> pd.DataFrame:
        """Return the variances, with parametric-bootstrap limits if there are replicates.

        Parameters
        ----------
        replicates : int
            Number of responses drawn from the fitted model and fitted again: 0, which gives no
            limits, or at least 10.
        level : float
            Nominal coverage of the limits, which are percentiles.
        seed : int
            Of the draws.

        Returns
        -------
        pandas.DataFrame
            Columns term, variance, sd (NaN where negative), low and high; limits are of the
            variance.

        Raises
        ------
        DesignError
            If there are replicates, but fewer than 10.

        Warns
        -----
        PosprobeWarning
            If there are replicates, but fewer than 100.
        """
        if replicates:
            check_resamples(replicates, "replicates")
        variances = self.variances
        table = pd.DataFrame({"term": list(variances), "variance": list(variances.values())})
        table["sd"] = np.sqrt(table["variance"].where(table["variance"] >= 0))
        draws = self._redrawn(replicates, np.random.default_rng(seed))
        tails = [0.5 - level / 2, 0.5 + level / 2]
        limits = (
            np.quantile(draws, tails, axis=0) if len(draws) else np.full((2, len(table)), np.nan)
        )
        return table.assign(low=limits[0], high=limits[1])

    def _redrawn(self, replicates: int, rng: np.random.Generator) -> Array:
        inference, theta = self._fitted()
        design, reml = self.parts.design, self.method == "REML"
        centre = design.X @ inference.estimates
        found = []
        for _ in range(replicates):
            y = centre + np.sqrt(self._scale) * self.parts.draw(theta, rng)
            parts = self.parts.with_response(y)
            again, _ = search(parts, reml=reml, starts=1)
            scale = parts.at(again, reml=reml).scale * parts.size**2
            found.append(list(_variances(parts, again, scale).values()))
        return np.array(found)

    def with_response(self, y: ArrayLike) -> MixedFit:
        """Fit the same model to another response, of shape (n,)."""
        return fit_parts(
            self.parts.with_response(np.asarray(y, dtype=float)), reml=self.method == "REML"
        )

    def influence(self, group: str) -> pd.DataFrame:
        """Refit without each level of a column, to see what hangs on it.

        Parameters
        ----------
        group : str
            Column of the table, for instance the models.

        Returns
        -------
        pandas.DataFrame
            Columns level, cook (Cook's distance of the fixed effects: the squared change in units
            of their covariance, divided by p) and one for each fixed effect: its estimate without
            the level. NaN where the rest does not determine them.
        """
        inference, _ = self._fitted()
        design = self.parts.design
        if group not in design.data.columns:
            raise DesignError(f"the table lacks column {group!r}: name one it has")
        precision = np.linalg.inv(inference.covariance)
        rows = []
        for level in sorted(design.data[group].unique()):
            estimates = self._without((design.data[group] == level).to_numpy())
            change = estimates - inference.estimates
            cook = float(change @ precision @ change) / len(change)
            named = dict(zip(self.names, estimates.tolist(), strict=True))
            rows.append({"level": level, "cook": cook, **named})
        return pd.DataFrame(rows)

    def _without(self, out: np.ndarray) -> Array:
        reml = self.method == "REML"
        try:
            parts = gather(self.parts.design.rows(~out), type(self.parts))
        except DesignError:
            return np.full(len(self.names), np.nan)
        theta, _ = search(parts, reml=reml)
        state = parts.at(theta, reml=reml)
        turned = parts.centre + parts.size * state.estimates
        return np.asarray(np.linalg.solve(parts.R, turned), dtype=float)

    def table(self, *, level: float = 0.95) -> pd.DataFrame:
        """Return one row for each fixed effect and each variance.

        Parameters
        ----------
        level : float
            Nominal coverage of the intervals of the fixed effects.

        Returns
        -------
        pandas.DataFrame
            Columns part, term, estimate, se, df, low, high, status and reason.
        """
        columns = ["part", "term", "estimate", "se", "df", "low", "high"]
        fixed = self.fixed(level=level).assign(part="fixed")[columns] if self.usable else None
        rows = [{"part": "variance", "term": k, "estimate": v} for k, v in self.variances.items()]
        table = pd.DataFrame(rows, columns=columns)
        if fixed is not None:
            table = pd.concat([fixed, table.astype({k: float for k in columns[2:]})])
        return table.reset_index(drop=True).assign(status=self.status, reason=self.reason)

    def _sums(self, L: Array, level: float) -> pd.DataFrame:
        inference, _ = self._fitted()
        if not 0 < level < 1:
            raise DesignError(f"level={level!r} must be between 0 and 1, e.g. 0.95")
        estimate = L @ inference.estimates
        se = np.sqrt(np.einsum("ij,jk,ik->i", L, inference.covariance, L))
        df = np.array([inference.df(row) for row in L])
        half = stats.t.ppf(0.5 + level / 2, df) * se
        with np.errstate(divide="ignore", invalid="ignore"):
            t = estimate / se
        return pd.DataFrame(
            {
                "estimate": estimate,
                "se": se,
                "df": df,
                "t": t,
                "p_value": 2 * stats.t.sf(np.abs(t), df),
                "low": estimate - half,
                "high": estimate + half,
            }
        )

    def _weights(self, weights: ArrayLike, *dimensions: int) -> Array:
        """Weights of sums of the fixed effects, (p,) or (r, p), of a fit that has some."""
        inference, _ = self._fitted()
        w = np.asarray(weights, dtype=float)
        p = len(inference.estimates)
        if w.ndim not in dimensions or w.shape[-1] != p or not np.isfinite(w).all() or not w.any():
            raise DesignError(
                f"weights of shape {w.shape} do not fit {p} fixed effects: give one finite weight "
                "for each, not all 0"
            )
        return w


def fit_parts(parts: Components, *, reml: bool) -> MixedFit:
    """Find the optimum of a mixed model, and judge whether it can be relied on.

    Parameters
    ----------
    parts : Components
        The cross-products of the model.
    reml : bool
        Use the restricted likelihood.

    Returns
    -------
    MixedFit
    """
    method = "REML" if reml else "ML"
    reason = unidentified_term(parts)
    if reason is not None:
        return MixedFit("not_identified", reason, method, parts)
    reason = exact_fit(parts)
    if reason is not None:
        return MixedFit("failed", reason, method, parts)
    theta, deviances = search(parts, reml=reml)
    if isinstance(parts, SignedComponents) and parts.smallest(theta) < EDGE:
        reason = "the rows' covariance is singular at the optimum: do groups agree to rounding?"
        return MixedFit("failed", reason, method, parts, deviances=deviances)
    lowest, second = sorted(deviances)[:2]
    if not second - lowest < SAME_DEVIANCE:
        shown = ", ".join(f"{value:.3f}" for value in deviances)
        reason = f"starting points reach different deviances: {shown}"
        return MixedFit("failed", reason, method, parts, deviances=deviances)
    boundary = None if isinstance(parts, SignedComponents) else boundary_term(parts, theta)
    status = "ok" if boundary is None else "singular"
    found = infer(parts, theta, reml=reml)
    return MixedFit(status, boundary or "", method, parts, theta, found, deviances)


def _variances(parts: Components, theta: Array, scale: float) -> dict[str, float]:
    found = {
        name: float(scale * psi[k, k])
        for term, psi in zip(parts.design.terms, parts.covariances(theta), strict=True)
        for k, name in enumerate(term.names)
    }
    return found | {"residual": float(scale)}


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
        fit._fitted()
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
