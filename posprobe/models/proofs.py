"""Proof that attention is observed as the model computes it, made before anything is measured.

Attention is dispatched to `posprobe.models.observation.observed_attention` under the name
`ATTENTION`, masks to `posprobe.models.masks.recognise_mask`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from posprobe.errors import ModelError
from posprobe.models.interventions import Intervention
from posprobe.models.masks import recognise_mask
from posprobe.models.observation import Observer, observed_attention
from posprobe.models.scores import Observation
from posprobe.models.variants import Variant

__all__ = ["ATTENTION", "Observable", "prove_observable", "random_tokens"]

ATTENTION = "posprobe"
PROOF_LENGTH = 24
# transformers' eager attention takes its softmax in float32, whatever the model's precision.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}


class Observable(Protocol):
    """What the proof needs of a model; `posprobe.models.ObservableModel` has it."""

    model: transformers.PreTrainedModel
    name: str
    variant: Variant

    @property
    def config(self) -> Any:
        """The text model's configuration."""

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The sliding window that the configuration declares for each layer (None: full)."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def n_heads(self) -> int:
        """Query heads per layer, by the configuration."""

    @property
    def width(self) -> int:
        """Width of the residual stream, by the configuration."""

    @property
    def max_length(self) -> int | None:
        """The longest sequence, in tokens, that the model was made for."""

    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Next-token logits: (batch, token, vocabulary)."""

    def run(self, tokens: Tensor, observer: Observer) -> None:
        """One forward pass that also emits the residual stream."""


AttentionInterface.register(ATTENTION, observed_attention)
AttentionMaskInterface.register(ATTENTION, recognise_mask)


@torch.inference_mode()
def prove_observable(observable: Observable) -> None:
    """Switch the model to posprobe's attention and prove that what it shows is what it does.

    On a short random input: (1) the logits equal those of the model's own attention; (2) every
    layer calls back exactly once, with as many heads as the configuration says; (3) the observed
    exp(s - z) of every row sum to 1; (4) changing the scores of any one layer moves the logits;
    (5) one residual stream of the configuration's width enters every block and leaves the last.

    Raises
    ------
    ModelError
        Naming the model, the layer and the property that failed.
    """
    model, name = observable.model, observable.name
    tokens = random_tokens(observable)
    length = tokens.shape[1]
    native = _native_logits(observable, tokens)
    model.set_attn_implementation(ATTENTION)
    recorded: dict[int, dict[str, Tensor]] = {layer: {} for layer in range(observable.n_layers)}
    observer = Observer(
        lambda name, layer, tensor: recorded[layer].update({name: tensor}),
        Observation(n_queries=length, offsets=tuple(range(length))),
    )
    try:
        observed = observable.logits(tokens, observer)
    except ModelError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    except Exception as error:  # of the model's own code, which ran with its own mask
        raise ModelError(
            f"model {name!r} does not run with posprobe's attention ({_in_short(error)}): its "
            "layers work on the mask themselves, so it cannot be observed"
        ) from error
    _prove_callbacks(name, observer.layers, observable.n_layers)
    if not all(visibility.causal for visibility in observer.visibilities.values()):
        raise ModelError(f"model {name!r} is not causal: its tokens see those after them")
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    gap = float((observed - native).abs().max() / native.abs().max())
    if not gap <= tolerance:
        raise ModelError(
            f"model {name!r}: observed logits differ from its own by {gap:.1e} (relative); "
            "its attention does something posprobe does not recognise"
        )
    for layer, seen in recorded.items():
        _prove_rows(name, layer, seen, observer, tolerance)
        if seen["normalizer"].shape[-1] != observable.n_heads:
            raise ModelError(
                f"model {name!r}: attention of layer {layer} has {seen['normalizer'].shape[-1]} "
                f"heads where the configuration says {observable.n_heads}"
            )
    _prove_effect(observable, tokens[:1, :4])
    _prove_stream(observable, tokens[:1, :4])


def _native_logits(observable: Observable, tokens: Tensor) -> Tensor:
    """Logits of the model's own attention, or what keeps the model from running at all."""
    try:
        return observable.logits(tokens)
    except Exception as error:  # of the model's own code
        dtypes = {str(w.dtype).removeprefix("torch.") for w in observable.model.parameters()}
        mixed = f"; its weights are of {len(dtypes)} types ({', '.join(sorted(dtypes))})"
        raise ModelError(
            f"model {observable.name!r} does not run on {tokens.shape[1]} random tokens "
            f"({_in_short(error)}){mixed if len(dtypes) > 1 else ''}"
        ) from error


