"""Position erased from the stream that enters one block, against as many random directions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mechanism.measuring import LENGTH, captured, loss_gained, losses, variances_left
from tqdm.auto import tqdm

import posprobe
from posprobe.models import NO_INTERVENTION, ObservableModel
from posprobe.probes import features
from posprobe.store import ActivationStore
from posprobe.workflows.edits import erase_position, erase_random

BLOCK, PROBED = 10, (10, 11, 15, 20, 29)
N_NATURAL = 40


def erased_tables(
    model: ObservableModel, native: ActivationStore, files: Path, n: int
) -> dict[str, pd.DataFrame]:
    """Channels of the blocks from the edited one on, loss, and probes of later streams."""
    natural = dict(length=LENGTH, n=N_NATURAL, quantities=("residual",), residual_layers=PROBED,
                   resume=True, progress=False)  # fmt: skip
    text = posprobe.capture(model, files / "natural.h5", **natural)
    before = losses(model, native, NO_INTERVENTION, n)
    rows, probes = [], probe_rows(text, "nothing")
    makers = {"position": erase_position, "random": erase_random}
    edits = {what: make(model, text.path, BLOCK) for what, make in makers.items()}
    for what, edit in tqdm(edits.items(), desc="erased"):
        with model.editing(edit):
            store = captured(model, files / f"erased_{what}.h5", n)
            gained = loss_gained(losses(model, native, NO_INTERVENTION, n), before)
            again = posprobe.capture(model, files / f"natural_{what}.h5", **natural)
        probes += probe_rows(again, what)
        left = variances_left(native, store)
        rows.append({"erased": what, "rank": edit.rank} | left | gained)
    erased = pd.DataFrame(rows).assign(native_loss=before.mean())
    return {"erased": erased, "probes": pd.DataFrame(probes)}


def probe_rows(store: ActivationStore, what: str) -> list[dict[str, object]]:
    """R2 of the ridge probe for position at every kept layer, with intervals."""
    rows = []
    for layer in PROBED:
        X, y, groups, _ = features(store, layer, "residual")
        probe = posprobe.PositionProbe().fit(X, y, groups=groups)
        found = probe.interval(estimand="fixed_probe")
        row = {"erased": what, "layer": layer, "r2": found.estimate}
        rows.append(row | {"r2_low": found.low, "r2_high": found.high})
    return rows
