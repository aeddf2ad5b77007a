"""README.md of the report: the finding first, then one table for each question."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pandas as pd
from conditions.models import DESCRIPTIONS

from posprobe.report.words import bounds, number, percent

WIDTH = 120
VARIANCES = {"V_T": "V_T", "V_M": "V_M", "V_R": "V_R", "C_MR": "C"}
SHARES = {"share_mask": "mask's share", "share_residual": "residual's share"}


def slug(model: str) -> str:
    """Name of a model's folder."""
    return model.lower().replace(" ", "_")


def write_page(report: Path, architectures: Path) -> str:
    """Write README.md from the tables of the report and those of analysis 2."""
    tables = {p.stem: pd.read_csv(p) for p in sorted((report / "tables").glob("*.csv"))}
    sections = [
        *finding(tables),
        *referee(tables["conditions"], architectures),
        *all_conditions(tables["conditions"]),
        *sign(tables),
        *removal(tables),
        *before_training(tables["untrained"], tables["trained"]),
        *scopes(report, tables["conditions"]["model"].unique()),
    ]
    page = "\n".join(map(_wrapped, sections)) + "\n"
    (report / "README.md").write_text(page, encoding="utf-8")
    return page


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What is stable over conditions, and what changes, one item per model."""
    lines = ["# What holds of the model, and what of the condition", ""]
    for model, part in tables["conditions"].groupby("model", sort=False):
        found = {v: int((part[f"{v}_low"] > 0).sum()) for v in ("V_M", "V_R")}
        counts = part["relation"].value_counts()
        said = ", ".join(f"{relation} in {n}" for relation, n in counts.items())
        removed = part["fraction_removed"].dropna()
        lines.append(
            f"- **{model}** ([report]({slug(str(model))}/report.html)), {len(part)} conditions: "
            f"the mask channel is found in {found['V_M']}, the residual channel in "
            f"{found['V_R']}; the two are {said}. The mean embedding at position 0 removes "
            f"{percent(removed.min())} to {percent(removed.max())} of V_R at early queries."
        )
    return [
        *lines,
        "",
        "All three models are small and quantised to 4 bits. Intervals are at 95%, over items of "
        "the text named and not adjusted for their number. The protocol is at the top of "
        "`analyses/03_conditions.py`, which writes this page.",
        "",
    ]


def referee(conditions: pd.DataFrame, architectures: Path) -> list[str]:
    """One table per architecture: real models, trained family, variants of one checkpoint."""
    head = ["architecture", "measured on", *VARIANCES.values(), *SHARES.values(), "sink rate"]
    lines = ["## Channels by architecture", "", *_head(head)]
    for model, part in conditions.groupby("model", sort=False):
        row = part.iloc[0]  # the main condition
        cells = [_cell(row[v], row[f"{v}_low"], row[f"{v}_high"]) for v in (*VARIANCES, *SHARES)]
        lines.append(_row(DESCRIPTIONS[str(model)], f"{model}, native", *cells,
                          number(float(row["sink_rate"]))))  # fmt: skip
    for part, words in {
        "controls": "family trained from scratch, {} models",
        "variants": "SmolLM2-135M under this scheme at inference",
    }.items():
        table = pd.read_csv(architectures / part / "tables" / "architectures.csv")
        for name, rows in table.groupby("architecture", sort=False):
            by_quantity = rows.set_index("quantity")
            cells = [_contribution(by_quantity.loc[v]) for v in (*VARIANCES, *SHARES)]
            models = int(by_quantity["models"].iloc[0])
            lines.append(_row(str(name), words.format(models), *cells, ""))
    return [
        *lines,
        "",
        "Squared nats; shares have no unit. Real models: items of the Python reference, 256 "
        "tokens. Family: 128 tokens, intervals over models. Variants: over items.",
        "",
        "Secondary sources name the study's models as Llama (standard), Qwen (NTK) and Mistral "
        "(sliding window). These are three checkpoints that differ in data, size, tokenizer, BOS, "
        "norms and grouping of heads as well as in attention, so their order says nothing about "
        "attention by itself: one model per architecture leaves no degrees of freedom. The rows "
        "above show how far checkpoints of one scheme can differ, and the same table in another "
        "condition would have other rows (next section). What a scheme does is estimated where "
        "nothing else differs: in the family and the variants of "
        "[analysis 2](../02_architectures/README.md).",
        "",
    ]


def all_conditions(rows: pd.DataFrame) -> list[str]:
    """Every condition of every model."""
    head = ["model", "position 0", "text", *VARIANCES.values(), "relation", "removed"]
    lines = ["## Every condition", "", *_head(head)]
    for _, row in rows.iterrows():
        first = row["position0"] + (" (native)" if row["native"] else "")
        cells = [_cell(row[v], row[f"{v}_low"], row[f"{v}_high"]) for v in VARIANCES]
        gone = ""
        if pd.notna(row["fraction_removed"]):
            limits = bounds(row["low"], row["high"], percents=True)
            gone = f"{percent(row['fraction_removed'])} ({limits})"
        lines.append(_row(row["model"], first, row["text"], *cells, row["relation"], gone))
    return [
        *lines,
        "",
        "Removed: 1 - V_R(mean embedding at position 0)/V_R(as it was), early queries, Fieller. "
        "Differences between tokens at position 0, paired by item, and means over texts are in "
        "each model's report.",
        "",
    ]


def sign(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Which part of C_MR a forced BOS changes."""
    differences = tables["sign_differences"]
    head = ["model", "text", "contrast", *differences["part"].unique()]
    lines = ["## Where the sign of C comes from", "", "![C by layer](figures/sign.svg)", ""]
    lines += _head(head)
    for key, part in differences.groupby(["model", "text", "contrast"], sort=False):
        lines.append(_row(*key, *(_cell(*r) for r in part[["estimate", "low", "high"]].values)))
    lines += [
        "",
        "Change of C and of its parts from one token at position 0 to the other, over the same "
        "windows, in nats². S is the part of R that the score of key 0 makes; a sink head gives "
        "key 0 more than .3 of its attention; each split adds up to the change of C. Values in "
        "every condition are in tables/sign.csv, by layer in tables/sign_by_layer.csv.",
        "",
        *_where(tables["sign_by_layer"]),
    ]
    return [*lines, ""]


