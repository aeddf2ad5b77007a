"""The attention function that transformers calls, and the observer of one forward pass.

`observed_attention` reads the log-normalizer, the sink score, the scores at chosen offsets and the
mask counterfactual off each layer, and applies the interventions of the study.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.attention import Scoring, Visibility, attend
from posprobe.models.interventions import NO_INTERVENTION, Intervention
from posprobe.models.scores import Observation, observe_scores

__all__ = ["Observer", "observed_attention", "observing"]


class Observer:
    """What one forward pass shows, and what is changed in it; see `observing`.

    Parameters
    ----------
    emit : callable (name, layer, tensor)
        Receives each quantity of each layer as soon as it exists.
    observation : Observation or None
        What to record (None: nothing; the attention function only applies the intervention).
    intervention : Intervention
        What to change.
    by_row : bool
        The b-th temperature of the intervention changes row b of the batch alone, so one pass
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

    def tempered(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, float]:
        """Query (batch, head, query, d) and scaling under the temperatures of the intervention."""
        if not self.by_row:
            return query, scaling * self.intervention.factor(layer)
        factors = [factor if at == layer else 1.0 for at, factor in self.intervention.temperature]
        rows = torch.tensor(factors, dtype=query.dtype, device=query.device)
        return query * rows.view(-1, 1, 1, 1), scaling

    def record(self, layer: int, visibility: Visibility, sink_logit: Tensor | None) -> None:
        """Note that `layer` called back, and how its attention is set up."""
        self.layers.append(layer)
        self.visibilities[layer] = visibility
        if sink_logit is not None:
            self.sink_logits[layer] = sink_logit


_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let `observer` see every attention call in this block, and in this thread alone.

    A keyword to the model would not do: some models (StableLM) lose it on the way to a layer.
    """
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


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
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, seen by the observer of this forward pass, if any.

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
    **kwargs : object
        Whatever else the model passes; the mask already has it.

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
    observer = _OBSERVER.get() or Observer()
    change = observer.intervention
    visibility = change.visibility(attention_mask)
    cut = change.heads_without_sink(layer, query.shape[1])
    own_scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, tempered_scaling = observer.tempered(layer, query, own_scaling)
    scoring = Scoring(tempered_scaling, softcap, s_aux)
    output, normalizer = _attend_with_cut(query, key, value, visibility, scoring, cut)
    row_sums = change.row_sums(layer, normalizer)
    if row_sums is not None:
        output = output * row_sums.unsqueeze(-1).to(output.dtype)
    observer.record(layer, visibility, s_aux)
    if observer.observation is not None and observer.emit is not None:
        seen = observe_scores(
            query, key, normalizer, visibility, observer.observation, scoring, cut
        )
        seen["sink_value"] = _sink_value(module, value, query.shape[1])
        for name, tensor in seen.items():
            observer.emit(name, layer, tensor)
    return output.transpose(1, 2).contiguous(), None


def _attend_with_cut(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
    scoring: Scoring,
    cut: list[int],
) -> tuple[Tensor, Tensor]:
    """Output and log-normalizer of `attend`, with key 0 hidden from the heads in `cut`.

    Query 0 keeps it, having no other key.
    """
    output, normalizer = attend(query, key, value, visibility, scoring)
    if not cut or query.shape[2] == 1:
        return output, normalizer
    groups = [head // (query.shape[1] // key.shape[1]) for head in cut]
    # without the first query and key every distance is what it was, so the mask still fits
    output[:, cut, 1:], normalizer[:, cut, 1:] = attend(
        query[:, cut, 1:],
        key[:, groups, 1:],
        value[:, groups, 1:],
        visibility,
        scoring.of_heads(cut),
    )
    return output, normalizer


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
