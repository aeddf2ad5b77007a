"""All tables of one model, and the single numbers that its claims rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from posprobe.analysis.checks import check
from posprobe.analysis.exact import layer_0_table, repeated_table
from posprobe.analysis.files import Files
from posprobe.analysis.interventions import intervention_steps
from posprobe.analysis.position0 import closed_system_table, closure, fingerprint_spread
from posprobe.analysis.probes import probe_layers
from posprobe.analysis.replacement import replacement_table
from posprobe.analysis.sinks import share_of_sink_heads, sink_table
from posprobe.channels import decompose
from posprobe.intervals import Interval
from posprobe.store import ActivationStore

__all__ = ["Analysis", "analyze_files", "count_steps"]

Step = Callable[[str], None]


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes
    ----------
    files : Files
    tables : dict of str to pandas.DataFrame
        By file name, without extension.
    intervals : dict of str to Interval
        Single numbers that claims rest on.
    level : float
        Of every interval.
    """

    files: Files
    tables: dict[str, pd.DataFrame]
    intervals: dict[str, Interval]
    level: float


def count_steps(files: Files) -> int:
    """How often `analyze_files` will call `step`."""
    natural, shifted = files.natural, files.shifted
    repeated = [store for store in (files.repeated, files.bos_repeated) if store is not None]
    with_residual = natural is not None and "residual" in natural.header.quantities
    named = (natural, with_residual, shifted is not None and files.replaced)
    channels = [store for store in (shifted, natural) if store is not None and _split(store)]
    return sum(map(bool, named)) + len(channels) + len(repeated) + len(intervention_steps(files))


def _split(store: ActivationStore) -> bool:
    return "remasked_normalizer" in store.header.quantities


def analyze_files(
    files: Files,
    *,
    level: float = 0.95,
    seed: int = 0,
    step: Step = lambda what: None,
) -> Analysis:
    """Compute all tables that the files allow, without a model.

    Parameters
    ----------
    files : Files
    level : float
        Of all intervals.
    seed : int
        Of all resampling.
    step : callable
        Told what comes next, for a progress bar.

    Returns
    -------
    Analysis
    """
    tables: dict[str, pd.DataFrame] = {}
    intervals: dict[str, Interval] = {}
    if files.natural is not None:
        step("sinks")
        _sinks(files.natural, tables, intervals, level, seed)
        if "residual" in files.natural.header.quantities:
            step("probes")
            probes = probe_layers(files.natural, level=level, seed=seed)
            tables["probes"], tables["partition"] = probes.probes, probes.partition
            intervals |= {f"probe_{name}": mean for name, mean in probes.mean.items()}
    for store in (files.shifted, files.natural):
        if store is not None and _split(store):
            step(f"channels, {store.design}")
            _channels(store, tables, level, seed)
    if files.shifted is not None:
        if _split(files.shifted):
            tables["layer_0"], exact = layer_0_table(files.shifted, level)
            intervals |= exact
        intervals["fingerprint_bos"], spread = fingerprint_spread(files.shifted, level=level)
        _append(tables, "fingerprint", spread, _first_token(files.shifted))
        if files.replaced:
            step("replacement of position 0")
            tables["replacement"] = replacement_table(files.shifted, files.replaced, level=level)
    for store in (files.repeated, files.bos_repeated):
        if store is not None:
            step("repeated token")
            name = "repeated" if store is files.repeated else "bos_repeated"
            table, intervals[name] = repeated_table(store, level)
            _append(tables, "repeated", table, name)
    for name, make in intervention_steps(files):
        step(name)
        found = make(level, seed)
        tables |= found.tables
        intervals |= found.intervals
    tables["checks"] = pd.DataFrame([check(store) for store in files.all()])
    return Analysis(files, tables, intervals, level)


def _append(tables: dict[str, pd.DataFrame], name: str, table: pd.DataFrame, stimulus: str) -> None:
    table = table.copy()
    table.insert(0, "stimulus", stimulus)
    tables[name] = pd.concat([tables[name], table]) if name in tables else table


def _sinks(
    store: ActivationStore,
    tables: dict[str, pd.DataFrame],
    intervals: dict[str, Interval],
    level: float,
    seed: int,
) -> None:
    tables["sinks"] = sink_table(store, level=level, seed=seed)
    intervals["sink_heads"] = share_of_sink_heads(store, level=level, seed=seed)
    tables["closed_system"] = closed_system_table(store)
    intervals["closure"] = closure(store, level=level)
    intervals["fingerprint_text"], spread = fingerprint_spread(store, level=level)
    _append(tables, "fingerprint", spread, _first_token(store))


def _first_token(store: ActivationStore) -> str:
    """Say whether all inputs begin with the same token."""
    return "one first token" if len(np.unique(store.tokens[:, 0])) == 1 else "many first tokens"


def _channels(
    store: ActivationStore, tables: dict[str, pd.DataFrame], level: float, seed: int
) -> None:
    result = decompose(store, by_offset=True, level=level, seed=seed)
    assert result.by_offset is not None
    each = {name: "float32" for name in result.by_offset.select_dtypes("float")}
    for name, table in (
        ("channels_by_head", result.by_head),
        ("channels_by_layer", result.by_layer),
        ("channels", result.overall),
        ("position_effects", result.positions),
        ("channels_by_offset", result.by_offset.astype(each)),  # long, and scores are float32
    ):
        _append(tables, name, table, store.design)
