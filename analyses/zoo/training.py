"""One model on its way from shared initial weights to a finished folder.

Everything that a step depends on is in the checkpoint or follows from ``(seed, step)``, so that a
run which was killed goes on, on one machine's CPU, to the very same weights.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import corpus
import family
import numpy as np
import sink_curve
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Settings:
    """The training budget, equal for all models of the family.

    Attributes
    ----------
    steps, batch, every : int
        Optimizer steps, sequences per step, steps between checkpoints (and rows of the curve).
    peak, weight_decay, clip : float
        Peak learning rate, AdamW's decay of matrices, largest norm of the gradient.
    warm_up : int
        Steps over which the learning rate rises.
    fall : tuple of int
        Steps between which it falls to its floor, where it stays: a run may be continued with more
        `steps`, until its sinks are stable.
    floor : float
        Share of the peak.
    held_out : int
        Held-out sequences on which the curve is measured.
    """

    steps: int = 6000
    batch: int = 16
    every: int = 250
    peak: float = 6e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    warm_up: int = 100
    fall: tuple[int, int] = (3000, 4000)
    floor: float = 0.1
    held_out: int = 32
    shape: family.Shape = field(default_factory=family.Shape)


@dataclass(frozen=True)
class Data:
    """Token streams and where they came from (`source` goes into the provenance)."""

    train: np.ndarray
    held_out: np.ndarray
    source: dict


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of one step: linear rise, constant, linear fall to the floor, constant."""
    corners = (0, settings.warm_up, *settings.fall)
    shares = (0.0, 1.0, 1.0, settings.floor)
    return settings.peak * float(np.interp(step + 1, corners, shares))


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the checksums of a model's files and of its family's tokenizer, by path from there."""
    paths = [*sorted(folder.iterdir()), *sorted(folder.parent.glob("tokenizer/*"))]
    return {os.path.relpath(path, folder): sha256(path) for path in paths}


class RoundedProducts(TorchDispatchMode):
    """Products of bfloat16 matrices, computed in float32 and rounded once.

    That is what processors with instructions for bfloat16 do. Those without are ten times slower
    at the same, in torch's own loops.
    """

    PRODUCTS = frozenset(getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in self.PRODUCTS and args[0].dtype == torch.bfloat16:
            return func(*(each.float() for each in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def has_bfloat16(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 matrices by itself."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Run:
    """One model on its way: weights, optimizer, step, and the curve so far.

    Parameters
    ----------
    architecture : str
        One of `family.ARCHITECTURES`.
    seed : int
        Of the initial weights and of the data order.
    settings, data : Settings, Data
        Equal for all models of the family.
    work : Path
        Folder of checkpoints; a checkpoint found there is resumed.
    device : torch.device
        Where to train.
    snapshots : tuple of int, optional
        Steps whose weights are kept, beside the checkpoints, as models in
        ``work/snapshots/<name>/step<K>``. Training is the same with and without.

    Raises
    ------
    ValueError
        If the checkpoint found belongs to other settings or data, or is past the steps wanted.
    """

    def __init__(
        self,
        architecture: str,
        seed: int,
        settings: Settings,
        data: Data,
        work: Path,
        device: torch.device,
        snapshots: tuple[int, ...] = (),
    ):
        self.architecture, self.seed = architecture, seed
        self.settings, self.data, self.device = settings, data, device
        self.name = f"{architecture}-{seed}"
        self.checkpoint = work / f"{self.name}.pt"
        self.curve = work / f"{self.name}.csv"
        self.snapshots, self.kept = frozenset(snapshots), work / "snapshots" / self.name
        self.step, self.cpu_seconds, self.rows = 0, 0.0, []
        self.model = family.build_model(architecture, seed, settings.shape).to(device).train()
        # At 128 tokens the plain path is a quarter faster on a CPU than the fused one.
        self.model.set_attn_implementation("eager")
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.peak, betas=(0.9, 0.95), fused=True
        )
        if self.checkpoint.exists():
            self._resume()

    def _groups(self) -> list[dict]:
        parameters = list(self.model.parameters())
        return [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": self.settings.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def _identity(self) -> dict:
        settings = asdict(self.settings)
        del settings["steps"]
        return {
            "settings": json.dumps(settings, sort_keys=True),
            "data": json.dumps(self.data.source, sort_keys=True),
        }

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        for part, value in self._identity().items():
            if saved[part] != value:
                raise ValueError(
                    f"checkpoint {self.checkpoint} was made with other {part}: "
                    "delete it, or train with what it was made with"
                )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["step"] > self.settings.steps:
            raise ValueError(
                f"checkpoint {self.checkpoint} is at step {saved['step']}, past the "
                f"{self.settings.steps} wanted: delete it, or ask for more steps"
            )
        self.step, self.rows = saved["step"], saved["rows"]
        self.cpu_seconds = saved["cpu_seconds"]

    def save(self) -> None:
        """Write the checkpoint and the curve, each in one move."""
        partial = self.checkpoint.with_suffix(".pt.partial")
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rows": self.rows,
            "cpu_seconds": self.cpu_seconds,
            **self._identity(),
        }
        torch.save(content, partial)
        os.replace(partial, self.checkpoint)
        write_curve(self.curve, self.rows)

    def one_step(self) -> torch.Tensor:
        """Take one optimizer step and return its loss (nats per token)."""
        settings = self.settings
        tokens = corpus.batch(
            self.data.train, settings.shape.length, settings.batch, self.seed, self.step
        ).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        native = has_bfloat16(self.device)
        with contextlib.nullcontext() if native else RoundedProducts():
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.model(tokens, labels=tokens, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def advance(self) -> dict:
        """Train up to the next checkpoint, write it, and return the new row of the curve."""
        settings, started = self.settings, time.process_time()
        stop = min(settings.steps, (self.step // settings.every + 1) * settings.every)
        if self.step == 0:
            self.keep_snapshot()
        losses = []
        while self.step < stop:
            losses.append(self.one_step())
            self.keep_snapshot()
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            raise ValueError(f"{self.name}: the loss is not finite at step {self.step}")
        self.cpu_seconds += time.process_time() - started
        rate = learning_rate(self.step - 1, settings)
        row = {"step": self.step, "learning_rate": rate, "train_loss": loss}
        self.rows.append(row | self.measure(self.model))
        self.save()
        return self.rows[-1]

    def keep_snapshot(self) -> None:
        """Write the weights of this step as a model, as precise as the finished one, if asked."""
        if self.step in self.snapshots:
            copy.deepcopy(self.model).half().save_pretrained(self.kept / f"step{self.step}")

    def measure(self, model: transformers.PreTrainedModel) -> dict:
        """Return the held-out loss, sinks and norms of a model."""
        settings = self.settings
        tokens = corpus.held_out_batch(self.data.held_out, settings.shape.length, settings.held_out)
        return sink_curve.sink_row(model, tokens.to(self.device))

    def export(self, out: Path) -> Path:
        """Write the finished model to ``out/<name>`` in one move, and return that folder."""
        folder, partial = out / self.name, out / f"{self.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.model.half().save_pretrained(partial)
        (partial / "generation_config.json").unlink(missing_ok=True)
        write_curve(partial / "training.csv", self.rows)
        text = json.dumps(self.provenance(partial), indent=1)
        (partial / "provenance.json").write_text(text + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        return folder

    def provenance(self, folder: Path) -> dict:
        """Return where the weights in ``folder`` came from, and what they do once reloaded."""
        settings = self.settings
        weights = load_file(folder / "model.safetensors")
        if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise ValueError(f"{self.name}: some weights are too large for float16")
        reloaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return {
            "name": self.name,
            "architecture": self.architecture,
            "seed": self.seed,
            "files": checksums(folder),
            "retrain": f"python analyses/zoo/train.py --model {self.name}",
            "settings": asdict(settings),
            "tokens": settings.steps * settings.batch * settings.shape.length,
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "train_loss": self.rows[-1]["train_loss"],
            "measured_on_shipped_weights": self.measure(reloaded.to(self.device)),
            "data": self.data.source,
            "licence": "weights: as posprobe; text trained on: Python Software Foundation License",
            "device": self.device.type,
            "products": "native" if has_bfloat16(self.device) else "in float32, then rounded",
            "precision": "bfloat16 autocast, float32 master weights, shipped as float16",
            "cpu_seconds": round(self.cpu_seconds, 1),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
                "numpy": np.__version__,
            },
        }


def is_finished(folder: Path, settings: Settings) -> bool:
    """Say whether a folder holds a model that was trained with these settings to the end."""
    path = folder / "provenance.json"
    if not path.exists():
        return False
    return json.loads(path.read_text())["settings"] == json.loads(json.dumps(asdict(settings)))


def write_curve(path: Path, rows: list[dict]) -> None:
    """Write the training curve as CSV, in one move."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            digits = {k: v if isinstance(v, int) else f"{v:.5g}" for k, v in row.items()}
            writer.writerow(digits)
    os.replace(partial, path)
