"""Two figures: every replacement in every condition of every model; where C_MR sits by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from posprobe.figures import to_svg

COLOURS = {"mean": "#1f77b4", "content": "#2ca02c", "zero": "#d62728"}
STUDY = 0.4


def draw(figure: Figure, path: Path) -> None:
    """Write a figure as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_svg(figure, path.stem), encoding="utf-8")


def specification(rows: pd.DataFrame, explanation: str) -> Figure:
    """V_R left by each replacement, in order, and against one of the explanations."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    curve, scatter = figure.subplots(1, 2, width_ratios=[3, 2])
    ordered = rows.sort_values("ratio").reset_index(drop=True)
    for name, colour in COLOURS.items():
        for real, marker in ((True, "o"), (False, "x")):
            part = ordered[(ordered["replacement"] == name) & (ordered["real"] == real)]
            label = f"{name}, {'real models' if real else 'controlled family'}"
            curve.plot(part.index, part["ratio"], marker, color=colour, ms=5, label=label)
            curve.vlines(part.index, part["ratio_low"], part["ratio_high"], color=colour, lw=0.8)
            scatter.plot(part[explanation], part["log_ratio"], marker, color=colour, ms=5)
    for ax in (curve, scatter):
        ax.spines[["top", "right"]].set_visible(False)
    curve.axhline(1 - STUDY, color="#858585", ls="--", lw=1)
    curve.annotate("the study: 40% removed", (len(ordered), 1 - STUDY), (0, 3), ha="right",
                   textcoords="offset points", fontsize=8)  # fmt: skip
    curve.axhline(1, color="black", lw=0.7)
    curve.set_yscale("symlog", linthresh=0.1)
    lowest = min(0.0, float(ordered["ratio"].min())) - 0.02
    curve.set(xlabel="specifications, in order", ylim=(lowest, None),
              ylabel="V_R replaced / V_R native, early queries",
              title="What replacing position 0 leaves of the residual channel")  # fmt: skip
    fit = np.polyfit(*rows[~rows["real"]].dropna(subset=["log_ratio"])[
        [explanation, "log_ratio"]].to_numpy().T, 1)  # fmt: skip
    ends = np.array([rows[explanation].min(), rows[explanation].max()])
    scatter.plot(ends, np.polyval(fit, ends), color="black", lw=1, label="line of the family")
    scatter.set(xlabel=f"{explanation} (log)", ylabel="log(V_R replaced / V_R native)",
                title=f"Against {explanation!r}")  # fmt: skip
    figure.legend(*curve.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def signs(layers: pd.DataFrame) -> Figure:
    """C_MR by layer, and the sink's part of it, in each condition of each model."""
    models = list(layers["model"].unique())
    figure = Figure(figsize=(4.4 * len(models), 6.4), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex="col", sharey="col")
    for column, model in enumerate(models):
        part = layers[layers["model"] == model]
        for row, (name, label) in enumerate(
            {"C_MR": "C (nats²)", "C_MS": "the sink's part of C (nats²)"}.items()
        ):
            ax = panels[row, column]
            for (first, text), one in part.groupby(["position0", "text"], sort=False):
                style = "-" if first == "text" else "--"
                colour = f"C{sorted(part['text'].unique()).index(text)}"
                ax.plot(one["layer"], one[name], style, color=colour, lw=1.1,
                        label=f"{text.partition(',')[0]}, {first} at 0")  # fmt: skip
            ax.axhline(0, color="black", lw=0.7)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_ylabel(label)
        panels[0, column].set_title(model)
        panels[1, column].set_xlabel("layer")
    handles, labels = max(
        (ax.get_legend_handles_labels() for ax in panels[0]), key=lambda found: len(found[0])
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure
