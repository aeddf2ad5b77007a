"""Weights that accelerate keeps on the CPU or on disk, and lends to a module while it computes.

A model that does not fit into the memory of its devices is dispatched by accelerate
(``device_map="auto"``). Its offloaded weights are on the meta device, without numbers. A hook on
each module fetches them before it computes and drops them afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["computing_devices", "input_device", "is_kept", "numbers_of"]


def _hook(module: torch.nn.Module) -> Any:
    """The hook that lends weights to a module, or None; recognised by its map of weights."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # one, or several in turn
    return next((each for each in hooks if getattr(each, "weights_map", None) is not None), None)


def is_kept(model: torch.nn.Module, name: str) -> bool:
    """Whether the weight of this name is kept elsewhere, where `numbers_of` finds it."""
    return _hook(model.get_submodule(name.rpartition(".")[0])) is not None


def numbers_of(model: torch.nn.Module, name: str, weight: Tensor) -> Tensor:
    """Return a weight with its numbers, read from where they are kept if it is offloaded.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    name : str
        Name of the weight in the model.
    weight : Tensor
        The weight as the model has it.

    Returns
    -------
    Tensor
        `weight` itself unless it is on the meta device.
    """
    if not weight.is_meta:
        return weight
    place, _, own = name.rpartition(".")
    return _hook(model.get_submodule(place)).weights_map[own]


def computing_devices(model: torch.nn.Module) -> set[torch.device]:
    """Return the devices on which a model computes, wherever its weights are kept."""
    hooks = filter(None, map(_hook, model.modules()))
    lent = {torch.device(hook.execution_device) for hook in hooks}
    return lent | {weight.device for weight in model.parameters() if not weight.is_meta}


def input_device(model: Any) -> torch.device:
    """Return the device on which a transformers model looks its tokens up."""
    hook = _hook(model.get_input_embeddings())
    return model.device if hook is None else torch.device(hook.execution_device)
