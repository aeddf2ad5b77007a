"""One model of the family: trained if it is missing, and measured as in analysis 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from stability import last_change

import posprobe
from posprobe.captures import QUANTITIES
from posprobe.models.bundled import zoo_folder

ANALYSES = Path(__file__).resolve().parents[1]
TOKENIZER = ANALYSES.parent / "data" / "zoo" / "tokenizer"
ARCHITECTURES = ("rope", "ntk", "window")
LENGTH, N = 128, 32
KEPT = ("V_T", "V_M", "V_R", "C_MR")
SNAPSHOTS = (
    0, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6000,
)  # fmt: skip


def train(name: str, work: Path) -> Path:
    """Train a model such as ``rope-3``, from wherever its checkpoints are; return its folder."""
    out = work / "models"
    shutil.copytree(TOKENIZER, out / TOKENIZER.name, dirs_exist_ok=True)
    script = ANALYSES / "zoo" / "train.py"
    command = [sys.executable, script, "--model", name, "--work", work, "--out", out]
    command += ["--snapshots", *map(str, SNAPSHOTS)]
    subprocess.run(list(map(str, command)), check=True)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, out / name)
    return out / name


def measure(name: str, source: str, files: Path) -> tuple[dict[str, object], pd.DataFrame]:
    """A row of what the model is, and a row for each layer: means over heads and offsets."""
    files.mkdir(parents=True, exist_ok=True)
    model = posprobe.load_model(source)
    path = files / f"{name}.h5"
    quantities = tuple(quantity for quantity in QUANTITIES if quantity != "residual")
    store = posprobe.capture(
        model, path, design="shifted", bos="force", n=N, length=LENGTH, quantities=quantities,
        overwrite=True, progress=False,
    )  # fmt: skip
    found = posprobe.decompose(store).by_layer
    architecture, _, seed = name.rpartition("-")
    limits = [f"{value}{end}" for value in KEPT for end in ("", "_low", "_high")]
    layers = found[["layer", *limits]].assign(depth=found["layer"].astype(int) / (len(found) - 1))
    head = {"architecture": architecture, "model": name, "block": int(seed)}
    for column, value in reversed(head.items()):
        layers.insert(0, column, value)
    folder = zoo_folder(source) if source.startswith("zoo/") else Path(source)
    return head | provenance(folder) | {"weights": store.header.weights_digest}, layers


def provenance(folder: Path) -> dict[str, object]:
    """How a model was trained, and whether its sinks were stable when training ended."""
    said = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    curve = pd.read_csv(folder / "training.csv")
    last = curve.iloc[-1]
    return {
        "steps": int(last["step"]),
        "held_out_loss": float(last["held_out_loss"]),
        "strongest_sink": float(last.filter(like="early_L").max()),
        "last_change": last_change(curve),
        "text": said["data"]["sha256"][:12],
        "python": said["versions"]["python"],
        "torch": said["versions"]["torch"],
        "products": said.get("products", "native"),  # of bfloat16 matrices
        "model_file": said["files"]["model.safetensors"][:12],
    }
