"""Marginal means and type III hypotheses as weights of the fixed effects, and adjusted p-values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
from patsy import DesignInfo, EvalFactor, ModelDesc, Term, build_design_matrices, dmatrix
from scipy import stats

from posprobe.architectures.contrasts import adjust
from posprobe.architectures.formulas import Design
from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = ["ADJUSTMENTS", "adjusted", "compared", "marginal_weights", "type_three"]

ADJUSTMENTS = ("tukey", "holm", "dunnett", "none")


def marginal_weights(design: Design, by: Sequence[str]) -> tuple[pd.DataFrame, Array]:
    """Return levels of columns, and the fixed effects' weights of each level's marginal mean.

    The reference grid has all combinations of the levels of categorical columns, and numeric ones
    at their mean. Combinations with the same levels of `by` weigh equally.

    Parameters
    ----------
    design : Design
        The design of the fit.
    by : sequence of str
        Categorical columns.

    Returns
    -------
    levels : pandas.DataFrame
        One row for each combination of levels.
    weights : ndarray of shape (rows, p)
        Weights of the fixed effects.
    """
    columns = _columns(design)
    unknown = [name for name in by if not columns.get(name)]
    if unknown or not by:
        fitting = ", ".join(name for name, categorical in columns.items() if categorical)
        raise DesignError(
            f"{(unknown or [''])[0]!r} is not a categorical fixed effect: use {fitting or 'none'}"
        )
    levels = {
        name: sorted(design.data[name].unique()) if categorical else [design.data[name].mean()]
        for name, categorical in columns.items()
    }
    grid = pd.DataFrame(list(product(*levels.values())), columns=list(levels))
    (rows,) = build_design_matrices([design.info], grid)
    weights = pd.DataFrame(np.asarray(rows)).groupby([grid[name] for name in by]).mean()
    return weights.index.to_frame(index=False), weights.to_numpy()


def _columns(design: Design) -> dict[str, bool]:
    """Return the columns of the fixed effects, and whether each is categorical."""
    found: dict[str, bool] = {}
    for factor, info in design.info.factor_infos.items():
        words = set(re.findall(r"[^\W\d]\w*", factor.code))
        for name in design.data.columns:
            if str(name) in words or f"Q('{name}')" in factor.code:
                found[str(name)] = found.get(str(name), False) or info.type == "categorical"
    return found


def compared(levels: pd.DataFrame, weights: Array, method: str) -> tuple[list[str], Array]:
    """Return names and weights of differences: all pairs, or all levels against the first."""
    names = [", ".join(map(str, row)) for row in levels.itertuples(index=False)]
    if method == "dunnett":
        pairs = [(k, 0) for k in range(1, len(names))]
    else:
        pairs = [(b, a) for a, b in combinations(range(len(names)), 2)]
    if not pairs:
        raise DesignError("one level only: there is nothing to compare")
    labels = [f"{names[a]} - {names[b]}" for a, b in pairs]
    return labels, np.array([weights[a] - weights[b] for a, b in pairs])


def adjusted(
    statistics: Array, dfs: Array, method: str, *, means: int, correlation: Array
) -> list[float]:
    """Adjust the p-values of t statistics.

    Parameters
    ----------
    statistics, dfs : ndarray of shape (c,)
        Of the c contrasts.
    method : {"tukey", "holm", "dunnett", "none"}
        "tukey" is for all pairs of `means` means, "dunnett" for contrasts of this correlation.
    means : int
        Number of means.
    correlation : ndarray of shape (c, c)
        Of the contrasts' estimates.

    Returns
    -------
    list of float
    """
    plain = np.asarray(2 * stats.t.sf(np.abs(statistics), dfs))
    if method == "tukey":
        tails = stats.studentized_range.sf(np.sqrt(2) * np.abs(statistics), means, dfs)
        return np.asarray(tails).tolist()
    if method == "dunnett":
        found = []
        for t, df in zip(np.abs(statistics), dfs, strict=True):
            law = stats.multivariate_t(
                shape=correlation, df=df, allow_singular=True, seed=np.random.default_rng(0)
            )
            bound = np.full(len(correlation), t)
            found.append(float(np.clip(1 - law.cdf(bound, lower_limit=-bound), 0, 1)))
        return found
    return adjust(plain.tolist()) if method == "holm" else plain.tolist()


def type_three(design: Design) -> dict[str, Array]:
    """Return the hypothesis of each term, as weights of the fixed effects.

    A term's hypothesis is that its coefficients are 0 in sum coding: no effect on average over
    the levels of all other factors, each level weighed equally.

    Parameters
    ----------
    design : Design
        The design of the fit.

    Returns
    -------
    dict of str to ndarray of shape (r, p)
        By the name of the term.
    """
    info: DesignInfo = design.info
    terms = [
        Term([_summed(factor, info.factor_infos[factor].type) for factor in term.factors])
        for term in info.terms
    ]
    other = dmatrix(ModelDesc([], terms), design.data, NA_action="raise")
    turn = np.linalg.lstsq(np.asarray(other), design.X, rcond=None)[0]
    return {
        name: turn[other.design_info.term_slices[new]]
        for name, new in zip(info.term_names, terms, strict=True)
        if name != "Intercept"
    }


def _summed(factor: EvalFactor, kind: str) -> EvalFactor:
    if kind != "categorical":
        return factor
    inside = re.fullmatch(r"C\(([^,()]+|Q\([^()]*\))\)", factor.code)
    if not inside and "(" in factor.code.removeprefix("Q("):
        return factor  # coded by the user
    return EvalFactor(f"C({inside[1] if inside else factor.code}, Sum)")
