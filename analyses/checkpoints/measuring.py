"""The steps of one model that were kept while it trained: captured, and followed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
from seeds.measuring import SNAPSHOTS, TOKENIZER

import posprobe
from posprobe.captures import QUANTITIES
from posprobe.comparison import follow, line_up_steps
from posprobe.store import ActivationStore

LENGTH, N = 128, 32
DESIGNS = {
    "shifted": tuple(quantity for quantity in QUANTITIES if quantity != "residual"),
    "natural": ("normalizer", "sink_score", "residual"),
}


def is_kept(snapshots: Path, name: str) -> bool:
    """Say whether every step of a model is there."""
    return all((snapshots / name / f"step{step}" / "config.json").exists() for step in SNAPSHOTS)


def capture_steps(snapshots: Path, name: str, files: Path) -> list[ActivationStore]:
    """Capture both designs at every step; what is complete is not done again."""
    stores = []
    for step in SNAPSHOTS:
        source = snapshots / name / f"step{step}"
        for file in TOKENIZER.iterdir():
            shutil.copy(file, source)
        folder = files / name / source.name
        folder.mkdir(parents=True, exist_ok=True)
        model = posprobe.load_model(str(source))
        for design, quantities in DESIGNS.items():
            stores.append(
                posprobe.capture(
                    model, folder / f"{design}.h5", design=design, bos="force", n=N, length=LENGTH,
                    quantities=quantities, resume=True, progress=False,
                )
            )  # fmt: skip
    return stores


def measure(snapshots: Path, name: str, files: Path) -> dict[str, pd.DataFrame]:
    """Tables of one training run, with the digests of its steps."""
    stores = capture_steps(snapshots, name, files)
    tables = dict(follow(line_up_steps(stores)).tables)
    shifted = [store for store in stores if store.design == "shifted"]
    tables["checkpoints"] = pd.DataFrame(
        {"step": SNAPSHOTS, "weights": [store.header.weights_digest for store in shifted]}
    )
    architecture, _, seed = name.rpartition("-")
    head = {"architecture": architecture, "seed": int(seed), "model": name}
    return {what: pd.DataFrame(head, table.index).join(table) for what, table in tables.items()}
