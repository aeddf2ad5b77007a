"""What the analyses of this folder share: captures, loss, and what a change leaves of a channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import posprobe
from posprobe.channels import REQUIRED, channel_effects, gather_variances
from posprobe.intervals import fieller_ratio, mean_interval
from posprobe.models import Intervention, ObservableModel, Observer
from posprobe.store import ActivationStore

LENGTH = 256


def captured(model: ObservableModel, path: Path, n: int, **changes: object) -> ActivationStore:
    """The shifted stimulus, without residual streams."""
    return posprobe.capture(
        model, path, design="shifted", n=n, length=LENGTH, quantities=REQUIRED, resume=True,
        progress=False, **changes,
    )  # fmt: skip


def losses(
    model: ObservableModel, store: ActivationStore, change: Intervention, n: int
) -> np.ndarray:
    """Mean loss on the window behind the longest prefix, in nats per token, by item."""
    late = np.flatnonzero((store.prefix_length == store.prefixes[-1]) & (store.item < n))
    found = {}
    for sequence in late:
        tokens = torch.from_numpy(store.tokens[sequence].astype(np.int64))[None]
        scores = model.logits(tokens, Observer(intervention=change))[0, -store.window - 1 : -1]
        loss = torch.nn.functional.cross_entropy(scores.double(), tokens[0, -store.window :])
        found[int(store.item[sequence])] = float(loss)
    return np.array([found[item] for item in sorted(found)])


def pseudo_values_of(store: ActivationStore, name: str, n: int, first: int = 0) -> np.ndarray:
    """Jackknife pseudo-values of a variance, over heads and layers from `first` on, by item."""
    layers = (channel_effects(store, layer) for layer in range(first, store.n_layers))
    effects = (layer.take(np.arange(n)) for layer in layers)
    return gather_variances(effects).mean((0, 1)).pseudo[name][:, 0, 0]


def variances_left(
    native: ActivationStore, store: ActivationStore, first: int = 0
) -> dict[str, float | None]:
    """What a change leaves of V_R and V_M, relative to the same items natively."""
    row: dict[str, float | None] = {}
    for name in ("V_R", "V_M"):
        pair = (pseudo_values_of(each, name, store.n_items, first) for each in (native, store))
        left = fieller_ratio(*pair, quantity="ratio", estimand=f"{name} left")
        low, high = np.array([left.low, left.high], float)  # NaN where it is unbounded
        row |= {f"{name}_left": left.estimate, f"{name}_left_low": low}
        row[f"{name}_left_high"] = high
    return row


def loss_gained(changed: np.ndarray, native: np.ndarray) -> dict[str, float | None]:
    """Mean difference of two losses of the same items."""
    gain = mean_interval(changed - native, estimand="loss gained")
    return {"loss": gain.estimate, "loss_low": gain.low, "loss_high": gain.high}
