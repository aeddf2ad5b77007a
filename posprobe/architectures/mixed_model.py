"""Fit a linear mixed model, and report whether the fit can be relied on."""

from __future__ import annotations

import pandas as pd
from numpy.typing import ArrayLike

from posprobe.architectures.components import Components, gather
from posprobe.architectures.formulas import read_design
from posprobe.architectures.mixed_fit import MixedFit, fit_parts
from posprobe.architectures.signed import SignedComponents
from posprobe.errors import DesignError

__all__ = ["fit_mixed"]


def fit_mixed(
    formula: str,
    data: pd.DataFrame,
    *,
    weights: str | ArrayLike | None = None,
    reml: bool = True,
    signed: bool = False,
) -> MixedFit:
    """Fit a linear mixed model and report whether the fit can be relied on.

    Formulas are those of lme4: ``"y ~ a * b + (1 + x | g) + (1 | h)"``. Tests of fixed effects have
    Satterthwaite's degrees of freedom, which in balanced designs are the classical ones of split
    plots and blocks. Identifiability is checked first, and the best two of up to three starting
    points must reach the same deviance. Units and origins of columns change nothing. Problems
    appear in the status of the result, not as warnings. Equations:
    `posprobe.architectures.components` and `posprobe.architectures.satterthwaite`.

    Parameters
    ----------
    formula : str
        Response, fixed effects (patsy) and random effects in brackets (lme4).
    data : pandas.DataFrame
        One row for each observation, as many as there are; random effects may have 4,000 levels.
    weights : str or array-like of shape (n,), optional
        Column or values of the rows' precisions: the residual variance is divided by them.
    reml : bool
        Use the restricted likelihood, which reduces the bias of variances. Use False to compare
        models with different fixed effects.
    signed : bool
        Let variances be negative, as in the analysis of variance: rows of a group may then agree
        less than rows of different groups. Tests of balanced data are then the classical ones
        whatever the sign, and no fit is singular. Random effects must not be correlated.
        `posprobe.architectures.signed` has the equations.

    Returns
    -------
    MixedFit

    Raises
    ------
    DesignError
        If the formula cannot be read or has no random effect, a column is missing, a value is not
        finite, there are fewer than two rows or too many levels, fixed effects are collinear, or
        variances may be negative and random effects are correlated.

    References
    ----------
    Bates et al. (2015), Fitting linear mixed-effects models using lme4, J. Stat. Softw. 67(1);
    Kuznetsova et al. (2017), lmerTest package, J. Stat. Softw. 82(13).

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"y": [1, 2, 4, 5, 3, 9.0], "x": [0, 1] * 3, "g": list("aabbcc")})
    >>> fit = fit_mixed("y ~ x + (1 | g)", table)
    >>> fit.status, round(float(fit.estimates[1]), 3), round(float(fit.fixed()["df"][1]), 3)
    ('ok', 2.667, 2.0)
    """
    design = read_design(formula, data, weights)
    if signed and any(len(term.effects) > 1 for term in design.terms):
        raise DesignError(
            f"random effects of {formula!r} are correlated, and signed variances are for those "
            "that are not: write (1 + x || g)"
        )
    return fit_parts(gather(design, SignedComponents if signed else Components), reml=reml)
