"""Prove, before anything is measured, that the observed attention is the model's own.

Under the name `ATTENTION`, transformers calls `posprobe.models.observation.observed_attention` for
attention and `posprobe.models.masks.recognise_mask` for masks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from posprobe.errors import ModelError, in_short
from posprobe.models.interventions import Intervention
from posprobe.models.masks import recognise_mask
from posprobe.models.observation import Observer, observed_attention
from posprobe.models.scores import Observation
from posprobe.models.variants import Variant

__all__ = ["ATTENTION", "Observable", "prove_observable", "random_tokens"]

ATTENTION = "posprobe"
PROOF_LENGTH = 24
# Relative differences of logits and of row sums. transformers' eager attention computes its softmax
# in float32, whatever the model's precision.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}


class Observable(Protocol):
    """The part of `posprobe.models.ObservableModel` that the proof needs."""

    model: transformers.PreTrainedModel
    name: str
    variant: Variant

    @property
    def config(self) -> Any:
        """The text model's configuration."""

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer in tokens, by the configuration; None for full attention."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def n_heads(self) -> int:
        """Number of query heads per layer, by the configuration."""

    @property
    def width(self) -> int:
        """Width of the residual stream, by the configuration."""

    @property
    def max_length(self) -> int | None:
        """The length, in tokens, for which the model was made; None if not in its configuration."""

    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Compute the next-token logits, of shape (batch, token, vocabulary)."""

    def run(self, tokens: Tensor, observer: Observer) -> None:
        """Run one forward pass that also emits the residual stream."""


AttentionInterface.register(ATTENTION, observed_attention)
AttentionMaskInterface.register(ATTENTION, recognise_mask)


@torch.inference_mode()
def prove_observable(observable: Observable) -> tuple[int, ...]:
    """Switch a model to posprobe's attention and prove that it still computes the same.

    The proof uses a short random input and shows that

    1. the logits equal those of the model's own attention;
    2. every layer calls back exactly once, with as many heads as the configuration says;
    3. the observed exp(s - z) of every row sum to 1;
    4. changing the scores of any one layer moves the logits;
    5. one residual stream of the configuration's width enters every block and leaves the last.

    Parameters
    ----------
    observable : Observable
        Model to prove; its attention implementation is changed in place.

    Returns
    -------
    tuple of int
        The layers whose denominators have a learned sink, so rows over real keys sum to less than
        1.

    Raises
    ------
    ModelError
        If the model does not run, or a property does not hold; the message names the model, the
        layer and the property.
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
            f"model {name!r} does not run with posprobe's attention ({in_short(error)}): its "
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
    return tuple(sorted(observer.sink_logits))


def _native_logits(observable: Observable, tokens: Tensor) -> Tensor:
    """Return the logits of the model's own attention, or refuse a model that does not run."""
    try:
        return observable.logits(tokens)
    except Exception as error:  # the model's own code may raise anything
        dtypes = {str(w.dtype).removeprefix("torch.") for w in observable.model.parameters()}
        mixed = f"; its weights are of {len(dtypes)} types ({', '.join(sorted(dtypes))})"
        raise ModelError(
            f"model {observable.name!r} does not run on {tokens.shape[1]} random tokens "
            f"({in_short(error)}){mixed if len(dtypes) > 1 else ''}"
        ) from error


def _prove_stream(observable: Observable, tokens: Tensor) -> None:
    """Check that the forward pass goes through all blocks with one residual stream."""
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
    """Change the scores of layer l in row l of a batch of equal rows; its logits must change."""
    layers = range(observable.n_layers)
    rows = tokens.expand(len(layers), -1)
    halved = Intervention(temperature=tuple((layer, 0.5) for layer in layers))
    moved = observable.logits(rows, Observer(intervention=halved, by_row=True))
    # the comparison must have the same shape, since the batch size itself changes the last bits
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
    """Check that rows of exp(s - z) over visible keys sum to 1, the learned sink included."""
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
    """Return two short sequences of random tokens, always the same, of shape (2, token)."""
    vocabulary = observable.model.get_input_embeddings().num_embeddings
    length = min(PROOF_LENGTH, observable.max_length or PROOF_LENGTH)
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
