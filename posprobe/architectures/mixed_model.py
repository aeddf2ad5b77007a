"""A linear mixed model with an honest status: the optimum by statsmodels, everything else checked.

statsmodels gives an answer to every question. Here a component that the data do not identify, a
variance on the boundary and an optimum that depends on where the search began are told apart from
a fit, and are said instead of warned about.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from patsy import PatsyError
from scipy import optimize
from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

from posprobe.architectures.components import (
    Components,
    boundary_term,
    exact_fit,
    gls,
    unidentified_term,
)
from posprobe.architectures.mixed_fit import MixedFit
from posprobe.errors import DesignError

__all__ = ["fit_mixed"]

# Relative variances from which the optimiser starts; the deviances reached must agree.
STARTS = (1.0, 0.05, 20.0)
SAME_DEVIANCE = 1e-3
# Answers this close are taken as they are; elsewhere the optimiser stopped short.
CONVERGED = 1e-5
MOST_ROWS = 5000


def fit_mixed(
    formula: str,
    data: pd.DataFrame,
    groups: str,
    *,
    re_formula: str | None = "1",
    vc_formula: dict[str, str] | None = None,
    reml: bool = True,
    df: int | None = None,
) -> MixedFit:
    """Fit a linear mixed model and say how far to believe it.

    Identifiability is checked before the fit. statsmodels then looks for the relative variances
    from several starting points, of which the best two must reach the same deviance; the fixed
    effects are evaluated at its answer by `posprobe.architectures.components.gls`, which is exact
    on the boundary too. The result has a status instead of warnings.

    Parameters
    ----------
    formula : str
        Fixed part, such as `"Reaction ~ Days"`.
    data : DataFrame
        At most 5,000 rows: average over sequences first.
    groups : str
        Column whose levels share random effects; a constant column for crossed effects.
    re_formula : str or None
        Correlated random effects, such as `"1 + Days"`; None for none.
    vc_formula : dict of str to str, optional
        Independent variance components, such as ``{"plate": "0 + C(plate)"}``.
    reml : bool
        Restricted likelihood, unbiased for variances; False where fixed parts are compared.
    df : int, optional
        Degrees of freedom of the tests of fixed effects; by default the normal distribution.

    Returns
    -------
    MixedFit

    Raises
    ------
    DesignError
        If a column is missing, a value is not finite, the table is too long, or the fixed effects
        are collinear.

    References
    ----------
    Bates et al. (2015), Fitting linear mixed-effects models using lme4, J. Stat. Softw. 67(1).
    """
    model, parts = _build(formula, data, groups, re_formula, vc_formula)
    blank = _blank(model, formula, reml, df)
    reason = unidentified_term(parts)
    if reason is not None:
        return replace(blank, status="not_identified", reason=reason)
    reason = exact_fit(parts)
    if reason is not None:
        return replace(blank, reason=reason)
    return _finish(blank, model, parts, _search(model, parts, reml))


def _build(
    formula: str,
    data: pd.DataFrame,
    groups: str,
    re_formula: str | None,
    vc_formula: dict[str, str] | None,
) -> tuple[MixedLM, Components]:
    if groups not in data.columns:
        raise DesignError(f"the table lacks the grouping column {groups!r}: name one it has")
    if data[groups].isna().any():
        raise DesignError(f"column {groups!r} has missing values: drop those rows")
    if len(data) < 2:
        raise DesignError("a mixed model needs at least two rows: add layers or models")
    if len(data) > MOST_ROWS:
        raise DesignError(
            f"{len(data)} rows are too many for a mixed model (at most {MOST_ROWS}): average over "
            "sequences first"
        )
    try:
        # statsmodels picks the rows of a group by label, so labels must be unique.
        model = MixedLM.from_formula(
            formula,
            data.reset_index(drop=True),
            groups=groups,
            re_formula=re_formula,
            vc_formula=vc_formula,
        )
    except PatsyError as error:
        raise DesignError(
            f"the formula {formula!r} does not fit the table ({error.message}): check its columns, "
            "and drop rows with missing values"
        ) from error
    if not (np.all(np.isfinite(model.endog)) and np.all(np.isfinite(model.exog))):
        raise DesignError(f"{formula!r} meets infinite values: drop those rows")
    rank = int(np.linalg.matrix_rank(model.exog))
    if rank < model.exog.shape[1]:
        raise DesignError(
            f"the fixed effects of {formula!r} have rank {rank} of {model.exog.shape[1]}: drop a "
            "term that the others imply"
        )
    re_names = tuple(model.data.exog_re_names) if model.k_re else ()
    empty = [np.empty((len(y), 0)) for y in model.endog_li]
    W = dict(zip(model.exog_vc.names, model.exog_vc.mats, strict=True))
    Z = model.exog_re_li if model.k_re else empty
    return model, Components(model.endog_li, model.exog_li, Z, W, re_names)


def _blank(model: MixedLM, formula: str, reml: bool, df: int | None) -> MixedFit:
    """Give a fit without estimates, to be filled or returned as it is."""
    return MixedFit(
        status="failed",
        reason="",
        method="REML" if reml else "ML",
        fixed_part=formula,
        names=(),
        estimates=np.empty(0),
        covariance=np.empty((0, 0)),
        variances={},
        correlations={},
        deviance=float("nan"),
        deviances=(),
        df=df,
        n=len(model.endog),
        n_groups=len(model.group_labels),
        warnings=(),
    )


@dataclass(frozen=True)
class _Candidate:
    """Relative variance components that one starting point led to."""

    deviance: float
    psi: NDArray[np.float64]
    phi: NDArray[np.float64]
    complaints: tuple[str, ...]


def _search(model: MixedLM, parts: Components, reml: bool) -> list[_Candidate]:
    """Give the answers from two starting points or more, refined where they disagree.

    On the boundary statsmodels stops where its own (there inexact) gradient vanishes, and where
    that is depends on the start; the exact deviance leads on from there.
    """
    found = [_optimise(model, parts, start, reml) for start in STARTS[:2]]
    if _agree(found, CONVERGED):
        return found
    return [_refine(parts, one, reml) for one in (*found, _optimise(model, parts, STARTS[2], reml))]


def _agree(found: list[_Candidate], tolerance: float) -> bool:
    lowest, second = sorted(one.deviance for one in found)[:2]
    return second - lowest < tolerance


def _optimise(model: MixedLM, parts: Components, start: float, reml: bool) -> _Candidate:
    psi, phi = start * np.eye(model.k_re), np.full(model.k_vc, start)
    first = MixedLMParams.from_components(np.zeros(model.k_fe), cov_re=psi, vcomp=phi)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = model.fit(start_params=first, reml=reml)
            psi, phi = np.asarray(fit.cov_re) / fit.scale, np.asarray(fit.vcomp) / fit.scale
        except np.linalg.LinAlgError as error:
            # Its standard errors failed, and took the optimum with them: refine from the start.
            warnings.warn(f"from {start:g}: {error}", RuntimeWarning, stacklevel=1)
    heard = tuple(dict.fromkeys(" ".join(str(one.message).split()) for one in caught))
    return _Candidate(gls(parts, psi, phi, reml=reml).deviance, psi, phi, heard)


def _refine(parts: Components, one: _Candidate, reml: bool) -> _Candidate:
    """Minimise the exact deviance over the Cholesky factor of Psi and the roots of phi."""
    q = len(parts.effects)
    lower = np.tril_indices(q)

    def unpack(theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        root = np.zeros((q, q))
        root[lower] = theta[: len(lower[0])]
        return root @ root.T, theta[len(lower[0]) :] ** 2

    def deviance(theta: NDArray[np.float64]) -> float:
        return gls(parts, *unpack(theta), reml=reml).deviance

    # A jitter, since the factor of a singular Psi is wanted too.
    root = np.linalg.cholesky(one.psi + 1e-8 * (1 + np.trace(one.psi)) * np.eye(q))
    theta = np.concatenate([root[lower], np.sqrt(np.clip(one.phi, 0, None))])
    for _ in range(3):  # Nelder-Mead may collapse; a fresh simplex shows whether it had
        with np.errstate(invalid="ignore"):  # of two infinite deviances
            found = optimize.minimize(
                deviance,
                theta,
                method="Nelder-Mead",
                options={
                    "initial_simplex": np.vstack([theta, theta + 0.5 * np.eye(len(theta))]),
                    "xatol": 1e-5,
                    "fatol": SAME_DEVIANCE / 100,
                    "maxiter": 200 * len(theta),
                },
            )
        theta = found.x
    return _Candidate(float(found.fun), *unpack(theta), one.complaints)


def _finish(
    blank: MixedFit, model: MixedLM, parts: Components, found: list[_Candidate]
) -> MixedFit:
    deviances = tuple(one.deviance for one in found)
    heard = tuple(dict.fromkeys(text for one in found for text in one.complaints))
    blank = replace(blank, deviances=deviances, warnings=heard)
    if not _agree(found, SAME_DEVIANCE):
        shown = ", ".join(f"{value:.3f}" for value in deviances)
        return replace(blank, reason=f"starting points reach different deviances: {shown}")
    best = min(found, key=lambda one: one.deviance)
    fit = gls(parts, best.psi, best.phi, reml=blank.method == "REML")
    boundary = boundary_term(parts, best.psi, best.phi)
    return replace(
        blank,
        status="ok" if boundary is None else "singular",
        reason=boundary or "",
        names=tuple(model.exog_names),
        estimates=fit.estimates,
        covariance=fit.covariance,
        deviance=fit.deviance,
        variances=_variances(parts, best, fit.scale),
        correlations=_correlations(parts, best),
    )


def _variances(parts: Components, best: _Candidate, scale: float) -> dict[str, float]:
    variances = dict(zip(parts.effects, (scale * np.diag(best.psi)).tolist(), strict=True))
    variances |= dict(zip(parts.W, (scale * best.phi).tolist(), strict=True))
    return variances | {"residual": scale}


def _correlations(parts: Components, best: _Candidate) -> dict[str, float]:
    spread = np.sqrt(np.diag(best.psi))
    return {
        f"{a} with {b}": float(best.psi[i, j] / (spread[i] * spread[j]))
        for i, a in enumerate(parts.effects)
        for j, b in enumerate(parts.effects)
        if i < j and spread[i] * spread[j] > 0
    }