def _where(layers: pd.DataFrame) -> list[str]:
    """The layers that hold most of C in the native condition of each model."""
    lines = []
    for (model, first, text), part in layers.groupby(["model", "position0", "text"], sort=False):
        total = part["C_MR"].sum()
        same = part[part["C_MR"] * total > 0].sort_values("C_MR", key=abs, ascending=False)
        kept = same[same["C_MR"].abs().cumsum().shift(fill_value=0) < abs(total) / 2]
        opposite = float(part.loc[part["C_MR"] * total < 0, "C_MR"].sum() / total)
        names = ", ".join(str(k) for k in sorted(kept["layer"]))
        lines.append(
            f"- {model}, {first} at position 0, {text}: C {number(float(part['C_MR'].mean()))}; "
            f"layers {names} hold half of it; layers of the other sign take "
            f"{percent(abs(opposite))} away again; the sink's part is "
            f"{number(float(part['C_MS'].mean()))}."
        )
    return lines


def removal(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The specification curve, and what predicts it."""
    rows, tested = tables["removal"], tables["explanations"]
    real = rows[rows["real"]]
    means = real[real["replacement"] == "mean"]["fraction_removed"]
    best = tested.dropna(subset=["slope"]).sort_values("error_family").iloc[0]
    none = tested.iloc[0]
    works = best["error_family"] < none["error_family"] and best["error_real"] < none["error_real"]
    lines = [
        "## The 40%",
        "",
        "![Every replacement in every condition](figures/specification.svg)",
        "",
        f"Over {len(rows)} pairs of condition and replacement ({len(real)} on real models), the "
        f"mean embedding alone removes {percent(means.min())} to {percent(means.max())} of V_R on "
        "real models: the study's 40% is one point of a wide range.",
        "",
        f"Of four explanations written down beforehand, {best['explanation']!r} predicts the "
        f"family best: its error is {number(float(best['error_family']))} in log V_R for models "
        f"left out ({number(float(none['error_family']))} for the family's mean). On the real "
        f"models the same line has {number(float(best['error_real']))} "
        f"({number(float(none['error_real']))}): it "
        + ("holds there too." if works else "does not carry over, so the range is unexplained."),
        "",
        *_head(
            ["explanation", "slope", "rho family", "p", "rho real", "error family", "error real"]
        ),
    ]
    for _, row in tested.iterrows():
        names = ("slope", "rho", "p_family", "rho_real", "error_family", "error_real")
        lines.append(_row(row["explanation"], *(number(float(row[name])) for name in names)))
    return [
        *lines,
        "",
        "Explanations are defined in analyses/conditions/removal.py. Rows of one model depend on "
        "each other; p permutes whole models of the family, and rho on the real models describes "
        "three of them.",
        "",
    ]


def before_training(untrained: pd.DataFrame, trained: pd.DataFrame) -> list[str]:
    """Channels at initialisation beside those after training."""
    names = (*VARIANCES, "share_residual", "sink_rate")
    head = ["architecture", "", *VARIANCES.values(), "residual's share", "sink rate"]
    lines = ["## What is there before training", "", *_head(head)]
    for _, row in untrained.iterrows():
        cells = [_cell(row[n], row[f"{n}_min"], row[f"{n}_max"]) for n in names]
        lines.append(_row(row["architecture"], "untrained", *cells))
        for _, other in trained[trained["architecture"] == row["architecture"]].iterrows():
            lines.append(_row("", "trained", *(number(float(other[n])) for n in names)))
    return [
        *lines,
        "",
        "Untrained: mean and range over three draws of the initial weights. Trained: the same "
        "stimuli; mean over the models of an architecture. Shares are left out where V_T is not "
        "distinguishable from 0 in any draw.",
        "",
    ]


def scopes(report: Path, models: list[str]) -> list[str]:
    """In which conditions each claim holds."""
    lines = ["## Scope of each claim", ""]
    for model in models:
        path = report / slug(model) / "claims.json"
        for claim in json.loads(path.read_text(encoding="utf-8")):
            if claim["scope"]:
                lines.append(f"- {model}, `{claim['id']}`: {claim['scope']}")
    return lines


def _head(names: list[str]) -> list[str]:
    return [_row(*names), "|---" * len(names) + "|"]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _cell(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "undefined"
    if pd.isna(low) or pd.isna(high):
        return f"{number(float(value))} (unbounded)"
    return f"{number(float(value))} [{number(float(low))}, {number(float(high))}]"


def _contribution(row: pd.Series) -> str:
    """An estimate over models where there are several, over items otherwise."""
    unit = "models" if pd.notna(row["low_models"]) else "items"
    return _cell(row["estimate"], row[f"low_{unit}"], row[f"high_{unit}"])


def _wrapped(line: str) -> str:
    if line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
