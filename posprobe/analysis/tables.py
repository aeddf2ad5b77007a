"""Compute all tables of one model, and the single numbers on which its claims are based."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from posprobe.analysis.checks import check
from posprobe.analysis.conditions import condition_tables, measurable
from posprobe.analysis.exact import layer_0_table, repeated_table
from posprobe.analysis.files import Files
from posprobe.analysis.interventions import INTERVENTION_STEPS
from posprobe.analysis.limits import limits_table
from posprobe.analysis.position0 import closed_system_table, closure, fingerprint_spread
from posprobe.analysis.probes import probe_layers
from posprobe.analysis.replacement import replacement_table
from posprobe.analysis.sinks import share_of_sink_heads, sink_table
from posprobe.analysis.steps import Found, Step, given, holds, is_split, titled
from posprobe.channels import (
    REQUIRED,
    SPLIT,
    Decomposition,
    decompose,
    decompose_bands,
    shares,
    why_no_bands,
)
from posprobe.errors import DesignError, Telling
from posprobe.intervals import Inference, Interval, in_processes
from posprobe.store import ActivationStore

__all__ = ["Analysis", "analyze_files", "possible_steps"]

# What steps read of a natural capture.
SINKS = ("normalizer", "sink_score")
POSITION0 = ("position0", "position0_alone")
PROBED = ("residual", "normalizer")


@dataclass(frozen=True, repr=False)
class Analysis(Telling):
    """The result of `analyze_files`.

    Attributes
    ----------
    files : Files
        The analysed files.
    tables : dict of str to pandas.DataFrame
        Tables by file name, without extension.
    intervals : dict of str to Interval
        The single numbers on which claims are based.
    inference : Inference
        The settings of every interval.
    """

    files: Files
    tables: dict[str, pd.DataFrame]
    intervals: dict[str, Interval]
    inference: Inference = Inference()

    def _line(self) -> str:
        files = ", ".join(store.path.name for store in self.files.all())
        return f"{files}; tables {', '.join(self.tables)}"

    @property
    def level(self) -> float:
        """The nominal coverage of every interval."""
        return self.inference.level


def possible_steps(files: Files) -> list[Step]:
    """Return the steps of an analysis for which the files suffice, in order.

    Parameters
    ----------
    files : Files
        Captures of one model.

    Returns
    -------
    list of Step
    """
    return [step for step in STEPS if step.possible(files)]


def analyze_files(
    files: Files,
    *,
    inference: Inference = Inference(),
    step: Callable[[str], None] = lambda what: None,
) -> Analysis:
    """Compute all tables that the files allow, without a model.

    Parameters
    ----------
    files : Files
        Captures of one model, from `sort_files`.
    inference : Inference
        The settings of every interval.
    step : callable
        Called with the name of each of the `possible_steps` before its result is waited for, for a
        progress bar.

    Returns
    -------
    Analysis

    Raises
    ------
    DesignError
        If a file does not match the others, has too few items for a step, or no step is possible.
    """
    steps = possible_steps(files)
    if not steps:
        names = ", ".join(store.path.name for store in files.all())
        raise DesignError(
            f"nothing can be analyzed in {names}: capture a natural file with "
            f"{' and '.join(SINKS)}, {' and '.join(POSITION0)}, or {' and '.join(PROBED)}, or a "
            f"shifted one with {', '.join(REQUIRED)}; `posprobe.probes` reads any single quantity"
        )
    whole, divided = ([one for one in steps if one.divided == kind] for kind in (False, True))

    def told(some: list[Step]) -> Iterator[str]:
        for one in some:
            step(one.name)
            yield one.name

    calls = [(one.name, files, inference) for one in whole]
    parts = dict(zip(told(whole), in_processes(_make, calls, inference.n_jobs), strict=True))
    parts |= {name: _make(name, files, inference) for name in told(divided)}
    found = Found()
    for one in steps:
        found = found.joined(parts[one.name])
    checks = pd.DataFrame([check(store) for store in files.all()])
    given_once = {"checks": checks, "limits": limits_table(files)}
    return Analysis(files, found.tables | given_once, found.intervals, inference)


def _make(name: str, files: Files, inference: Inference) -> Found:
    """Make the step of this name; a process finds it again, since no step can be sent to it."""
    return next(step for step in STEPS if step.name == name).make(files, inference)


def _sinks(files: Files, inference: Inference) -> Found:
    store = given(files.natural)
    return Found(
        {"sinks": sink_table(store, inference=inference)},
        {"sink_heads": share_of_sink_heads(store, inference=inference)},
    )


def _position0(files: Files, inference: Inference) -> Found:
    store = given(files.natural)
    interval, spread = fingerprint_spread(store, inference=inference)
    return Found(
        {
            "closed_system": closed_system_table(store),
            "fingerprint": titled(spread, _first_token(store)),
        },
        {"closure": closure(store, inference=inference), "fingerprint_text": interval},
    )


def _probes(files: Files, inference: Inference) -> Found:
    probes = probe_layers(given(files.natural), inference=inference)
    return Found(
        {"probes": probes.probes, "partition": probes.partition},
        {f"probe_{name}": mean for name, mean in probes.mean.items()}
        | {f"probe_{name}_layer_0": first for name, first in probes.layer_0.items()},
    )


def _channels(files: Files, inference: Inference, *, design: str) -> Found:
    result = decompose(given(getattr(files, design)), by_offset=True, inference=inference)
    assert result.by_offset is not None
    each = {name: "float32" for name in result.by_offset.select_dtypes("float")}
    by_offset = result.by_offset.astype(each)  # a long table of float32 scores
    tables = {
        "channels_by_head": result.by_head,
        "channels_by_layer": result.by_layer,
        "channels": result.overall,
        "position_effects": result.positions,
        "channels_by_offset": by_offset,
    }
    found = {name: titled(table, design) for name, table in tables.items()}
    return Found(found, _overall(result, inference.level) if design == "shifted" else {})


def _overall(result: Decomposition, level: float) -> dict[str, Interval]:
    """Estimate the variances and shares of the whole model, as the table `channels` has them."""
    whole = result.variances.mean((0, 1))
    parts = {f"share_{name}": part for name, part in shares(whole, 0, 0, level).items()}
    return {name: whole.interval(name, level) for name in SPLIT} | parts


def _bands(files: Files, inference: Inference) -> Found:
    return Found({"bands": decompose_bands(given(files.shifted), inference=inference)})


def _layer_0(files: Files, inference: Inference) -> Found:
    table, intervals = layer_0_table(given(files.shifted), inference)
    return Found({"layer_0": table}, intervals)


def _fingerprint(files: Files, inference: Inference) -> Found:
    store = given(_behind_one(files))
    interval, spread = fingerprint_spread(store, inference=inference)
    return Found(
        {"fingerprint": titled(spread, _first_token(store))}, {"fingerprint_bos": interval}
    )


def _behind_one(files: Files) -> ActivationStore | None:
    """The shifted capture whose sequences begin alike, if there is one."""
    return files.behind_one_token or files.shifted


def _replacement(files: Files, inference: Inference) -> Found:
    table, primary = replacement_table(given(files.shifted), files.replaced, inference=inference)
    return Found({"replacement": table}, {} if primary is None else {"replacement": primary})


def _repeated(files: Files, inference: Inference, *, role: str) -> Found:
    table, interval = repeated_table(given(getattr(files, role)), inference)
    return Found({"repeated": titled(table, role)}, {role: interval})


def _conditions(files: Files, inference: Inference) -> Found:
    return Found(condition_tables(files, inference))


def _has_channels(files: Files, *, role: str) -> bool:
    return is_split(getattr(files, role))


def _has_bands(files: Files) -> bool:
    return files.shifted is not None and why_no_bands(files.shifted) is None


def _first_token(store: ActivationStore) -> str:
    """Describe whether all inputs begin with the same token."""
    return "one first token" if len(np.unique(store.tokens[:, 0])) == 1 else "many first tokens"


STEPS = (
    Step("sinks", lambda files: holds(files.natural, *SINKS), _sinks),
    Step("position 0", lambda files: holds(files.natural, *POSITION0), _position0),
    Step("probes", lambda files: holds(files.natural, *PROBED), _probes, divided=True),
    *(
        Step(
            f"channels, {design}",
            partial(_has_channels, role=design),
            partial(_channels, design=design),
        )
        for design in ("shifted", "natural")
    ),
    Step("bands of rotation", _has_bands, _bands),
    Step("layer 0", partial(_has_channels, role="shifted"), _layer_0),
    Step("fingerprint", lambda files: holds(_behind_one(files), "position0"), _fingerprint),
    Step(
        "replacement of position 0",
        lambda files: is_split(files.shifted) and bool(files.replaced),
        _replacement,
    ),
    Step(
        "repeated token",
        partial(_has_channels, role="repeated"),
        partial(_repeated, role="repeated"),
    ),
    Step(
        "repeated token behind a BOS",
        partial(_has_channels, role="bos_repeated"),
        partial(_repeated, role="bos_repeated"),
    ),
    *INTERVENTION_STEPS,
    Step("conditions", lambda files: len(measurable(files)) > 1, _conditions),
)
