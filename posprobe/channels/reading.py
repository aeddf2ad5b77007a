"""From a stored file to position effects: T, M, R and S of one layer, item by item."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from posprobe.channels.effects import Array, ChannelEffects
from posprobe.errors import DesignError
from posprobe.store import ActivationStore

__all__ = ["channel_effects", "cut_heads", "early_limit", "score_shift", "why_not_split"]

# The items of a block: the scores of a layer are never in memory as a whole.
BLOCK_ITEMS = 64
REQUIRED = ("normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body")


def early_limit(store: ActivationStore) -> int:
    """Early queries are those behind a prefix of at most an eighth of the longest sequence."""
    limit = store.length // 8
    return max([p for p in store.prefixes if p <= limit], default=store.prefixes[0])


def cut_heads(store: ActivationStore, layer: int) -> NDArray[np.bool_]:
    """Heads of a layer from which an intervention hides key 0, as the file says: (H,)."""
    hidden = np.zeros(store.n_heads, dtype=bool)
    for change in store.header.interventions:
        heads = change.get("cut_sink") or []
        if heads == "all":
            hidden[:] = True
        else:
            hidden[[head for at, head in heads if at == layer]] = True
    return hidden


def why_not_split(store: ActivationStore) -> str | None:
    """Why the effects of a file cannot be split into two channels; None where they can.

    Either the file lacks a score, or scores of its model move with position by themselves: then
    T = M + R + P has a third part P, which T - M would count as the residual channel.
    """
    missing = [name for name in REQUIRED if name not in store.header.quantities]
    if missing:
        return f"has no {missing[0]!r}; capture it with all scores"
    if store.design == "shifted" and not _is_crossed(store):
        return (
            "does not have one sequence of each item behind each of its prefixes (data sets /item "
            "and /prefix_length); capture it again"
        )
    if (own := store.own_position) is not None:
        return (
            "cannot be split into two channels: scores move with position by themselves (from "
            f"layer {own['layer']} on, by up to {own['change']:.3g} nats), which is a third channel"
        )
    return None


def _is_crossed(store: ActivationStore) -> bool:
    """Whether every item has one sequence behind every prefix, and no more."""
    found = np.unique(np.stack([store.item, store.prefix_length], 1), axis=0)
    crossed = np.array([*itertools.product(np.unique(store.item), sorted(store.prefixes))])
    return len(found) == store.n_sequences and np.array_equal(found, crossed)


def channel_effects(
    store: ActivationStore,
    layer: int,
    *,
    without_sink: bool = False,
    same_rows: bool = False,
    max_units: int | None = None,
) -> ChannelEffects:
    """T, M and R of one layer, from a stored file.

    In the shifted design each item is one window behind several prefixes; in the others the same
    positions are read off one sequence, so content differs between them.

    Parameters
    ----------
    store : ActivationStore
    layer : int
    without_sink : bool
        Leave key 0 out of every denominator: effects on attention among the other keys, which
        hiding key 0 from a head does not change by itself. Shifted design only.
    same_rows : bool
        Average every offset over the rows of the largest, so offsets can be compared: M is
        then the same at all of them.
    max_units : int or None
        More items than these are pooled into so many units, each the mean of neighbouring items,
        and memory does not grow beyond that.

    Returns
    -------
    ChannelEffects
        Rows of the window nearer to its start than an offset are left out for that offset, so
        the key is inside the window too. Offsets that a sliding window hides are left out.

    Raises
    ------
    DesignError
        If the file lacks a quantity that the split needs, or scores of its model move with position
        by themselves, which would be read as the residual channel.
    """
    reason = why_not_split(store)
    if reason is not None:
        raise DesignError(f"{store.path.name} {reason}")
    n_items = store.n_items
    pooled = max_units is not None and n_items > max_units
    if max_units is not None and n_items > max_units:
        edges = [unit * n_items // max_units for unit in range(max_units + 1)]
    else:
        edges = [*range(0, n_items, BLOCK_ITEMS), n_items]
    blocks = []
    for items in map(slice, edges[:-1], edges[1:]):
        block = _effects_of(store, layer, items, without_sink, same_rows)
        store.release()
        blocks.append(block.mean() if pooled else block)
    total, mask, residual, sink = (
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("total", "mask", "residual", "sink")
    )
    return ChannelEffects(blocks[0].positions, total, mask, residual, sink, blocks[0].offsets)


def score_shift(store: ActivationStore, layer: int) -> Array:
    r"""How far scores at fixed offsets move with the window, relative to their spread.

    .. math::

        \max_{p, i, h, d} \frac{|s_{i, i - d}(p) - s_{i, i - d}(\mathrm{ref})|}
                              {\mathrm{sd}\, s_{i, i - d}(\mathrm{ref})}

    for each item, over rows i of the window whose key is inside it, heads h and offsets d. At layer
    0, where queries and keys are those of the tokens, it is what the position encoding does to a
    pair of tokens that moves as one: nothing, but for rounding, if it knows offsets alone.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design.
    layer : int

    Returns
    -------
    ndarray of shape (N,)
        Without unit; 0 where all scores are the same. No mask enters here.

    Raises
    ------
    DesignError
        If the file is not of the shifted design, or has no offset inside the window.
    """
    inside = np.asarray(store.offsets) <= np.arange(store.window)[:, None]
    if store.design != "shifted" or not inside.any():
        raise DesignError(
            f"{store.path.name} has no pair of tokens that moves as one; capture it with --design "
            "shifted and offsets inside the window"
        )
    row, offset = np.nonzero(inside)
    found = []
    for start in range(0, store.n_items, BLOCK_ITEMS):
        items = slice(start, start + BLOCK_ITEMS)
        scores = _by_item(store, "offset_score", layer, items)[:, :, row, :, offset]  # pairs first
        store.release()
        spread = scores[:, :, -1].std((0, 2))
        moved = np.abs(scores - scores[:, :, -1:]).max((0, 2, 3))
        found.append(moved / np.where(spread > 0, spread, 1.0))
    return np.concatenate(found)


def _effects_of(
    store: ActivationStore, layer: int, items: slice, without_sink: bool, same_rows: bool
) -> ChannelEffects:
    """Effects of some items, in the order of their numbers."""
    normalizer, sink_score, offset_score = (
        _by_item(store, name, layer, items) for name in REQUIRED[:3]
    )
    remasked, body = (_late_rows(store, name, layer, items) for name in REQUIRED[3:])
    seen = _sink_is_seen(store, layer)
    if without_sink:
        normalizer, remasked, seen = _own_body(store, layer, items), body, np.zeros_like(seen)
    limit = store.layer_window[layer] or np.inf
    kept = [d for d, offset in enumerate(store.offsets) if offset < min(limit, store.window)]
    if not kept:
        raise DesignError(
            f"layer {layer}: none of the offsets {store.offsets} is below "
            f"{min(limit, store.window)}, the window; capture with smaller offsets"
        )
    local_mean = _local_mean(offset_score[..., kept], np.asarray(store.offsets)[kept])
    relative_sink = sink_score - local_mean
    moved_sink = np.logaddexp(body, local_mean[:, -1:] + relative_sink)
    sink_part = np.where(seen, -(moved_sink - remasked), 0.0)
    mask_part = -(remasked - remasked[:, -1:])
    parts: dict[str, list[Array]] = {"total": [], "mask": [], "sink": []}
    for d in kept:
        rows = slice(store.offsets[kept[-1] if same_rows else d], None)
        weight = offset_score[:, :, rows, :, d] - normalizer[:, :, rows]
        parts["total"].append((weight - weight[:, -1:]).mean(2))
        parts["mask"].append(mask_part[:, :, rows].mean(2))
        parts["sink"].append(sink_part[:, :, rows].mean(2))
    total, mask, sink = (np.stack(parts[name], -1) for name in ("total", "mask", "sink"))
    offsets = tuple(store.offsets[d] for d in kept)
    return ChannelEffects(np.asarray(store.prefixes), total, mask, total - mask, sink, offsets)


def _local_mean(offset_score: Array, offsets: NDArray[np.int64]) -> Array:
    """Mean score over the offsets whose key is inside the window too: (item, prefix, row, head)."""
    inside = offsets <= np.arange(offset_score.shape[2])[:, None]
    share = inside / np.maximum(inside.sum(1, keepdims=True), 1)
    return (np.nan_to_num(offset_score) * share[None, None, :, None]).sum(-1)


def _by_item(store: ActivationStore, quantity: str, layer: int, items: slice) -> Array:
    """Rows of the window at every position: (item, prefix, row, head, ...), float64."""
    values = store.read(quantity, layer)
    if store.design == "shifted":
        order = np.lexsort((store.prefix_length, store.item)).reshape(-1, len(store.prefixes))
        return (
            values[order[items].ravel()]
            .reshape(-1, len(store.prefixes), *values.shape[1:])
            .astype(float)
        )
    bands = [values[items, prefix : prefix + store.window] for prefix in store.prefixes]
    return np.stack(bands, 1).astype(float)


def _late_rows(store: ActivationStore, quantity: str, layer: int, items: slice) -> Array:
    """A re-masked quantity of the latest row of each item: (item, prefix, row, head), float64."""
    values = store.read(quantity, layer)
    if store.design == "shifted":
        late = np.flatnonzero(store.prefix_length == store.prefixes[-1])
        return values[late[np.argsort(store.item[late])][items]].astype(float)
    return values[items].astype(float)


def _sink_is_seen(store: ActivationStore, layer: int) -> NDArray[np.bool_]:
    """Whether each head sees key 0 at each position: (prefix, row, head)."""
    limit = store.layer_window[layer] or np.inf
    shown = np.add.outer(store.prefixes, np.arange(store.window)) < limit
    return shown[:, :, None] & ~cut_heads(store, layer)


def _own_body(store: ActivationStore, layer: int, items: slice) -> Array:
    """Normalizer without key 0 of every row as it is: (item, prefix, row, head), float64."""
    if store.design != "shifted":
        raise DesignError(
            f"{store.path.name} is of design {store.design!r}, whose normalizers without key 0 are "
            "kept for late rows only; capture it with --design shifted"
        )
    values = store.read("remasked_body", layer)
    own = np.searchsorted(store.prefixes, store.prefix_length)
    order = np.lexsort((store.prefix_length, store.item)).reshape(-1, len(store.prefixes))
    rows = order[items].ravel()
    values = values[rows, own[rows]]
    return values.reshape(-1, len(store.prefixes), *values.shape[1:]).astype(float)
