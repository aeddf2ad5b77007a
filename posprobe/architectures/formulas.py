"""Formulas of lme4: fixed effects by patsy, random effects in brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from patsy import DesignInfo, PatsyError, dmatrices, dmatrix

from posprobe.architectures.tables import plain_table
from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = ["Design", "RandomTerm", "read_design"]


@dataclass(frozen=True)
class RandomTerm:
    """Random effects that the rows of a group share.

    Attributes
    ----------
    group : str
        Column of the groups, or several joined by colons.
    effects : tuple of str
        Names of the q correlated effects; the intercept is "1".
    columns : ndarray of shape (n, q)
        Values that the effects multiply.
    codes : ndarray of shape (n,)
        Group of each row, as an index into `levels`.
    levels : tuple of str
        Names of the groups.
    """

    group: str
    effects: tuple[str, ...]
    columns: Array
    codes: np.ndarray
    levels: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in tables: the group for an intercept, "Days | Subject" for a slope."""
        return tuple(self.group if one == "1" else f"{one} | {self.group}" for one in self.effects)


@dataclass(frozen=True)
class Design:
    """The matrices that a formula makes of a table.

    Attributes
    ----------
    formula : str
        As given.
    fixed_part : str
        The formula without its random effects.
    y : ndarray of shape (n,)
        The response.
    X : ndarray of shape (n, p)
        The fixed effects.
    info : patsy.DesignInfo
        What the columns of X are.
    terms : tuple of RandomTerm
        The random effects.
    weights : ndarray of shape (n,)
        Precision of each row: its residual variance is divided by it.
    data : pandas.DataFrame
        The table.
    """

    formula: str
    fixed_part: str
    y: Array
    X: Array
    info: DesignInfo
    terms: tuple[RandomTerm, ...]
    weights: Array
    data: pd.DataFrame

    def rows(self, keep: np.ndarray) -> Design:
        """Return the design of some rows; fixed effects and groups that vanish are left out."""
        terms = []
        for term in self.terms:
            used, codes = np.unique(term.codes[keep], return_inverse=True)
            levels = tuple(term.levels[k] for k in used)
            terms.append(replace(term, columns=term.columns[keep], codes=codes, levels=levels))
        return replace(
            self,
            y=self.y[keep],
            X=self.X[keep],
            terms=tuple(terms),
            weights=self.weights[keep],
            data=self.data.loc[keep],
        )


def read_design(formula: str, data: pd.DataFrame, weights: str | ArrayLike | None) -> Design:
    """Read a formula like ``y ~ x + (1 + x | g)`` against a table.

    Parameters
    ----------
    formula : str
        Fixed effects as in patsy; random effects in brackets as in lme4, where ``(e || g)`` has no
        correlations, ``(e | a:b)`` has groups for each pair, and ``(e | a/b)`` is
        ``(e | a) + (e | a:b)``.
    data : pandas.DataFrame
        One row for each observation.
    weights : str or array-like of shape (n,), optional
        Column or values of the rows' precisions.

    Returns
    -------
    Design

    Raises
    ------
    DesignError
        If the formula cannot be read, a column is missing, a value is missing or infinite, or a
        weight is not positive.
    """
    data = plain_table(data)
    if len(data) < 2:
        raise DesignError("a mixed model needs at least two rows: add layers or models")
    fixed, brackets = _split(formula)
    if not brackets:
        raise DesignError(
            f"the formula {formula!r} has no random effect: add one, such as (1 | model)"
        )
    try:
        response, X = dmatrices(fixed, data, NA_action="raise")
        terms = [term for one in brackets for term in _random_terms(one, data)]
    except PatsyError as error:
        raise DesignError(
            f"the formula {formula!r} does not fit the table ({error.message}): check its columns, "
            "and drop rows with missing values"
        ) from error
    if response.shape[1] != 1:
        raise DesignError(f"the response of {formula!r} is not numeric: convert it to numbers")
    y, matrix = np.asarray(response, dtype=float)[:, 0], np.asarray(X, dtype=float)
    parts = [y, matrix, *(term.columns for term in terms)]
    if not all(np.isfinite(part).all() for part in parts):
        raise DesignError(f"{formula!r} meets infinite values: drop those rows")
    w = _weights(weights, data)
    return Design(formula, fixed, y, matrix, X.design_info, tuple(terms), w, data)


def _split(formula: str) -> tuple[str, list[str]]:
    """Take the brackets with a bar out of a formula."""
    depth, start, kept, brackets = 0, 0, "", []
    for place, letter in enumerate(formula):
        depth += (letter == "(") - (letter == ")")
        if letter == "(" and depth == 1:
            start = place
        elif letter == ")" and depth == 0:
            inside = formula[start : place + 1]
            if "|" in inside:
                brackets.append(inside[1:-1])
            kept += "@" if "|" in inside else inside
        elif depth == 0:
            kept += letter
    if depth or "~" not in kept:
        raise DesignError(f"the formula {formula!r} is not like 'value ~ depth + (1 | model)'")
    left, right = kept.split("~", 1)
    right = re.sub(r"\+\s*@|@\s*\+|@", "", right).strip()
    return f"{left.strip()} ~ {right or '1'}", brackets


def _random_terms(bracket: str, data: pd.DataFrame) -> list[RandomTerm]:
    effects, bar, groups = re.split(r"(\|\|?)", bracket, maxsplit=1)
    nested = [part.strip() for part in groups.split("/")]
    matrix = dmatrix(effects, data, NA_action="raise")
    names = ["1" if name == "Intercept" else name for name in matrix.design_info.column_names]
    columns = np.asarray(matrix, dtype=float)
    split = [[k] for k in range(len(names))] if bar == "||" else [list(range(len(names)))]
    terms = []
    for depth in range(1, len(nested) + 1):
        group = ":".join(nested[:depth])
        codes, levels = _groups(group, data)
        terms += [
            RandomTerm(group, tuple(names[k] for k in own), columns[:, own], codes, levels)
            for own in split
        ]
    return terms


def _groups(group: str, data: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    columns = [name.strip() for name in group.split(":")]
    for name in columns:
        if name not in data.columns:
            raise DesignError(f"the table lacks the grouping column {name!r}: name one it has")
        if data[name].isna().any():
            raise DesignError(f"column {name!r} has missing values: drop those rows")
    labels = data[columns[0]].astype(str)
    for name in columns[1:]:
        labels = labels + ":" + data[name].astype(str)
    codes, levels = pd.factorize(labels, sort=True)
    return codes, tuple(map(str, levels))


def _weights(weights: str | ArrayLike | None, data: pd.DataFrame) -> Array:
    if weights is None:
        return np.ones(len(data))
    if isinstance(weights, str):
        if weights not in data.columns:
            raise DesignError(f"the table lacks the column of weights {weights!r}")
        weights = data[weights]
    w = np.asarray(weights, dtype=float)
    if w.shape != (len(data),) or not (np.isfinite(w) & (w > 0)).all():
        raise DesignError("weights must be positive numbers, one for each row")
    return w
