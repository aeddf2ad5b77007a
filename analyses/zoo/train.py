"""Train the controlled family of small models, one after another.

    python analyses/zoo/train.py --all --seeds 3      what is not finished yet, seed by seed
    python analyses/zoo/train.py --model window-1     one model
    python analyses/zoo/train.py --status             how far each model is

It may be killed or stopped at any time: the same command goes on from the last checkpoint, on one
machine's CPU to the very same weights. Finished models are skipped. Checkpoints stay: with more
steps in `Settings` the same command continues every model. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import corpus
import family
import numpy as np
import torch
from training import Data, Run, Settings, is_finished, sha256

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "held_out")


def pick_device(wanted: str) -> torch.device:
    """Return the device; ``auto`` takes a GPU where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def load_data(out: Path, work: Path) -> Data:
    """Return the token streams, encoded once and kept in the work folder."""
    text = corpus.read_corpus()
    tokenizer = corpus.load_tokenizer(out / "tokenizer", text.train)
    source = {
        "text": "sources of the CPython standard library",
        "python": platform.python_version(),
        "files": text.files,
        "characters": len(text.train) + len(text.held_out),
        "sha256": text.sha256,
        "tokenizer_sha256": sha256(out / "tokenizer" / "tokenizer.json"),
    }
    cache = work / f"tokens-{text.sha256[:8]}-{source['tokenizer_sha256'][:8]}.npz"
    if not cache.exists():
        streams = {part: corpus.encode(tokenizer, getattr(text, part)) for part in SPLITS}
        partial = work / "tokens.partial"
        with partial.open("wb") as file:
            np.savez(file, **streams)
        os.replace(partial, cache)
    with np.load(cache) as stored:
        return Data(stored["train"], stored["held_out"], source)


def train(run: Run, out: Path) -> Path:
    """Train one model to the end, from wherever it is, and export it."""
    while run.step < run.settings.steps:
        row = run.advance()
        print(
            f"{run.name} step {run.step}/{run.settings.steps} loss {row['train_loss']:.3f} "
            f"held out {row['held_out_loss']:.3f} sink {row['sink_max']:.3f} "
            f"early {row['early_max']:.3f} norm ratio {row[last_norm(row)]:.2f} "
            f"({run.cpu_seconds / run.step:.3f} s a step)",
            flush=True,
        )
    return run.export(out)


def last_norm(row: dict) -> str:
    """Return the name of the deepest layer's norm ratio."""
    return max(name for name in row if name.startswith("norm_ratio"))


def queue(seeds: int) -> list[tuple[str, int]]:
    """Return the models in order of training: all architectures of seed 0, then of seed 1 ..."""
    return [(name, seed) for seed in range(seeds) for name in family.ARCHITECTURES]


def parse_name(name: str) -> tuple[str, int]:
    """Return architecture and seed of a model's name such as ``window-1``.

    Raises
    ------
    ValueError
        If it is no such name.
    """
    architecture, _, seed = name.rpartition("-")
    if architecture not in family.ARCHITECTURES or not seed.isdigit():
        raise ValueError(f"no model {name!r}: say one such as rope-0 or window-1")
    return architecture, int(seed)


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold the work folder, so that two trainers cannot write the same checkpoints."""
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another trainer works in {work}: stop it, or say --work") from error
        yield


def status(out: Path, work: Path, seeds: int) -> None:
    """Print the last row of every model's curve."""
    for architecture, seed in queue(seeds):
        name = f"{architecture}-{seed}"
        finished = is_finished(out / name, Settings())
        path = out / name / "training.csv" if finished else work / f"{name}.csv"
        if not path.exists():
            print(f"{name:10s} not started")
            continue
        with path.open() as file:
            row = list(csv.DictReader(file))[-1]
        print(
            f"{name:10s} {'finished' if finished else 'training'} step {row['step']} "
            f"held-out loss {row['held_out_loss']} sink {row['sink_max']} "
            f"early {row['early_max']} norm ratio {row[last_norm(row)]}"
        )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="train all that are not finished")
    what.add_argument("--model", metavar="ARCH-SEED", help="train one model, such as window-1")
    what.add_argument("--status", action="store_true", help="say how far each model is")
    what.add_argument("--held-out", type=Path, metavar="FILE", help="write the held-out text")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per architecture (3)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "zoo")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "zoo")
    parser.add_argument(
        "--snapshots", type=int, nargs="*", default=(), metavar="STEP",
        help="keep the weights of these steps too, below WORK/snapshots",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    return parser.parse_args(argv)


def train_all(
    names: list[tuple[str, int]],
    out: Path,
    work: Path,
    device: torch.device,
    snapshots: tuple[int, ...] = (),
) -> None:
    """Train what is not finished, one model after another."""
    data = load_data(out, work)
    for architecture, seed in names:
        if not is_finished(out / f"{architecture}-{seed}", Settings()):
            run = Run(architecture, seed, Settings(), data, work, device, snapshots)
            print(f"finished {train(run, out)}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    arguments = parse_arguments(argv)
    out, work = arguments.out, arguments.work
    if arguments.status:
        return status(out, work, arguments.seeds)
    if arguments.held_out:
        arguments.held_out.write_text(corpus.read_corpus().held_out, encoding="utf-8")
        return None
    torch.set_num_threads(arguments.threads)
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    names = queue(arguments.seeds) if arguments.all else [parse_name(arguments.model)]
    with alone(work):
        train_all(names, out, work, pick_device(arguments.device), tuple(arguments.snapshots))
    return None


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"train.py: {error}")
