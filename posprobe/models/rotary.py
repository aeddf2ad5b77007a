"""Read a model's rotary embedding from its modules, and compare it with the standard one."""

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
    "differing_rotation",
    "follows_length",
    "rotary_modules",
    "rotations",
    "rotations_under",
    "standard_rotations",
    "unrotated",
]

# Attribute of a changed configuration that keeps the checkpoint's own rotary parameters.
STANDARD_ROPE = "posprobe_standard_rope"
FREQUENCIES = "inv_freq"
DYNAMIC = {"dynamic", "longrope"}  # their frequencies follow the length of the sequence
ROUNDING = 1e-5  # of frequencies in float32


@dataclass(frozen=True)
class Rotation:
    """How one kind of layer rotates queries and keys.

    Parameters
    ----------
    frequencies : ndarray, shape (pair,)
        Angle by which each pair of dimensions turns, in radians per token.
    factor : float
        Factor on cosines and sines, so scores are multiplied by its square. Only some scalings,
        such as YaRN, have a factor other than 1.
    """

    frequencies: np.ndarray
    factor: float

    def turn(self, other: Rotation, length: int) -> np.ndarray:
        """Return how far the angles of two rotations differ at the largest offset.

        Parameters
        ----------
        other : Rotation
            The other rotation.
        length : int
            Length of the sequence in tokens; the largest offset is ``length - 1``.

        Returns
        -------
        ndarray, shape (pair,)
            Differences in radians.
        """
        return np.abs(self.frequencies - other.frequencies) * (length - 1)


def rotations(model: torch.nn.Module) -> dict[str, Rotation]:
    """Return the rotations that a model's forward pass uses.

    Parameters
    ----------
    model : torch.nn.Module
        Model whose rotary modules are read.

    Returns
    -------
    dict of str to Rotation
        Rotation of each layer type, or of ``"all"`` layers if there is only one type. The dict is
        empty if the model has no rotary embedding.
    """
    return {
        kind: rotation
        for module in rotary_modules(model)
        for kind, rotation in _read(module).items()
    }


def standard_rotations(model: torch.nn.Module, config: Any) -> dict[str, Rotation]:
    """Return the rotations that a model would use with the checkpoint's own rotary parameters.

    Parameters
    ----------
    model : torch.nn.Module
        Model whose rotary modules are rebuilt.
    config : transformers configuration
        Configuration of the model, in which `Variant.change_config` has kept the checkpoint's own
        parameters.

    Returns
    -------
    dict of str to Rotation
        As in `rotations`.

    Raises
    ------
    ModelError
        If the configuration has no such parameters, or a module cannot be built from it.
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
    """Return the rotations that a model would use with another configuration.

    Parameters
    ----------
    model : torch.nn.Module
        Model whose rotary modules are rebuilt; only their classes matter.
    config : transformers configuration
        The other configuration.

    Returns
    -------
    dict of str to Rotation
        As in `rotations`.

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


def differing_rotation(model: torch.nn.Module, config: Any) -> float:
    """How far the frequencies of a model are from those of its own configuration, relatively.

    Casting a model after loading rounds its frequencies too, and a configuration that is changed
    after loading no longer says what the model does. Frequencies that change from pass to pass are
    not compared, nor those of modules that cannot be built again.

    Returns
    -------
    float
        The largest relative difference of any pair's frequency; 0 where none exceeds `ROUNDING`.
    """
    if follows_length(model):
        return 0.0
    try:
        expected = rotations_under(model, config)
    except ModelError:
        return 0.0
    found, largest = rotations(model), 0.0
    for kind in found.keys() & expected.keys():
        here, there = found[kind].frequencies, expected[kind].frequencies
        if here.shape == there.shape:
            gaps = np.abs(here - there) / np.abs(there)
            largest = max(largest, float(gaps.max(initial=0.0)))
    return float(f"{largest:.2g}") if largest > ROUNDING else 0.0


def follows_length(model: torch.nn.Module) -> bool:
    """Whether some frequencies of a model change with the length of the sequence."""
    return any(DYNAMIC & set(_types(module)) for module in rotary_modules(model))


def _types(module: torch.nn.Module) -> list[str]:
    """Types of rotation of a module: one, or one for each type of layer."""
    kind = getattr(module, "rope_type", None)
    return list(kind.values()) if isinstance(kind, dict) else [str(kind)]


@contextlib.contextmanager
def unrotated(model: torch.nn.Module) -> Iterator[None]:
    """Set all rotary frequencies to zero within the context, so all positions rotate alike."""
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
    """Return the layer type to which a buffer of frequencies applies; None for other buffers."""
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
