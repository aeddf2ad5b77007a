r"""Score a probe where it was not trained: at other positions, in other layers, texts or models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from posprobe.errors import DesignError
from posprobe.intervals import STUDENTIZED, Array, Interval, cluster_weights, studentized_means
from posprobe.probes.feature_matrix import Features
from posprobe.probes.ridge.design import sequence_folds
from posprobe.probes.ridge.probe import PositionProbe, guess_error
from posprobe.probes.ridge.scored import replicate_interval

__all__ = ["MEASURES", "between", "transfer_scores"]

MEASURES = ("r2", "error", "bias", "slope")
RESAMPLES = 2000


def between(data: Features, start: int, stop: int, *, name: str = "the features") -> Features:
    """Keep the rows of some positions.

    Parameters
    ----------
    data : Features
        Rows of any positions.
    start, stop : int
        Positions from `start` on and before `stop`, in tokens.
    name : str
        What the rows are of, for the message.

    Returns
    -------
    Features

    Raises
    ------
    DesignError
        If there is no such position.

    Examples
    --------
    >>> from posprobe.probes import Features, between
    >>> data = Features(np.zeros((4, 1)), np.arange(4.0), np.zeros(4, int), {})
    >>> between(data, 1, 3).y
    array([1., 2.])
    """
    kept = (data.y >= start) & (data.y < stop)
    if not kept.any():
        raise DesignError(
            f"{name}: no position from {start} to {stop - 1} (there are {data.y.min():g} to "
            f"{data.y.max():g}): capture longer sequences, or ask for positions that there are"
        )
    return data._replace(X=data.X[kept], y=data.y[kept], groups=data.groups[kept])


def transfer_scores(
    probe: PositionProbe,
    source: Features,
    targets: Mapping[str, Features] | Iterable[tuple[str, Features]],
    *,
    same_sequences: bool,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Train a probe on one set of features and score it on others, always on other sequences.

    With predictions :math:`\hat p_{si}` of the positions :math:`p_{si}` of sequence s, their mean
    :math:`\bar p` over all rows and :math:`\bar p_s` over those of the sequence, the four measures
    are ratios of sums over sequences:

    .. math::

        R^2 = 1 - \frac{\sum (p - \hat p)^2}{\sum (p - \bar p)^2},\quad
        \text{error} = \frac{\sum |p - \hat p|}{\sum 1},\quad
        \text{bias} = \frac{\sum (\hat p - p)}{\sum 1},\quad
        \text{slope} = \frac{\sum (p - \bar p_s)\,\hat p}{\sum (p - \bar p_s)^2}

    R2 is below 0 where guessing the mean position of the target would be better. The slope of
    predicted on true position is 1 where the code goes on as in training, and 0 where it says
    nothing; it does not see a shift, which the bias does.

    Parameters
    ----------
    probe : PositionProbe
        Unfitted; it is cloned.
    source : Features
        Rows to train on.
    targets : mapping of str to Features, or iterable of pairs
        Rows to score, with the same columns. Pairs are taken one at a time.
    same_sequences : bool
        Whether equal labels in `source` and a target mean the same sequence, as in two layers, or
        two ranges of positions, of one file. Each sequence is then scored by a probe that was
        trained without its fold.
    level : float
        Nominal coverage of the intervals.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        One row for each target: its name, `sequences`, each measure with its `_low` and `_high`
        (NaN if unbounded; R2 and slope have no unit, error and bias are in tokens), and `guess`,
        the error of a random guess.

    Raises
    ------
    DesignError
        If a target has other columns, has one position only, or has fewer than two sequences.

    Notes
    -----
    The estimand is the measure of these probes on new sequences like those of the target. Where
    sequences are the same, limits are those of ``fixed_probe`` (`PositionProbe.interval`), which
    need 13 sequences; otherwise those of the studentised bootstrap over the target's sequences, for
    ratios linearised around their estimates. Those cover .89 to .95 at 30 sequences that each have
    an offset of their own as large as the noise within them.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe import PositionProbe
    >>> from posprobe.probes import Features, between, transfer_scores
    >>> rng = np.random.default_rng(0)
    >>> y, groups = np.tile(np.arange(1.0, 65), 30), np.repeat(np.arange(30), 64)
    >>> X = np.log(y)[:, None] + 0.02 * rng.normal(size=(1920, 1))  # saturates
    >>> data = Features(X, y, groups, {})
    >>> near, far = between(data, 1, 17), between(data, 33, 65)
    >>> targets = {"near": near, "far": far}
    >>> found = transfer_scores(PositionProbe(), near, targets, same_sequences=True)
    >>> found[["target", "r2", "slope", "bias"]].round(2)
      target    r2  slope   bias
    0   near  0.88   0.88  -0.00
    1    far -9.65   0.12 -29.02
    """
    trained = _probes(probe, source, same_sequences)
    rows = []
    for name, target in targets.items() if isinstance(targets, Mapping) else targets:
        _check(name, source, target)
        predicted = _predict(trained, target)
        sums = _sums(target, predicted)
        measured = {
            measure: _interval(measure, *sums[measure], same_sequences, level, seed)
            for measure in MEASURES
        }
        row: dict[str, Any] = {"target": name, "sequences": len(sums["r2"][0])}
        for measure, found in measured.items():
            row |= {measure: found.estimate, **found.limits(measure)}
        rows.append(row | {"guess": guess_error(target.y)})
    return pd.DataFrame(rows)


