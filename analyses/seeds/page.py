"""README.md and the figure of the report: what the seeds so far say, and whether that is final."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from prose import wrapped
from stability import LAST, STABLE

from posprobe.architectures import (
    ArchitectureComparison,
    Contrast,
    compare_architectures,
    planned_contrasts,
)
from posprobe.figures import to_svg
from posprobe.report.words import number

PLANNED = 8
RELATIVE = "V_R/(V_R + V_M)"
VALUES = ("V_R", RELATIVE, "V_M")
TRAIN = "`python analyses/05_seeds.py --train 1` adds the next."


def write_page(report: Path, tables: dict[str, pd.DataFrame]) -> str:
    """Compare the models of complete seeds; write tables, figure and README.md."""
    for folder in ("tables", "figures"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    models, layers = tables["models"], tables["layers"]
    complete = complete_seeds(models)
    whole = layers[layers["block"].isin(complete)]
    found = compare(whole) if len(complete) > 1 else {}
    contrasts = contrast_table(found, final=len(complete) >= PLANNED)
    for name, table in {"models": models, "layers": layers, "contrasts": contrasts}.items():
        table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.6g")
    sections = [
        "# Do more seeds decide how the residual channel is ordered?",
        "",
        *findings(contrasts, complete),
        "",
        "Intervals are at 95%, over seeds, not adjusted; verdicts follow p-values adjusted within "
        "each quantity by Holm's method. The plan and the protocol are at the top of "
        "`analyses/05_seeds.py`, which writes this page.",
        "",
        *contrast_lines(contrasts),
        "",
        *test_lines(found),
        "",
        "![V_R of each seed](figures/seeds.svg)",
        "",
        *stability(models),
    ]
    page = "\n".join(map(wrapped, sections)).rstrip() + "\n"
    (report / "README.md").write_text(page, encoding="utf-8")
    svg = to_svg(draw_seeds(model_means(layers)), "seeds")
    (report / "figures" / "seeds.svg").write_text(svg, encoding="utf-8")
    return page


def complete_seeds(models: pd.DataFrame) -> list[int]:
    """Seeds of which every architecture is measured."""
    counts = models.groupby("block")["architecture"].nunique()
    return sorted(int(seed) for seed in counts.index[counts == models["architecture"].nunique()])


def model_means(layers: pd.DataFrame) -> pd.DataFrame:
    """One row for each model: means over layers, and the ratio of these means."""
    means = layers.groupby(["architecture", "model", "block"])[["V_R", "V_M", "V_T"]].mean()
    means[RELATIVE] = means["V_R"] / (means["V_R"] + means["V_M"])
    return means.reset_index()


def compare(layers: pd.DataFrame) -> dict[str, ArchitectureComparison]:
    """Each quantity compared between architectures, within seeds."""
    contrasts = planned_contrasts(standard="rope")
    ratio = model_means(layers).assign(layer=0, depth=0.0)
    found = {}
    for value in VALUES:
        table = ratio if value == RELATIVE else layers
        found[value] = compare_architectures(
            table.astype({"block": str}), value=value, contrasts=_asked(contrasts, value),
            mixed_model=value != RELATIVE,
        )  # fmt: skip
    return found


def _asked(contrasts: tuple[Contrast, ...], value: str) -> tuple[Contrast, ...]:
    """The hypotheses are about the residual channel; slopes need layers."""
    if value == "V_M":
        return ()
    return tuple(one for one in contrasts if value != RELATIVE or one.response == "intercept")


def contrast_table(found: dict[str, ArchitectureComparison], *, final: bool) -> pd.DataFrame:
    """One row for each contrast; its verdict is "interim" until all seeds of the plan are there."""
    rows = []
    for value, comparison in found.items():
        for one in comparison.contrasts:
            decided = one.p_holm < 1 - comparison.level
            verdict = "supported" if one.interval.estimate > 0 else "contradicted"
            verdict = verdict if decided else "undecided"
            rows.append(
                {"value": value, "contrast": one.contrast.name}
                | one.interval.row()
                | {"p_value": one.p_value, "p_holm": one.p_holm}
                | {"verdict": verdict if final else "interim"}
            )
    return pd.DataFrame(rows)


def findings(contrasts: pd.DataFrame, complete: list[int]) -> list[str]:
    """What the page opens with."""
    n = len(complete)
    if n < PLANNED:
        said = f"- **{n} of {PLANNED} planned seeds are measured, so there is no verdict yet.** "
        return [said + TRAIN]
    rows = contrasts[contrasts["value"] == "V_R"]
    return [
        f"- **{row['contrast']}: {row['verdict']}.** {_limits(row)} nats² of V_R, {n} seeds."
        for _, row in rows.iterrows()
    ]


def contrast_lines(contrasts: pd.DataFrame) -> list[str]:
    """Every contrast as a row of a table."""
    lines = [
        "| on | contrast | estimate | p | p, adjusted | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for _, row in contrasts.iterrows():
        p_values = f"{row['p_value']:.2g} | {row['p_holm']:.2g}"
        lines.append(
            f"| {row['value']} | {row['contrast']} | {_limits(row)} | {p_values} | "
            f"{row['verdict']} |"
        )
    return lines


def _limits(row: pd.Series) -> str:
    return f"{number(row['estimate'])} [{number(row['low'])}, {number(row['high'])}]"


def test_lines(found: dict[str, ArchitectureComparison]) -> list[str]:
    """The test of V_R, and its check."""
    return [found["V_R"].sentence()] if found else []


def stability(models: pd.DataFrame) -> list[str]:
    """Whether sinks still moved when training ended."""
    moved = models[models["last_change"].abs() > STABLE]
    named = ", ".join(f"{row.model} {row.last_change:+.2f}" for row in moved.itertuples())
    return [
        f"Over the last {LAST:,} steps of training a head's attention to key 0 (queries 1 to 31) "
        f"changed by more than {STABLE} in {len(moved)} of {len(models)} models"
        + (f": {named}." if named else ".")
    ]


def draw_seeds(means: pd.DataFrame) -> Figure:
    """V_R and the ratio of every model, the models of one seed joined by a line."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    order = [name for name in ("ntk", "rope", "window") if name in set(means["architecture"])]
    panels = {"V_R": "residual channel V_R (nats²)", RELATIVE: RELATIVE}
    for ax, (value, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        wide = means.pivot(index="block", columns="architecture", values=value)[order]
        for _, row in wide.iterrows():
            ax.plot(order, row, marker="o", ms=4, lw=1, color="#858585")
        ax.plot(order, wide.mean(), marker="_", ms=26, mew=2.5, ls="", color="#1f77b4")
        ax.set(
            ylabel=label, title="lines join the models of a seed; bars are means", ylim=(0, None)
        )
        ax.title.set_fontsize("small")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.25)
    return figure
