"""Position erased from the stream that enters one block, against random and content directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from mechanism.measuring import LENGTH, Blocks, captured, loss_gained, losses, variances_left
from tqdm.auto import tqdm

import posprobe
from posprobe.models import NO_INTERVENTION, ObservableModel, StreamEdit
from posprobe.probes import ClusterGram, features, fit_eraser
from posprobe.store import ActivationStore
from posprobe.workflows.edits import erase_position, erase_random

N_NATURAL = 40


def erase_content(model: ObservableModel, path: Path, layer: int) -> StreamEdit:
    """Erase how frequent a token is, log(1 + count) and its square: as many directions."""
    store = ActivationStore(path)
    X, _, groups, _ = features(store, layer, "residual")
    tokens = store.tokens[:, 1:].ravel()  # a row for each position behind 0, sequence by sequence
    frequency = np.log1p(np.bincount(tokens))[tokens]
    concept = np.column_stack([frequency, frequency**2])
    eraser = fit_eraser(ClusterGram.from_arrays(X, concept, groups))
    what = "frequency of the token erased"
    return StreamEdit(layer, what, eraser.mean, eraser.inward, eraser.outward)


def erased_tables(
    model: ObservableModel, native: ActivationStore, files: Path, n: int
) -> dict[str, pd.DataFrame]:
    """Channels of the blocks from the edited one on, loss, and probes of later streams."""
    blocks = Blocks.of(model)
    natural = dict(length=LENGTH, n=N_NATURAL, quantities=("residual",),
                   residual_layers=blocks.probed, resume=True, progress=False)  # fmt: skip
    text = posprobe.capture(model, files / "natural.h5", **natural)
    before = losses(model, native, NO_INTERVENTION, n)
    rows, probes = [], probe_rows(text, "nothing")
    makers = {"position": erase_position, "random": erase_random, "content": erase_content}
    edits = {what: make(model, text.path, blocks.edited) for what, make in makers.items()}
    for what, edit in tqdm(edits.items(), desc="erased"):
        with model.editing(edit):
            store = captured(model, files / f"erased_{what}.h5", n)
            gained = loss_gained(losses(model, native, NO_INTERVENTION, n), before)
            again = posprobe.capture(model, files / f"natural_{what}.h5", **natural)
        probes += probe_rows(again, what)
        left = variances_left(native, store)
        rows.append({"erased": what, "layer": edit.layer, "rank": edit.rank} | left | gained)
    erased = pd.DataFrame(rows).assign(native_loss=before.mean())
    return {"erased": erased, "probes": pd.DataFrame(probes)}


def probe_rows(store: ActivationStore, what: str) -> list[dict[str, object]]:
    """R2 of the ridge probe for position at every kept layer, with intervals."""
    rows = []
    for layer in store.header.residual_layers or ():
        X, y, groups, _ = features(store, layer, "residual")
        probe = posprobe.PositionProbe().fit(X, y, groups=groups)
        found = probe.interval(estimand="fixed_probe")
        row = {"erased": what, "layer": layer, "r2": found.estimate}
        rows.append(row | {"r2_low": found.low, "r2_high": found.high})
    return rows
