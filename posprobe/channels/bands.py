r"""Position effects by band of rotation: T, M, R and S of a layer as sums over bands.

A score is a sum over bands, :math:`s = \sum_b s^b`, and a normalizer the sum of their Shapley
values and of the normalizer of scores that are all 0, :math:`z = \sum_b \varphi^b + \log n` with n
visible keys (see `posprobe.models.band_scores`). So a log attention weight is a sum as well, and
with :math:`a^b = s^b - \varphi^b`,

.. math::

    T^b(p) = a^b(p) - a^b(\mathrm{ref}), \qquad
    M^b(p) = -\left(\varphi^b_\mathrm{mask}(p) - \varphi^b(\mathrm{ref})\right), \qquad
    R^b(p) = T^b(p) - M^b(p) .

What is left of T and M is the number of keys, :math:`-\log n(p) / n(\mathrm{ref})`; it is in both,
so R has no such part. S is the effect of a change :math:`\delta = \sum_b \delta^b` of one score,
that of key 0 less the mean at the fixed offsets; along the straight path from the late row's to
that of position p, each band contributes in proportion, :math:`S^b = S\, \delta^b / \delta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.channels.decomposition import MAX_UNITS
from posprobe.channels.effects import Array, pair_products
from posprobe.channels.reading import (
    by_item,
    channel_effects,
    item_blocks,
    kept_offsets,
    late_rows,
    local_mean,
    own_rows,
    sink_is_seen,
    why_not_split,
)
from posprobe.channels.variances import Variances, check_items, paired_weights
from posprobe.errors import DesignError, Telling, changed
from posprobe.intervals import Inference, fieller_ratio, studentized_means
from posprobe.store import BAND_DATA_SETS, ActivationStore

__all__ = ["KEYS", "BandEffects", "band_effects", "decompose_bands", "why_no_bands"]

KEYS = "number of keys"
CHANNELS = ("T", "M", "R", "S")
COUNTED = ("T", "M")  # which have a part of the number of keys
SMALL = 1e-3  # nats
TOLERANCE = 1e-4  # of sums over bands, relative to the largest score or normalizer
_Effects = dict[str, Array]


@dataclass(frozen=True, repr=False)
class BandEffects(Telling):
    """Effects of position on the log attention weights of one layer, by band of rotation.

    Attributes
    ----------
    positions : ndarray of shape (P,)
        Prefix lengths, in tokens; the last is the reference.
    names : tuple of str
        Names of the B bands, and last `KEYS`, the part of the number of visible keys.
    effects : dict of str to ndarray of shape (N, P, H, D, B + 1)
        T, M, R and S in nats, averaged over the rows of the window, for N items, H heads and D
        offsets. Summed over the last axis they are those of `posprobe.channels.channel_effects`.
    """

    positions: NDArray[np.int64]
    names: tuple[str, ...]
    effects: dict[str, Array]

    def _line(self) -> str:
        total = self.effects["T"]
        return (
            f"T, M, R and S (nats) of {len(total)} items at positions "
            f"{', '.join(map(str, self.positions))}; {total.shape[2]} heads, bands "
            f"{', '.join(self.names)}"
        )


def why_no_bands(store: ActivationStore) -> str | None:
    """Explain why the position effects of a file cannot be split by band of rotation.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    str or None
        The reason, which continues a sentence that begins with the name of the file. None if the
        effects can be split.
    """
    missing = [name for name in BAND_DATA_SETS if name not in store.header.quantities]
    if missing:
        return f"has no {missing[0]!r}; capture it with --design shifted --bands 3"
    return why_not_split(store)


def band_effects(
    store: ActivationStore, layer: int, *, max_units: int | None = None
) -> BandEffects:
    """Compute T, M, R and S of one layer by band; the equations are those of this module.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design with bands.
    layer : int
        Index of the layer.
    max_units : int or None
        As in `posprobe.channels.channel_effects`.

    Returns
    -------
    BandEffects

    Raises
    ------
    DesignError
        If `why_no_bands` gives a reason, or the bands do not add up to the whole effects.
    """
    reason = why_no_bands(store)
    if reason is not None:
        raise DesignError(f"{store.path.name} {reason}")
    pooled = max_units is not None and store.n_items > max_units
    blocks = []
    for items in item_blocks(store.n_items, max_units):
        block = _effects_of(store, layer, items)
        blocks.append({k: v.mean(0, keepdims=True) for k, v in block.items()} if pooled else block)
    effects = {name: np.concatenate([block[name] for block in blocks]) for name in CHANNELS}
    _check_sums(store, layer, effects, max_units)
    return BandEffects(np.asarray(store.prefixes), (*store.bands, KEYS), effects)


def _effects_of(store: ActivationStore, layer: int, items: slice) -> _Effects:
    """Compute the effects of some items, in the order of their numbers."""
    score = by_item(store, "band_offset_score", layer, items)
    own = own_rows(store, "band_normalizer", layer, items)
    remasked = late_rows(store, "band_normalizer", layer, items)
    sink = _sink_parts(store, layer, items, score)
    mask = -(remasked - remasked[:, -1:])
    parts: dict[str, list[Array]] = {"T": [], "M": [], "S": []}
    for d in kept_offsets(store, layer):
        rows = slice(store.offsets[d], None)
        weight = -own[:, :, rows]
        weight[..., :-1] += score[:, :, rows, :, d]
        parts["T"].append((weight - weight[:, -1:]).mean(2))
        parts["M"].append(mask[:, :, rows].mean(2))
        parts["S"].append(sink[:, :, rows].mean(2))
    found = {name: np.stack(each, -2) for name, each in parts.items()}
    return found | {"R": found["T"] - found["M"]}


def _sink_parts(store: ActivationStore, layer: int, items: slice, score: Array) -> Array:
    """Compute S of each row by band: (item, prefix, row, head, B + 1); the last part is 0."""
    kept = kept_offsets(store, layer)
    offsets = np.asarray(store.offsets)[kept]
    local = [local_mean(score[..., kept, b], offsets) for b in range(score.shape[-1])]
    relative = by_item(store, "band_sink_score", layer, items) - np.stack(local, -1)
    change = relative - relative[:, -1:]
    body = late_rows(store, "remasked_body", layer, items)
    late = by_item(store, "sink_score", layer, items)[:, -1:]
    slope = _slope(body - late, change.sum(-1))
    parts = np.where(sink_is_seen(store, layer), -slope, 0.0)[..., None] * change
    return np.concatenate([parts, np.zeros_like(parts[..., :1])], -1)


def _slope(rest: Array, change: Array) -> Array:
    """Mean change of log(exp(rest) + exp(x)) for a unit of x, on the way from x = 0 to `change`.

    Where the change is small, its own size is divided out before it is lost in rounding.
    """
    weight = np.exp(-np.logaddexp(0, rest))  # of exp(x) in the sum, at x = 0
    small = np.abs(change) < SMALL
    near, far = np.where(small, change, SMALL), np.where(small, SMALL, change)
    nearly = np.where(change == 0, weight, np.log1p(weight * np.expm1(near)) / _not_0(near))
    return np.where(small, nearly, (np.logaddexp(rest, far) - np.logaddexp(rest, 0)) / far)


def _not_0(values: Array) -> Array:
    return np.where(values == 0, 1.0, values)


def _check_sums(
    store: ActivationStore, layer: int, effects: _Effects, max_units: int | None
) -> None:
    """Refuse bands that do not add up to the effects of `channel_effects`."""
    whole = channel_effects(store, layer, max_units=max_units)
    size = max(float(np.nanmax(np.abs(store.read(q, layer)))) for q in ("sink_score", "normalizer"))
    for name, key in {"T": "total", "M": "mask", "R": "residual", "S": "sink"}.items():
        gap = float(np.abs(effects[name].sum(-1) - getattr(whole, key)).max())
        if not gap <= TOLERANCE * max(size, 1.0):
            raise DesignError(
                f"{store.path.name}: bands of layer {layer} add up to {name} only within {gap:.1e} "
                "nats; capture it again"
            )


def decompose_bands(
    store: ActivationStore, *, inference: Inference = Inference(), **changes: Any
) -> pd.DataFrame:
    r"""Split the variances of T, M, R and S over positions by band of rotation, with intervals.

    The part of a band in :math:`V_R` is the covariance over positions of :math:`R^b` and R, so the
    parts add up to :math:`V_R`; likewise for T, M and S. Estimand, unit of resampling and limits
    are those of `posprobe.decompose`. A band that works against the others has a negative part.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design with bands.
    inference : Inference
        Level, number of bootstrap samples and seed.
    **changes
        Fields of `inference` to replace.

    Returns
    -------
    pandas.DataFrame
        One row for each channel (T, M, R, S) and band, for the mean over layers (layer "all") and
        for each layer: `effect`, the mean over items, heads, offsets and positions other than the
        reference, in nats; `part`, in squared nats; and `share`, the part relative to the
        variance of the channel, all with `_low` and `_high`. `status` is "undefined" where that
        variance is not distinguishable from 0 and the share is left out. `dimensions` is the number
        of a head's dimensions in the band.

    Raises
    ------
    DesignError
        If the file cannot be split by band (`why_no_bands`), or has fewer than three items.
    """
    inference = changed(inference, changes)
    products: dict[str, list[Array]] = {}
    means: list[Array] = []
    for layer in range(store.n_layers):
        found = band_effects(store, layer, max_units=MAX_UNITS)
        names = found.names
        for channel in CHANNELS:
            parts = found.effects[channel]
            whole = parts.sum(-1)
            for b, name in enumerate(names):
                product = pair_products(parts[..., b], whole).mean(0, keepdims=True)
                products.setdefault(f"{channel}/{name}", []).append(product)
        means.append(
            np.stack([found.effects[c][:, :-1].mean((1, 2, 3)) for c in CHANNELS], 1)
        )  # (item, channel, part)
    check_items(len(means[0]))
    weights = paired_weights(inference, len(means[0]))
    by_layer = Variances({name: np.stack(each) for name, each in products.items()}, weights)
    counts = np.array(store.band_dimensions, float)
    tables = [
        _table(by_layer.mean((0,)), [np.mean(means, 0)], counts.mean(0, keepdims=True), inference),
        _table(by_layer, means, counts, inference),
    ]
    tables[0]["layer"] = "all"
    return pd.concat(tables, ignore_index=True)


def _table(
    variances: Variances, means: list[Array], counts: Array, inference: Inference
) -> pd.DataFrame:
    """Tabulate the parts of each channel, layer by layer."""
    tables = []
    for c, channel in enumerate(CHANNELS):
        names = [name for name in variances.products if name.startswith(f"{channel}/")]
        whole = np.sum([variances.pseudo[name] for name in names], 0)  # (item, layer, 1)
        for b, name in enumerate(names if channel in COUNTED else names[:-1]):
            effects = np.stack([mean[:, c, b] for mean in means], 1)  # (item, layer)
            low, high = studentized_means(
                effects, inference.weights(len(effects)), level=inference.level
            )
            part_low, part_high = variances.limits(name, inference.level)
            columns = {
                "layer": range(len(means)),
                "channel": channel,
                "band": name.partition("/")[2],
                "dimensions": counts[:, b] if b < counts.shape[1] else 0.0,
                "effect": effects.mean(0),
                "effect_low": low,
                "effect_high": high,
                "part": variances.estimate[name][:, 0],
                "part_low": part_low[:, 0],
                "part_high": part_high[:, 0],
            }
            pairs = zip(whole[..., 0].T, variances.pseudo[name][..., 0].T, strict=True)
            shares = pd.DataFrame([_share(*pair, inference.level) for pair in pairs])
            tables.append(pd.concat([pd.DataFrame(columns), shares], axis=1))
    return pd.concat(tables).sort_values("layer", kind="stable", ignore_index=True)


def _share(whole: Array, part: Array, level: float) -> dict[str, Any]:
    """Return the share of a part in the whole, from jackknife pseudo-values, with limits."""
    none = {"share": np.nan, "share_low": np.nan, "share_high": np.nan, "status": "undefined"}
    if whole.mean() <= 0:
        return none
    share = fieller_ratio(whole, part, quantity="ratio", level=level, estimand="share of a band")
    if share.unbounded:
        return none
    limits = {"share": share.estimate, "share_low": share.low, "share_high": share.high}
    return limits | {"status": "ok"}
