"""README.md and the figures of the report: the order in which quantities change, run by run."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prose import wrapped

from posprobe.figures import to_svg
from posprobe.report.words import number

TABLES = ("curves", "half_way", "order", "checkpoints")
NAMES = {
    "V_M": "the mask channel",
    "V_R": "the residual channel",
    "sink_attention": "the sink",
    "probe": "the code that probes read",
}
COLOURS = {"V_M": "#0072b2", "V_R": "#d55e00", "sink_attention": "#b0569a", "probe": "#009e73"}
UNITS = {"V_M": "V_M, nats²", "V_R": "V_R, nats²", "sink_attention": "attention to key 0",
         "probe": "R² of probes"}  # fmt: skip


def write_page(report: Path, tables: dict[str, pd.DataFrame]) -> str:
    """Write the tables, the figure and README.md."""
    for folder in ("tables", "figures"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.6g")
    sections = [
        "# When does absolute position come, while a model trains?",
        "",
        *findings(tables),
        "",
        "Intervals are at 95%, over items or sequences of each run, and not adjusted for their "
        "number; a run is one model, and runs are few. The protocol and the rule are at the top of "
        "`analyses/06_training.py`, which writes this page; "
        "[docs/training.md](../../../docs/training.md) has the equations.",
        "",
        "![Four quantities at every step of every run](figures/curves.svg)",
        "",
        *half_way_lines(tables["half_way"]),
        "",
        *step_lines(tables["curves"]),
    ]
    page = "\n".join(map(wrapped, sections)).rstrip() + "\n"
    (report / "README.md").write_text(page, encoding="utf-8")
    svg = to_svg(draw_curves(tables["curves"]), "curves")
    (report / "figures" / "curves.svg").write_text(svg, encoding="utf-8")
    return page


def findings(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The order of each pair of quantities, and what each run begins and ends with."""
    runs = sorted(tables["half_way"]["model"].unique())
    ordered = orders(tables)
    held = [f"{NAMES[one]} before {NAMES[other]}" for one, other, verdict, _ in ordered
            if verdict == "supported"]  # fmt: skip
    opening = (
        f"In all {len(runs)} runs ({', '.join(runs)}) the order of {len(held)} of {len(ordered)} "
        f"pairs is the same: {'; '.join(held)}."
        if held
        else f"No pair has one order in all {len(runs)} runs ({', '.join(runs)})."
    )
    lines = [
        f"- **{NAMES[one].capitalize()} changes before {NAMES[other]}: {verdict}.** {said}"
        for one, other, verdict, said in sorted(ordered, key=lambda each: each[2] != "supported")
    ]
    return [opening, "", *lines, *changes(tables["half_way"])]


def orders(tables: dict[str, pd.DataFrame]) -> list[tuple[str, str, str, str]]:
    """Each pair in the order that more runs have, its verdict by the rule, and the ratios."""
    table, found = tables["order"], []
    n_runs = tables["half_way"]["model"].nunique()
    for pair in combinations(NAMES, 2):
        rows = table[table["earlier"].isin(pair) & table["later"].isin(pair)]
        known = rows.loc[rows["first"] != "open", "first"]
        firsts = known.value_counts().reindex(list(pair), fill_value=0)
        one, other = pair if firsts[pair[0]] >= firsts[pair[1]] else pair[::-1]
        if firsts[other]:
            verdict = "contradicted"
        else:
            verdict = "supported" if firsts[one] == n_runs > 1 else "undecided"
        said = "; ".join(
            f"{row['model']}: "
            + (f"{NAMES[row['first']]} first, " if row["first"] != "open" else "open, ")
            + f"steps {number(row['ratio'])} ({number(row['low'])} to {number(row['high'])}) times "
            "apart"
            for _, row in rows.iterrows()
        )
        missing = n_runs - len(rows)
        if missing:
            said += f"{'; ' if said else ''}no change of one of them in {missing} of {n_runs} runs"
        found.append((one, other, verdict, said + "."))
    return found


def changes(table: pd.DataFrame) -> list[str]:
    """From what to what each quantity goes."""
    lines = []
    for quantity, rows in table.groupby("quantity", sort=False):
        told = "; ".join(
            f"{row['model']} {number(row['first'])} to {number(row['last'])}"
            for _, row in rows.iterrows()
        )
        lines.append(f"- {NAMES[str(quantity)].capitalize()}, from step 0 to the end: {told}.")
    return lines


def half_way_lines(table: pd.DataFrame) -> list[str]:
    """The half-way of every quantity in every run."""
    lines = ["## Half-ways, in steps", ""]
    lines += [f"| run | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 1) + "|"]
    for model, rows in table.groupby("model"):
        by = rows.set_index("quantity")
        lines.append(f"| {model} | " + " | ".join(_cell(by, name) for name in NAMES) + " |")
    return lines


def _cell(by: pd.DataFrame, name: str) -> str:
    if name not in by.index or np.isnan(by.loc[name, "step"]):
        return "no change"
    low, high = (f"{by.loc[name, end]:,.0f}" for end in ("low", "high"))
    return f"{by.loc[name, 'step']:,.0f} ({low} to {high})"


def step_lines(table: pd.DataFrame) -> list[str]:
    """What every run has at every step."""
    lines = ["## Every step", ""]
    for quantity in NAMES:
        rows = table[table["quantity"] == quantity].pivot(
            index="model", columns="step", values="estimate"
        )
        lines += [f"{UNITS[quantity]}:", "", f"| run | {' | '.join(map(str, rows.columns))} |"]
        lines += ["|---" * (rows.shape[1] + 1) + "|"]
        lines += [
            f"| {model} | " + " | ".join(number(float(value)) for value in row) + " |"
            for model, row in zip(rows.index, rows.to_numpy(), strict=True)
        ]
        lines.append("")
    return lines


def draw_curves(table: pd.DataFrame) -> Figure:
    """A column for each quantity, a line with its band for each run, by architecture."""
    names = sorted(table["architecture"].unique())
    figure = Figure(figsize=(12, 2.4 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(NAMES), sharex=True, sharey="col", squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        for ax, quantity in zip(axes, NAMES, strict=True):
            rows = table[(table["architecture"] == name) & (table["quantity"] == quantity)]
            _lines(ax, rows, COLOURS[quantity])
            ax.set_title(f"{name}: {NAMES[quantity]}", size=9)
            ax.set_ylabel(UNITS[quantity], size=8)
    for ax in grid[-1]:
        ax.set_xlabel("step")
    return figure


def _lines(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    for _, run in rows.groupby("seed"):
        place = np.log2(1 + run["step"])
        ax.plot(place, run["estimate"], color=colour, lw=1.4, marker="o", ms=2.5)
        ax.fill_between(place, run["low"], run["high"], color=colour, alpha=0.18, lw=0)
    marked = [0, 16, 128, 1024, 6000]
    ax.set_xticks(np.log2(1 + np.array(marked)), [f"{step:,}" for step in marked])
    ax.axhline(0, color="#858585", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
