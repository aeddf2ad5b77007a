"""A model that is in memory already: what it is, where it came from, and what cannot be taken.

People load, cast, patch and adapt models before they measure them. Such a model is proved as any
other, and what can be known of its origin goes into the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models.offload import is_kept

__all__ = ["adapters_of", "check_tokenizer", "given_model", "name_in_memory", "origin_of"]


def given_model(model: Any) -> transformers.PreTrainedModel:
    """Return the transformers model in what a caller gave, without the wrapper of PEFT.

    Parameters
    ----------
    model : object
        A causal language model of transformers, or one wrapped by PEFT.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    ModelError
        If it is something else, is compiled, wrapped for several devices, quantised by
        bitsandbytes, on the meta device, or has learned prompts.
    """
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            f"{kind}: the model is compiled, so its parts cannot be observed; pass it as it was "
            "before torch.compile"
        )
    parallel = torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel
    if isinstance(model, parallel):
        raise ModelError(f"the model is wrapped by {kind}; pass the model inside, {kind}.module")
    found = _without_adapter_wrapper(model)
    if not isinstance(found, transformers.PreTrainedModel):
        raise ModelError(
            f"a {kind} is not a model; give a name, a folder, or a causal language model of "
            "transformers"
        )
    if any(type(part).__module__.startswith("bitsandbytes") for part in found.modules()):
        raise ModelError(
            f"{kind} is quantised by bitsandbytes, whose results depend on the batch; load it in "
            "bfloat16 or float32"
        )
    weights = dict(found.named_parameters())
    if weights and all(w.is_meta and not is_kept(found, name) for name, w in weights.items()):
        raise ModelError(f"{kind} is on the meta device, without weights; load them first")
    return found


def _without_adapter_wrapper(model: Any) -> Any:
    """The model inside a PeftModel, with the adapters in its layers."""
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    learned = [
        name
        for name, config in model.peft_config.items()
        if getattr(config, "is_prompt_learning", False)
    ]
    if learned:
        raise ModelError(
            f"adapter {learned[0]!r} puts learned tokens in front of a text, so positions are not "
            "those of the text; give a model without it"
        )
    return model.get_base_model()


def adapters_of(model: torch.nn.Module) -> dict[str, float]:
    """Return the adapters that act in a model, with the factors by which they are scaled.

    Layers with adapters are recognised by what PEFT's have: `active_adapters` and
    `disable_adapters`.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.

    Returns
    -------
    dict of str to float
        The sum of an adapter's factors over layers, by its name; 0 where there are none.
    """
    found: dict[str, float] = {}
    for name, factor in _acting(model):
        found[name] = found.get(name, 0.0) + factor
    return found


def _acting(model: torch.nn.Module) -> Iterator[tuple[str, float]]:
    for part in model.modules():
        names = getattr(part, "active_adapters", None)
        if not isinstance(names, list) or getattr(part, "disable_adapters", True):
            continue
        scaling = getattr(part, "scaling", {})
        for name in names:
            yield name, float(scaling.get(name, 0.0)) if isinstance(scaling, dict) else 0.0


def origin_of(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """Return what is known of where a model in memory came from, as plain values.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.

    Returns
    -------
    dict of str to object
        ``class``; ``name_or_path``, the last part of it if it is a path; ``commit`` of the hub; and
        ``adapters``, the names of those that act. What is not known is left out.
    """
    known = {
        "class": type(model).__name__,
        "name_or_path": _name_or_path(model),
        "commit": getattr(model.config, "_commit_hash", None),
        "adapters": sorted(adapters_of(model)),
    }
    return {key: value for key, value in known.items() if value}


def name_in_memory(model: transformers.PreTrainedModel) -> str:
    """Name a model after its checkpoint and its adapters, or else after its class."""
    return "+".join([_name_or_path(model) or type(model).__name__, *sorted(adapters_of(model))])


def _name_or_path(model: transformers.PreTrainedModel) -> str:
    """The name of a model's checkpoint; of a path, which belongs to this machine, the last part."""
    name = str(getattr(model.config, "_name_or_path", None) or "")
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def check_tokenizer(tokenizer: Any, model: transformers.PreTrainedModel, name: str) -> None:
    """Refuse a tokenizer that has more tokens than a model has embeddings.

    Raises
    ------
    ModelError
        If it has, since it is that of another model, or the model was not resized for it; or if it
        is not a tokenizer.
    """
    if not (callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens")):
        raise ModelError(f"model {name!r}: a {type(tokenizer).__name__} is not a tokenizer")
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} tokens and the model has "
            f"{embeddings} embeddings; give the tokenizer of these weights, or resize them with "
            "model.resize_token_embeddings"
        )
