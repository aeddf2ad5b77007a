"""What is there before training: the channels of models with random weights, by architecture.

Each architecture is drawn three times: those of the controlled family with the initial weights from
which it was trained, and the real models' own configurations with the initial weights that
transformers gives them. All see the stimuli that their trained counterparts see.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from conditions.models import SCORES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from zoo.family import ARCHITECTURES, Shape, build_model

import posprobe
from posprobe.analysis.replacement import sink_rate
from posprobe.models import ObservableModel
from posprobe.models.bundled import TOKENIZER, zoo_folder

SEEDS = (0, 1, 2)
SHOWN = ("V_T", "V_M", "V_R", "C_MR", "share_mask", "share_residual")


def untrained_family() -> Iterator[tuple[str, int, ObservableModel]]:
    """The controlled family before its first step of training."""
    tokenizer = AutoTokenizer.from_pretrained(zoo_folder("zoo/rope-0") / TOKENIZER)
    for architecture in ARCHITECTURES:
        for seed in SEEDS:
            model = build_model(architecture, seed, Shape())
            yield architecture, seed, ObservableModel(model, tokenizer, name=architecture)


def untrained_copies(
    name: str, model: ObservableModel
) -> Iterator[tuple[str, int, ObservableModel]]:
    """A real model's configuration with random weights."""
    config = AutoConfig.for_model(**model.model.config.to_dict())
    for seed in SEEDS:
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        yield name, seed, ObservableModel(drawn, model.tokenizer, name=name)


def measure(
    architecture: str, seed: int, model: ObservableModel, folder: Path, *, n: int, length: int
) -> dict[str, object]:
    """Capture one untrained model, if that was not done, and return its channels as a row."""
    path = folder / f"{architecture.lower()}-{seed}.h5"
    if not path.exists():
        posprobe.capture(
            model, path, design="shifted", n=n, length=length, quantities=SCORES, bos="native"
        )
    return {"architecture": architecture, "seed": seed, **channels(path)}


def channels(path: Path) -> dict[str, object]:
    """The channels of one shifted capture, averaged over layers, heads and offsets."""
    with posprobe.ActivationStore(path) as store:
        overall = posprobe.decompose(store).overall.iloc[0]
        return {name: overall[name] for name in SHOWN} | {
            "relation": overall["relation"],
            "sink_rate": sink_rate(store),
        }


def baseline(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds for each architecture."""
    numbers = rows.groupby("architecture", sort=False)[[*SHOWN, "sink_rate"]]
    table = numbers.agg(["mean", "min", "max"])
    table.columns = [f"{name}_{what}" if what != "mean" else name for name, what in table.columns]
    return table.reset_index()
