"""The checkpoints of one training run as one folder: a page, tables, figures, training.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from posprobe.analysis import shifted_design
from posprobe.comparison import CURVES, Training
from posprobe.figures import TRAINING_PANELS
from posprobe.report.drawings import drawings, files, placed
from posprobe.report.pages import as_csv, render, write_files
from posprobe.report.settings import settings_as_options, settings_in_words, settings_table
from posprobe.report.words import number

__all__ = ["write_training"]

OPENING = ("training_changes", "half_way")  # beside the answer
NAMES = {
    "V_M": "the mask channel",
    "V_R": "the residual channel",
    "sink_attention": "the sink",
    "probe": "the code that probes read",
}
PARTS = {
    "half_way": (
        "Half of the change",
        "The first step at which a curve has made half of its change from the first step to the "
        "last, along log(1 + step), on straight lines between checkpoints. No number: the bands of "
        "the first and the last step overlap.",
    ),
    "order": (
        "What comes first",
        "ratio: how many times later, in steps plus one. first: what comes first, where the "
        "interval of the ratio excludes 1. Intervals are not adjusted for their number.",
    ),
    "curves": (
        "Every step",
        "Limits cover the whole curve of a quantity at once. None: the same in every bootstrap "
        "sample.",
    ),
}


def write_training(training: Training, folder: str | Path) -> Path:
    """Write report.html, training.json, tables as CSV, and figures as SVG and PNG.

    Parameters
    ----------
    training : Training
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
    drawn = drawings(TRAINING_PANELS, training.tables)
    level = training.inference.percent
    page = render(
        "training.html.j2",
        title="When does absolute position come, while a model trains?",
        kind=f"{len(training.run.steps)} checkpoints of one training run, steps "
        f"{training.run.steps[0]:,} to {training.run.steps[-1]:,}.",
        opening=opening(training),
        pictures=placed(OPENING, drawn, level),
        more=placed([name for name in drawn if name not in OPENING], drawn, level),
        parts=[
            {"name": name, "title": title, "text": text, "table": training.tables[name]}
            for name, (title, text) in PARTS.items()
            if name in training.tables
        ],
        protocol=_protocol(training),
        command="posprobe compare --steps FILES -o REPORT"
        + settings_as_options(training.inference),
    )
    texts = {
        "training.json": json.dumps(_plain(training), indent=1, allow_nan=False) + "\n",
        **{f"tables/{name}.csv": as_csv(table) for name, table in training.tables.items()},
        "tables/inference.csv": as_csv(settings_table(training.inference)),
        **files(drawn),
        "report.html": page,
    }
    return write_files(Path(folder), texts)


def opening(training: Training) -> list[str]:
    """What changed when, what came first, and of what this is a sample."""
    table = training.tables["half_way"]
    there = table.dropna(subset=["step"]).sort_values("step")
    came = "; ".join(
        f"{NAMES[row['quantity']]} ({number(row['first'])} to {number(row['last'])}) at "
        f"{_step(row)}"
        for _, row in there.iterrows()
    )
    still = [NAMES[name] for name in table.loc[table["step"].isna(), "quantity"]]
    sentences = [f"Half of the change from the first step to the last is made by {came}." if came
                 else "Nothing differs between the first and the last step."]  # fmt: skip
    if still and came:
        sentences.append(f"No change from first to last is seen in {', '.join(still)}.")
    if "order" in training.tables:
        sentences.append(_order(training.tables["order"]))
    return [*sentences, "This is one run of training: other seeds may do it otherwise."]


def _order(table: pd.DataFrame) -> str:
    known = table[table["first"] != "open"]
    told = [f"{NAMES[row['earlier']]} before {NAMES[row['later']]}" for _, row in known.iterrows()]
    return f"In this order: {'; '.join(told)}." if told else "The order is open."


def _step(row: pd.Series) -> str:
    shown = f"step {row['step']:,.0f}"
    if math.isnan(row["low"]):
        return f"{shown} (interval unbounded)"
    return f"{shown} ({row['low']:,.0f} to {row['high']:,.0f})"


def _protocol(training: Training) -> list[str]:
    run = training.run
    first = run.members[0]
    lines = [
        f"Stimulus: {shifted_design(first.shifted)} {len(run.items)} items are common to all "
        "steps, and the bootstrap draws the same ones at every step.",
        "Quantities: " + "; ".join(f"{name}, {text}" for name, text in CURVES.items()) + ".",
        f"Intervals: {settings_in_words(training.inference)}.",
        f"Bands: {training.inference.percent}, max-T over the steps of a curve; of variances from "
        "deviations that are studentised in every bootstrap sample.",
    ]
    if first.files.natural is not None:
        natural = first.files.natural
        lines.append(
            f"Sinks and probes: {natural.n_sequences} sequences of {natural.length} tokens. The "
            "head is chosen on one half of them and measured on the other; probes are scored out "
            "of fold, and their limits are those of fixed_probe."
        )
    return lines


def _plain(training: Training) -> dict[str, Any]:
    """Plain values, without NaN."""

    def records(table: pd.DataFrame) -> list[dict[str, Any]]:
        plain = table.astype(object).where(table.notna(), None)
        return [{str(k): v for k, v in row.items()} for row in plain.to_dict("records")]

    return {
        "steps": list(training.run.steps),
        "level": training.inference.level,
        "n_resamples": training.inference.n_resamples,
        "opening": opening(training),
    } | {name: records(training.tables[name]) for name in PARTS if name in training.tables}
