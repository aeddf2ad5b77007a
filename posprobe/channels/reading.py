"""Read the position effects T, M, R and S of one layer from a stored file."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from posprobe.channels.effects import Array, ChannelEffects
from posprobe.errors import DesignError
from posprobe.store import ActivationStore

__all__ = [
    "by_item",
    "channel_effects",
    "cut_heads",
    "early_limit",
    "item_blocks",
    "kept_offsets",
    "late_rows",
    "local_mean",
    "own_rows",
    "score_shift",
    "sink_is_seen",
    "why_not_split",
]

# Number of items read at once, so the scores of a whole layer are never in memory together.
BLOCK_ITEMS = 64
REQUIRED = ("normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body")


def early_limit(store: ActivationStore) -> int:
    """Return the longest prefix of early queries.

    Early queries are behind prefixes of at most an eighth of the longest sequence. If there is no
    such prefix, the shortest one counts as early.

    Parameters
    ----------
    store : ActivationStore
        A capture with prefixes.

    Returns
    -------
    int
        In tokens.
    """
    limit = store.length // 8
    return max([p for p in store.prefixes if p <= limit], default=store.prefixes[0])


def cut_heads(store: ActivationStore, layer: int) -> NDArray[np.bool_]:
    """Return which heads of a layer have key 0 hidden by an intervention.

    Parameters
    ----------
    store : ActivationStore
        A capture, whose header lists its interventions.
    layer : int
        Index of the layer.

    Returns
    -------
    ndarray of bool of shape (H,)
    """
    hidden = np.zeros(store.n_heads, dtype=bool)
    for change in store.header.interventions:
        heads = change.get("cut_sink") or []
        if heads == "all":
            hidden[:] = True
        else:
            hidden[[head for at, head in heads if at == layer]] = True
    return hidden


def why_not_split(store: ActivationStore) -> str | None:
    """Explain why the position effects of a file cannot be split into two channels.

    Either the file lacks a quantity or a sequence, or scores of its model move with position by
    themselves. In the latter case T = M + R + P has a third part P, which T - M would count as
    the residual channel.

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
    """Return whether every item has exactly one sequence behind every prefix."""
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
    """Compute T, M, R and S of one layer from a stored file; the equations are in `effects`.

    In the shifted design, an item is one window behind several prefixes. In the other designs an
    item is a sequence, and its windows at different positions have different content.

    Parameters
    ----------
    store : ActivationStore
        A capture with all scores.
    layer : int
        Index of the layer.
    without_sink : bool
        Leave key 0 out of every denominator. The effects are then those on attention among the
        other keys, which hiding key 0 from a head does not change by itself. Only the shifted
        design allows this.
    same_rows : bool
        Average every offset over the rows of the largest offset, so offsets can be compared. M is
        then the same at all offsets.
    max_units : int or None
        If there are more items, pool them into this many units to bound memory. Each unit is the
        mean of neighbouring items.

    Returns
    -------
    ChannelEffects
        Each offset is averaged over the rows of the window whose key at that offset lies in the
        window too. Offsets that a sliding window hides are left out.

    Raises
    ------
    DesignError
        If `why_not_split` gives a reason, if no offset lies inside the window, or if
        `without_sink` is asked of another design than the shifted one.
    """
    reason = why_not_split(store)
    if reason is not None:
        raise DesignError(f"{store.path.name} {reason}")
    pooled = max_units is not None and store.n_items > max_units
    blocks = []
    for items in item_blocks(store.n_items, max_units):
        block = _effects_of(store, layer, items, without_sink, same_rows)
        blocks.append(block.mean() if pooled else block)
    total, mask, residual, sink = (
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("total", "mask", "residual", "sink")
    )
    return ChannelEffects(blocks[0].positions, total, mask, residual, sink, blocks[0].offsets)


