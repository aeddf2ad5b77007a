"""A comparison of several models as one folder: a page, tables, figures, and comparison.json."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from posprobe.analysis import listed, shifted_design
from posprobe.claims import Answer, Claim
from posprobe.comparison import PRIMARY_VALUE, RELATIVE, VALUES, Comparison
from posprobe.figures import COMPARISON_PANELS
from posprobe.report.claim_rows import ADJUSTED, questions
from posprobe.report.drawings import Drawing, drawings, files, placed
from posprobe.report.pages import as_csv, render, write_files
from posprobe.report.settings import settings_as_options, settings_in_words, settings_table
from posprobe.report.words import VERDICTS, bounds, number, set_apart

__all__ = ["summarise", "write_comparison"]

OPENING = ("balance", "depth_V_R")  # beside the answer
COLUMNS = {
    "V_T": "V_T", "V_M": "V_M", "V_R": "V_R", "C_MR": "C",
    "share_mask": "mask's share", "share_residual": "residual stream's share",
}  # fmt: skip
PARTS = {
    "tests": ("Tests of architecture", ["value", "method", "response", "statistic", "df_between",
        "df_within", "p_value", "p_holm", "primary", "check"]),
    "contrasts": ("Planned contrasts", ["value", "contrast", "estimate", "low", "high", "p_value",
        "p_holm", "p_bh", "mixed_estimate", "mixed_low", "mixed_high"]),
    "differences": ("Differences between variants", ["value", "contrast", "estimate", "low", "high",
        "p_value", "p_holm"]),
    "estimates": ("Means and depth slopes", ["value", "architecture", "contrast", "models",
        "response", "estimate", "low", "high", "method"]),
    "layer_types": ("Full and windowed layers", ["model", "layer_type", "layers", "V_T", "V_M",
        "V_R", "V_R_low", "V_R_high", "C_MR", "share_mask", "share_residual", "status"]),
    "sinks": ("Sinks", None),
    "replacement": ("Position 0 replaced", ["architecture", "model", "treatment", "positions",
        "up_to", "primary", "fraction_removed", "low", "high", "n"]),
    "checks": ("Manipulation checks", None),
}  # fmt: skip
TEXTS = {
    "tests": "The mixed model has fixed layers within architecture, and random models whose value "
    "(at mean depth) and slope differ; its F test sets the variation between architectures against "
    "that between models of one architecture. The test of V_R is primary; p_holm adjusts the tests "
    "of other values for their number. Checks stand beside: the two-stage F test, which reduces "
    "each model to one value and one slope, is the same test where all models have the same "
    "layers, and Welch's F does not assume equal variances.",
    "contrasts": "All contrasts were planned before the data were seen; the hypothesis predicts a "
    "positive estimate. p_holm and p_bh are adjusted for all contrasts on one value, the limits "
    "are not.",
    "differences": "Each variant less the first, paired over items. p_holm adjusts for all "
    "differences of one value.",
    "estimates": "intercept: the value at mean depth. slope: its change from the first layer to "
    "the last.",
    "layer_types": "Means over the layers of each type, in models that have layers with and "
    "without a sliding window. Limits are over items.",
    "sinks": "sink_heads: the share of heads whose attention to key 0, averaged over all queries, "
    "is above 0.3; a sliding window hides key 0 from late queries. attention: that of the "
    "strongest head (chosen on one half of the sequences, measured on the other) over the first "
    "queries, which see key 0 in every model. even: the same if attention were spread evenly. "
    "norm_ratio: the norm of position 0 divided by that of later positions.",
    "replacement": "1 − V_R(replaced)/V_R(native), paired by item, with Fieller intervals.",
    "checks": "How each file was captured.",
}


def summarise(comparison: Comparison, found: Sequence[Answer]) -> list[str]:
    """The comparison in sentences: what was compared, the primary test, the hypotheses.

    Parameters
    ----------
    comparison : Comparison
    found : sequence of Answer

    Returns
    -------
    list of str
    """
    lineup = comparison.lineup
    if lineup.paired:
        first = lineup.members[0]
        sentences = [
            f"{len(lineup.members)} variants of one checkpoint ({first.shifted.model}) on the same "
            f"{len(lineup.items)} items: differences describe this model and do not test "
            "architectures."
        ]
    else:
        sentences = [comparison.found[PRIMARY_VALUE].sentence()]
    for answer in found:
        sentences.append(
            f"{answer.hypothesis} ({answer.value}) is {VERDICTS[answer.verdict]}: {answer.because}."
        )
    return sentences


def opening(comparison: Comparison, found: Sequence[Answer]) -> list[str]:
    """What was found in three short sentences: the sizes, what was tested, the hypotheses."""
    sizes = _values(comparison, "V_R", "intercept")
    parts = ", ".join(f"{number(value)} nats² under {name}" for name, value in sizes)
    if comparison.lineup.paired:
        tested = _paired(comparison)
    else:
        tested = (
            f"{len(comparison.lineup.members)} models of {len(sizes)} architectures: the models "
            "are the sample."
        )
    return [f"The residual channel, V_R, is {parts}.", tested, *_verdicts(found)]


def _paired(comparison: Comparison) -> str:
    """The differences in V_R between variants of one checkpoint, item by item."""
    table = comparison.tables.get("differences", pd.DataFrame(columns=["value", "response"]))
    rows = table[(table["value"] == PRIMARY_VALUE) & (table["response"] == "intercept")]
    differences = "; ".join(
        f"{row['contrast'].replace(' - ', ' − ')} {number(row['estimate'])} "
        f"({bounds(row['low'], row['high'])})"
        for _, row in rows.iterrows()
    )
    found = f"Differences in V_R, paired by item: {differences} nats². " if differences else ""
    return (
        f"{found}These are variants of one checkpoint: they describe it, and test no architecture."
    )


def _verdicts(found: Sequence[Answer]) -> list[str]:
    """Each hypothesis that these files test, with its verdict, and on what if on several."""
    sentences = []
    tested = [answer for answer in found if answer.verdict != "not_applicable"]
    for (name, statement), answers in groupby(tested, lambda one: (one.hypothesis, one.statement)):
        verdicts = [(VERDICTS[answer.verdict], answer.value) for answer in answers]
        said = ", ".join(f"{verdict} by {value}" for verdict, value in verdicts)
        said = said if len(verdicts) > 1 else verdicts[0][0]
        sentences.append(f"{name}, {said}: {statement[0].lower()}{statement[1:]}")
    return sentences


def _values(comparison: Comparison, value: str, response: str) -> list[tuple[str, float]]:
    """A value of each architecture or variant, or its slope over depth, in ascending order.

    V_R is known of every lineup; other values and slopes where they are compared, and none else.
    """
    if (value, response) == (PRIMARY_VALUE, "intercept"):
        table = comparison.tables["architectures"]
        rows, names = table[table["quantity"] == value], "architecture"
    else:
        table = comparison.tables.get("estimates", pd.DataFrame(columns=["value", "response"]))
        rows = table[(table["value"] == value) & (table["response"] == response)]
        names = "architecture" if "architecture" in rows else "contrast"
    found = [(str(row[names]), float(row["estimate"])) for _, row in rows.iterrows()]
    return sorted(found, key=lambda pair: pair[1])


def _found(comparison: Comparison, answer: Answer) -> str:
    """What was found about a hypothesis, in numbers."""
    if answer.hypothesis == "H3":
        table = comparison.tables["models"]
        stores = {member.name: member.shifted for member in comparison.lineup.members}
        causal = [stores[model].header.variant != "no_causal" for model in table["model"]]
        table = table[causal]  # without a causal mask V_M is 0 by construction
        if table.empty:
            return ""
        lowest = " and ".join(f"{v} {number(float(table[v].min()))}" for v in ("V_M", "V_R"))
        return f"lowest of any model: {lowest} nats²"
    value = PRIMARY_VALUE if answer.value == PRIMARY_VALUE else RELATIVE
    response = "slope" if answer.hypothesis == "H2" else "intercept"
    order = " < ".join(f"{name} {number(v)}" for name, v in _values(comparison, value, response))
    return f"change with depth: {order}" if order and response == "slope" else order


def write_comparison(
    comparison: Comparison, claims: Sequence[Claim], found: Sequence[Answer], folder: str | Path
) -> Path:
    """Write report.html, comparison.json, tables as CSV, and figures as SVG.

    Parameters
    ----------
    comparison : Comparison
    claims : sequence of Claim
    found : sequence of Answer
    folder : str or Path
        Made if it does not exist.

    Returns
    -------
    Path
        The path of report.html, which is self-contained.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    drawn = drawings(COMPARISON_PANELS, comparison.tables)
    plain = json.dumps(_plain(comparison, claims, found), indent=1, allow_nan=False)
    texts = {
        "comparison.json": plain + "\n",
        **{f"tables/{name}.csv": as_csv(t) for name, t in comparison.tables.items()},
        "tables/inference.csv": as_csv(settings_table(comparison.inference)),
        **files(drawn),
        "report.html": _page(comparison, claims, found, drawn),
    }
    return write_files(Path(folder), texts)


