"""The attention function that transformers calls, and the observer of one forward pass.

`observed_attention` applies the interventions of the study. In each layer it records the
log-normalizer, the sink score, the scores at chosen offsets and the mask counterfactual.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.attention import Scoring, Visibility
from posprobe.models.band_scores import observe_bands
from posprobe.models.interventions import NO_INTERVENTION, Intervention
from posprobe.models.kernels import attend
from posprobe.models.scores import Observation, observe_scores

__all__ = ["Observer", "observed_attention", "observing", "output_projection"]

PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj")


class Observer:
    """The context of one forward pass, which every attention call in it sees; see `observing`.

    Parameters
    ----------
    emit : callable or None, default=None
        Called as ``emit(name, layer, tensor)`` with each quantity of each layer once it has been
        computed.
    observation : Observation or None, default=None
        What to record. With None the attention function only applies the intervention.
    intervention : Intervention, default=NO_INTERVENTION
        What to change.
    by_row : bool, default=False
        Whether temperature b of the intervention applies only to row b of the batch, so one pass
        can try all of them.

    Attributes
    ----------
    layers : list of int
        The layers that called back, in order.
    visibilities : dict of int to Visibility
        The keys that each layer could see.
    sink_logits : dict of int to Tensor
        The learned logits in each layer's denominator, if the model has them.
    gains : sequence of (float or None)
        Factor between each layer's attention and the stream, by which ``sink_value`` is scaled; see
        `posprobe.models.writing`. Empty, or None in a layer, leaves it as the projection has it.
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
        self.gains: Sequence[float | None] = ()

    def output(self, module: torch.nn.Module, output: Tensor) -> Tensor:
        """Return what a layer's attention hands on, by default `output` itself.

        Parameters
        ----------
        module : torch.nn.Module
            The attention layer.
        output : Tensor, shape (batch, head, query, d)
            Weighted sums of the values.

        Returns
        -------
        Tensor, shape (batch, head, query, d)
        """
        return output

    def tempered(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, float]:
        """Apply the temperatures of the intervention to the scores of a layer.

        Parameters
        ----------
        layer : int
            Number of the layer.
        query : Tensor, shape (batch, head, query, d)
            Queries of the layer.
        scaling : float
            Factor on the inner products of queries and keys.

        Returns
        -------
        query : Tensor, shape (batch, head, query, d)
            Queries, changed if there is one temperature per row.
        scaling : float
            Factor, changed otherwise.
        """
        if not self.by_row:
            return query, scaling * self.intervention.factor(layer)
        factors = [factor if at == layer else 1.0 for at, factor in self.intervention.temperature]
        rows = torch.tensor(factors, dtype=query.dtype, device=query.device)
        return query * rows.view(-1, 1, 1, 1), scaling

    def record(self, layer: int, visibility: Visibility, sink_logit: Tensor | None) -> None:
        """Record that `layer` called back, which keys it saw, and its learned logits if any.

        Parameters
        ----------
        layer : int
            Number of the layer.
        visibility : Visibility
            The keys that it saw.
        sink_logit : Tensor of shape (head,), or None
            Its learned logits.
        """
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
    """Compute the attention of one layer, with the signature that transformers expects.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer, whose `layer_idx` is its number.
    query : Tensor, shape (batch, head, query, d)
        Queries, after rotary embedding and QK-norm.
    key, value : Tensor, shape (batch, key-value head, key, d)
        Keys, after rotary embedding and QK-norm, and values.
    attention_mask : Visibility or None
        Result of posprobe's mask function for the model's own mask.
    scaling : float or None, default=None
        Factor on the inner products. None means d^(-1/2).
    softcap : float or None, default=None
        As in `Scoring`.
    s_aux : Tensor of shape (head,), or None, default=None
        The learned logits, called `sink_logit` in `Scoring`.
    **kwargs : object
        Other keywords of the model, which `attention_mask` already takes into account.

    Returns
    -------
    output : Tensor, shape (batch, query, head, d)
        Weighted sums of the values.
    weights : None
        Attention weights are never formed.

    Raises
    ------
    ModelError
        If posprobe did not make the mask, since a mask must not be dropped silently.
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
    query = change.without_dimensions(layer, query)
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
        gain = observer.gains[layer] if observer.gains else None
        written = _sink_value(module, value, query.shape[1])
        seen["sink_value"] = written if gain is None else written * abs(gain)
        if observer.observation.bands:
            bands = observer.observation.bands[layer]
            seen |= observe_bands(query, key, visibility, observer.observation, scoring, cut, bands)
        for name, tensor in seen.items():
            observer.emit(name, layer, tensor)
    return observer.output(module, output).transpose(1, 2).contiguous(), None


def _attend_with_cut(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
    scoring: Scoring,
    cut: list[int],
) -> tuple[Tensor, Tensor]:
    """Compute `attend` with key 0 hidden from the heads in `cut`.

    Query 0 still sees key 0, since it has no other key.
    """
    output, normalizer = attend(query, key, value, visibility, scoring)
    if not cut or query.shape[2] == 1:
        return output, normalizer
    groups = [head // (query.shape[1] // key.shape[1]) for head in cut]
    # dropping the first query and the first key keeps all distances, so the mask still fits
    output[:, cut, 1:], normalizer[:, cut, 1:] = attend(
        query[:, cut, 1:],
        key[:, groups, 1:],
        value[:, groups, 1:],
        visibility,
        scoring.of_heads(cut),
    )
    return output, normalizer


def output_projection(module: torch.nn.Module) -> torch.nn.Module | None:
    """The output projection of an attention layer, or None if it has none of the usual names."""
    found = next((child for name in PROJECTIONS if (child := getattr(module, name, None))), None)
    return found if isinstance(found, torch.nn.Module) else None


def _sink_value(module: torch.nn.Module, value: Tensor, n_heads: int) -> Tensor:
    """Compute the norm of what key 0 writes through each head.

    This is the norm of v_0 W_O for each head, of shape (batch, head), for an attention of 1 to
    key 0. It is NaN if the module's output projection has none of the usual names.
    """
    project = output_projection(module)
    if project is None:
        return value.new_full((value.shape[0], n_heads), torch.nan)
    first = value[:, :, 0].repeat_interleave(n_heads // value.shape[1], dim=1)
    alone = torch.diag_embed(first.transpose(1, 2)).permute(0, 2, 3, 1)  # (batch, head, head, d)
    nothing = torch.zeros_like(alone[:1, :1])
    written = project(alone.flatten(2)) - project(nothing.flatten(2))
    return written.norm(dim=-1)
