"""Tables of measured models, drawn."""

import numpy as np
import pandas as pd

NAMES = ("ntk", "standard", "window")
SEED = 20260


def study(
    seed=0, *, models=3, layers=6, intercept=0.5, slope=0.5, noise=0.3, names=NAMES, effect=0.0
):
    """Draw models around their architecture; `effect` is added per architecture, in order."""
    rng = np.random.default_rng(seed)
    counts = [models] * len(names) if isinstance(models, int) else models
    rows = []
    for a, (name, count) in enumerate(zip(names, counts, strict=True)):
        for k in range(count):
            start, tilt = rng.normal(0, intercept), rng.normal(0, slope)
            for layer in range(layers):
                depth = layer / max(layers - 1, 1)
                value = a * effect + start + tilt * (depth - 0.5) + rng.normal(0, noise)
                rows.append((name, f"{name}-{k}", layer, depth, value))
    return pd.DataFrame(rows, columns=["architecture", "model", "layer", "depth", "value"])


def simulate(studies, *, per=3, layers=12, seed=SEED):
    """Draw null studies of 3 architectures at once: values (studies, M, layers)."""
    rng = np.random.default_rng(seed)
    labels, depth = np.repeat(NAMES, per), np.linspace(0, 1, layers)
    shape = (studies, len(labels), 1)
    values = rng.normal(size=shape) + rng.normal(size=shape) * (depth - depth.mean())
    return values + 0.3 * rng.normal(size=(studies, len(labels), layers)), labels, depth


def spoil(**changes):
    """The table of `study` with one odd value."""
    table = study()
    for column, value in changes.items():
        table[column] = table[column].astype(object if isinstance(value, str) else float)
        table.loc[7, column] = value
    return table