def _plain(
    comparison: Comparison, claims: Sequence[Claim], found: Sequence[Answer]
) -> dict[str, Any]:
    """Everything that a script would ask for, as plain values without NaN."""
    lineup = comparison.lineup
    tests = comparison.tables.get("tests", pd.DataFrame()).to_dict("records")
    return {
        "compared": "variants of one checkpoint" if lineup.paired else "models",
        "architectures": lineup.architectures,
        "items": len(lineup.items),
        "level": comparison.level,
        "n_resamples": comparison.inference.n_resamples,
        "status": {value: one.status for value, one in comparison.found.items()},
        "reason": {value: one.reason for value, one in comparison.found.items()},
        "mixed_model": {
            value: {"status": one.mixed.status, "reason": one.mixed.reason}
            for value, one in comparison.found.items()
            if one.mixed is not None
        },
        "notes": list(_notes(comparison)),
        "answers": [asdict(answer) for answer in found],
        "claims": [claim.asdict() for claim in claims],
        "tests": [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in t.items()}
            for t in tests
        ],
    }


def _page(
    comparison: Comparison,
    claims: Sequence[Claim],
    found: Sequence[Answer],
    drawn: dict[str, Drawing],
) -> str:
    lineup, level = comparison.lineup, comparison.inference.percent
    what = "variants" if lineup.paired else "architectures"
    counts = ", ".join(f"{k} ({len(v)})" for k, v in lineup.architectures.items())
    return render(
        "comparison.html.j2",
        title=f"Where does absolute position come from, across {what}?",
        kind=f"{len(lineup.members)} variants of one checkpoint." if lineup.paired else
        f"{len(lineup.members)} models by architecture: {counts}.",
        opening=opening(comparison, found),
        summary=summarise(comparison, found),
        answers=[asdict(one) | {"found": _found(comparison, one)} for one in found],
        verdicts=VERDICTS,
        questions=questions(claims),
        adjusted=ADJUSTED,
        level=level,
        what=what.removesuffix("s"),
        columns=COLUMNS.values(),
        contribution=_contribution(comparison.tables["architectures"]),
        contribution_note=_contribution_note(comparison),
        pictures=placed(OPENING, drawn, level),
        depth=placed(
            [name for name in drawn if name.startswith("depth_") and name not in OPENING],
            drawn,
            level,
        ),
        mixed=placed(["residuals", "influence"], drawn, level),
        parts=_parts(comparison.tables),
        protocol=_protocol(comparison),
        command=_command(comparison),
    )  # fmt: skip


