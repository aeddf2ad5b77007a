"""One forward pass at a time, in the state that was proved, whatever else the process does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models.decoders import check_state

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(
    model: transformers.PreTrainedModel, lock: threading.RLock, attention: str | None
) -> Iterator[None]:
    """Run a pass by itself, without dropout, in float32 unless the model says otherwise.

    Hooks on a model's blocks see the passes of every thread, so a second thread waits. torch's
    default type and autocast, which belong to the caller, are set aside for the pass. Modules that
    were put into training mode are evaluated all the same, and put back.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    lock : threading.RLock
        The same one for all passes of the model.
    attention : str or None
        Name of the attention implementation that the pass needs; None: any.

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
        default = torch.get_default_dtype()
        model.eval()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.autocast(model.device.type, enabled=False):
                yield
        finally:
            torch.set_default_dtype(default)
            for module in training:
                module.training = True
