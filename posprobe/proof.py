"""Proofs made before anything is measured: attention can be observed, and a variant acts.

Attention is dispatched to `posprobe.observation.observed_attention` under the name `ATTENTION`,
masks to a function that recognises causal and sliding-window masks and refuses all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from posprobe.attention import Visibility
from posprobe.errors import ModelError
from posprobe.interventions import Intervention
from posprobe.observation import Observation, Observer, observed_attention
from posprobe.rotary import rotations, standard_rotations, unrotated
from posprobe.variants import MIN_TURN, Variant

__all__ = [
    "ATTENTION",
    "Observable",
    "prove_observable",
    "prove_variant",
    "recognise_mask",
    "variant_evidence",
]

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
    def max_length(self) -> int | None:
        """The longest sequence, in tokens, that the model was made for."""

    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Next-token logits: (batch, token, vocabulary)."""


def recognise_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: object,
) -> Visibility:
    """Turn the model's own index-based mask into a `Visibility`, or refuse it.

    The window is read off the last row and then checked on rows spread over the whole length.
    transformers calls this with its keywords wherever it would make a mask.

    Raises
    ------
    ModelError
        If there is padding, a cache, or a mask that is neither causal nor a sliding window.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError(
            "padding is not supported: pass sequences of equal length, without padding"
        )
    if q_length != kv_length:
        raise ModelError(
            f"a cache of {kv_length - q_length} tokens is in use; pass use_cache=False"
        )
    keys = torch.arange(kv_length, device=device)
    rows = torch.linspace(0, q_length - 1, min(q_length, 64), device=device).long().unique()
    sequences = torch.arange(batch_size, device=device)[:, None, None]
    native = mask_function(sequences, sequences.new_zeros(()), rows[:, None], keys[None, :])
    native = torch.as_tensor(native, device=device).expand(batch_size, len(rows), kv_length)
    seen = int(native[0, -1].sum())
    causal = not bool((native & (keys[None, :] > rows[:, None])).any())
    visibility = Visibility(causal, seen if seen < kv_length else None)
    if not torch.equal(native, visibility.mask(rows, keys).expand_as(native)):
        raise ModelError(
            "the model's mask is neither causal nor a causal sliding window: it cannot be observed"
        )
    return visibility


AttentionInterface.register(ATTENTION, observed_attention)
AttentionMaskInterface.register(ATTENTION, recognise_mask)


@torch.inference_mode()
def prove_observable(observable: Observable) -> None:
    """Switch the model to posprobe's attention and prove that what it shows is what it does.

    On a short random input: (1) the logits equal those of the model's own attention; (2) every
    layer calls back exactly once; (3) the observed exp(s - z) of every row sum to 1; (4) changing
    the scores of any one layer moves the logits.

    Raises
    ------
    ModelError
        Naming the model, the layer and the property that failed.
    """
    model, name = observable.model, observable.name
    tokens = _random_tokens(observable)
    length = tokens.shape[1]
    native = observable.logits(tokens)
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
    _prove_callbacks(name, observer.layers, observable.n_layers)
    if not all(visibility.causal for visibility in observer.visibilities.values()):
        raise ModelError(f"model {name!r} is not causal: its tokens see those after them")
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    gap = float((observed - native).abs().max() / native.abs().max())
    if not gap <= tolerance:
        raise ModelError(
            f"model {name!r}: observed logits differ from its own by {gap:.1e} (relative); "
            "its attention does something that posprobe does not know"
        )
    for layer, seen in recorded.items():
        _prove_rows(name, layer, seen, observer, tolerance)
    _prove_effect(observable, tokens[:1, :4])


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


def _random_tokens(observable: Observable) -> Tensor:
    vocabulary = observable.model.get_input_embeddings().num_embeddings
    length = min(PROOF_LENGTH, observable.max_length or PROOF_LENGTH)
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def prove_variant(observable: Observable) -> None:
    """Prove that what a model's variant changes reaches the logits.

    A rotary variant: without rotation the logits are others, so some layer rotates. Without a
    causal mask: the logits at position 0 move.

    Raises
    ------
    ModelError
        If nothing moves, or a rotary variant was not made in the configuration.
    """
    variant, tokens = observable.variant, _random_tokens(observable)
    if variant.is_rotary:
        standard_rotations(observable.model, observable.config)
        with unrotated(observable.model):
            plain = observable.logits(tokens)
        if torch.equal(observable.logits(tokens), plain):
            raise ModelError(
                f"variant {variant} does not apply: no layer of model {observable.name!r} "
                "uses a rotary embedding"
            )
    elif not variant.intervention.causal:
        moved = observable.logits(tokens, Observer(intervention=variant.intervention))
        if torch.equal(moved[:, 0], observable.logits(tokens)[:, 0]):
            raise ModelError(
                f"variant {variant} does not act: later tokens do not reach position 0 of model "
                f"{observable.name!r}"
            )


def variant_evidence(observable: Observable, length: int) -> dict[str, Any]:
    """Evidence that a model's variant is active in sequences of `length` tokens.

    Parameters
    ----------
    observable : ObservableModel
    length : int
        Of the longest sequence.

    Returns
    -------
    dict
        Plain values for the file: ``variant``, ``length``, and what changed. A rotary variant has
        ``rotations`` by layer type: the number of ``pairs``; ``pairs_turned``, those that the
        variant turns by `MIN_TURN` radians or more at the largest offset; the ``largest_turn``
        there in radians; the ``attention_factor`` of cosines and sines. A window has
        ``narrowed_layers`` and ``hidden_from_last``, the tokens that the last query loses in the
        widest of them. No causal mask has ``future_keys``, those that the first query gains.

    Raises
    ------
    ModelError
        If the variant changes nothing at this length.
    """
    variant = observable.variant
    variant.check_length(length)
    evidence: dict[str, Any] = {"variant": str(variant), "length": length}
    if variant.is_rotary:
        return evidence | {"rotations": _turned(observable, length)}
    window = variant.intervention.window
    if window is not None:
        return evidence | _narrowed(observable, window, length)
    if not variant.intervention.causal:
        evidence["future_keys"] = length - 1
    return evidence


def _turned(observable: Observable, length: int) -> dict[str, Any]:
    standard = standard_rotations(observable.model, observable.config)
    evidence, largest = {}, 0.0
    for kind, rotation in rotations(observable.model).items():
        turn = rotation.turn(standard[kind], length)
        largest = max(largest, float(turn.max()))
        evidence[kind] = {
            "pairs": len(turn),
            "pairs_turned": int((turn >= MIN_TURN).sum()),
            "largest_turn": float(f"{turn.max():.4g}"),
            "attention_factor": float(f"{rotation.factor:.6g}"),
        }
    if largest < MIN_TURN:
        needed = 1 + math.ceil(MIN_TURN * (length - 1) / largest) if largest else math.inf
        advice = "a larger factor or another variant"
        if needed <= (observable.max_length or needed) < math.inf:
            advice = f"a --length of {needed} or more"
        raise ModelError(
            f"variant {observable.variant} is inert at length {length}: it turns no pair of "
            f"dimensions by more than {largest:.2g} radians; give {advice}"
        )
    return evidence


def _narrowed(observable: Observable, window: int, length: int) -> dict[str, Any]:
    natives = [min(native or length, length) for native in observable.layer_windows]
    narrowed = [layer for layer, native in enumerate(natives) if native > window]
    if not narrowed:
        raise ModelError(
            f"variant {observable.variant} is inert: no layer of model {observable.name!r} sees "
            f"more than {max(natives)} tokens; give a smaller window"
        )
    return {"narrowed_layers": narrowed, "hidden_from_last": max(natives) - window}
