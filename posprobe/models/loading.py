"""Load a transformers model and its tokenizer from a checkpoint's files, without its output."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil  # type: ignore[import-untyped]  # accelerate needs it too
import torch
import transformers
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from posprobe.errors import ModelError, in_short, quieted
from posprobe.models.checkpoints import Checkpoint
from posprobe.models.variants import Variant

__all__ = ["DTYPES", "check_device", "load_checkpoint", "load_tokenizer", "quiet", "source"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
HUB_TIMEOUT = 5  # seconds
GIB = 2**30
# Files that hold a vocabulary; other files of a tokenizer say how the vocabulary is used.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
# Surplus weights that the forward pass of text does not use: buffers of old versions, scales of a
# cache, and the towers and projectors of other inputs.
UNUSED = re.compile(
    r"(.*\.)?((inv_freq|masked_bias|attn\.bias|attention\.bias|[kv]_scale)$"
    r"|(vision|visual|image|audio|speech|video|multi_?modal|mm)_?[a-z_]*\.)"
)


def source(
    checkpoint: Checkpoint, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return the keywords with which transformers' ``from_pretrained`` finds a checkpoint.

    The hub is asked once, with a short timeout. If it does not answer, transformers is told to use
    its local cache only, since otherwise it would retry for half a minute.

    Parameters
    ----------
    checkpoint : Checkpoint
        Checkpoint to load.
    revision : str or None, default=None
        Revision of a hub model. None means ``"main"``.
    trust_remote_code : bool, default=False
        Whether code that comes with a model may run.

    Returns
    -------
    dict of str to object
    """
    revision = revision or "main"
    here = Path(checkpoint.location).is_dir()
    return {
        "pretrained_model_name_or_path": checkpoint.location,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": here or not _hub_answers(checkpoint.location, revision),
    }


def _hub_answers(name: str, revision: str) -> bool:
    """Whether the hub answers, even if only with a refusal."""
    try:
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return True  # transformers will say what is wrong
    except Exception:  # an error of the HTTP client, which differs between releases
        return False
    return True


def check_device(device: str) -> None:
    """Refuse a device that is not available.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.

    Raises
    ------
    ModelError
        If the device is neither a CPU nor a GPU, or torch does not see it.
    """
    if device == "auto":
        return
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ModelError(f"device {device!r} is unknown; use cpu, cuda, cuda:N or auto")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} GPUs; "
            "use cpu, or another build of torch"
        )


def load_checkpoint(
    checkpoint: Checkpoint,
    variant: Variant,
    dtype: torch.dtype,
    place: dict[str, Any],
    device: str = "cpu",
) -> transformers.PreTrainedModel:
    """Load a checkpoint as a causal language model, with the rotary embedding of a variant.

    Parameters
    ----------
    checkpoint : Checkpoint
        Checkpoint to load.
    variant : Variant
        Variant whose change of the rotary embedding is made in the configuration before loading.
    dtype : torch.dtype
        Type of the weights.
    place : dict
        Keywords from `source`.
    device : str, default="cpu"
        Device of the weights; with ``"auto"``, transformers distributes the layers, and what fits
        nowhere stays on disk.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    ModelError
        If the model is not a decoder, its files lack weights, have surplus weights, weights of
        other shapes, pickles or code of their own, the variant does not apply, or the model cannot
        be loaded or is larger than the free memory.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(**place)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"model {checkpoint.name!r} is an encoder-decoder, not a decoder")
        _refuse_pickled_shards(checkpoint.name, config, place)
        variant.change_config(config.get_text_config())
        if device != "auto":
            _refuse_too_large(checkpoint.name, config, dtype, place, device)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            **place,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
            **({"device_map": "auto"} if device == "auto" else {}),
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each means: not loadable
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {checkpoint.name!r} comes with code of its own, which runs only if it is "
                "asked for: read it, then give load_model trust_remote_code=True"
            ) from error
        raise ModelError(
            f"model {checkpoint.name!r} {_reason(error, place)}; give a local folder, "
            "a .gguf file, a hub id that is reachable, or 'smollm2'"
        ) from error
    _refuse_other_weights(checkpoint.name, model, report)
    return model if device == "auto" else model.to(device)


def _reason(error: BaseException, place: dict[str, Any]) -> str:
    """Say why a model was not loaded: unknown to the hub, out of reach, or broken."""
    causes, cause = [error], error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, GatedRepoError) for each in causes):
        return "is gated: accept its terms on the hub, and log in with hf auth login"
    if any(isinstance(each, RevisionNotFoundError) for each in causes):
        return f"has no revision {place['revision']!r} on the hub"
    if any(isinstance(each, RepositoryNotFoundError) for each in causes):
        return "is unknown to the hub, or private there"
    if any(isinstance(each, LocalEntryNotFoundError) for each in causes):
        why = "--offline or HF_HUB_OFFLINE" if is_offline_mode() else "no network, or it is down"
        return f"is not on this machine, and the hub cannot be reached ({why})"
    reason = " ".join(str(error).split()).partition(". ")[0][:160]
    return f"could not be loaded ({type(error).__name__}: {reason})"


def _refuse_too_large(
    name: str, config: Any, dtype: torch.dtype, place: dict[str, Any], device: str
) -> None:
    """Refuse weights that are larger than the free memory, before they are read."""
    if getattr(config, "quantization_config", None) is not None:
        return  # they are smaller in memory than their type says
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=place["trust_remote_code"]
        )
    needed = sum(weight.nbytes for weight in empty.parameters())
    for where in dict.fromkeys(("cpu", device)):  # they are read on the CPU
        free = _free_memory(where)
        if needed > free:
            raise ModelError(
                f"model {name!r} takes {needed / GIB:.1f} GiB in "
                f"{str(dtype).removeprefix('torch.')}, and {where} has {free / GIB:.1f} GiB free; "
                "use a smaller dtype, or device 'auto', which reads what does not fit from disk, "
                "layer by layer"
            )


def _free_memory(device: str) -> int:
    """Free memory of a device, in bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return int(psutil.virtual_memory().available)


