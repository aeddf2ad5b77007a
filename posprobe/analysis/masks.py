r"""What remains of the channels when the model runs under another mask.

no causal mask
    Every query sees all keys of its sequence, so M = 0. In the shifted design a window behind a
    prefix of p tokens is the end of a sequence of p + W tokens, so the number of keys still
    changes with p. R then also reflects the length of the sequence, not only the residual stream.
    In the natural design all queries see equally many keys, and probes show whether normalizers
    still tell position.
window
    A sliding window of w tokens, in a model that was not trained with one. A row behind w tokens
    or more sees its w nearest keys and not key 0. Among these positions M = 0, and T = R.

A check accompanies both: the normalizers of the forward pass must equal those obtained by summing
over exactly the keys that the mask shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from posprobe.analysis.replacement import common_items, ratio_of_variances
from posprobe.channels import ChannelEffects, Variances, channel_effects, gather_variances
from posprobe.intervals import (
    Array,
    Inference,
    Interval,
    mean_interval,
)
from posprobe.probes import PositionProbe, features, replicate_interval
from posprobe.store import ActivationStore

__all__ = ["NATIVE", "NO_MASK", "Masks", "mask_name", "mask_probes", "mask_tables"]

NATIVE, NO_MASK = "native", "no causal mask"
VARIANCES = ("V_T", "V_M", "V_R")


class Masks(NamedTuple):
    """The channels under other masks.

    Attributes
    ----------
    table : pandas.DataFrame
        mask, positions ("all", "behind the window"), quantity ("V_T", "V_M", "V_R"), native and
        changed (means over layers, heads and offsets in squared nats), changed_low and changed_high
        (studentised bootstrap), fraction_removed, low, high (Fieller, paired; empty if unbounded),
        method, largest_M (the largest |M| of all items, positions, layers, heads and offsets, in
        nats), mismatch (the largest difference between a normalizer of the forward pass and that
        of the keys shown, in nats), n (items).
    layers : pandas.DataFrame
        mask (`NATIVE` among them), layer, quantity, estimate, low, high. Variances are means over
        heads and use all positions. Limits are not adjusted for the number of layers.
    intervals : dict of str to Interval
        `mask_closed` and `window_closed`: the larger of the largest |M| and the largest mismatch
        of an item, averaged over items. `window_left`: V_T behind the window. `window_growth`: V_R
        of the last third of layers less that of the first, compared with the native run.
    """

    table: pd.DataFrame
    layers: pd.DataFrame
    intervals: dict[str, Interval]


def mask_name(store: ActivationStore) -> str:
    """Describe the mask of a file in words, from its header."""
    changes = store.header.interventions
    if any(change.get("causal") is False for change in changes):
        return NO_MASK
    windows = [change["window"] for change in changes if change.get("window")]
    return f"window of {min(windows)} tokens" if windows else NATIVE


def mask_tables(
    native: ActivationStore,
    masked: Sequence[ActivationStore],
    *,
    inference: Inference = Inference(),
) -> Masks:
    """Compare the channels under other masks with the native ones, paired by item.

    Parameters
    ----------
    native : ActivationStore
        A native capture of the shifted design.
    masked : sequence of ActivationStore
        Captures of the same stimulus, or of its first items, without causal mask or with a window.
        Offsets that a window hides are left out of both files.
    inference : Inference
        Level, number of bootstrap samples and seed.

    Returns
    -------
    Masks

    Raises
    ------
    DesignError
        If the files do not have the same windows, or have fewer than three items in common.
    """
    found = [_under_mask(native, store, inference) for store in masked]
    layers = pd.concat([one.layers for one in found], ignore_index=True)
    return Masks(
        pd.concat([one.table for one in found], ignore_index=True),
        layers.drop_duplicates(["mask", "layer", "quantity"], ignore_index=True),
        {name: interval for one in found for name, interval in one.intervals.items()},
    )


class _Range(NamedTuple):
    """Both channels over one range of positions, natively and under another mask.

    `largest` is the larger of the largest |M| and the largest mismatch of each item, in nats.
    """

    positions: str
    before: Variances
    after: Variances
    largest: Array
    checks: dict[str, float]


def _under_mask(native: ActivationStore, store: ActivationStore, inference: Inference) -> Masks:
    """Return the tables and intervals of one other mask."""
    name, window, level = mask_name(store), _window(store), inference.level
    pairs = _pairs(native, store)
    mismatch = _mismatch(store)[common_items(native, store)[1]]
    whole = _range("all", pairs, mismatch, inference)
    ranges = [whole]
    if window is None:
        intervals = {"mask_closed": _closed(whole, level)}
    else:
        intervals = {}
        if store.n_layers >= 3:
            intervals["window_growth"] = _growth(whole.before, whole.after, level)
        if sum(p >= window for p in store.prefixes) > 1:
            beyond = [(a.beyond(window - 1), b.beyond(window - 1)) for a, b in pairs]
            behind = _range("behind the window", beyond, mismatch, inference)
            ranges.append(behind)
            intervals["window_closed"] = _closed(behind, level)
            intervals["window_left"] = _overall(behind.after, "V_T", level)
    rows = [
        {"mask": name, "positions": part.positions, **part.checks}
        | _compared(part.before, part.after, variance, level)
        for part in ranges
        for variance in VARIANCES
    ]
    layers = [_by_layer(whole.before, NATIVE, level), _by_layer(whole.after, name, level)]
    return Masks(pd.DataFrame(rows), pd.concat(layers, ignore_index=True), intervals)


def _range(
    positions: str,
    pairs: Sequence[tuple[ChannelEffects, ChannelEffects]],
    mismatch: Array,
    inference: Inference,
) -> _Range:
    before, after = (gather_variances(part, inference) for part in zip(*pairs, strict=True))
    largest = np.max([np.abs(changed.mask).max((1, 2, 3)) for _, changed in pairs], axis=0)
    checks = {"largest_M": float(largest.max()), "mismatch": float(mismatch.max())}
    return _Range(positions, before, after, np.maximum(largest, mismatch), checks)


def _closed(part: _Range, level: float) -> Interval:
    """Estimate what must be 0 if the mask channel is closed: the largest |M| or mismatch."""
    return mean_interval(part.largest, estimand="largest |M| and mismatch", level=level)


def _window(store: ActivationStore) -> int | None:
    windows = [change["window"] for change in store.header.interventions if change.get("window")]
    return min(windows) if mask_name(store) != NO_MASK and windows else None


def _pairs(
    native: ActivationStore, store: ActivationStore
) -> list[tuple[ChannelEffects, ChannelEffects]]:
    """Read the effects of the common items at the common offsets, layer by layer."""
    places = common_items(native, store)
    pairs = []
    for layer in range(store.n_layers):
        after = channel_effects(store, layer).take(places[1])
        before = channel_effects(native, layer).take(places[0]).at_offsets(after.offsets)
        pairs.append((before, after))
    return pairs


def _mismatch(store: ActivationStore) -> Array:
    """Find the largest |z - z of the keys shown| of each item, in the latest window: (item,)."""
    late = np.flatnonzero(store.prefix_length == store.prefixes[-1])
    late = late[np.argsort(store.item[late])]
    largest = np.zeros(len(late))
    for layer in range(store.n_layers):
        used = store.read("normalizer", layer)[late].astype(float)
        summed = store.read("remasked_normalizer", layer)[late, -1]
        largest = np.maximum(largest, np.abs(used - summed).max((1, 2)))
    return largest


def _compared(before: Variances, after: Variances, quantity: str, level: float) -> dict[str, Any]:
    changed = _overall(after, quantity, level)
    own, other = (v.mean((0, 1)).pseudo[quantity][:, 0, 0] for v in (before, after))
    ratio = ratio_of_variances(own, other, level=level, estimand=f"fraction of {quantity} removed")
    return {
        "quantity": quantity,
        "native": float(own.mean()),
        "changed": changed.estimate,
        **changed.limits("changed"),
        **ratio.row("fraction_removed"),
    }


def _overall(variances: Variances, quantity: str, level: float) -> Interval:
    """Average one variance over all layers and heads."""
    return variances.mean((0, 1)).interval(quantity, level)


def _growth(before: Variances, after: Variances, level: float) -> Interval:
    """Estimate how much more V_R grows with depth under the mask than natively.

    The growth is the mean V_R of the last third of layers less that of the first third.
    """

    def rise(variances: Variances) -> Variances:
        depth = np.arange(len(variances.estimate["V_R"]))
        third = len(depth) // 3
        last, first = (
            variances.layers(part) for part in (depth >= len(depth) - third, depth < third)
        )
        return last.mean((0, 1)).less(first.mean((0, 1)))

    return (
        rise(after)
        .less(rise(before))
        .interval("V_R", level, "growth of V_R with depth, more than natively")
    )


def _by_layer(variances: Variances, name: str, level: float) -> pd.DataFrame:
    over = variances.mean((1,))
    tables = []
    for quantity in VARIANCES:
        low, high = over.limits(quantity, level)
        columns = {"estimate": over.estimate[quantity], "low": low, "high": high}
        table = pd.DataFrame({k: v[:, 0] for k, v in columns.items()})
        table.insert(0, "quantity", quantity)
        table.insert(0, "layer", np.arange(len(table)))
        table.insert(0, "mask", name)
        tables.append(table)
    return pd.concat(tables)


def mask_probes(
    native: ActivationStore, masked: ActivationStore, *, inference: Inference = Inference()
) -> tuple[pd.DataFrame, dict[str, Interval]]:
    """Probe position from the normalizers of each layer, with and without the causal mask.

    Parameters
    ----------
    native, masked : ActivationStore
        Captures of the natural design with and without causal mask. They are compared on the
        sequences that both contain.
    inference : Inference
        Level, number of bootstrap samples and seed. Intervals are those of the R2 of the
        probes as fitted, from the out-of-fold squared errors of sequences.

    Returns
    -------
    table : pandas.DataFrame
        layer, r2_native and r2_masked, each with `_low` and `_high`, n_features, n (sequences).
    intervals : dict of str to Interval
        R2 at layer 0: `normalizer_unmasked` without the mask, `normalizer_masked` with it.
    """
    items = np.intersect1d(native.item, masked.item)
    weights = np.vstack([np.ones(len(items)), inference.weights(len(items))])
    rows = []
    first: dict[str, Interval] = {}
    for layer in range(native.n_layers):
        row: dict[str, Any] = {"layer": layer, "n": len(items)}
        for name, store in (("native", native), ("masked", masked)):
            X, y, groups, _ = features(store, layer, "normalizer")
            kept = np.isin(groups, items)
            probe = PositionProbe(keep_gram=False).fit(X[kept], y[kept], groups=groups[kept])
            draws = 1 - (weights @ probe.sequence_sse_) / (weights @ probe.sequence_sst_)
            found = replicate_interval(
                float(draws[0]), draws[1:], len(items), "fixed_probe", inference.level
            )
            row |= {f"r2_{name}": found.estimate, **found.limits(f"r2_{name}")}
            if layer == 0:
                key = "normalizer_unmasked" if name == "masked" else "normalizer_masked"
                first[key] = dataclasses.replace(found, estimand="R2 at layer 0, fixed probe")
        rows.append(row | {"n_features": X.shape[1]})
    return pd.DataFrame(rows), first
