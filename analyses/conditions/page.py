"""README.md of the report: the finding first, then one table for each question."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from conditions.models import DESCRIPTIONS, slug
from prose import wrapped

from posprobe.report.words import bounds, number, percent

VARIANCES = {"V_T": "V_T", "V_M": "V_M", "V_R": "V_R", "C_MR": "C"}
SHARES = {"share_mask": "mask's share", "share_residual": "residual's share"}


def short(text: str) -> str:
    """A text's name without its version."""
    return text.partition(",")[0]


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
        *rounding(tables["quantised"]),
        *scopes(report, tables["conditions"]["model"].unique()),
    ]
    page = "\n".join(map(wrapped, sections)) + "\n"
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
        lines.append(_row(row["model"], first, short(row["text"]), *cells, row["relation"], gone))
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
        model, text, contrast = key
        named = (model, short(text), contrast)
        lines.append(_row(*named, *(_cell(*r) for r in part[["estimate", "low", "high"]].values)))
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
    """The layers that hold most of C, on each model's first text."""
    lines = []
    for model, every in layers.groupby("model", sort=False):
        for first, part in every[every["text"] == every["text"].iloc[0]].groupby("position0"):
            n, total = len(part), part["C_MR"].mean()
            largest = part.reindex(part["C_MR"].abs().sort_values(ascending=False).index)[:5]
            shown = ", ".join(
                f"layer {int(row['layer'])} {number(float(row['C_MR'] / n))}"
                for _, row in largest.sort_values("layer").iterrows()
            )
            lines.append(
                f"- {model}, {short(part['text'].iloc[0])}, {first} at position 0: of C = "
                f"{number(float(total))}, the five layers that contribute most give {shown}; over "
                f"all layers the sink's part is {number(float(part['C_MS'].mean()))}."
            )
    return lines


def removal(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The specification curve, and what predicts it."""
    rows, tested = tables["removal"], tables["explanations"]
    real = rows[rows["real"]]
    means = real[real["replacement"] == "mean"]["fraction_removed"]
    count = list(tested.loc[tested["counts"], "explanation"])
    errors = [name for name in tested if name.startswith("error")]
    lines = [
        "## The 40%",
        "",
        "![Every replacement in every condition](figures/specification.svg)",
        "",
        f"Over {len(rows)} pairs of condition and replacement ({len(real)} on real models), the "
        f"mean embedding alone removes {percent(means.min())} to {percent(means.max())} of V_R on "
        "real models: the study's 40% is one point of a wide range.",
        "",
        *_both_parts(rows),
        "",
        "Explanations, fitted on the family and tried unchanged on the real models (four written "
        "down beforehand, `mask` after all rows but Qwen's were seen): "
        + (f"{' and '.join(map(repr, count))} counts." if count else "none of them counts.")
        + " To count, an explanation must not be chance in the family (p < .05) and must predict "
        "the family and every real model better than the family's mean does.",
        "",
        *_head(["explanation", "slope", "rho", "p", *(name.replace("_", " ") for name in errors)]),
    ]  # fmt: skip
    for _, row in tested.iterrows():
        names = ("slope", "rho", "p_family", *errors)
        lines.append(_row(row["explanation"], *(number(float(row[name])) for name in names)))
    return [
        *lines,
        "",
        "Errors are mean absolute errors of log(V_R replaced / V_R native). The explanations are "
        "defined in analyses/conditions/removal.py. Rows of one model depend on each other; p "
        "permutes whole models of the family.",
        "",
    ]


def _both_parts(rows: pd.DataFrame) -> list[str]:
    """What the mean embedding does to the sink's part of R and to the rest, by model or family."""
    head = [
        "mean embedding at 0",
        "pairs",
        "attention to key 0 kept",
        "V_S",
        "V_(R-S)",
        "V_M",
        "V_R",
    ]
    lines = _head(head)
    means = rows[rows["replacement"] == "mean"]
    named = means["model"].where(means["real"], means["model"].str.rpartition("-")[0] + " (family)")
    native = means["position0"].where(means["real"], "BOS")
    for (model, first), part in means.groupby([named, native], sort=False):
        cells = [
            _arrow(part[f"{name}_native"], part[f"{name}_replaced"])
            for name in ("V_S", "V_(R-S)", "V_M", "V_R")
        ]
        kept = f"{percent(part['attention_kept'].min())} to {percent(part['attention_kept'].max())}"
        lines.append(_row(f"{model}, {first}", len(part), kept, *cells))
    return [
        *lines,
        "",
        "Means over the pairs of each row, early queries, nats², before and after. S: the part of "
        "R that the score of key 0 makes.",
    ]


def _arrow(before: pd.Series, after: pd.Series) -> str:
    return f"{number(float(before.mean()))} → {number(float(after.mean()))}"


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


def rounding(rows: pd.DataFrame) -> list[str]:
    """What rounding the weights again changes."""
    names = list(rows["quantity"].unique())
    lines = ["## What 4 bits change", "", *_head(["model", "grid", "weights moved by", *names])]
    for (model, grid), part in rows.groupby(["model", "grid"], sort=False):
        cells = [
            f"{number(float(row['as_loaded']))} → {number(float(row['rounded_again']))} "
            f"({bounds(row['low'], row['high'])})"
            for _, row in part.iterrows()
        ]
        lines.append(_row(model, grid, percent(part["weights_changed"].iloc[0]), *cells))
    return [
        *lines,
        "",
        "The matrices of all blocks rounded once more, in nats²; in brackets the interval of the "
        "difference, paired by item. What the first rounding changed cannot be seen without the "
        "original weights; this is a lower bound of its size, not a correction.",
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
