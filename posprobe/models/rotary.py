"""What a model's rotary embedding does, read off its modules and set against its standard self."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from posprobe.errors import ModelError

__all__ = [
    "STANDARD_ROPE",
    "Rotation",
    "rotary_modules",
    "rotations",
    "rotations_under",
    "standard_rotations",
    "unrotated",
]

# Where a changed configuration keeps the rotary parameters of the checkpoint.
STANDARD_ROPE = "posprobe_standard_rope"
FREQUENCIES = "inv_freq"


@dataclass(frozen=True)
class Rotation:
    """How one kind of layer rotates queries and keys.

    Parameters
    ----------
    frequencies : ndarray, shape (pair,)
        Radians per token, of each pair of dimensions.
    factor : float
        Cosines and sines are multiplied by it, so scores by its square (YaRN; 1 elsewhere).
    """

    frequencies: np.ndarray
    factor: float

    def turn(self, other: Rotation, length: int) -> np.ndarray:
        """How far angles differ at the largest offset of `length` tokens: radians, (pair,)."""
        return np.abs(self.frequencies - other.frequencies) * (length - 1)


def rotations(model: torch.nn.Module) -> dict[str, Rotation]:
    """Rotations that a model's forward pass uses, by layer type (``"all"`` where there is one).

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    dict of str to Rotation
        Empty if the model has no rotary embedding.
    """
    return {
        kind: rotation
        for module in rotary_modules(model)
        for kind, rotation in _read(module).items()
    }


def standard_rotations(model: torch.nn.Module, config: Any) -> dict[str, Rotation]:
    """Rotations that the model would use with the checkpoint's own rotary parameters.

    Parameters
    ----------
    model : torch.nn.Module
    config : transformers configuration
        Configuration of the model as changed; `Variant.change_config` left the checkpoint's
        parameters in it.

    Returns
    -------
    dict of str to Rotation

    Raises
    ------
    ModelError
        If the configuration holds no such parameters, or a module cannot be built from it.
    """
    original = getattr(config, STANDARD_ROPE, None)
    if original is None:
        raise ModelError(
            "the variant was not made in the model's configuration; use load_model(..., variant=)"
        )
    standard = copy.deepcopy(config)
    standard.rope_parameters = copy.deepcopy(original)
    return rotations_under(model, standard)


def rotations_under(model: torch.nn.Module, config: Any) -> dict[str, Rotation]:
    """Rotations that a model would use with another configuration.

    Parameters
    ----------
    model : torch.nn.Module
        Only the classes of its rotary modules matter.
    config : transformers configuration

    Returns
    -------
    dict of str to Rotation
        As `rotations`.

    Raises
    ------
    ModelError
        If a module cannot be built from the configuration.
    """
    found: dict[str, Rotation] = {}
    for module in rotary_modules(model):
        try:
            found |= _read(type(module)(config=config))
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelError(
                f"the rotary embedding {type(module).__name__} cannot be compared with its "
                f"standard self ({error}); rotary variants are not offered for this model"
            ) from error
    return found


@contextlib.contextmanager
def unrotated(model: torch.nn.Module) -> Iterator[None]:
    """Set all rotary frequencies to zero for a while: every position is then rotated alike."""
    buffers = [
        buffer
        for module in rotary_modules(model)
        for name, buffer in module.named_buffers(recurse=False)
        if _kind(name) is not None
    ]
    kept = [buffer.clone() for buffer in buffers]
    try:
        for buffer in buffers:
            buffer.zero_()
        yield
    finally:
        for buffer, values in zip(buffers, kept, strict=True):
            buffer.copy_(values)


def rotary_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of a model that make rotations."""
    return [
        module
        for module in model.modules()
        if any(_kind(name) is not None for name, _ in module.named_buffers(recurse=False))
    ]


def _kind(name: str) -> str | None:
    """The layer type that a buffer of frequencies is for, or None if it is another buffer."""
    if name == FREQUENCIES:
        return "all"
    kind = name.removesuffix(f"_{FREQUENCIES}")
    return None if kind == name or kind.split("_")[-1] == "original" else kind


def _read(module: torch.nn.Module) -> dict[str, Rotation]:
    found = {}
    for name, buffer in module.named_buffers(recurse=False):
        kind = _kind(name)
        if kind is not None:
            prefix = name.removesuffix(FREQUENCIES)
            factor = float(getattr(module, f"{prefix}attention_scaling", 1.0))
            found[kind] = Rotation(buffer.detach().double().cpu().numpy(), factor)
    return found
