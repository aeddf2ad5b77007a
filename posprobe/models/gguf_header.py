"""Read the keys and tensors of a GGUF file.

GGUF is the format of llama.cpp; its keys are documented at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The keys that describe the model begin
with the name of its architecture, as in ``llama.rope.freq_base``. Here that name is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import ModelError

__all__ = ["ARCHITECTURES", "Header", "read_header"]

# Architectures whose conversion is proved by a test and whose attention can be observed.
ARCHITECTURES = (
    *("gemma2", "gemma3", "gpt2", "llama", "phi3"),
    *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2"),
)
# If a file lacks one of these, transformers uses its own default, which is that of a 7B model.
NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
# Without head_count_kv transformers leaves the rows of attn_q and attn_k in llama.cpp's order.
NEEDED_UNLESS_GPT2 = ("attention.head_count_kv",)
NEEDED_BY = {
    **dict.fromkeys(("gemma2", "gemma3"), ("attention.sliding_window",)),
    **dict.fromkeys(("qwen2moe", "qwen3moe"), ("expert_count", "expert_used_count")),
}
NEEDED_EPSILON = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
TOKENIZER = "tokenizer."


@dataclass(frozen=True)
class Header:
    """Keys and tensors of a GGUF file.

    Parameters
    ----------
    path : Path
        The file.
    architecture : str
        Architecture as llama.cpp calls it, for example ``"llama"``.
    values : dict of str to Any
        The architecture's own keys, without its name.
    general : dict of str to Any
        All other keys. The long lists of the tokenizer are replaced by their length.
    tensors : dict of str to object
        The reader's tensors, with ``shape`` (fastest axis first), ``data`` and ``tensor_type``.
    """

    path: Path
    architecture: str
    values: dict[str, Any]
    general: dict[str, Any]
    tensors: dict[str, Any]

    def named(self, *keys: str) -> str:
        """Return keys with their values, as the file spells them, for messages."""
        return ", ".join(f"{self.architecture}.{key} = {self.values[key]}" for key in keys)

    def number(self, key: str, default: float) -> float:
        """Return a key's value as a number, or `default` if the file lacks the key."""
        return float(self.values.get(key, default))

    def vector(self, tensor: str) -> np.ndarray | None:
        """Return a small unquantised tensor as an array of shape (element,), or None."""
        found = self.tensors.get(tensor)
        return None if found is None else np.asarray(found.data, dtype=np.float64).ravel()

    @property
    def head_size(self) -> int:
        """Number of dimensions of a query or key head."""
        derived = self.values["embedding_length"] // self.values["attention.head_count"]
        return int(self.values.get("attention.key_length", derived))

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(self.values.get("vocab_size") or self.general["tokenizer.ggml.tokens"])

    @property
    def quantization(self) -> str:
        """Quantisation that the header declares, for example ``"Q4_1"``."""
        from gguf import LlamaFileType

        names = {int(kind): kind.name for kind in LlamaFileType}
        name = names.get(self.general.get("general.file_type", -1), "unknown")
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Header

    Raises
    ------
    ModelError
        If the file is not a whole language model of a known architecture, lacks a key that defines
        the size of the model, or gives different sizes to different layers.
    """
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)

    def value(field: Any) -> Any:
        words = field.types[:1] == [GGUFValueType.ARRAY] and field.name.startswith(TOKENIZER)
        return len(field.data) if words else field.contents()

    every = {key: value(field) for key, field in reader.fields.items()}
    architecture = str(every.get("general.architecture"))
    _refuse_other_files(every, architecture)
    prefix = f"{architecture}."
    header = Header(
        path,
        architecture,
        {k.removeprefix(prefix): v for k, v in every.items() if k.startswith(prefix)},
        {k: v for k, v in every.items() if not k.startswith(prefix)},
        {tensor.name: tensor for tensor in reader.tensors},
    )
    _refuse_missing_keys(header)
    _refuse_lists(header)
    return header


def _refuse_other_files(every: dict[str, Any], architecture: str) -> None:
    """Refuse a file that is not one whole language model that can be observed."""
    from gguf import MODEL_ARCH_NAMES

    kind, parts = every.get("general.type", "model"), every.get("split.count", 1)
    if kind != "model":
        raise ModelError(f"it holds general.type = {kind}, not a model; give the model's file")
    if parts > 1:
        raise ModelError(
            f"it is one of split.count = {parts} parts; join them with llama-gguf-split --merge"
        )
    others = set(MODEL_ARCH_NAMES.values()) - {architecture}
    foreign = [key for key in every if key.partition(".")[0] in others]
    if foreign:
        raise ModelError(
            f"{foreign[0]} = {every[foreign[0]]} is a key of another architecture than its own, "
            f"{architecture}; convert it anew"
        )
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"general.architecture = {architecture} is not one that posprobe converts "
            f"({', '.join(ARCHITECTURES)}); give the model's folder with config.json instead"
        )


def _refuse_lists(header: Header) -> None:
    """Refuse sizes that differ by layer, which transformers' configurations cannot express."""
    for key in (*NEEDED, *NEEDED_UNLESS_GPT2, "feed_forward_length"):
        value = header.values.get(key)
        if isinstance(value, list):
            raise ModelError(f"{header.architecture}.{key} differs by layer ({value[:4]} ...)")


def _refuse_missing_keys(header: Header) -> None:
    needed = [*NEEDED]
    needed += [] if header.architecture == "gpt2" else NEEDED_UNLESS_GPT2
    needed += NEEDED_BY.get(header.architecture, ())
    missing = [key for key in needed if not header.values.get(key)]
    if not any(key in header.values for key in NEEDED_EPSILON):
        missing.append(NEEDED_EPSILON[0])
    names = [f"{header.architecture}.{key}" for key in missing]
    if not header.values.get("vocab_size") and "tokenizer.ggml.tokens" not in header.general:
        names.append("tokenizer.ggml.tokens")
    if names:
        raise ModelError(f"it lacks {', '.join(names)}; download it again or convert it anew")
