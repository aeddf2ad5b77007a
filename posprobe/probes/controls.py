"""Control tasks, which show what a probe scores by memorising or by chance.

The *permuted* control relabels the positions by one permutation for all sequences, so a probe can
still memorise the label of each position. What a probe loses against this control is its
*selectivity* (Hewitt and Liang 2019). The *shifted* control rotates the positions of each sequence
independently. It keeps the autocorrelation of labels within sequences but breaks their relation to
the features, so it shows the score at chance.
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
from posprobe.intervals import cluster_weights
from posprobe.probes.gram.rows import distinct
from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe
from posprobe.probes.ridge.scored import replicate_interval

__all__ = ["permute_positions", "shift_positions", "with_controls"]

RESAMPLES, LEVEL = 2000, 0.95  # as in `PositionProbe.interval`


def permute_positions(y: ArrayLike, random_state: Any = 0) -> NDArray[Any]:
    """Relabel positions by one permutation, the same in every sequence.

    Parameters
    ----------
    y : array-like of shape (n,)
        Positions.
    random_state : int or Generator, default=0
        Seed of the permutation, or a random generator.

    Returns
    -------
    ndarray of shape (n,)
        The permuted positions.

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
        Positions; the rows of each sequence must be in order.
    groups : array-like of shape (n,)
        Sequence of every row.
    random_state : int or Generator, default=0
        Seed of the shifts, or a random generator.

    Returns
    -------
    ndarray of shape (n,)
        The rotated positions.

    Raises
    ------
    DesignError
        If `groups` does not have one label for each row.

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
        A `GroupRidgeCV`, such as `PositionProbe`, which is scored out of fold with its own folds
        (for a `VariancePartition`, the joint model is scored); or any other scikit-learn
        regressor. The probe is cloned and not changed.
    X : array-like of shape (n, p)
        Features.
    y : array-like of shape (n,)
        Positions, in tokens.
    groups : array-like of shape (n,)
        Sequence of every row.
    cv : int, default=5
        Number of folds of sequences for other regressors.
    random_state : int or Generator, default=0
        Seed of both controls, or a random generator.

    Returns
    -------
    pandas.DataFrame
        One row for each ``control``: "position" (the probe itself), "permuted" and "shifted". The
        columns are ``r2``, ``mae`` (tokens), ``selectivity`` (r2 of the probe less that of the
        control), and ``low`` and ``high``, the 95% interval of r2 over sequences with the estimand
        "fixed_probe": the probe of each fold as it was fitted, on new sequences. They are None with
        fewer than 13 sequences.

    Raises
    ------
    DesignError
        If `groups` does not have one label for each row.

    Notes
    -----
    In 300 simulated studies each, these limits covered the score of partial least squares on new
    sequences in .97 (20 sequences) and .92 (40); ``tests/calibration`` repeats it.
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
    out = cross_val_predict(clone(probe), X, y, groups=groups, cv=GroupKFold(cv)).reshape(y.shape)
    labels, sequence = distinct(groups)
    missed, spread = (np.bincount(sequence, each**2) for each in (out - y, y - y.mean()))
    weights = cluster_weights(len(labels), RESAMPLES, 0)
    r2 = float(r2_score(y, out))
    draws = 1 - (weights @ missed) / (weights @ spread)
    interval = replicate_interval(r2, draws, len(labels), "fixed_probe", LEVEL)
    mae = float(mean_absolute_error(y, out))
    return {"r2": r2, "mae": mae, "low": interval.low, "high": interval.high}