def score_shift(store: ActivationStore, layer: int) -> Array:
    r"""Compute how far scores at fixed offsets move with the window, relative to their spread.

    For each item,

    .. math::

        \max_{p, i, h, d} \frac{|s_{i, i - d}(p) - s_{i, i - d}(\mathrm{ref})|}
                              {\mathrm{sd}\, s_{i, i - d}(\mathrm{ref})}

    over positions p, heads h, offsets d and those rows i of the window whose key lies in it; the
    standard deviation is over rows, heads and offsets. At layer 0 queries and keys depend on their
    tokens only, so this measures what the position encoding does to a pair of tokens that moves
    together. The result is 0, up to rounding, if the encoding depends on offsets alone. Masks do
    not affect it.

    Parameters
    ----------
    store : ActivationStore
        A capture of the shifted design.
    layer : int
        Index of the layer.

    Returns
    -------
    ndarray of shape (N,)
        One value for each item, without unit. It is 0 if all scores are the same.

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
        scores = by_item(store, "offset_score", layer, items)[:, :, row, :, offset]  # pairs first
        spread = scores[:, :, -1].std((0, 2))
        moved = np.abs(scores - scores[:, :, -1:]).max((0, 2, 3))
        found.append(moved / np.where(spread > 0, spread, 1.0))
    return np.concatenate(found)


def _effects_of(
    store: ActivationStore, layer: int, items: slice, without_sink: bool, same_rows: bool
) -> ChannelEffects:
    """Compute the effects of some items, in the order of their numbers."""
    normalizer, sink_score, offset_score = (
        by_item(store, name, layer, items) for name in REQUIRED[:3]
    )
    remasked, body = (late_rows(store, name, layer, items) for name in REQUIRED[3:])
    seen = sink_is_seen(store, layer)
    if without_sink:
        normalizer, remasked, seen = _own_body(store, layer, items), body, np.zeros_like(seen)
    kept = kept_offsets(store, layer)
    local = local_mean(offset_score[..., kept], np.asarray(store.offsets)[kept])
    relative_sink = sink_score - local
    moved_sink = np.logaddexp(body, local[:, -1:] + relative_sink)
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


def kept_offsets(store: ActivationStore, layer: int) -> list[int]:
    """Return which offsets of a file have a key inside the window that the layer sees."""
    limit = min(store.layer_window[layer] or np.inf, store.window)
    kept = [d for d, offset in enumerate(store.offsets) if offset < limit]
    if not kept:
        raise DesignError(
            f"layer {layer}: none of the offsets {store.offsets} is below {limit}, the window; "
            "capture with smaller offsets"
        )
    return kept


def item_blocks(n_items: int, max_units: int | None) -> list[slice]:
    """Cut items into blocks to read at once: those of `max_units` units, if there are more."""
    if max_units is not None and n_items > max_units:
        edges = [unit * n_items // max_units for unit in range(max_units + 1)]
    else:
        edges = [*range(0, n_items, BLOCK_ITEMS), n_items]
    return [*map(slice, edges[:-1], edges[1:])]


def local_mean(offset_score: Array, offsets: NDArray[np.int64]) -> Array:
    """Average scores over the offsets whose key lies in the window: (item, prefix, row, head)."""
    inside = offsets <= np.arange(offset_score.shape[2])[:, None]
    share = inside / np.maximum(inside.sum(1, keepdims=True), 1)
    return (np.nan_to_num(offset_score) * share[None, None, :, None]).sum(-1)


def by_item(store: ActivationStore, quantity: str, layer: int, items: slice) -> Array:
    """Read the rows of the window at every position, as float64 (item, prefix, row, head, ...)."""
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


def late_rows(store: ActivationStore, quantity: str, layer: int, items: slice) -> Array:
    """Read a re-masked quantity of the late rows, as float64 (item, prefix, row, head)."""
    values = store.read(quantity, layer)
    if store.design == "shifted":
        late = np.flatnonzero(store.prefix_length == store.prefixes[-1])
        return values[late[np.argsort(store.item[late])][items]].astype(float)
    return values[items].astype(float)


def sink_is_seen(store: ActivationStore, layer: int) -> NDArray[np.bool_]:
    """Return whether each head sees key 0 at each position: (prefix, row, head)."""
    limit = store.layer_window[layer] or np.inf
    shown = np.add.outer(store.prefixes, np.arange(store.window)) < limit
    return shown[:, :, None] & ~cut_heads(store, layer)


def own_rows(store: ActivationStore, quantity: str, layer: int, items: slice) -> Array:
    """Read a re-masked quantity under each row's own mask, as float64 (item, prefix, row, ...)."""
    values = store.read(quantity, layer)
    own = np.searchsorted(store.prefixes, store.prefix_length)
    order = np.lexsort((store.prefix_length, store.item)).reshape(-1, len(store.prefixes))
    rows = order[items].ravel()
    values = values[rows, own[rows]]
    return values.reshape(-1, len(store.prefixes), *values.shape[1:]).astype(float)


def _own_body(store: ActivationStore, layer: int, items: slice) -> Array:
    """Read each row's normalizer without key 0, under its own mask."""
    if store.design != "shifted":
        raise DesignError(
            f"{store.path.name} is of design {store.design!r}, whose normalizers without key 0 are "
            "kept for late rows only; capture it with --design shifted"
        )
    return own_rows(store, "remasked_body", layer, items)
