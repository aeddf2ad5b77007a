"""What 4 bits change: every matrix of a model quantised once more, and the channels measured again.

The real models come with 4-bit weights, and their full-precision weights are not at hand. Rounding
each matrix again, to another grid of 4 bits (Q4_0: blocks of 32 with one scale), changes it by
about as much as rounding changed it before, so it changes the channels by about as much as the
change that cannot be seen. Rounding to 8 bits (Q8_0) is the control. Items are the same, so
differences are paired by item.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conditions.models import SCORES
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

import posprobe
from posprobe.intervals import mean_interval
from posprobe.models import ObservableModel

GRIDS = ("Q4_0", "Q8_0")
COMPARED = ("V_T", "V_M", "V_R", "C_MR")
BLOCK = 32


def quantised_rows(
    name: str, model: ObservableModel, native: Path, folder: Path, *, n: int, length: int
) -> list[dict[str, object]]:
    """Channels of the model on each grid, and how they differ from those as it was loaded.

    `model` is changed: its matrices are left on the last grid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = _pseudo_values(native)
    loaded = {key: value.detach().clone() for key, value in _matrices(model).items()}
    rows = []
    for grid in GRIDS:
        changed = _round(model, loaded, GGMLQuantizationType[grid])
        path = folder / f"{name.lower()}-{grid}.h5"
        if not path.exists():
            options = dict(design="shifted", n=n, length=length, bos="native", quantities=SCORES)
            posprobe.capture(model, path, **options)
        after = _pseudo_values(path)
        for quantity in COMPARED:
            moved = mean_interval(after[quantity] - before[quantity], estimand=quantity)
            rows.append(
                {
                    "model": name,
                    "grid": grid,
                    "weights_changed": changed,
                    "quantity": quantity,
                    "as_loaded": float(before[quantity].mean()),
                    "rounded_again": float(after[quantity].mean()),
                    **moved.row("difference"),
                }
            )
    return rows


def _matrices(model: ObservableModel) -> dict[str, torch.nn.Parameter]:
    """The matrices of the blocks; embeddings are left alone."""
    return {
        name: parameter
        for name, parameter in model.model.named_parameters()
        if parameter.ndim == 2 and ".layers." in name and parameter.shape[1] % BLOCK == 0
    }


@torch.no_grad()
def _round(
    model: ObservableModel, loaded: dict[str, torch.Tensor], grid: GGMLQuantizationType
) -> float:
    """Put the matrices on a grid; return the relative change of the weights (root mean square)."""
    moved = size = 0.0
    for name, parameter in _matrices(model).items():
        own = loaded[name].float().numpy()
        rounded = dequantize(quantize(own, grid), grid)
        moved, size = moved + float(((rounded - own) ** 2).sum()), size + float((own**2).sum())
        parameter.copy_(torch.from_numpy(rounded.copy()))
    return float(np.sqrt(moved / size))


def _pseudo_values(path: Path) -> dict[str, np.ndarray]:
    """Pseudo-values of each variance, means over layers, heads and offsets: one per item."""
    with posprobe.ActivationStore(path) as store:
        variances = posprobe.decompose(store).variances.mean((0, 1))
    return {name: variances.pseudo[name][:, 0, 0] for name in COMPARED}