def _in_short(error: Exception) -> str:
    """An exception of a model's own code, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _prove_stream(observable: Observable, tokens: Tensor) -> None:
    """The blocks are those that the forward pass goes through, each with the one stream."""
    shapes: dict[int, tuple[int, ...]] = {}

    def emit(quantity: str, layer: int, tensor: Tensor) -> None:
        if quantity == "residual":
            shapes[layer] = tuple(tensor.shape)

    observation = Observation(n_queries=tokens.shape[1])
    try:
        observable.run(tokens, Observer(emit, observation))
    except ModelError as error:
        raise ModelError(f"model {observable.name!r}: {error}") from error
    expected = (*tokens.shape, observable.width)
    for layer in range(observable.n_layers + 1):
        if shapes.get(layer) != expected:
            raise ModelError(
                f"model {observable.name!r}: the residual stream at block {layer} is "
                f"{shapes.get(layer, 'never seen')}, not {expected}"
            )


def _prove_effect(observable: Observable, tokens: Tensor) -> None:
    """Row l of a batch of equal rows gets other scores in layer l: its logits must be others."""
    layers = range(observable.n_layers)
    rows = tokens.expand(len(layers), -1)
    halved = Intervention(temperature=tuple((layer, 0.5) for layer in layers))
    moved = observable.logits(rows, Observer(intervention=halved, by_row=True))
    # a run of the same shape, since another batch size changes the last bits by itself
    still = observable.logits(rows)
    for layer in layers:
        if torch.equal(moved[layer], still[layer]):
            raise ModelError(
                f"model {observable.name!r}: scores of layer {layer} do not reach the logits"
            )


def _prove_callbacks(name: str, layers: list[int], n_layers: int) -> None:
    missing = sorted(set(range(n_layers)) - set(layers))
    if missing:
        raise ModelError(
            f"model {name!r}: layer(s) {', '.join(map(str, missing))} never called the attention "
            "interface, so they cannot be observed"
        )
    if len(layers) != n_layers:
        raise ModelError(f"model {name!r}: {len(layers)} attention calls in {n_layers} layers")


def _prove_rows(
    name: str, layer: int, seen: dict[str, Tensor], observer: Observer, tolerance: float
) -> None:
    """Rows of exp(s - z) over the visible keys, with the learned sink's share, must sum to 1."""
    offsets = torch.arange(seen["normalizer"].shape[1], device=seen["normalizer"].device)
    visible = observer.visibilities[layer].mask(offsets, offsets)
    visible = torch.stack([visible.diagonal(-int(d)).any() for d in offsets])
    log_weights = seen["offset_score"] - seen["normalizer"].unsqueeze(-1)
    total = log_weights.exp().nan_to_num(0.0)[..., visible].sum(-1)
    if layer in observer.sink_logits:
        total = total + (observer.sink_logits[layer] - seen["normalizer"]).exp()
    worst = float((total - 1).abs().max())
    if not worst <= tolerance:
        raise ModelError(
            f"model {name!r}: attention rows of layer {layer} sum to 1 only within {worst:.1e}"
        )


def random_tokens(observable: Observable) -> Tensor:
    """Two short sequences of random tokens, always the same."""
    vocabulary = observable.model.get_input_embeddings().num_embeddings
    length = min(PROOF_LENGTH, observable.max_length or PROOF_LENGTH)
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
