"""Convert a GGUF file to a transformers checkpoint that is complete and proved, or refuse it.

The header, the names and sizes of all tensors, and the rotation are checked before anything large
is allocated.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from tqdm.auto import tqdm
from transformers import modeling_gguf_pytorch_utils

from posprobe.errors import ModelError
from posprobe.models.gguf_header import Header, read_header
from posprobe.models.gguf_keys import configuration, saved_configuration
from posprobe.models.gguf_rotation import ROTATION_TENSORS, prove_rotation

__all__ = ["convert"]

# An old converter wrote these inverse frequencies, which also follow from the keys.
INERT_TENSORS = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")
# transformers joins two tensors of the experts in one weight, which gguf's table does not list.
FUSED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj")
SHOWN = 3


def convert(path: Path, folder: Path) -> str:
    """Save a GGUF model as safetensors, since a model loaded from GGUF refuses to save itself.

    Parameters
    ----------
    path : Path
        The GGUF file.
    folder : Path
        Folder for the configuration, the weights in float32, and the tokenizer.

    Returns
    -------
    str
        Quantisation of the file, for example ``"Q4_1"``.

    Raises
    ------
    ModelError
        If a key or tensor is missing or would be lost in the conversion; the message names it.
    """
    header = read_header(path)
    config = configuration(header)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    _check_tensors(header, skeleton)
    saved = saved_configuration(config)
    prove_rotation(header, skeleton, saved)
    _save_weights(header, config, saved, folder)
    _save_tokenizer(header, folder)
    return header.quantization


def _check_tensors(header: Header, skeleton: transformers.PreTrainedModel) -> None:
    """Check that every weight has a tensor of its size and that no tensor is left over."""
    sizes = _expected_sizes(header, skeleton)
    missing = sorted(sizes.keys() - header.tensors.keys())
    if missing:
        raise ModelError(
            f"it lacks {len(missing)} tensors of its {skeleton.config.num_hidden_layers} blocks "
            f"({', '.join(missing[:SHOWN])}); download it again"
        )
    inert = {name for name in header.tensors if INERT_TENSORS.fullmatch(name)}
    surplus = sorted(header.tensors.keys() - sizes.keys() - inert - {*ROTATION_TENSORS})
    if surplus:
        raise ModelError(
            f"{len(surplus)} of its tensors have no place in a {type(skeleton).__name__} of "
            f"{skeleton.config.num_hidden_layers} blocks ({', '.join(surplus[:SHOWN])}); give the "
            "model's folder with config.json instead"
        )
    for name, size in sizes.items():
        found = int(header.tensors[name].n_elements)
        if found != size:
            raise ModelError(
                f"its tensor {name} has {found} elements where its keys ask for {size}; "
                "download it again"
            )


def _expected_sizes(header: Header, skeleton: transformers.PreTrainedModel) -> dict[str, int]:
    """Return the number of elements of each tensor that the model needs, by name in the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = get_tensor_name_map(kind, skeleton.config.num_hidden_layers)
    tied = "lm_head.weight" if skeleton.config.tie_word_embeddings else ""
    sizes = {}
    for weight, tensor in skeleton.state_dict().items():
        if fused := FUSED.fullmatch(weight):
            layer, part = fused.groups()
            for half in part.split("_"):
                halves = tensor.numel() // len(part.split("_"))
                sizes[f"blk.{layer}.ffn_{half}_exps.weight"] = halves
        elif weight != tied:
            stem, _, suffix = weight.rpartition(".")
            sizes[f"{names.get_name(stem) or stem}.{suffix}"] = tensor.numel()
    return sizes


def _save_weights(header: Header, config: Any, saved: Any, folder: Path) -> None:
    # Its bar does not obey transformers' own switch.
    with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", partial(tqdm, disable=True)):
        loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
            **_source(header), config=config, dtype=torch.float32, output_loading_info=True
        )
    if report["missing_keys"]:  # transformers fills them with random numbers
        raise ValueError(f"it lacks {', '.join(sorted(report['missing_keys'])[:SHOWN])}")
    clean = transformers.AutoModelForCausalLM.from_config(saved, dtype=torch.float32)
    clean.load_state_dict(loaded.state_dict())
    clean.save_pretrained(folder)


def _save_tokenizer(header: Header, folder: Path) -> None:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_source(header))
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the builders of tokenizers raise many kinds of errors
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"its tokenizer cannot be read ({type(error).__name__}: {reason}); give the model's "
            "folder with config.json instead"
        ) from error


def _source(header: Header) -> dict[str, Any]:
    path = header.path
    return {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "trust_remote_code": False,  # of the folder; by default transformers asks on a terminal
    }
