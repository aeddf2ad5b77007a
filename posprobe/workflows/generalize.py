"""`posprobe generalize`: whether the code for position that a probe reads holds elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from posprobe.errors import DesignError, progress_bar
from posprobe.probes import Features, PositionProbe, between, features, transfer_scores
from posprobe.store import ActivationStore, path_list

__all__ = ["generalize"]

LEAST = 8  # positions to train on
ONE_WIDTH = ("residual", "normalizer")  # features that have the same columns in every layer


def generalize(
    path: str | Path | Sequence[str | Path],
    others: str | Path | Iterable[str | Path] = (),
    *,
    which: str = "residual",
    layers: Sequence[int] | None = None,
    trained_to: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train position probes on the early positions of one capture, and score them elsewhere.

    Each probe is trained on positions 1 to `trained_to` of one layer of the first file, and scored

    - on *positions*: the same range, and the ranges behind it that double in length, up to the end;
    - in *layers*: the same positions of the other layers;
    - in *files*: the same positions and layer of other captures, and the ranges behind them.

    A sequence is always scored by a probe that was not trained on it, also where it comes again in
    another file: captures of one text under other variants, or with another token at position 0.

    Parameters
    ----------
    path : str or Path, or a sequence of these
        A capture of the natural design, to train on. Of several, the first; the rest are `others`.
    others : str or Path, or an iterable of these
        Captures of the same model, under other conditions.
    which : {"residual", "normalizer"}
        The features; see `posprobe.probes.features`.
    layers : sequence of int, optional
        Layers to train on and to score; by default all that the file has.
    trained_to : int, optional
        Last position to train on, at least 8; by default a quarter of the length.
    level : float
        Nominal coverage of the intervals.
    seed : int
        Seed of the bootstrap.
    progress : bool
        Show the progress.

    Returns
    -------
    pandas.DataFrame
        One row for each probe and what it was scored on: `question`, `layer` of the probe,
        `target_file`, `target_layer`, `start` and `stop` (the first position and the one behind the
        last), and the columns of `posprobe.probes.transfer_scores`.

    Raises
    ------
    DesignError
        If the first file is not of the natural design, has no positions behind `trained_to`, or
        lacks a layer; or if another file is of another width.
    StoreError
        If a file cannot be read.

    Examples
    --------
    ::

        from posprobe.workflows.generalize import generalize

        table = generalize("natural.h5", trained_to=64)
        table[table["question"] == "positions"].pivot(index="layer", columns="start", values="r2")
    """
    if which not in ONE_WIDTH:
        raise DesignError(f"features {which!r}: use one of {', '.join(ONE_WIDTH)}")
    paths = [*path_list(path), *path_list(others)]
    if not paths:
        raise DesignError("no file to train on: give a capture of the natural design")
    store, *stores = map(ActivationStore, paths)
    for one in (store, *stores):
        if one.design != "natural":
            raise DesignError(f"{one.path.name} is of the {one.design} design: use a natural one")
    last = store.length // 4 if trained_to is None else trained_to
    if not LEAST <= last < store.length - 1:
        raise DesignError(
            f"trained_to={last} must be {LEAST} to {store.length - 2}: {store.path.name} has "
            f"positions up to {store.length - 1}"
        )
    chosen = _layers([store, *stores], which, layers)
    same = {id(one): _same_sequences(store, one) for one in (store, *stores)}
    tables = []
    with progress_bar(progress, total=len(chosen), desc="generalize", unit="layer") as bar:
        for layer in chosen:
            source = between(features(store, layer, which), 1, last + 1, name=store.path.name)
            targets = list(_targets(store, stores, chosen, layer, last))
            for known in (True, False):
                asked = [one for one in targets if same[id(one.store)] == known]
                if asked:
                    found = transfer_scores(
                        PositionProbe(), source, _read(asked, which),
                        same_sequences=known, level=level, seed=seed,
                    )  # fmt: skip
                    places = pd.DataFrame([one.place(layer) for one in asked])
                    tables.append(places.join(found.drop(columns="target")))
            bar.update()
    return pd.concat(tables, ignore_index=True)


class _Target(NamedTuple):
    """Positions of one layer of one file, and the question that they answer."""

    question: str
    store: ActivationStore
    layer: int
    start: int
    stop: int

    def place(self, layer: int) -> dict[str, object]:
        return {
            "question": self.question,
            "layer": layer,
            "target_file": self.store.path.name,
            "target_layer": self.layer,
            "start": self.start,
            "stop": self.stop,
        }


def _read(targets: Iterable[_Target], which: str) -> Iterator[tuple[str, Features]]:
    """The features of each target; those of one layer are read once for all ranges."""
    for (store, layer), ranges in groupby(targets, key=lambda one: (one.store, one.layer)):
        data, name = features(store, layer, which), store.path.name
        for one in ranges:
            yield name, between(data, one.start, one.stop, name=name)


def _targets(
    store: ActivationStore,
    stores: Sequence[ActivationStore],
    layers: Sequence[int],
    layer: int,
    last: int,
) -> Iterator[_Target]:
    for start, stop in _ranges(last, store.length):
        yield _Target("positions", store, layer, start, stop)
    for other in layers:
        if other != layer:
            yield _Target("layers", store, other, 1, last + 1)
    for one in stores:
        for start, stop in _ranges(last, one.length):
            yield _Target("files", one, layer, start, stop)


def _ranges(last: int, length: int) -> list[tuple[int, int]]:
    """The range that was trained on, and those behind it, each as long as all before it.

    >>> _ranges(16, 128)
    [(1, 17), (17, 33), (33, 65), (65, 128)]
    """
    bounds = [1, last + 1]
    while bounds[-1] < length:
        bounds.append(min(length, 2 * (bounds[-1] - 1) + 1))
    if bounds[-1] - bounds[-2] < LEAST:  # too few at the end to be a range
        del bounds[-2]
    return list(pairwise(bounds))


def _layers(
    stores: Sequence[ActivationStore], which: str, layers: Sequence[int] | None
) -> list[int]:
    """Layers that all files have the features of."""
    there = [
        set(one.header.residual_layers or ()) if which == "residual" else set(range(one.n_layers))
        for one in stores
    ]
    common = sorted(set.intersection(*there))
    chosen = common if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(common):
        wanted = f"layers {', '.join(map(str, chosen))}" if chosen else "a layer in common"
        raise DesignError(
            f"no {which} of {wanted} in all files: use layers of {common}, or capture them with "
            "--layers"
        )
    return chosen


def _same_sequences(store: ActivationStore, other: ActivationStore) -> bool:
    """Whether equal labels mean the same text, so far as both files go."""
    length = min(store.length, other.length)
    texts = [
        dict(zip(one.item.tolist(), one.tokens[:, 1:length].tolist(), strict=True))
        for one in (store, other)
    ]
    return any(texts[0][item] == texts[1][item] for item in texts[0].keys() & texts[1].keys())
