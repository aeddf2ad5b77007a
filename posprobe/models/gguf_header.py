"""What a GGUF file says of itself: its keys and tensors, read once.

GGUF is the format of llama.cpp; its keys are documented at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Those of the model carry the name of its
architecture in front, as in ``llama.rope.freq_base``; here they go without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import ModelError

__all__ = ["ARCHITECTURES", "Header", "read_header"]

# Those whose conversion is proved by a test, and whose attention can be observed.
ARCHITECTURES = (
    *("gemma2", "gemma3", "gpt2", "llama", "phi3"),
    *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2"),
)
# transformers takes these from its own defaults, those of a 7B model, where a file lacks them.
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
    architecture : str
        As llama.cpp calls it, for example ``"llama"``.
    values : dict of str to Any
        The architecture's own keys, without its name.
    general : dict of str to Any
        All other keys, but for long lists (the vocabulary), which are given by their length.
    tensors : dict of str to object
        The reader's tensors: ``shape`` (fastest axis first), ``data``, ``tensor_type``.
    """

    path: Path
    architecture: str
    values: dict[str, Any]
    general: dict[str, Any]
    tensors: dict[str, Any]

    def named(self, *keys: str) -> str:
        """Keys with their values, as the file spells them: for messages."""
        return ", ".join(f"{self.architecture}.{key} = {self.values[key]}" for key in keys)

    def number(self, key: str, default: float) -> float:
        """A key's value as a number, or what llama.cpp takes where the file lacks it."""
        return float(self.values.get(key, default))

    def vector(self, tensor: str) -> np.ndarray | None:
        """A small tensor that is stored as numbers: (element,), or None if it is not there."""
        found = self.tensors.get(tensor)
        return None if found is None else np.asarray(found.data, dtype=np.float64).ravel()

    @property
    def head_size(self) -> int:
        """Dimensions of a query or key head."""
        derived = self.values["embedding_length"] // self.values["attention.head_count"]
        return int(self.values.get("attention.key_length", derived))

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.values.get("vocab_size") or self.general["tokenizer.ggml.tokens"])

    @property
    def quantization(self) -> str:
        """The file type that the header declares, for example Q4_1."""
        from gguf import LlamaFileType

        names = {int(kind): kind.name for kind in LlamaFileType}
        name = names.get(self.general.get("general.file_type", -1), "unknown")
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def read_header(path: Path) -> Header:
    """Read the keys and the names of the tensors of a GGUF file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Header

    Raises
    ------
    ModelError
        If the file is not a whole language model of a known architecture, or lacks a key that
        says how large the model is.
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
    """Refuse what is not one whole language model that can be observed."""
    from gguf import MODEL_ARCH_NAMES

    kind, parts = every.get("general.type", "model"), every.get("split.count", 1)
    if kind != "model":
        raise ModelError(f"it holds not a model but general.type = {kind}; give the model's file")
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
    """Refuse a size that differs by layer, which transformers' configurations cannot say."""
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
