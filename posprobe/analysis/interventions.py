"""The steps of an analysis that go beyond the split into channels, in order."""

from __future__ import annotations

import numpy as np

from posprobe.analysis.cuts import cut_table
from posprobe.analysis.denominator import fixed_denominator_probes, fixed_forward_table
from posprobe.analysis.files import Files
from posprobe.analysis.heads import Head, sink_head_table, sink_reading_heads, writing_table
from posprobe.analysis.masks import mask_probes, mask_tables
from posprobe.analysis.precision import precision_table
from posprobe.analysis.specification import specification_curve
from posprobe.analysis.steps import Found, Step, given, holds, is_split
from posprobe.intervals import Inference, Interval
from posprobe.store import ActivationStore

__all__ = ["INTERVENTION_STEPS"]

LEAST_ITEMS = {"heads": 4, "probes": 5}


def _has(store: ActivationStore | None, purpose: str, quantity: str) -> bool:
    """Return whether a file contains the quantity, for enough items for the purpose."""
    return store is not None and store.n_items >= LEAST_ITEMS[purpose] and holds(store, quantity)


def _has_channels(files: Files) -> bool:
    return _has(files.shifted, "heads", "remasked_normalizer") and is_split(files.shifted)


def _masked(files: Files, design: str) -> list[ActivationStore]:
    return [store for store in files.masks if store.design == design]


def _unmasked_naturals(files: Files) -> list[ActivationStore]:
    return [s for s in _masked(files, "natural") if _has(s, "probes", "normalizer")]


def _sink_reading(files: Files) -> list[Head]:
    """Choose the sink-reading heads on the natural file; without one, there are none."""
    if not _has(files.natural, "heads", "sink_score"):
        return []
    return sink_reading_heads(given(files.natural))


def _precision_is_comparable(files: Files) -> bool:
    natural, shifted = files.natural, files.shifted
    return (
        natural is not None
        and shifted is not None
        and _has_channels(files)
        and _has(natural, "heads", "remasked_normalizer")
        and natural.window == shifted.window
        and natural.offsets == shifted.offsets
        and bool({*natural.prefixes[:-1]} & {*shifted.prefixes[:-1]})
    )


def _heads(files: Files, inference: Inference) -> Found:
    natural, reading = given(files.natural), _sink_reading(files)
    tables = {"sink_heads": sink_head_table(natural, inference=inference)}
    intervals: dict[str, Interval] = {}
    has_two_groups = 0 < len(reading) < natural.n_layers * natural.n_heads
    values_are_known = "sink_value" in natural.header.quantities and bool(
        np.isfinite(natural.read("sink_value")).all()
    )
    if has_two_groups and values_are_known:
        written = writing_table(natural, inference=inference)
        tables["sink_writing"], intervals["sink_writing"] = written
    return Found(tables, intervals)


def _patterns(files: Files, inference: Inference) -> Found:
    probes = fixed_denominator_probes(given(files.natural), inference=inference)
    return Found({"fixed_denominator": probes.table}, {"fixed_denominator": probes.mean})


def _unmasked_probes(files: Files, inference: Inference) -> Found:
    masked = _unmasked_naturals(files)[0]
    table, intervals = mask_probes(given(files.natural), masked, inference=inference)
    return Found({"mask_probes": table}, intervals)


def _precision(files: Files, inference: Inference) -> Found:
    natural, shifted = given(files.natural), given(files.shifted)
    return Found({"precision": precision_table(natural, shifted, inference=inference)})


def _specification(files: Files, inference: Inference) -> Found:
    table = specification_curve(
        given(files.shifted),
        files.replaced,
        sink_reading=_sink_reading(files),
        inference=inference,
    )
    return Found({"specification": table})


def _cuts(files: Files, inference: Inference) -> Found:
    shifted, reading = given(files.shifted), _sink_reading(files)
    table, intervals = cut_table(shifted, files.cut_sink, reading, inference=inference)
    return Found({"cut_sink": table}, intervals)


def _forward(files: Files, inference: Inference) -> Found:
    table = fixed_forward_table(
        given(files.shifted), given(files.fixed_denominator), inference=inference
    )
    return Found({"fixed_forward": table})


def _masks(files: Files, inference: Inference) -> Found:
    masked = _masked(files, "shifted")
    found = mask_tables(given(files.shifted), masked, inference=inference)
    return Found({"masks": found.table, "mask_layers": found.layers}, found.intervals)


INTERVENTION_STEPS = (
    Step("sink-reading heads", lambda files: _has(files.natural, "heads", "sink_score"), _heads),
    Step(
        "fixed denominator", lambda files: _has(files.natural, "probes", "offset_score"), _patterns
    ),
    Step(
        "no mask, probes",
        lambda files: files.natural is not None and bool(_unmasked_naturals(files)),
        _unmasked_probes,
    ),
    Step("precision", _precision_is_comparable, _precision),
    Step(
        "specification curve",
        lambda files: _has_channels(files) and bool(files.replaced),
        _specification,
    ),
    Step("cut sink", lambda files: _has_channels(files) and bool(files.cut_sink), _cuts),
    Step(
        "fixed denominator, forward",
        lambda files: _has_channels(files) and files.fixed_denominator is not None,
        _forward,
    ),
    Step(
        "other masks",
        lambda files: _has_channels(files) and bool(_masked(files, "shifted")),
        _masks,
    ),
)
