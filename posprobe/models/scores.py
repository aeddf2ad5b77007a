"""Scores read off one layer: key 0, fixed offsets, and rows of the mask counterfactual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posprobe.models.attention import Scoring, Visibility

__all__ = ["Observation", "observe_scores"]

NEAR = 8  # offsets up to this one come from products of blocks of
NEAR_BLOCK = 8  # queries with the keys around them, always as many: values keep their last bits


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
        are the same: there the nearest key beyond the others stands in for it.
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
    seen = {"normalizer": normalizer[:, :, first:].transpose(1, 2)}
    near = [offset for offset in observation.offsets if offset <= NEAR]
    sink, scores = _near_scores(rows, key, first, near, scoring)
    seen["sink_score"] = sink
    if observation.offsets:
        columns = dict(zip(near, scores.unbind(-1), strict=True))
        for offset in observation.offsets:
            if offset > NEAR:
                columns[offset] = _far_score(rows, key, first, offset, scoring)
        seen["offset_score"] = torch.stack([columns[o] for o in observation.offsets], -1)
    if observation.prefixes:
        seen |= _remasked(query, key, visibility, observation, scoring, cut)
    return seen


def _near_scores(
    rows: Tensor, key: Tensor, first: int, offsets: list[int], scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Scores with key 0, (batch, query, head), and with near keys, (batch, query, head, offset).

    One batched product: each block of queries meets the keys around it, and key 0 as a last one.
    """
    batch, n_heads, n_queries = rows.shape[:3]
    groups = key.shape[1]
    n_blocks = -(-n_queries // NEAR_BLOCK)
    missing = n_blocks * NEAR_BLOCK - n_queries
    ahead = first - NEAR
    keys = torch.nn.functional.pad(key[:, :, max(ahead, 0) :], (0, 0, max(-ahead, 0), missing))
    around = keys.unfold(2, NEAR_BLOCK + NEAR, NEAR_BLOCK).transpose(-1, -2)
    sink = key[:, :, None, :1].expand(-1, -1, n_blocks, -1, -1)
    blocks = torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    blocks = blocks.unflatten(1, (groups, -1)).unflatten(3, (n_blocks, NEAR_BLOCK))
    blocks = blocks.transpose(2, 3).flatten(3, 4)
    keys = torch.cat([around, sink], 3)
    product = scoring.matrix(blocks.flatten(0, 2).unsqueeze(1), keys.flatten(0, 2).unsqueeze(1))
    product = product.view(batch, groups, n_blocks, -1, NEAR_BLOCK, NEAR_BLOCK + NEAR + 1)

    def by_query(scores: Tensor) -> Tensor:
        in_order = scores.permute(0, 2, 4, 1, 3).reshape(batch, -1, n_heads)
        return in_order[:, :n_queries]

    near = product.new_empty((batch, n_queries, n_heads, len(offsets)))
    for column, offset in enumerate(offsets):
        near[..., column] = by_query(product.diagonal(NEAR - offset, -2, -1))
        near[:, : max(offset - first, 0), :, column] = torch.nan
    return by_query(product[..., -1]), near


def _far_score(rows: Tensor, key: Tensor, first: int, offset: int, scoring: Scoring) -> Tensor:
    """Score of each query with the key `offset` tokens before it: (batch, query, head)."""
    n_queries, start = rows.shape[2], max(offset - first, 0)
    wide = torch.promote_types(rows.dtype, torch.float32)
    scores = rows.new_full((rows.shape[0], n_queries, rows.shape[1]), torch.nan, dtype=wide)
    if start < n_queries:
        keys = key[:, :, first + start - offset : first + n_queries - offset]
        scores[:, start:] = scoring.paired(rows[:, :, start:], keys).transpose(1, 2)
    return scores


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
    Prefix by prefix, the keys that the next longer one adds are the same for all rows: the sums
    grow, and each score is read once.
    """
    window, n_keys = observation.window, query.shape[2]
    own_prefix = n_keys - window
    limit = n_keys if visibility.window is None else visibility.window
    low = max(0, own_prefix - limit + 1)
    rows = query[:, :, own_prefix:]
    row = torch.arange(window, device=query.device)
    sink = scoring.matrix(rows, key[:, :, :1]).squeeze(-1)
    scores = scoring.matrix(rows, key[:, :, low:])
    masked = own_prefix if visibility.window is None else low
    index = torch.arange(masked, n_keys, device=query.device)
    hidden = ~visibility.mask(own_prefix + row, index)
    scores[..., masked - low :].masked_fill_(hidden, -torch.inf)
    shape = (query.shape[0], len(observation.prefixes), window, query.shape[1])
    whole, body = scores.new_full(shape, torch.nan), scores.new_full(shape, torch.nan)
    near, stop = scores.new_full(scores.shape[:-1], -torch.inf), n_keys
    for column in sorted(range(shape[1]), key=observation.prefixes.__getitem__):
        prefix = observation.prefixes[column]
        if prefix > own_prefix:
            break
        ahead = prefix if visibility.causal else own_prefix
        start = max(own_prefix - ahead + 1, low)
        if start < stop:
            added = scores[..., start - low : stop - low].logsumexp(-1)
            near, stop = torch.logaddexp(near, added), start
        part = scoring.with_sink_logit(near)
        # beyond `low`, where no row sees it, any column will do
        apart = observation.first_is_apart
        last = sink if apart else scores[..., max(own_prefix - ahead - low, 0)]
        last = last.masked_fill(ahead + row >= limit, -torch.inf)
        last[:, cut] = -torch.inf
        body[:, column] = part.transpose(1, 2)
        whole[:, column] = torch.logaddexp(part, last).transpose(1, 2)
    return {"remasked_normalizer": whole, "remasked_body": body}