def _refuse_pickled_shards(name: str, config: Any, place: dict[str, Any]) -> None:
    """Refuse an index of safetensors that names other files: transformers would unpickle them."""
    index = getattr(config, "transformers_weights", None) or "model.safetensors.index.json"
    path = transformers.utils.cached_file(
        place["pretrained_model_name_or_path"],
        index,
        revision=place["revision"],
        local_files_only=place["local_files_only"],
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None or not index.endswith(".json"):
        return
    shards = {*json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()}
    pickled = sorted(shard for shard in shards if not shard.endswith(".safetensors"))
    if pickled:
        raise ModelError(
            f"model {name!r}: {index} names {pickled[0]}, which is not a safetensors file; save "
            "its weights as safetensors"
        )


def _refuse_other_weights(
    name: str, model: transformers.PreTrainedModel, report: dict[str, Any]
) -> None:
    """Refuse files whose weights do not match the configuration in name or shape."""
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise ModelError(
            f"model {name!r}: its files lack {len(missing)} weights of a "
            f"{type(model).__name__} ({missing[0]}); give a complete causal language model"
        )
    for weight, found, wanted in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {name!r}: its weight {weight} has shape {tuple(found)} where its "
            f"config.json asks for {tuple(wanted)}; does its config.json belong to it?"
        )
    surplus = sorted(key for key in report["unexpected_keys"] if not UNUSED.match(key))
    if surplus:
        raise ModelError(
            f"model {name!r}: {len(surplus)} weights in its files have no place in a "
            f"{type(model).__name__} of {model.config.get_text_config().num_hidden_layers} blocks "
            f"({', '.join(surplus[:3])}); does its config.json belong to them?"
        )


def load_tokenizer(checkpoint: Checkpoint, place: dict[str, Any]) -> Any:
    """Load the tokenizer of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        Checkpoint whose tokenizer is loaded.
    place : dict
        Keywords from `source`.

    Returns
    -------
    transformers tokenizer or None
        None if the checkpoint has no tokenizer; the model can still be run on token ids.

    Raises
    ------
    ModelError
        If the checkpoint has a tokenizer that cannot be read.
    """
    location = checkpoint.tokenizer or checkpoint.location
    try:
        return transformers.AutoTokenizer.from_pretrained(
            **place | {"pretrained_model_name_or_path": location}
        )
    except Exception as error:  # transformers raises many kinds, even if there is no tokenizer
        found = _tokenizer_file(location, place["revision"])
        if found is None:
            return None
        raise ModelError(
            f"model {checkpoint.name!r}: its tokenizer cannot be read ({found}: "
            f"{in_short(error)}); download it again"
        ) from error


def _tokenizer_file(location: str, revision: str) -> str | None:
    """Return the name of a tokenizer's file that came with a checkpoint, or None."""
    for name in TOKENIZER_FILES:
        if (Path(location) / name).exists():
            return name
        try:
            kept = huggingface_hub.try_to_load_from_cache(location, name, revision=revision)
        except HFValidationError:  # the location is a folder
            continue
        if isinstance(kept, str):
            return name
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and notices of transformers within the context."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with quieted("huggingface_hub"):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
