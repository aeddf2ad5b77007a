r"""How much of the residual channel is removed when some heads cannot see key 0.

Hiding key 0 from a head ("cutting" it) changes the denominators of that head directly, whatever the
residual stream does. Counting this as removal of the residual channel would measure the cut itself.
Two measures avoid this.

heads left whole
    V_R over the heads that no compared condition cuts. Changes in these heads came through the
    residual stream. This measure does not exist if all heads are cut.
without key 0
    V_R over all heads, with key 0 left out of every denominator, in the native run too. It is the
    effect of position on how attention divides among the *other* keys. Cutting a head does not
    change this directly, so cut heads can be compared, even if all are cut.

For a cut head, position 1 is the first key, and the query at position 1 sees no other. If early
layers are cut, position 1 may therefore become a sink, and V_R may rise instead of falling. Windows
behind a prefix of 1 then begin with this sink.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.analysis.heads import Head
from posprobe.analysis.replacement import common_items, ratio_of_variances
from posprobe.channels import channel_effects, cut_heads, early_limit, position_covariance
from posprobe.errors import DesignError
from posprobe.intervals import Array, Inference, Interval, pseudo_values
from posprobe.store import ActivationStore

__all__ = ["MEASURES", "cut_key", "cut_table"]

Mask = NDArray[np.bool_]
MEASURES = {"heads left whole": False, "without key 0": True}


@dataclass(frozen=True, eq=False)
class _Condition:
    """One capture with key 0 hidden from the heads `cut`, of shape (L, H).

    `variances` has pseudo-values of V_R by measure and range, of shape (N, L, H); `attention` is
    the mean attention to key 0, of shape (L, H).
    """

    heads: str
    cut: Mask
    variances: dict[tuple[str, int], Array]
    attention: Array


def cut_table(
    native: ActivationStore,
    cuts: Iterable[ActivationStore],
    sink_reading: Sequence[Head],
    *,
    inference: Inference = Inference(),
) -> tuple[pd.DataFrame, dict[str, Interval]]:
    """Estimate the fraction of V_R removed by hiding key 0 from sink-reading, random or all heads.

    The estimand is ``1 - V_R(cut) / V_R(native)``, by both measures of `MEASURES`.

    Parameters
    ----------
    native : ActivationStore
        A native capture of the shifted design.
    cuts : iterable of ActivationStore
        Captures of the same stimulus, or of its first items, each with key 0 hidden from some
        heads. They are compared on the items that all files contain.
    sink_reading : sequence of (layer, head)
        The sink-reading heads, chosen on other data. They determine the name of each condition.
    inference : Inference
        Level of Fieller's intervals, which use jackknife pseudo-values. The intervals are over
        items; they do not include the variation between random draws of heads.

    Returns
    -------
    table : pandas.DataFrame
        heads ("sink-reading", "some sink-reading", "random K", "other heads" or "all"; with "minus
        random", the fraction removed less the mean of those of as many random heads), measured
        (one of `MEASURES`), positions ("early", "all"), up_to (tokens), n_heads_cut,
        n_heads_measured, V_R_native, V_R_cut (squared nats), fraction_removed, low, high (empty if
        unbounded), method, n (items), attention_native (mean attention of the cut heads to key 0
        in the native capture), attention_left (the largest with the cut; it must be 0, and is
        computed from the denominators of the forward pass).
    intervals : dict of str to Interval
        The fractions removed over all positions, by `cut_key` of heads and measure.

    Raises
    ------
    DesignError
        If a file does not have the same windows behind the same prefixes, or if fewer than three
        items are common to all files.
    """
    stores = list(cuts)
    places = _places(native, stores)
    ranges = {early_limit(native): "early", native.prefixes[-1]: "all"}
    before = _condition("none", native, places[0], list(ranges))
    conditions = [
        _condition(name, store, items, list(ranges))
        for name, store, items in zip(_names(stores, sink_reading), stores, places[1:], strict=True)
    ]
    rows = []
    for condition in conditions:
        for measured in MEASURES:
            kept = _measured(measured, condition, conditions)
            if not kept.any():
                continue
            for up_to, positions in ranges.items():
                of = {"measured": measured, "positions": positions, "up_to": up_to}
                key = measured, up_to
                rows.append(_removed(condition, before, key, kept, inference.level) | of)
                draws = _matched_draws(condition, conditions)
                if draws:
                    rows.append(
                        _difference(condition, draws, before, key, kept, inference.level) | of
                    )
    leading = ["heads", "measured", "positions", "up_to"]
    fractions = [(row, row.pop("interval")) for row in rows]
    intervals = {
        cut_key(row["heads"], row["measured"]): fraction
        for row, fraction in fractions
        if row["positions"] == "all" and fraction is not None
    }
    table = pd.DataFrame(rows)
    return table[leading + [name for name in table if name not in leading]], intervals


def cut_key(heads: str, measured: str) -> str:
    """Name the interval of one fraction removed, among all intervals of an analysis."""
    return f"cut_sink: {heads}, {measured}"


def _places(native: ActivationStore, stores: list[ActivationStore]) -> list[NDArray[np.intp]]:
    """Return the indices, in each file, of the items that all files contain."""
    for store in stores:
        common_items(native, store)
    items = [np.unique(store.item) for store in (native, *stores)]
    everywhere = reduce(np.intersect1d, items)
    if len(everywhere) < 3:
        raise DesignError(
            f"the files with key 0 hidden share {len(everywhere)} items with {native.path.name}; "
            "intervals need 3, so capture with a larger --n"
        )
    return [np.flatnonzero(np.isin(own, everywhere)) for own in items]


def _cut(store: ActivationStore) -> Mask:
    return np.stack([cut_heads(store, layer) for layer in range(store.n_layers)])


def _names(stores: list[ActivationStore], sink_reading: Sequence[Head]) -> list[str]:
    """Name the cut of each file, by whether it hides key 0 from the sink-reading heads."""
    names: list[str] = []
    for store in stores:
        cut, reading = _cut(store), np.zeros((store.n_layers, store.n_heads), dtype=bool)
        for head in sink_reading:
            reading[head] = True
        if cut.all():
            name = "all"
        elif not (cut & reading).any():
            name = f"random {1 + sum(other.startswith('random') for other in names)}"
        elif (cut & ~reading).any():
            name = "other heads"
        else:
            name = "sink-reading" if (cut == reading).all() else "some sink-reading"
        names.append(name)
    return names


def _condition(
    name: str, store: ActivationStore, items: NDArray[np.intp], ranges: list[int]
) -> _Condition:
    variances: dict[tuple[str, int], Array] = {}
    for measured, without_sink in MEASURES.items():
        layers: dict[int, list[Array]] = {up_to: [] for up_to in ranges}
        for layer in range(store.n_layers):
            effects = channel_effects(store, layer, without_sink=without_sink).take(items)
            for up_to in ranges:
                layers[up_to].append(_pseudo_values(effects.up_to(up_to).residual))
        variances |= {(measured, up_to): np.stack(layers[up_to], 1) for up_to in ranges}
    return _Condition(name, _cut(store), variances, _attention(store))


def _pseudo_values(residual: Array) -> Array:
    """Compute jackknife pseudo-values of V_R, averaged over offsets: (item, head)."""
    without_one = 1.0 - np.eye(len(residual))
    whole = position_covariance(residual, residual).mean(-1)
    return pseudo_values(whole, position_covariance(residual, residual, without_one).mean(-1))


def _attention(store: ActivationStore) -> Array:
    """Compute the mean attention to key 0 from the denominators with and without it: (L, H)."""
    own = np.searchsorted(store.prefixes, store.prefix_length)
    rows = np.arange(store.n_sequences)
    means = []
    for layer in range(store.n_layers):
        body = store.read("remasked_body", layer)[rows, own].astype(float)
        means.append(-np.expm1(body - store.normalizer(layer)).mean((0, 1)))
    return np.stack(means)


def _measured(measured: str, condition: _Condition, conditions: list[_Condition]) -> Mask:
    """Return the heads over which to measure a condition, as (L, H).

    Conditions that cut equally many heads are compared, so they are measured over the same heads.
    """
    if MEASURES[measured]:
        return np.ones_like(condition.cut)
    draws = [c for c in conditions if c.heads.startswith("random")]
    matched = [c for c in conditions if _matched_draws(c, conditions)]
    compared = [condition]
    if condition in draws:
        compared += draws + matched
    elif condition in matched:
        compared += draws
    return ~np.any([c.cut for c in compared], axis=0)


def _matched_draws(condition: _Condition, conditions: list[_Condition]) -> list[_Condition]:
    """Return the random conditions that cut as many heads as a sink-reading one."""
    if not condition.heads.endswith("sink-reading"):
        return []
    draws = [c for c in conditions if c.heads.startswith("random")]
    return [c for c in draws if c.cut.sum() == condition.cut.sum()]


def _removed(
    condition: _Condition, before: _Condition, key: tuple[str, int], kept: Mask, level: float
) -> dict[str, Any]:
    cut = condition.cut
    return {
        "heads": condition.heads,
        "n_heads_cut": int(cut.sum()),
        "attention_native": float(before.attention[cut].mean()),
        "attention_left": float(np.abs(condition.attention[cut]).max()),
    } | _ratio(before.variances[key], condition.variances[key], kept, "removed", level)


def _difference(
    condition: _Condition,
    draws: list[_Condition],
    before: _Condition,
    key: tuple[str, int],
    kept: Mask,
    level: float,
) -> dict[str, Any]:
    """Compare with random heads: (mean V_R(random) - V_R(cut)) / V_R(native)."""
    at_random = np.mean([draw.variances[key] for draw in draws], axis=0)
    row = {"heads": f"{condition.heads} minus random", "n_heads_cut": int(condition.cut.sum())}
    excess = at_random - condition.variances[key]
    return row | _ratio(before.variances[key], excess, kept, "ratio", level)


def _ratio(
    native: Array, changed: Array, kept: Mask, quantity: Any, level: float
) -> dict[str, Any]:
    a, b = native[:, kept].mean(1), changed[:, kept].mean(1)
    row = {
        "n_heads_measured": int(kept.sum()),
        "V_R_native": float(a.mean()),
        "V_R_cut": float(b.mean()) if quantity == "removed" else np.nan,
    }
    if a.mean() == 0:
        unknown = dict.fromkeys(("fraction_removed", "low", "high"), np.nan)
        return row | unknown | {"method": "undefined", "n": len(a), "interval": None}
    interval = ratio_of_variances(
        a, b, quantity=quantity, level=level, estimand="fraction of V_R removed"
    )
    return row | interval.row("fraction_removed") | {"interval": interval}