def _probes(
    probe: PositionProbe, source: Features, same_sequences: bool
) -> tuple[list[PositionProbe], dict[int, int]]:
    """The probe of all sequences and those of all but a fold; which one scores a sequence."""
    trained = [clone(probe).fit(source.X, source.y, groups=source.groups)]
    if not same_sequences:
        return trained, {}
    labels, index, counts = np.unique(source.groups, return_inverse=True, return_counts=True)
    folds = sequence_folds(probe.cv, counts)
    for fold in np.unique(folds):
        kept = folds[index] != fold
        fitted = clone(probe).fit(source.X[kept], source.y[kept], groups=source.groups[kept])
        trained.append(fitted)
    scored_by = 1 + np.unique(folds, return_inverse=True)[1]
    return trained, dict(zip(labels.tolist(), scored_by.tolist(), strict=True))


def _predict(trained: tuple[list[PositionProbe], dict[int, int]], target: Features) -> Array:
    probes, scored_by = trained
    labels, index = np.unique(target.groups, return_inverse=True)
    number = np.array([scored_by.get(label, 0) for label in labels.tolist()])[index]
    predicted = np.empty(len(target.y))
    for k in np.unique(number):
        predicted[number == k] = probes[k].predict(target.X[number == k])
    return predicted


def _check(name: str, source: Features, target: Features) -> None:
    if target.X.shape[1] != source.X.shape[1]:
        raise DesignError(
            f"target {name!r} has {target.X.shape[1]} features, the probe {source.X.shape[1]}: "
            "only features of one model and one kind can be read by one probe"
        )
    if np.ptp(target.y) == 0:
        raise DesignError(f"target {name!r} has one position ({target.y[0]:g}): give it several")


def _sums(target: Features, predicted: Array) -> dict[str, tuple[Array, Array]]:
    """Numerator and denominator of each measure, by sequence."""
    labels, index = np.unique(target.groups, return_inverse=True)
    if len(labels) < 2:
        raise DesignError("one sequence has no spread: give a target at least two")
    y, missed = target.y, predicted - target.y

    def by_sequence(values: Array) -> Array:
        return np.asarray(np.bincount(index, values), dtype=np.float64)

    n = by_sequence(np.ones_like(y))
    within = y - (by_sequence(y) / n)[index]
    return {
        "r2": (by_sequence(missed**2), by_sequence((y - y.mean()) ** 2)),
        "error": (by_sequence(np.abs(missed)), n),
        "bias": (by_sequence(missed), n),
        "slope": (by_sequence(within * predicted), by_sequence(within**2)),
    }


def _interval(
    measure: str, over: Array, under: Array, same_sequences: bool, level: float, seed: int
) -> Interval:
    """A ratio of sums over sequences, and its limits."""
    sign, start = (-1, 1) if measure == "r2" else (1, 0)
    ratio, n = over.sum() / under.sum(), len(over)
    estimate = float(start + sign * ratio)
    weights = cluster_weights(n, RESAMPLES, seed)
    if same_sequences:
        draws = start + sign * (weights @ over) / (weights @ under)
        return replicate_interval(estimate, draws, n, "fixed_probe", level)
    linear = estimate + sign * (over - ratio * under) / under.mean()  # whose mean it is
    low, high = (float(limit) for limit in studentized_means(linear, weights, level=level))
    if not np.isfinite([low, high]).all():
        return Interval(estimate, None, None, level, STUDENTIZED, measure, n)
    return Interval(estimate, low, high, level, STUDENTIZED, measure, n)
