"""What a forward pass lets us see: the observer and the recorded scores.

`observed_attention` is the attention function that transformers calls. It reads the log-normalizer,
the sink score, the scores at chosen offsets and the mask counterfactual off each layer, and applies
the interventions of the study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posprobe.attention import Scoring, Visibility, attend
from posprobe.errors import ModelError
from posprobe.interventions import NO_INTERVENTION, Intervention

__all__ = [
    "NO_INTERVENTION",
    "Intervention",
    "Observation",
    "Observer",
    "observe_scores",
    "observed_attention",
]

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


class Observer:
    """The context of one forward pass, passed down to every attention call as a keyword.

    Parameters
    ----------
    emit : callable (name, layer, tensor)
        Receives each quantity of each layer as soon as it exists.
    observation : Observation or None
        What to record (None: nothing; the attention function only applies the intervention).
    intervention : Intervention
        What to change.
    by_row : bool
        The b-th temperature of the intervention changes row b of the batch alone, so that one pass
        tries them all.

    Attributes
    ----------
    layers : list of int
        The layers that called back, in order.
    visibilities : dict of int to Visibility
        The keys that each layer could see.
    sink_logits : dict of int to Tensor
        The learned logits in each layer's denominator, where the model has them.
    """

    def __init__(
        self,
        emit: Callable[[str, int, Tensor], None] | None = None,
        observation: Observation | None = None,
        intervention: Intervention = NO_INTERVENTION,
        by_row: bool = False,
    ) -> None:
        self.emit = emit
        self.observation = observation
        self.intervention = intervention
        self.by_row = by_row
        self.layers: list[int] = []
        self.visibilities: dict[int, Visibility] = {}
        self.sink_logits: dict[int, Tensor] = {}


def observed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visibility | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    posprobe: Observer | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; `posprobe` is the observer of this forward pass.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer; `layer_idx` names it.
    query : Tensor, shape (batch, head, query, d)
        After rotary embedding and QK-norm.
    key, value : Tensor, shape (batch, key-value head, key, d)
    attention_mask : Visibility
        What posprobe's mask function made of the model's own mask.
    scaling, softcap, s_aux
        The parameters of `Scoring`, by transformers' names.
    posprobe : Observer or None
        None: plain attention.
    **kwargs : object
        What the model passes besides; the mask already holds it.

    Returns
    -------
    output : Tensor, shape (batch, query, head, d)
    weights : None
        Attention weights are never formed.

    Raises
    ------
    ModelError
        If the mask is not one that posprobe made: a mask is never dropped silently.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if not isinstance(attention_mask, Visibility):
        raise ModelError(
            f"layer {layer} got a mask that posprobe did not make; pass token ids of equal length "
            "and no attention_mask"
        )
    observer = Observer() if posprobe is None else posprobe
    change = observer.intervention
    visibility = change.visibility(attention_mask)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if observer.by_row:
        rows = [temperature if at == layer else 1.0 for at, temperature in change.temperature]
        factors = torch.tensor(rows, dtype=query.dtype, device=query.device)
        query = query * factors.view(-1, 1, 1, 1)
    else:
        factor *= change.factor(layer)
    scoring = Scoring(factor, softcap, s_aux)
    cut = change.heads_without_sink(layer, query.shape[1])
    output, normalizer = attend(query, key, value, visibility, scoring)
    if cut and query.shape[2] > 1:
        groups = [head // (query.shape[1] // key.shape[1]) for head in cut]
        output[:, cut, 1:], normalizer[:, cut, 1:] = attend(
            query[:, cut, 1:],
            key[:, groups, 1:],
            value[:, groups, 1:],
            visibility,
            scoring.of_heads(cut),
        )
    sums = change.row_sums(layer, normalizer)
    if sums is not None:
        output = output * sums.unsqueeze(-1).to(output.dtype)
    observer.layers.append(layer)
    observer.visibilities[layer] = visibility
    if s_aux is not None:
        observer.sink_logits[layer] = s_aux
    if observer.observation is not None and observer.emit is not None:
        seen = observe_scores(
            query, key, normalizer, visibility, observer.observation, scoring, cut
        )
        seen["sink_value"] = _sink_value(module, value, query.shape[1])
        for name, tensor in seen.items():
            observer.emit(name, layer, tensor)
    return output.transpose(1, 2).contiguous(), None


def _sink_value(module: torch.nn.Module, value: Tensor, n_heads: int) -> Tensor:
    """Norm of what key 0 would write into the residual stream through each head: (batch, head).

    The norm of v_0 W_O, head by head, to be multiplied by the attention to key 0. NaN where the
    module's output projection has none of the usual names.
    """
    names = ("o_proj", "c_proj", "dense", "out_proj")
    project = next((child for name in names if (child := getattr(module, name, None))), None)
    if not isinstance(project, torch.nn.Module):
        return value.new_full((value.shape[0], n_heads), torch.nan)
    first = value[:, :, 0].repeat_interleave(n_heads // value.shape[1], dim=1)
    alone = torch.diag_embed(first.transpose(1, 2)).permute(0, 2, 3, 1)  # (batch, head, head, d)
    nothing = torch.zeros_like(alone[:1, :1])
    written = project(alone.flatten(2)) - project(nothing.flatten(2))
    return written.norm(dim=-1)


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
