"""How much of the residual channel is removed by replacing the embedding at position 0."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.analysis.sinks import SINK_THRESHOLD, sink_attention
from posprobe.channels import ChannelEffects, channel_effects, early_limit, gather_variances
from posprobe.errors import DesignError
from posprobe.intervals import Inference, Interval, fieller_ratio
from posprobe.store import ActivationStore

__all__ = [
    "PRIMARY_TREATMENT",
    "common_items",
    "fraction_removed",
    "ratio_of_variances",
    "replacement_table",
    "sink_rate",
]

PRIMARY_TREATMENT = "mean"


def fraction_removed(
    native: ActivationStore, replaced: ActivationStore, *, up_to: int, level: float = 0.95
) -> tuple[Interval, float, float]:
    r"""Estimate the fraction of the residual channel that a replacement removes.

    .. math:: 1 - V_R(\mathrm{replaced}) / V_R(\mathrm{native})

    V_R is averaged over layers, heads and offsets, and uses the positions up to `up_to` and the
    reference. Items are paired: they have the same windows and prefixes, and differ in the
    embedding at position 0. Only the items that both files contain are used.

    Parameters
    ----------
    native, replaced : ActivationStore
        Two captures of the same shifted stimulus.
    up_to : int
        The largest prefix to use, in tokens.
    level : float
        Nominal coverage.

    Returns
    -------
    interval : Interval
        Fieller's interval, from the jackknife pseudo-values of both U-statistics. It is unbounded
        if the native V_R is not distinguishable from 0, or is estimated below 0.
    native_variance, replaced_variance : float
        V_R in each file, in squared nats.

    Raises
    ------
    DesignError
        If the files do not have the same windows behind the same prefixes.
    """
    items = common_items(native, replaced)
    return _removed(_effects(native), _effects(replaced), items, up_to, level)


def _effects(store: ActivationStore) -> list[ChannelEffects]:
    return [channel_effects(store, layer) for layer in range(store.n_layers)]


def _removed(
    native: list[ChannelEffects],
    replaced: list[ChannelEffects],
    items: tuple[NDArray[np.intp], NDArray[np.intp]],
    up_to: int,
    level: float,
) -> tuple[Interval, float, float]:
    """Do as `fraction_removed`, with the effects of all layers and their common items."""
    overall = [
        gather_variances(layer.take(own).up_to(up_to) for layer in layers).mean((0, 1))
        for layers, own in zip((native, replaced), items, strict=True)
    ]
    before, after = (variances.pseudo["V_R"][:, 0, 0] for variances in overall)
    interval = ratio_of_variances(before, after, level=level, estimand="fraction of V_R removed")
    native_variance, replaced_variance = (float(v.estimate["V_R"][0, 0]) for v in overall)
    return interval, native_variance, replaced_variance


def ratio_of_variances(
    native: NDArray[np.float64],
    changed: NDArray[np.float64],
    *,
    quantity: Literal["removed", "ratio"] = "removed",
    level: float = 0.95,
    estimand: str = "fraction removed",
) -> Interval:
    """Fieller's interval of 1 - changed/native, or of changed/native, for two variances.

    Parameters
    ----------
    native, changed : ndarray of shape (N,)
        Jackknife pseudo-values of two variances, paired by item. The mean of `native` must not be
        0.
    quantity, level, estimand
        As in `posprobe.intervals.fieller_ratio`.

    Returns
    -------
    Interval
        Unbounded also if the mean of `native` is below 0. Noise can make the estimate of a variance
        significantly negative, and Fieller's limits are then meaningless.
    """
    interval = fieller_ratio(native, changed, quantity=quantity, level=level, estimand=estimand)
    if native.mean() < 0:
        interval = dataclasses.replace(interval, low=None, high=None, test=None)
    return interval


def replacement_table(
    native: ActivationStore, replaced: list[ActivationStore], *, inference: Inference = Inference()
) -> tuple[pd.DataFrame, Interval | None]:
    """Estimate the fraction of V_R that each treatment of position 0 removes.

    Parameters
    ----------
    native : ActivationStore
        A native capture of the shifted design.
    replaced : list of ActivationStore
        Captures of the same stimulus, or of its first items, with position 0 replaced.
    inference : Inference
        Level of Fieller's intervals.

    Returns
    -------
    table : pandas.DataFrame
        One row for each treatment and range of queries: treatment, positions ("early" or "all"),
        up_to (tokens), primary, fraction_removed, low, high (empty if unbounded), method, n
        (items), V_R_native, V_R_replaced (squared nats), sink_rate_native, sink_rate_replaced (the
        share of pairs of sequence and head with mean attention to key 0 above 0.3).
    primary : Interval or None
        That of the primary specification, fixed beforehand: the mean embedding, early queries.

    Raises
    ------
    DesignError
        If a file does not have the same windows behind the same prefixes, or fewer than three
        items in common with the native one.
    """
    rows = []
    first = None
    before_all, native_rate = _effects(native), sink_rate(native)
    for store in replaced:
        treatment = store.header.position0_treatment
        items, after_all, rate = common_items(native, store), _effects(store), sink_rate(store)
        for positions, up_to in (("early", early_limit(native)), ("all", native.prefixes[-1])):
            interval, before, after = _removed(before_all, after_all, items, up_to, inference.level)
            primary = treatment == PRIMARY_TREATMENT and positions == "early"
            if primary and first is None:
                first = interval
            rows.append(
                {
                    "treatment": treatment,
                    "positions": positions,
                    "up_to": up_to,
                    "primary": primary,
                    **interval.row("fraction_removed"),
                    "V_R_native": before,
                    "V_R_replaced": after,
                    "sink_rate_native": native_rate,
                    "sink_rate_replaced": rate,
                }
            )
    return pd.DataFrame(rows), first


def sink_rate(store: ActivationStore) -> float:
    """Share of sequences and heads whose mean attention to key 0 is > 0.3."""
    attention = [sink_attention(store, layer) for layer in range(store.n_layers)]
    return float((np.stack(attention) > SINK_THRESHOLD).mean())


def common_items(
    native: ActivationStore, other: ActivationStore
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices, among the sorted items of each file, of the items that both contain.

    An item does not depend on how many others are drawn, so a capture of 16 items can be paired
    with one of 32.

    Raises
    ------
    DesignError
        If the files are of different models, or their common items do not have the same windows
        behind the same prefixes.
    """
    if native.header.weights_digest != other.header.weights_digest:
        raise DesignError(
            f"{other.path.name} is a capture of another model than {native.path.name}"
        )
    own, others = np.unique(native.item), np.unique(other.item)
    both, *places = np.intersect1d(own, others, return_indices=True)
    same = (
        native.prefixes == other.prefixes
        and native.offsets == other.offsets
        and native.design == other.design
        and len(both) > 0
        and np.array_equal(native.tokens_of(both)[:, 1:], other.tokens_of(both)[:, 1:])
    )
    if not same:
        raise DesignError(
            f"{other.path.name} is not the stimulus of {native.path.name}; capture both with "
            "the same design, --length and --seed"
        )
    return places[0], places[1]
