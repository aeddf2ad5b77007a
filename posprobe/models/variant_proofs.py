"""Prove that a variant reaches the logits, and that it changes something at a given length."""

from __future__ import annotations

import math
from typing import Any

import torch

from posprobe.errors import ModelError
from posprobe.models.observation import Observer
from posprobe.models.proofs import Observable, random_tokens
from posprobe.models.rotary import rotations, standard_rotations, unrotated
from posprobe.models.variants import MIN_TURN

__all__ = ["prove_variant", "variant_evidence"]


@torch.inference_mode()
def prove_variant(observable: Observable) -> None:
    """Prove that the change made by a model's variant reaches the logits.

    For a rotary variant, the logits must change if all rotations are removed, which shows that at
    least one layer rotates. Without a causal mask, the logits at position 0 must change. Other
    variants need no such proof.

    Parameters
    ----------
    observable : Observable
        Model with the variant.

    Raises
    ------
    ModelError
        If the logits do not change, or a rotary variant was not made in the configuration.
    """
    variant, tokens = observable.variant, random_tokens(observable)
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
    """Collect evidence that a model's variant is active in sequences of `length` tokens.

    Parameters
    ----------
    observable : Observable
        Model with the variant.
    length : int
        Number of tokens of the longest sequence.

    Returns
    -------
    dict
        Plain values for the file. All variants have ``variant`` and ``length``. A rotary variant
        also has ``rotations``, by layer type: ``pairs``, the number of pairs; ``pairs_turned``,
        how many of them the variant turns by `MIN_TURN` radians or more at the largest offset;
        ``largest_turn``, the largest such turn in radians; and ``attention_factor``, the factor on
        cosines and sines. A window has ``narrowed_layers``, the layers that it narrows, and
        ``hidden_from_last``, the number of tokens that the last query loses in the widest of them.
        ``no_causal`` has ``future_keys``, the number of keys that the first query gains.

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
