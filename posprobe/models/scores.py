"""Scores read off one layer: key 0, fixed offsets, and rows of the mask counterfactual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from posprobe.models.attention import Scoring, Visibility

__all__ = ["Observation", "observe_scores"]

# Scores at offsets up to NEAR come from one product per block of NEAR_BLOCK queries.
NEAR = 8
# Every block has this size, whatever the length and the batch: the order of summation in a product
# depends on its shape, and a resumed capture must repeat the last bits of a score.
NEAR_BLOCK = 8


@dataclass(frozen=True)
class Observation:
    """What is read off the scores of every layer.

    Parameters
    ----------
    n_queries : int
        The last `n_queries` rows are recorded.
    offsets : tuple of int
        Distances i - j at which scores are recorded.
    prefixes, window : tuple of int, int
        Mask counterfactual: the last `window` rows, each seeing only what it would see behind a
        prefix of ``prefixes[p]`` tokens. No prefixes: not computed.
    first_is_apart : bool
        Whether key 0 holds a token of its own, which every early query sees. False where all tokens
        are the same: there the nearest key beyond the others is used for it.
    """

    n_queries: int
    offsets: tuple[int, ...] = ()
    prefixes: tuple[int, ...] = ()
    window: int = 0
    first_is_apart: bool = True


def observe_scores(
    query: Tensor,
    key: Tensor,
    normalizer: Tensor,
    visibility: Visibility,
    observation: Observation,
    scoring: Scoring,
    cut: list[int],
) -> dict[str, Tensor]:
    """What is recorded of one layer: the last rows of z, sink, offset and re-masked scores.

    Parameters
    ----------
    query, key : Tensor, shapes (batch, head, query, d) and (batch, key-value head, key, d)
    normalizer : Tensor, shape (batch, head, query)
    visibility : Visibility
    observation : Observation
    scoring : Scoring
    cut : list of int
        Heads from which key 0 is hidden.

    Returns
    -------
    dict of str to Tensor
        `normalizer`, `sink_score`: (batch, query, head); `offset_score`: (batch, query, head,
        offset), NaN where there is no such key; `remasked_normalizer`, `remasked_body`: (batch,
        prefix, row, head). Nats.
    """
    first = query.shape[2] - observation.n_queries
    rows = query[:, :, first:]
    near = [offset for offset in observation.offsets if offset <= NEAR]
    far = [offset for offset in observation.offsets if offset > NEAR]
    sink, by_offset = _near_scores(rows, key, first, near, scoring)
    by_offset |= {offset: _far_scores(rows, key, first, offset, scoring) for offset in far}
    seen = {"normalizer": normalizer[:, :, first:].transpose(1, 2), "sink_score": sink}
    if observation.offsets:
        seen["offset_score"] = torch.stack([by_offset[o] for o in observation.offsets], -1)
    if observation.prefixes:
        seen |= _remasked(query, key, visibility, observation, scoring, cut)
    return seen


def _near_scores(
    rows: Tensor, key: Tensor, first: int, offsets: Iterable[int], scoring: Scoring
) -> tuple[Tensor, dict[int, Tensor]]:
    """Scores with key 0 and with near keys, by one product of each block of queries with its keys.

    Query i of a block meets key i - offset on a diagonal of the product.

    Parameters
    ----------
    rows : Tensor, shape (batch, head, query, d)
        The last queries of the sequence.
    key : Tensor, shape (batch, key-value head, key, d)
    first : int
        Position of the first of these queries.
    offsets : iterable of int
        From 0 to `NEAR`.
    scoring : Scoring

    Returns
    -------
    sink : Tensor, shape (batch, query, head)
        Scores with key 0.
    near : dict of int to Tensor, shape (batch, query, head)
        Scores with the key `offset` tokens before each query, NaN where there is none.
    """
    n_queries, groups = rows.shape[2], key.shape[1]
    queries = _query_blocks(rows, groups)
    keys = _key_windows(key, first, n_blocks=queries.shape[2])
    # each block of each key-value head is a head of its own, with all its queries side by side
    product = scoring.matrix(queries.flatten(3, 4).flatten(1, 2), keys.flatten(1, 2))
    product = product.view(*queries.shape[:-1], keys.shape[3])  # (b, g, block, r, i, window)

    def by_query(scores: Tensor) -> Tensor:
        """(b, g, block, r, i) to (batch, query, head), without the queries of the padding."""
        return scores.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(1, 2)[:, :n_queries]

    near = {}
    for offset in offsets:
        scores = by_query(product.diagonal(NEAR - offset, -2, -1))
        near[offset] = _nan_before(scores, offset - first)
    return by_query(product[..., -1]), near


def _query_blocks(rows: Tensor, groups: int) -> Tensor:
    """Queries (b, g * r, query, d) in blocks (b, g, block, r, i, d) of NEAR_BLOCK, the last padded.

    b batch, g key-value head, r query head that shares it, i query of the block.
    """
    missing = -rows.shape[2] % NEAR_BLOCK
    padded = pad(rows, (0, 0, 0, missing)) if missing else rows
    blocks = padded.unflatten(2, (-1, NEAR_BLOCK)).unflatten(1, (groups, -1))
    return blocks.transpose(2, 3)  # (b, g, r, block, i, d) before


def _key_windows(key: Tensor, first: int, n_blocks: int) -> Tensor:
    """The keys that each block of queries meets: (b, g, block, NEAR + NEAR_BLOCK + 1, d).

    Those from `NEAR` before the block's first query to its last one, and key 0 after them. Keys
    before and after the sequence are zeros: no score with them is read.
    """
    start, stop = first - NEAR, first + n_blocks * NEAR_BLOCK
    around = pad(key[:, :, max(start, 0) :], (0, 0, max(-start, 0), stop - key.shape[2]))
    windows = around.unfold(2, NEAR + NEAR_BLOCK, NEAR_BLOCK)  # (b, g, block, d, window)
    sink = key[:, :, None, :1].expand(-1, -1, n_blocks, -1, -1)  # (b, g, block, 1, d)
    return torch.cat([windows.transpose(-1, -2), sink], 3)


def _nan_before(scores: Tensor, n: int) -> Tensor:
    """Scores (batch, query, head) with NaN for the first `n` queries; n may be below 1."""
    early = torch.arange(scores.shape[1], device=scores.device) < n
    return scores.masked_fill(early[:, None], torch.nan)


def _far_scores(rows: Tensor, key: Tensor, first: int, offset: int, scoring: Scoring) -> Tensor:
    """Score of each query with the key `offset` tokens before it: (batch, query, head)."""
    n_queries = rows.shape[2]
    missing = min(max(offset - first, 0), n_queries)  # early queries that have no such key
    start, stop = first + missing - offset, first + n_queries - offset
    scores = scoring.paired(rows[:, :, missing:], key[:, :, start:stop])
    return pad(scores, (missing, 0), value=torch.nan).transpose(1, 2)


@dataclass(frozen=True)
class _LateScores:
    """Scores of the last rows, whose mask shrinks to that of an earlier position.

    Attributes
    ----------
    own_prefix : int
        Number of tokens before these rows.
    reach : int
        Keys at this distance or more are hidden: the window, or the number of keys.
    low : int
        The first key that any of these rows sees.
    near : Tensor, shape (batch, head, row, key)
        Scores with the keys from `low` on, -inf where the row does not see the key.
    sink : Tensor, shape (batch, head, row)
        Scores with key 0, seen or not.
    """

    own_prefix: int
    reach: int
    low: int
    near: Tensor
    sink: Tensor


def _late_scores(
    query: Tensor, key: Tensor, visibility: Visibility, n_rows: int, scoring: Scoring
) -> _LateScores:
    """Scores of the last `n_rows` rows under their own mask."""
    n_keys = key.shape[2]
    own_prefix = n_keys - n_rows
    reach = n_keys if visibility.window is None else visibility.window
    low, _ = visibility.key_range(own_prefix, n_keys, n_keys)
    rows = query[:, :, own_prefix:]
    sink = scoring.matrix(rows, key[:, :, :1]).squeeze(-1)
    near = scoring.matrix(rows, key[:, :, low:])
    # without a window every row sees all keys before the first one
    masked = own_prefix if visibility.window is None else low
    index = torch.arange(n_keys, device=query.device)
    hidden = ~visibility.mask(index[own_prefix:], index[masked:])  # (row, key)
    near[..., masked - low :].masked_fill_(hidden, -torch.inf)
    return _LateScores(own_prefix, reach, low, near, sink)


def _remasked(
    query: Tensor,
    key: Tensor,
    visibility: Visibility,
    observation: Observation,
    scoring: Scoring,
    cut: list[int],
) -> dict[str, Tensor]:
    """Mask counterfactual: late rows whose mask shrinks to that of an earlier position.

    A row whose mask is that of position p sees its p nearest keys (itself included; fewer under a
    window) and key 0 where the mask of position p shows it. Without a causal mask nothing shrinks.
    Shapes are (batch, prefix, row, head); NaN behind a prefix longer than the rows' own.
    """
    late = _late_scores(query, key, visibility, observation.window, scoring)
    shown = {p: p if visibility.causal else late.own_prefix for p in observation.prefixes}
    nearest = _sums_of_nearest(late, shown.values())
    heads = torch.tensor(cut, dtype=torch.long, device=query.device)
    unknown = torch.full_like(late.sink, torch.nan)
    whole, body = [], []  # per prefix: (batch, head, row)
    for prefix in observation.prefixes:
        if prefix > late.own_prefix:
            whole.append(unknown)
            body.append(unknown)
            continue
        first = _key_0(late, shown[prefix], observation.first_is_apart)
        body.append(scoring.with_sink_logit(nearest[shown[prefix]]))
        whole.append(torch.logaddexp(body[-1], first.index_fill(1, heads, -torch.inf)))
    return {"remasked_normalizer": _by_prefix(whole), "remasked_body": _by_prefix(body)}


def _sums_of_nearest(late: _LateScores, prefixes: Iterable[int]) -> dict[int, Tensor]:
    """Log-sum-exp over the nearest keys of each row, by prefix: (batch, head, row).

    Behind a prefix of p tokens row r sees its p + r nearest keys, itself included, and key 0, which
    is not in this sum. A longer prefix adds the same keys for all rows, so the sums grow with it
    and each score is read once.
    """
    total = torch.full_like(late.sink, -torch.inf)
    sums, stop = {}, late.near.shape[-1]
    for prefix in sorted(set(prefixes)):
        start = max(late.own_prefix - prefix + 1 - late.low, 0)
        if start < stop:
            total = torch.logaddexp(total, late.near[..., start:stop].logsumexp(-1))
            stop = start
        sums[prefix] = total
    return sums


def _key_0(late: _LateScores, prefix: int, apart: bool) -> Tensor:
    """Scores of what takes the place of key 0 behind a prefix: (batch, head, row).

    Row r would see it at distance prefix + r, so -inf where that is out of reach. It is key 0
    itself, or, if that one is not `apart`, the key at this distance.
    """
    if prefix >= late.reach:
        return torch.full_like(late.sink, -torch.inf)
    scores = late.sink if apart else late.near[..., late.own_prefix - prefix - late.low]
    distance = prefix + torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill(distance >= late.reach, -torch.inf)


def _by_prefix(parts: list[Tensor]) -> Tensor:
    """One (batch, head, row) per prefix, as (batch, prefix, row, head)."""
    return torch.stack([part.transpose(1, 2) for part in parts], 1)