def _contribution(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for architecture, part in table.groupby("architecture", sort=False):
        part = part.set_index("quantity")
        cells = [_cell(row) for _, row in part.loc[list(COLUMNS)].iterrows()]
        rows.append(
            {"architecture": architecture, "models": int(part["models"].iloc[0]), "cells": cells}
        )
    return rows


def _cell(row: pd.Series) -> dict[str, str]:
    if pd.isna(row["estimate"]):
        return {"estimate": "undefined", "over_models": "", "over_items": ""}
    shown = {"estimate": number(float(row["estimate"]))}
    for unit in ("models", "items"):
        low, high = row[f"low_{unit}"], row[f"high_{unit}"]
        known = not (pd.isna(low) or pd.isna(high))
        shown[f"over_{unit}"] = f"{unit}: {bounds(low, high)}" if known else ""
    return shown


def _contribution_note(comparison: Comparison) -> str:
    level = comparison.inference.percent
    unit = (
        f"models: {level} interval over models, which covers other models of the architecture "
        "(variances: t; shares: Fieller). "
        if any(len(names) > 1 for names in comparison.lineup.architectures.values())
        else ""
    )
    return (
        "V in nats², mean over heads, layers and models; V_T = V_M + V_R + 2 C; shares are "
        f"(V + C)/V_T. {unit}items: {level} interval over items, which covers these models on "
        "other text (variances: studentised bootstrap; shares: Fieller). Undefined: V_T is not "
        "distinguishable from 0."
    )


def _parts(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    parts = []
    for name, (title, columns) in PARTS.items():
        table = tables.get(name)
        if table is None:
            continue
        text, table = TEXTS[name], table[[c for c in columns or table.columns if c in table]]
        if name == "checks":
            same, table = set_apart(table)
            text = f"{text} {same}".strip()
        parts.append({"name": name, "title": title, "text": text, "table": table})
    return parts


def _notes(comparison: Comparison) -> tuple[str, ...]:
    primary = comparison.found.get(PRIMARY_VALUE)
    return (*comparison.lineup.notes, *(() if primary is None else primary.notes))


def _protocol(comparison: Comparison) -> list[str]:
    lineup = comparison.lineup
    store = lineup.members[0].shifted
    lines = [
        f"Stimulus: {shifted_design(store)} {len(lineup.items)} items are common to all files.",
        "T is the effect of position on the log attention weight at offsets "
        f"{listed(store.offsets)}. M, the mask channel, is how the late row's weight would change "
        "if the row saw only the keys of the early one. R = T − M is the residual channel. "
        "Variances over positions are U-statistics over pairs of different items.",
        f"Intervals: {settings_in_words(comparison.inference)}.",
        "Values compared: " + "; ".join(f"{k}, {v}" for k, v in VALUES.items()) + ".",
    ]
    for one in comparison.found.values():
        if one.mixed is not None:
            why = f" ({one.mixed.reason})" if one.mixed.reason else ""
            lines.append(f"Mixed model of {one.value}: {one.mixed.status}{why}.")
    return lines + [f"Note: {note}." for note in _notes(comparison)]


def _command(comparison: Comparison) -> str:
    files = " ".join(shlex.quote(store.path.name) for store in comparison.lineup.stores())
    shown = files if len(files) < 200 else "*.h5"
    more = "" if comparison.lineup.same_tokens else " --different-tokens"
    return f"posprobe compare {shown} -o REPORT{more}{settings_as_options(comparison.inference)}"
