"""Text and tokens that the controlled family is trained on.

The text is the sources of the CPython standard library, which every installation of Python has,
in the order of their paths. One file in twenty is held out. ``pydoc_data`` is left out altogether:
its prose is posprobe's default corpus, and the family should not have been trained on it. So are
the tests, which some distributions do not ship, and ``encodings``, which holds tables.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
BOS = "<|bos|>"
BOS_ID = 0
HELD_OUT_EVERY = 20
LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__", "pydoc_data"),
    *("test", "tests", "idle_test", "encodings"),
}


@dataclass(frozen=True)
class Corpus:
    """Text of the training and the held-out files, with its checksum.

    Attributes
    ----------
    train, held_out : str
        Sources, one file after another.
    sha256 : str
        Over the paths and the bytes of all files, in order.
    files : int
        Number of files read.
    """

    train: str
    held_out: str
    sha256: str
    files: int


def stdlib_sources(root: Path | None = None) -> list[Path]:
    """Return the library's sources, relative to its folder, in the order of their POSIX paths."""
    root = Path(root or sysconfig.get_path("stdlib"))
    found = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = [p for p in found if not LEFT_OUT & set(p.parts) and "_sysconfigdata" not in p.name]
    return sorted(kept, key=lambda path: path.as_posix())


def read_corpus(root: Path | None = None) -> Corpus:
    """Read the standard library's sources; files that are not UTF-8 are left out."""
    root = Path(root or sysconfig.get_path("stdlib"))
    digest, train, held_out = hashlib.sha256(), [], []
    for relative in stdlib_sources(root):
        content = (root / relative).read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        digest.update(relative.as_posix().encode() + b"\0" + content + b"\0")
        number = len(train) + len(held_out)
        (held_out if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else train).append(text)
    return Corpus(
        "\n".join(train), "\n".join(held_out), digest.hexdigest(), len(train) + len(held_out)
    )


def train_tokenizer(text: str, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts the BOS token in front of every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS)


def load_tokenizer(folder: Path, text: str) -> PreTrainedTokenizerFast:
    """Load the family's tokenizer, or train and save it where there is none yet."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(text).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Return the ids of a long text, without BOS, as one row of unsigned 16-bit integers."""
    lines = text.splitlines(keepends=True)
    blocks = ["".join(lines[start : start + 2000]) for start in range(0, len(lines), 2000)]
    ids = [tokenizer(block, add_special_tokens=False)["input_ids"] for block in blocks]
    return np.concatenate([np.asarray(block, dtype=np.uint16) for block in ids])


def batch(stream: np.ndarray, length: int, size: int, seed: int, step: int) -> torch.Tensor:
    """Return one step's sequences: BOS, then ``length - 1`` tokens from a random start.

    The draw depends on ``(seed, step)`` alone, so that every architecture of a seed sees the same
    data in the same order, and a resumed run goes on with exactly what it would have seen.
    """
    starts = np.random.default_rng([seed, step]).integers(0, len(stream) - length, size)
    rows = np.stack([stream[start : start + length - 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=BOS_ID))


def held_out_batch(stream: np.ndarray, length: int, size: int) -> torch.Tensor:
    """Return evenly spaced held-out sequences, each behind a BOS: the same at every call."""
    starts = np.linspace(0, len(stream) - length, size).astype(int)
    rows = np.stack([stream[start : start + length - 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=BOS_ID))
