"""The interventions that a set of files allows: what to compute, in order, from which of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from posprobe.analysis.cuts import cut_table
from posprobe.analysis.denominator import fixed_denominator_probes, fixed_forward_table
from posprobe.analysis.files import Files
from posprobe.analysis.heads import Head, sink_head_table, sink_reading_heads, writing_table
from posprobe.analysis.masks import mask_probes, mask_tables
from posprobe.analysis.precision import precision_table
from posprobe.analysis.specification import specification_curve
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = ["Found", "intervention_steps"]

LEAST_ITEMS = {"heads": 4, "probes": 5}


class Found(NamedTuple):
    """Tables by file name, and single numbers that claims rest on."""

    tables: dict[str, pd.DataFrame]
    intervals: dict[str, Interval]


Make = Callable[[float, int], Found]


def intervention_steps(files: Files) -> list[tuple[str, Make]]:
    """What the files allow beyond the split itself.

    Returns
    -------
    list of (name, make)
        ``make(level, seed)`` gives the tables: `sink_heads` and `sink_writing` (natural file),
        `fixed_denominator` (natural), `precision` (natural and shifted), `specification` (shifted
        and replaced), `cut_sink` (shifted and cut), `fixed_forward` (shifted and fixed), `masks`
        and `mask_layers` (shifted under other masks), `mask_probes` (natural without its mask).
    """
    natural, shifted = files.natural, files.shifted
    steps: list[tuple[str, Make]] = []
    reading: list[Head] = []
    if natural is not None and _has(natural, "heads", "sink_score"):
        reading = sink_reading_heads(natural)
        steps.append(("sink-reading heads", _heads(natural, reading)))
    if natural is not None and _has(natural, "probes", "offset_score"):
        steps.append(("fixed denominator", _patterns(natural)))
    unmasked = [
        s for s in files.masked if s.design == "natural" and _has(s, "probes", "normalizer")
    ]
    if unmasked and natural is not None:
        steps.append(("no mask, probes", _unmasked(natural, unmasked[0])))
    if shifted is None or not _has(shifted, "heads", "remasked_normalizer"):
        return steps
    if natural is not None and _comparable(natural, shifted):
        steps.append(("precision", _precision(natural, shifted)))
    if files.replaced:
        steps.append(("specification curve", _specification(shifted, files.replaced, reading)))
    if files.cut:
        steps.append(("cut sink", _cut(shifted, files.cut, reading)))
    if files.fixed is not None:
        steps.append(("fixed denominator, forward", _forward(shifted, files.fixed)))
    masked = [store for store in files.masked if store.design == "shifted"]
    if masked:
        steps.append(("other masks", _masked(shifted, masked)))
    return steps


def _has(store: ActivationStore, purpose: str, quantity: str) -> bool:
    enough = store.n_items >= LEAST_ITEMS[purpose]
    return enough and quantity in store.header.quantities


def _comparable(natural: ActivationStore, shifted: ActivationStore) -> bool:
    return (
        _has(natural, "heads", "remasked_normalizer")
        and natural.window == shifted.window
        and natural.offsets == shifted.offsets
        and bool({*natural.prefixes[:-1]} & {*shifted.prefixes[:-1]})
    )


def _heads(store: ActivationStore, reading: list[Head]) -> Make:
    def make(level: float, seed: int) -> Found:
        tables = {"sink_heads": sink_head_table(store, level=level)}
        two_groups = 0 < len(reading) < store.n_layers * store.n_heads
        known = "sink_value" in store.header.quantities and bool(
            np.isfinite(store.read("sink_value")).all()
        )
        if two_groups and known:
            tables["sink_writing"] = writing_table(store, level=level)
        return Found(tables, {})

    return make


def _patterns(store: ActivationStore) -> Make:
    def make(level: float, seed: int) -> Found:
        probes = fixed_denominator_probes(store, level=level, seed=seed)
        return Found({"fixed_denominator": probes.table}, {"fixed_denominator": probes.mean})

    return make


def _precision(natural: ActivationStore, shifted: ActivationStore) -> Make:
    return lambda level, seed: Found(
        {"precision": precision_table(natural, shifted, level=level, seed=seed)}, {}
    )


def _specification(
    native: ActivationStore, replaced: list[ActivationStore], reading: list[Head]
) -> Make:
    return lambda level, _: Found(
        {"specification": specification_curve(native, replaced, sink_reading=reading, level=level)},
        {},
    )


def _cut(native: ActivationStore, cuts: list[ActivationStore], reading: list[Head]) -> Make:
    return lambda level, _: Found({"cut_sink": cut_table(native, cuts, reading, level=level)}, {})


def _forward(native: ActivationStore, fixed: ActivationStore) -> Make:
    return lambda level, _: Found(
        {"fixed_forward": fixed_forward_table(native, fixed, level=level)}, {}
    )


def _masked(native: ActivationStore, masked: list[ActivationStore]) -> Make:
    def make(level: float, seed: int) -> Found:
        found = mask_tables(native, masked, level=level, seed=seed)
        return Found({"masks": found.table, "mask_layers": found.layers}, found.intervals)

    return make


def _unmasked(native: ActivationStore, masked: ActivationStore) -> Make:
    def make(level: float, seed: int) -> Found:
        table, intervals = mask_probes(native, masked, level=level, seed=seed)
        return Found({"mask_probes": table}, intervals)

    return make
