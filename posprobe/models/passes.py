"""Run one forward pass at a time, with the model in the state in which it was proved."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models.decoders import check_state

EXACT = "highest"  # what torch calls products of float32 in float32

__all__ = ["borrowing", "plain_torch", "undisturbed"]


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Set the caller's global state of torch aside: it belongs to the caller's own computations.

    That is the default type, the default device, autocast, and the precision of matrix products of
    float32, which lets some processors round them to bfloat16.
    """
    default, products = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float32)
    if products != EXACT:
        torch.set_float32_matmul_precision(EXACT)
    try:
        with contextlib.ExitStack() as stack:
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_default_dtype(default)
        if products != EXACT:
            torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def borrowing(model: transformers.PreTrainedModel, attention: str | None = None) -> Iterator[None]:
    """Give a model back as it was, whatever is set in it meanwhile.

    That is the attributes of its modules and configurations (attention, training mode, caches of
    rotary embeddings), their buffers and weights, and which weights have gradients. Values inside a
    tensor are not copied: no pass changes them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model of the caller.
    attention : str or None, default=None
        Name of an attention implementation to set for the time being.
    """
    modules = [
        (part, dict(vars(part)), dict(part._buffers), dict(part._parameters))
        for part in model.modules()
    ]
    configs = [(config, dict(vars(config))) for config in _configs(model)]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        if attention is not None:
            model.set_attn_implementation(attention)
            for config, _ in configs:
                config.return_dict = True
        yield
    finally:
        for part, attributes, buffers, weights in modules:
            _put_back(vars(part), attributes)
            _put_back(part._buffers, buffers)
            _put_back(part._parameters, weights)  # accelerate makes those that it lends anew
        for config, attributes in configs:
            _put_back(vars(config), attributes)
        for weight in trained:
            weight.requires_grad_(True)


def _configs(model: transformers.PreTrainedModel) -> list[transformers.PretrainedConfig]:
    """All configurations of a model and its parts, each once."""
    waiting = [p.config for p in model.modules() if isinstance(p, transformers.PreTrainedModel)]
    found: dict[int, transformers.PretrainedConfig] = {}
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            parts = (getattr(config, name, None) for name in config.sub_configs)
            waiting += [part for part in parts if isinstance(part, transformers.PretrainedConfig)]
    return list(found.values())


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Set a dictionary to its former entries, without emptying it meanwhile."""
    now.update(before)
    for key in now.keys() - before.keys():
        del now[key]


@contextlib.contextmanager
def undisturbed(
    model: transformers.PreTrainedModel, lock: threading.RLock, attention: str | None
) -> Iterator[None]:
    """Run a pass alone, in evaluation mode, without autocast, and with float32 as default type.

    Hooks on a model's blocks see the passes of every thread, so a second thread waits. torch's
    global state is set aside for the pass, see `plain_torch`. Modules that were put into training
    mode are evaluated all the same, and put back.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model to run.
    lock : threading.RLock
        Lock that all passes of the model share.
    attention : str or None
        Name of the attention implementation that the pass needs. None means any.

    Raises
    ------
    ModelError
        If the model was compiled, offloaded, or switched to another attention since it was proved.
    """
    with lock:
        check_state(model)
        found = model.config.get_text_config()._attn_implementation
        if attention is not None and found != attention:
            raise ModelError(
                f"the model's attention was switched to {found!r} after posprobe had replaced it; "
                "make the ObservableModel again"
            )
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with plain_torch():
                yield
        finally:
            for module in training:
                module.training = True
