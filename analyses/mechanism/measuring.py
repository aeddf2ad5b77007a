"""What the analyses of this folder share: captures, loss, and what a change leaves of a channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import posprobe
from posprobe.channels import REQUIRED, remaining
from posprobe.intervals import mean_interval
from posprobe.models import Intervention, ObservableModel, Observer
from posprobe.store import ActivationStore

LENGTH = 256


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a model are looked at: the same parts of its depth in every model.

    Attributes
    ----------
    edited : int
        The block whose entering stream is edited, a third of the way up.
    probed : tuple of int
        Blocks whose streams are probed after an edit.
    read : tuple of int
        Blocks whose streams are read elsewhere, and whose code is drawn.
    """

    edited: int
    probed: tuple[int, ...]
    read: tuple[int, ...]

    @classmethod
    def of(cls, model: ObservableModel) -> Blocks:
        """Choose by depth alone."""
        n = model.n_layers
        third, last = max(1, n // 3), n - 1
        sixths = {max(1, n * part // 6) for part in range(1, 6)}
        return cls(
            edited=third,
            probed=tuple(sorted({third, third + 1, n // 2, 2 * n // 3, last})),
            read=tuple(sorted({1, *sixths, last})),
        )


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


def variances_left(native: ActivationStore, store: ActivationStore) -> dict[str, float]:
    """What a change leaves of V_R and V_M, relative to the same items natively."""
    table = remaining(native, store).set_index("variance")
    ends = {"": "left", "_low": "low", "_high": "high"}
    return {
        f"{name}_left{end}": table.loc[name, column]
        for name in ("V_R", "V_M")
        for end, column in ends.items()
    }


def loss_gained(changed: np.ndarray, native: np.ndarray) -> dict[str, float | None]:
    """Mean difference of two losses of the same items."""
    gain = mean_interval(changed - native, estimand="loss gained")
    return {"loss": gain.estimate, "loss_low": gain.low, "loss_high": gain.high}
