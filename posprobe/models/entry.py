"""From a name, or from a model in memory, to a model that can be observed."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models.checkpoints import find_checkpoint
from posprobe.models.loading import (
    DTYPES,
    check_device,
    load_checkpoint,
    load_tokenizer,
    quiet,
    source,
)
from posprobe.models.memory import check_tokenizer, given_model, name_in_memory
from posprobe.models.observable import ObservableModel
from posprobe.models.passes import plain_torch
from posprobe.models.variants import Variant, parse_variant

__all__ = ["ModelSource", "load_model"]

ModelSource: TypeAlias = str | transformers.PreTrainedModel
DTYPE = "float32"


@plain_torch()
def load_model(
    model: ModelSource,
    *,
    tokenizer: Any = None,
    name: str = "",
    variant: str = "standard",
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ObservableModel:
    """Load a model by hub id, folder, GGUF file or bundled name, or take one that is in memory.

    Parameters
    ----------
    model : str or transformers.PreTrainedModel
        A hub id (``"org/model"``), a folder with config.json and weights, a ``.gguf`` file (which
        is converted once into a cache), or a bundled name (``"smollm2"``, ``"gemma3"``,
        ``"zoo/rope-0"``). Or a causal language model of transformers as you have it: loaded, cast,
        patched, on a device, with adapters of PEFT. It is proved and measured as it is, with its
        own types and devices, and given back after each pass as it was.
    tokenizer : transformers tokenizer or None, default=None
        The tokenizer. None means the checkpoint's own. A model in memory has none: without one it
        runs on token ids.
    name : str, default=""
        Name of the model in files and reports. By default, what it was loaded by; of a model in
        memory the name of its checkpoint and its adapters.
    variant : str, default="standard"
        A change of attention at inference, such as ``"ntk(8)"`` or ``"window(64)"``; see
        `parse_variant`. A model in memory cannot have those of the rotary embedding.
    dtype : {"float32", "float64", "bfloat16"} or None, default=None
        Type of weights and activations. None means float32.
    device : str or None, default=None
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which spreads the layers over all GPUs
        and the CPU, and reads from disk what fits nowhere. None means a GPU if there is one.
    revision : str or None, default=None
        Revision of a hub model. None means its main branch.
    trust_remote_code : bool, default=False
        Whether code that comes with a model may run. The command line never allows it.

    Returns
    -------
    ObservableModel

    Raises
    ------
    ModelError
        If the model does not exist, its files are incomplete, it cannot be observed, or the variant
        does not apply to it; if the device is not available or too small; or if a model in memory
        is compiled, wrapped for several devices, quantised by bitsandbytes, without weights, or
        given with a tokenizer of another model.
    """
    change = parse_variant(variant)
    if not isinstance(model, str):
        asked = {"dtype": dtype, "device": device, "revision": revision}
        _refuse_loading(asked | {"trust_remote_code": trust_remote_code or None})
        return _taken(model, tokenizer, name, change)
    if dtype not in (None, *DTYPES):
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    with quiet():
        checkpoint = find_checkpoint(model)
        place = source(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        loaded = load_checkpoint(checkpoint, change, DTYPES[dtype or DTYPE], place, device)
        own = load_tokenizer(checkpoint, place) if tokenizer is None else tokenizer
    loading = {
        "model": model,
        "name": name,
        "variant": str(change),
        "dtype": dtype or DTYPE,
        "device": device,
        "revision": getattr(loaded.config, "_commit_hash", None) or revision,
        "trust_remote_code": trust_remote_code,
    }
    if revision:  # a branch or tag, such as step1000, which its commit does not tell
        loading["asked_revision"] = revision
    return ObservableModel(
        loaded,
        own,
        name=name or model,
        variant=change,
        quantization=checkpoint.quantization,
        loading=loading,
    )


def _refuse_loading(asked: dict[str, Any]) -> None:
    """Refuse what says how to load a model that is loaded already."""
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise ModelError(
            f"{given[0]} is for loading, and a model in memory is measured as it is; change the "
            f"model itself, or leave {given[0]} out"
        )


def _taken(given: Any, tokenizer: Any, name: str, variant: Variant) -> ObservableModel:
    """A model in memory, proved."""
    model = given_model(given)
    name = name or name_in_memory(model)
    if variant.is_rotary:
        raise ModelError(
            f"variant {variant} is made in the configuration before loading; save model {name!r} "
            "with save_pretrained, and give the folder"
        )
    if tokenizer is not None:
        check_tokenizer(tokenizer, model, name)
    return ObservableModel(model, tokenizer, name=name, variant=variant, borrowed=True)
