r"""Position information in attention patterns, with and without the softmax denominator.

The log attention weight :math:`a_{ij} = s_{ij} - z_i` contains the normalizer of its query. Under a
fixed denominator it is :math:`a_{ij} = s_{ij} - c`, where c is a constant of the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from posprobe.analysis.replacement import fraction_removed
from posprobe.channels import early_limit
from posprobe.errors import DesignError
from posprobe.intervals import (
    Array,
    Inference,
    Interval,
    max_t,
)
from posprobe.probes import PositionProbe, features, replicate_interval
from posprobe.store import ActivationStore

__all__ = [
    "CAVEAT",
    "FixedDenominator",
    "fixed_denominator_probes",
    "fixed_forward_table",
    "mean_normalizers",
]

CAVEAT = (
    "Inside the forward pass rows no longer sum to 1 but to exp(z - c), so row sums carry position "
    "themselves: this shows what happens under the change, not what the denominator does."
)


class FixedDenominator(NamedTuple):
    """Probes of position from attention patterns, with and without the denominator.

    Attributes
    ----------
    table : pandas.DataFrame
        layer, r2_attention (P), r2_scores (P_fix) and difference (P - P_fix), each with `_low` and
        `_high`, p_adjusted (of the difference, by max-T over layers), n_features, n (sequences).
    mean : Interval
        Mean difference over layers.
    """

    table: pd.DataFrame
    mean: Interval


def fixed_denominator_probes(
    store: ActivationStore, *, inference: Inference = Inference()
) -> FixedDenominator:
    """Probe position from log attention weights (P) and from scores alone (P_fix), by layer.

    Both probes use the same offsets, rows and folds. Intervals are those of the R2 of the
    probes as fitted: the out-of-fold squared errors of sequences are resampled, with the same
    weights for both probes and all layers.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design.
    inference : Inference
        Level, number of bootstrap samples and seed.

    Returns
    -------
    FixedDenominator

    Raises
    ------
    DesignError
        If the file has fewer than five sequences, which is the number of folds.
    """
    n_items = store.n_items
    if n_items < 5:
        raise DesignError(
            f"{store.path.name} has {n_items} sequences; probes need 5 folds, so capture with a "
            "larger --n"
        )
    weights = np.vstack([np.ones(n_items), inference.weights(n_items)])
    rows, every = [], []
    for layer in range(store.n_layers):
        scores = {}
        for which in ("attention", "scores"):
            X, y, groups, _ = features(store, layer, which)
            probe = PositionProbe(keep_gram=False).fit(X, y, groups=groups)
            scores[which] = _r2(probe, weights)
        scores["difference"] = scores["attention"] - scores["scores"]
        every.append(scores["difference"])
        row: dict[str, Any] = {"layer": layer, "n_features": X.shape[1], "n": n_items}
        for name, draws in scores.items():
            column = name if name == "difference" else f"r2_{name}"
            found = replicate_interval(
                float(draws[0]), draws[1:], n_items, "fixed_probe", inference.level
            )
            row |= {column: found.estimate, **found.limits(column)}
        rows.append(row)
    table = pd.DataFrame(rows)
    differences = np.stack(every, 1)
    table["p_adjusted"] = _adjusted(differences, n_items)
    mean = replicate_interval(
        float(differences[0].mean()),
        differences[1:].mean(1),
        n_items,
        "fixed_probe",
        inference.level,
    )
    named = "mean over layers of R2(P) - R2(P_fix), fixed probes"
    return FixedDenominator(table, dataclasses.replace(mean, estimand=named))


def _adjusted(differences: Array, n: int) -> Array:
    """Return max-T p-values over layers; 1 where both probes use no feature and agree exactly."""
    draws = differences[1:]
    moves = draws.std(0) > 1e-12
    adjusted = np.ones(len(moves))
    if moves.any():
        adjusted[moves] = max_t(differences[0, moves], draws[:, moves], n=n).p_value
    return adjusted


def _r2(probe: PositionProbe, weights: Array) -> Array:
    """Compute the R2 of a fitted probe under each weighting of its sequences."""
    return 1 - (weights @ probe.sequence_sse_) / (weights @ probe.sequence_sst_)


def mean_normalizers(
    store: ActivationStore, layers: Sequence[int] | None = None
) -> tuple[tuple[int, int, float], ...]:
    """Compute the mean log-normalizer of every head over the positions after 0.

    The result is the value of the intervention `fixed_denominator`.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design.
    layers : sequence of int or None
        Layers to include; by default all. Fixing the denominators of all layers at once lets large
        row sums amplify each other: SmolLM2-135M overflows float32 at layer 18. With only the
        first layer fixed, it stays near its native scale.

    Returns
    -------
    tuple of (layer, head, c)
        c is in nats, rounded to 1e-4 because the header of a file lists all constants.
    """
    later = store.positions > 0
    return tuple(
        (layer, head, round(float(c), 4))
        for layer in (range(store.n_layers) if layers is None else layers)
        for head, c in enumerate(store.normalizer(layer)[later].mean(0, dtype=np.float64))
    )


def fixed_forward_table(
    native: ActivationStore, fixed: ActivationStore, *, inference: Inference = Inference()
) -> pd.DataFrame:
    r"""Estimate the fraction of V_R removed by running the forward pass with fixed denominators.

    R is computed from s and z as usual, as if the rows were normalized. It is what the residual
    stream changes in the scores, the sink and the denominator.

    Parameters
    ----------
    native, fixed : ActivationStore
        Captures of the same shifted stimulus, or its first items, without and with
        `fixed_denominator`.
    inference : Inference
        Level of Fieller's intervals.

    Returns
    -------
    pandas.DataFrame
        layers (those with fixed denominators), positions, up_to (tokens), V_R_native, V_R_fixed
        (squared nats, over all layers), fraction_removed, low, high (empty if unbounded), method,
        n (items), log_row_sum_first, log_row_sum_last (mean of z - c over the fixed heads behind
        the shortest and the longest prefix, in nats), caveat.
    """
    rows = []
    constants = [c for change in fixed.header.interventions for c in change["fixed_denominator"]]
    layers = sorted({layer for layer, _, _ in constants})
    first, last = _log_row_sums(fixed, constants)
    for positions, up_to in (("early", early_limit(native)), ("all", native.prefixes[-1])):
        interval, before, after = fraction_removed(
            native, fixed, up_to=up_to, level=inference.level
        )
        rows.append(
            {
                "layers": ", ".join(map(str, layers)),
                "positions": positions,
                "up_to": up_to,
                "V_R_native": before,
                "V_R_fixed": after,
                **interval.row("fraction_removed"),
                "log_row_sum_first": first,
                "log_row_sum_last": last,
                "caveat": CAVEAT,
            }
        )
    return pd.DataFrame(rows)


def _log_row_sums(
    store: ActivationStore, constants: Sequence[tuple[int, int, float]]
) -> tuple[float, float]:
    """Return the mean of z - c behind the shortest and behind the longest prefix, in nats."""
    ends = [store.prefix_length == p for p in (store.prefixes[0], store.prefixes[-1])]
    sums = [
        [store.normalizer(layer)[end, :, head].mean(dtype=np.float64) - c for end in ends]
        for layer, head, c in constants
    ]
    first, last = np.mean(sums, axis=0)
    return float(first), float(last)
