"""Record the scores of one layer: key 0, fixed offsets, and the mask counterfactual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from posprobe.models.attention import Scoring, Visibility

__all__ = ["LateScores", "Observation", "fixed_scores", "late_scores", "observe_scores", "remasked"]

# Scores at offsets up to NEAR come from one product per block of NEAR_BLOCK queries.
NEAR = 8
# Every block has this size, whatever the length and the batch. The order of summation in a product
# depends on its shape, and a resumed capture must reproduce the last bits of a score.
NEAR_BLOCK = 8


@dataclass(frozen=True)
class Observation:
    """What is recorded of the scores of every layer.

    Parameters
    ----------
    n_queries : int
        Number of rows to record, from the end of the sequence.
    offsets : tuple of int, default=()
        Distances i - j, in tokens, at which scores are recorded.
    prefixes : tuple of int, default=()
        Prefix lengths of the mask counterfactual, in tokens. For each of them, the last `window`
        rows see only what they would see behind a prefix of this length. By default the mask
        counterfactual is not computed.
    window : int, default=0
        Number of rows of the mask counterfactual, from the end of the sequence.
    first_is_apart : bool, default=True
        Whether key 0 has a token of its own, which every early query sees. If it is false, all
        tokens are the same, and the next nearest key takes the place of key 0.
    bands : tuple of tuple of tuple of int, default=()
        Dimensions of each band of each layer, in order (layer, band, dimension). By default nothing
        is split by band.
    """

    n_queries: int
    offsets: tuple[int, ...] = ()
    prefixes: tuple[int, ...] = ()
    window: int = 0
    first_is_apart: bool = True
    bands: tuple[tuple[tuple[int, ...], ...], ...] = ()


def observe_scores(
    query: Tensor,
    key: Tensor,
    normalizer: Tensor,
    visibility: Visibility,
    observation: Observation,
    scoring: Scoring,
    cut: list[int],
) -> dict[str, Tensor]:
    """Compute what is recorded of one layer.

    Parameters
    ----------
    query : Tensor, shape (batch, head, query, d)
        Queries, after rotary embedding and QK-norm.
    key : Tensor, shape (batch, key-value head, key, d)
        Keys, likewise.
    normalizer : Tensor, shape (batch, head, query)
        Log-normalizers of the layer, in nats.
    visibility : Visibility
        Keys that each query may attend to.
    observation : Observation
        What to record.
    scoring : Scoring
        How queries and keys become scores.
    cut : list of int
        Heads from which key 0 is hidden.

    Returns
    -------
    dict of str to Tensor
        In nats: ``normalizer`` and ``sink_score`` of shape (batch, query, head); if there are
        offsets, ``offset_score`` of shape (batch, query, head, offset), NaN where there is no such
        key; and if there are prefixes, ``remasked_normalizer`` and ``remasked_body`` of shape
        (batch, prefix, row, head), NaN behind prefixes that are longer than the rows' own.
    """
    first = query.shape[2] - observation.n_queries
    seen = {"normalizer": normalizer[:, :, first:].transpose(1, 2)}
    seen |= fixed_scores(query, key, observation, scoring)
    if observation.prefixes:
        late = late_scores(query, key, visibility, observation.window, scoring)
        seen |= remasked(late, visibility, observation, scoring, cut)
    return seen


def fixed_scores(
    query: Tensor, key: Tensor, observation: Observation, scoring: Scoring
) -> dict[str, Tensor]:
    """Compute ``sink_score`` and ``offset_score`` as in `observe_scores`."""
    first = query.shape[2] - observation.n_queries
    rows = query[:, :, first:]
    near = [offset for offset in observation.offsets if offset <= NEAR]
    far = [offset for offset in observation.offsets if offset > NEAR]
    sink, by_offset = _near_scores(rows, key, first, near, scoring)
    by_offset |= {offset: _far_scores(rows, key, first, offset, scoring) for offset in far}
    seen = {"sink_score": sink}
    if observation.offsets:
        seen["offset_score"] = torch.stack([by_offset[o] for o in observation.offsets], -1)
    return seen


def _near_scores(
    rows: Tensor, key: Tensor, first: int, offsets: Iterable[int], scoring: Scoring
) -> tuple[Tensor, dict[int, Tensor]]:
    """Compute scores with key 0 and with near keys by one product per block of queries.

    In the product of a block of queries with its keys, the scores of queries i with keys
    i - offset lie on a diagonal.

    Parameters
    ----------
    rows : Tensor, shape (batch, head, query, d)
        The last queries of the sequence.
    key : Tensor, shape (batch, key-value head, key, d)
        All keys of the sequence.
    first : int
        Position of the first of these queries.
    offsets : iterable of int
        Offsets from 0 to `NEAR`.
    scoring : Scoring
        How queries and keys become scores.

    Returns
    -------
    sink : Tensor, shape (batch, query, head)
        Scores with key 0, in nats.
    near : dict of int to Tensor, shape (batch, query, head)
        Scores with the key `offset` tokens before each query, NaN if there is no such key.
    """
    n_queries, groups = rows.shape[2], key.shape[1]
    queries = _query_blocks(rows, groups)
    keys = _key_windows(key, first, n_blocks=queries.shape[2])
    # treat each block of each key-value head as a head of its own
    product = scoring.matrix(queries.flatten(3, 4).flatten(1, 2), keys.flatten(1, 2))
    product = product.view(*queries.shape[:-1], keys.shape[3])  # (b, g, block, r, i, window)

    def by_query(scores: Tensor) -> Tensor:
        """Reshape (b, g, block, r, i) to (batch, query, head), and drop the padding."""
        return scores.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(1, 2)[:, :n_queries]

    near = {}
    for offset in offsets:
        scores = by_query(product.diagonal(NEAR - offset, -2, -1))
        near[offset] = _nan_before(scores, offset - first)
    return by_query(product[..., -1]), near


def _query_blocks(rows: Tensor, groups: int) -> Tensor:
    """Cut queries (b, g * r, query, d) into blocks (b, g, block, r, i, d), padding the last.

    The axes are b for the batch, g for key-value heads, r for the query heads that share one, and
    i for the `NEAR_BLOCK` queries of a block.
    """
    missing = -rows.shape[2] % NEAR_BLOCK
    padded = pad(rows, (0, 0, 0, missing)) if missing else rows
    blocks = padded.unflatten(2, (-1, NEAR_BLOCK)).unflatten(1, (groups, -1))
    return blocks.transpose(2, 3)  # (b, g, r, block, i, d) before


def _key_windows(key: Tensor, first: int, n_blocks: int) -> Tensor:
    """Collect the keys of each block of queries: (b, g, block, NEAR + NEAR_BLOCK + 1, d).

    These are the keys from `NEAR` tokens before the block's first query up to its last query,
    followed by key 0. Keys beyond the ends of the sequence are zeros, and scores with them are not
    used.
    """
    start, stop = first - NEAR, first + n_blocks * NEAR_BLOCK
    around = pad(key[:, :, max(start, 0) :], (0, 0, max(-start, 0), stop - key.shape[2]))
    windows = around.unfold(2, NEAR + NEAR_BLOCK, NEAR_BLOCK)  # (b, g, block, d, window)
    sink = key[:, :, None, :1].expand(-1, -1, n_blocks, -1, -1)  # (b, g, block, 1, d)
    return torch.cat([windows.transpose(-1, -2), sink], 3)


def _nan_before(scores: Tensor, n: int) -> Tensor:
    """Set scores (batch, query, head) of the first `n` queries to NaN; n may be below 1."""
    early = torch.arange(scores.shape[1], device=scores.device) < n
    return scores.masked_fill(early[:, None], torch.nan)


def _far_scores(rows: Tensor, key: Tensor, first: int, offset: int, scoring: Scoring) -> Tensor:
    """Compute the score of each query with the key `offset` tokens before it.

    The result has shape (batch, query, head) and is NaN if there is no such key.
    """
    n_queries = rows.shape[2]
    missing = min(max(offset - first, 0), n_queries)  # early queries that have no such key
    start, stop = first + missing - offset, first + n_queries - offset
    scores = scoring.paired(rows[:, :, missing:], key[:, :, start:stop])
    return pad(scores, (missing, 0), value=torch.nan).transpose(1, 2)


@dataclass(frozen=True)
class LateScores:
    """Scores of the last rows, whose mask will be reduced to that of an earlier position.

    Attributes
    ----------
    own_prefix : int
        Number of tokens before these rows.
    reach : int
        Least distance at which keys are hidden: the window, or else the number of keys.
    low : int
        The first key that at least one of these rows sees.
    near : Tensor, shape (batch, head, row, key)
        Scores with the keys from `low` on, -inf where the row does not see the key.
    sink : Tensor, shape (batch, head, row)
        Scores with key 0, whether or not the row sees it.
    """

    own_prefix: int
    reach: int
    low: int
    near: Tensor
    sink: Tensor

    def plus(self, other: LateScores) -> LateScores:
        """Add the scores of the same rows that other dimensions of the heads give."""
        return replace(self, near=self.near + other.near, sink=self.sink + other.sink)


def late_scores(
    query: Tensor, key: Tensor, visibility: Visibility, n_rows: int, scoring: Scoring
) -> LateScores:
    """Compute the scores of the last `n_rows` rows under their own mask."""
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
    return LateScores(own_prefix, reach, low, near, sink)


def remasked(
    late: LateScores,
    visibility: Visibility,
    observation: Observation,
    scoring: Scoring,
    cut: list[int],
) -> dict[str, Tensor]:
    """Compute the mask counterfactual, in which late rows have the mask of an earlier position.

    A row with the mask of position p sees its p nearest keys, itself included (fewer under a
    window), and key 0 if the mask of position p shows it. Without a causal mask nothing changes.
    The results have shape (batch, prefix, row, head) and are NaN for prefixes longer than the rows'
    own.
    """
    shown = {p: p if visibility.causal else late.own_prefix for p in observation.prefixes}
    nearest = _sums_of_nearest(late, shown.values())
    heads = torch.tensor(cut, dtype=torch.long, device=late.sink.device)
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


def _sums_of_nearest(late: LateScores, prefixes: Iterable[int]) -> dict[int, Tensor]:
    """Compute the log-sum-exp over the nearest keys of each row, by prefix: (batch, head, row).

    Behind a prefix of p tokens, row r sees its p + r nearest keys, itself included, and key 0,
    which is not in this sum. A longer prefix adds the same keys for all rows, so each sum extends
    the previous one, and each score is read only once.
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


def _key_0(late: LateScores, prefix: int, apart: bool) -> Tensor:
    """Return the scores that take the place of those with key 0 behind a prefix.

    Row r would see key 0 at distance prefix + r. So the score is that with key 0 itself, or, if key
    0 is not `apart`, that with the key at this distance; it is -inf if this is out of reach. The
    result has shape (batch, head, row).
    """
    if prefix >= late.reach:
        return torch.full_like(late.sink, -torch.inf)
    scores = late.sink if apart else late.near[..., late.own_prefix - prefix - late.low]
    distance = prefix + torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill(distance >= late.reach, -torch.inf)


def _by_prefix(parts: list[Tensor]) -> Tensor:
    """Stack one (batch, head, row) per prefix to (batch, prefix, row, head)."""
    return torch.stack([part.transpose(1, 2) for part in parts], 1)
