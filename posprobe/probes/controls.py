"""Control tasks: what a probe scores where there is nothing to find, or only memory to use.

Two controls with different questions. One fixed permutation of the positions, the same in every
sequence, keeps the mapping from position to label learnable by heart: what a probe loses is its
*selectivity* (Hewitt and Liang 2019). An independent circular shift of each sequence keeps the
autocorrelation of labels within sequences and breaks their tie to the features: the score at
chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from posprobe.errors import DesignError
from posprobe.probes.gram.rows import distinct
from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe

__all__ = ["permute_positions", "shift_positions", "with_controls"]


def permute_positions(y: ArrayLike, random_state: Any = 0) -> NDArray[Any]:
    """Relabel positions by one permutation, the same in every sequence.

    Parameters
    ----------
    y : array-like of shape (n,)
        Positions.
    random_state : int or Generator, default=0
        Seed.

    Returns
    -------
    ndarray of shape (n,)

    Examples
    --------
    >>> from posprobe.probes.controls import permute_positions
    >>> permute_positions([1, 2, 3, 1, 2, 3], random_state=0).tolist()
    [3, 1, 2, 3, 1, 2]
    """
    values, place = np.unique(np.asarray(y), return_inverse=True)
    return np.asarray(np.random.default_rng(random_state).permutation(values)[place])


def shift_positions(y: ArrayLike, groups: ArrayLike, random_state: Any = 0) -> NDArray[Any]:
    """Rotate the positions of each sequence by its own random amount.

    Parameters
    ----------
    y : array-like of shape (n,)
        Positions; each sequence's rows in their order.
    groups : array-like of shape (n,)
        Sequence of every row.
    random_state : int or Generator, default=0
        Seed.

    Returns
    -------
    ndarray of shape (n,)

    Examples
    --------
    >>> from posprobe.probes.controls import shift_positions
    >>> shift_positions([1, 2, 3, 1, 2, 3], groups=[0, 0, 0, 1, 1, 1], random_state=0).tolist()
    [2, 3, 1, 3, 1, 2]
    """
    y, groups = np.asarray(y), np.asarray(groups)
    if groups.shape != y.shape[:1]:
        raise DesignError(f"groups {groups.shape} for y {y.shape}: give the sequence of every row")
    rng, out = np.random.default_rng(random_state), y.copy()
    labels, sequence = distinct(groups)
    for s in range(len(labels)):
        rows = np.flatnonzero(sequence == s)
        out[rows] = np.roll(y[rows], int(rng.integers(len(rows))))
    return out


def with_controls(
    probe: Any, X: Any, y: ArrayLike, groups: ArrayLike, *, cv: int = 5, random_state: Any = 0
) -> pd.DataFrame:
    """Score a probe on positions and on both controls.

    Parameters
    ----------
    probe : estimator
        `PositionProbe` or another `GroupRidgeCV` (scored by its own folds, with intervals of this
        probe; of a `VariancePartition`, the joint model), or any scikit-learn regressor (scored by
        sequence folds). It is cloned, never fitted itself.
    X : array-like of shape (n, p)
        Features.
    y : array-like of shape (n,)
        Positions.
    groups : array-like of shape (n,)
        Sequence of every row.
    cv : int, default=5
        Sequence folds for other regressors.
    random_state : int or Generator, default=0
        Seed of both controls.

    Returns
    -------
    DataFrame
        Rows ``position``, ``permuted``, ``shifted`` (column ``control``); columns ``r2``, ``mae``
        (tokens), ``selectivity`` (the probe's r2 less the control's; 0 for the probe), and for a
        `GroupRidgeCV` ``low`` and ``high`` of the 95% interval of r2 for the fixed probe.
    """
    y, groups = np.asarray(y, dtype=np.float64), np.asarray(groups)
    if groups.shape != y.shape:
        raise DesignError(f"groups {groups.shape} for y {y.shape}: give the sequence of every row")
    rng = np.random.default_rng(random_state)
    targets = {
        "position": y,
        "permuted": permute_positions(y, rng),
        "shifted": shift_positions(y, groups, rng),
    }
    if isinstance(probe, GroupRidgeCV) and not isinstance(probe, PositionProbe):
        probe = PositionProbe("position", probe.alphas, probe.feature_groups, probe.cv)
    score = _score_probe if isinstance(probe, PositionProbe) else _score_regressor
    rows = [{"control": name, **score(probe, X, z, groups, cv)} for name, z in targets.items()]
    table = pd.DataFrame(rows)
    table.insert(3, "selectivity", table["r2"].iloc[0] - table["r2"])
    return table


def _score_probe(
    probe: PositionProbe, X: Any, y: NDArray[Any], groups: NDArray[Any], cv: int
) -> dict[str, float | None]:
    fitted = clone(probe).fit(X, y, groups=groups)
    interval = fitted.interval("fixed_probe")
    return {"r2": fitted.r2_, "mae": fitted.mae_, "low": interval.low, "high": interval.high}


def _score_regressor(
    probe: Any, X: Any, y: NDArray[Any], groups: NDArray[Any], cv: int
) -> dict[str, float | None]:
    out = cross_val_predict(clone(probe), X, y, groups=groups, cv=GroupKFold(cv))
    return {"r2": float(r2_score(y, out)), "mae": float(mean_absolute_error(y, out))}
