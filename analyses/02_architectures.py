"""Analysis 2: how the balance of the two channels depends on the architecture.

Question. The study says that NTK scaling suppresses the residual channel, that a sliding window
lets it accumulate with depth, and that standard RoPE sits between (H1, H2); and that both channels
are present in all of them (H3). It has one model of each, and these differ in everything.

Protocol. Three comparisons, each with its own report:

- `variants`: one checkpoint (SmolLM2-135M) under several attention schemes at inference. Weights
  and items are the same, so differences are paired over items. They say what a scheme does to this
  model, which was not trained for it; they do not test architectures.
- `family`: small models trained from scratch that differ only in where position can come from,
  with several seeds of each (data/zoo). Models are the unit of the test: a mixed model, planned
  contrasts. Models of one seed share initial weights and the order of the data, so seeds are
  blocks: differences between architectures are taken within them.
- `controls`: the family together with its controls, which have a learned position encoding or none
  (nope). This describes; the test of the family is the primary one.

All three use windows of 32 tokens, each behind prefixes of several lengths with BOS at position 0,
and measure the effect of position on log attention weights at offsets 1, 2, 4, 8. The mask channel
is how the late row's weights would change if the row saw only the keys of the early one; the
residual channel is the rest. Variances over positions are U-statistics over pairs of different
windows. Sequences are 256 tokens long for SmolLM2 and 128 for the family, the length at which it
was trained. Hypotheses and contrasts were fixed in `posprobe.architectures.planned_contrasts`
before any model of the family was measured; the test of V_R is primary.

`--gemma` adds a description of SmolLM2 and Gemma-3-270M, if the latter is installed (its licence is
not open): two models that differ in everything, tokenizers included. Their sequences are 640 tokens
long, longer than the sliding window of 512 that most layers of Gemma have.

Run it with ``python analyses/02_architectures.py``, or with ``--part variants`` or ``--part
family`` alone. Reports go to ``analyses/reports/02_architectures`` with a summary in README.md,
captured files to ``out/02_architectures``. Run again after an interruption, or with more models
trained, it captures only what is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import pandas as pd
from prose import wrapped
from stability import LAST, STABLE, last_change

import posprobe
from posprobe.captures import QUANTITIES
from posprobe.errors import ModelError
from posprobe.figures import to_svg
from posprobe.models import list_zoo, parse_variant
from posprobe.models.bundled import zoo_folder
from posprobe.report.words import number

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "02_architectures"
FILES = HERE.parent / "out" / "02_architectures"
VARIANTS = "standard,ntk,linear,yarn,window,no_causal"
STUDIED = ("ntk", "rope", "window")
SINK = 0.3
NOT_RUN = "not_run.json"


def capture_all(model: str, folder: Path, *, variant: str = "standard", n: int, **options: object):
    """Make the shifted (n windows) and natural (half as many) captures of a model, if missing."""
    lean = dict(quantities=tuple(name for name in QUANTITIES if name != "residual"))
    plans = {
        "shifted": dict(design="shifted", bos="force", n=n, **lean),
        "natural": dict(design="natural", bos="native", n=max(4, n // 2)),
    }
    if options.pop("replaced", False):
        plans["mean"] = plans["shifted"] | dict(position0="mean")
    paths = {name: folder / f"{name}-{plan['n']}.h5" for name, plan in plans.items()}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        loaded = posprobe.load_model(model, variant=variant)
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            posprobe.capture(loaded, paths[name], resume=True, **plans[name], **options)
    return list(paths.values())


def capture_variants(names: list[str], files: Path, n: int) -> tuple[list[Path], dict[str, str]]:
    """Files of every variant of SmolLM2, and why others were refused."""
    paths, refused = [], {}
    for name in names:
        variant = str(parse_variant(name))
        folder = files / "smollm2" / variant.replace("(", "-").rstrip(")")
        try:
            paths += capture_all("smollm2", folder, variant=variant, n=n, length=256)
        except ModelError as error:
            refused[variant] = str(error)
    return paths, refused


def capture_family(files: Path, n: int) -> dict[str, list[Path]]:
    """Files of every trained model; a retrained model is captured again."""
    found = {}
    for name in list_zoo():
        provenance = json.loads((zoo_folder(name) / "provenance.json").read_text())
        digest = provenance["files"]["model.safetensors"][:12]
        folder = files / name / digest
        found[name] = capture_all(name, folder, n=n, length=128, replaced=True)
    return found


def seeds() -> dict[str, str]:
    """Seeds of the family, each with the pattern of its models' names."""
    return {seed: f"*-{seed}" for seed in sorted({name.rpartition("-")[2] for name in list_zoo()})}


def training_curves() -> pd.DataFrame:
    """Loss and strongest attention to key 0 of every model of the family, by training step."""
    tables = []
    for name in list_zoo():
        table = pd.read_csv(zoo_folder(name) / "training.csv")
        table.insert(0, "model", name.removeprefix("zoo/"))
        table.insert(0, "architecture", table["model"].str.rpartition("-")[0])
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def draw_training(curves: pd.DataFrame, path: Path) -> None:
    """Held-out loss, and attention of the strongest head to key 0 over queries 1 to 31."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = {
        "held_out_loss": "held-out loss (nats per token)",
        "early_max": "attention to key 0, strongest head,\nqueries 1 to 31",
    }
    for ax, (column, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for k, (architecture, rows) in enumerate(curves.groupby("architecture")):
            for seed, (_, one) in enumerate(rows.groupby("model")):
                shown = architecture if seed == 0 else None
                ax.plot(one["step"], one[column], color=f"C{k}", lw=1.2, label=shown)
        ax.set(xlabel="training step", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    ax.axhline(SINK, color="#858585", ls="--", lw=1)
    ax.annotate("usual threshold of a sink", (1, SINK), (-2, 2), ha="right", fontsize=8,
                xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_svg(figure, "training"), encoding="utf-8")


def claim_line(claim: dict) -> str:
    """A claim as one line: verdict, number with interval, statement."""
    shown = number(claim["estimate"])
    if claim["ci_low"] is not None:
        shown += f" [{number(claim['ci_low'])}, {number(claim['ci_high'])}]"
    return f"- **{claim['verdict_adjusted'].replace('_', ' ')}** {shown}: {claim['statement']}"


def contribution_cell(row: pd.Series) -> str:
    """An estimate with its interval over models or, failing that, over items."""
    if pd.isna(row["estimate"]):
        return "undefined"
    for unit, word in (("models", ""), ("items", "items: ")):
        low, high = row[f"low_{unit}"], row[f"high_{unit}"]
        if not (pd.isna(low) or pd.isna(high)):
            interval = f"[{number(low)}, {number(high)}]"
            return f"{number(row['estimate'])} {word}{interval}"
    return f"{number(row['estimate'])} (interval unbounded)"


def contribution_table(folder: Path) -> list[str]:
    """The channels and shares of each architecture, as a Markdown table."""
    table = pd.read_csv(folder / "tables" / "architectures.csv")
    names = {
        **{"V_T": "V_T", "V_M": "V_M", "V_R": "V_R", "C_MR": "C"},
        **{"share_mask": "mask's share", "share_residual": "residual stream's share"},
    }
    lines = [f"| | models | {' | '.join(names.values())} |", "|---" * (len(names) + 2) + "|"]
    for architecture, part in table.groupby("architecture", sort=False):
        part = part.set_index("quantity")
        cells = [contribution_cell(part.loc[name]) for name in names]
        lines.append(f"| {architecture} | {part['models'].iloc[0]} | {' | '.join(cells)} |")
    return lines


def sink_sentences(folder: Path) -> list[str]:
    """How many models have a sink, and how strong it is."""
    path = folder / "tables" / "sinks.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    usual = table[table["sink_heads"] > 0]
    early = table[table["attention_low"] > SINK]
    above = table[table["attention_low"] > table["even"]]
    queries = int(table["queries"].iloc[0])
    lines = [
        f"By the usual criterion (mean attention of a head to key 0 over all queries above {SINK}) "
        f"{len(usual)} of {len(table)} models have a sink"
        + (f": {', '.join(usual['model'])}." if len(usual) else "."),
        f"Over queries 1 to {queries}, which see key 0 in every model, the strongest head gives it "
        f"{number(table['attention'].min())} to {number(table['attention'].max())} of its "
        f"attention ({number(table['even'].iloc[0])} if attention were spread evenly); that is "
        f"more than evenly spread attention in {len(above)} of {len(table)} models, and above "
        f"{SINK} in {len(early)}" + (f" ({', '.join(early['model'])})." if len(early) else "."),
    ]
    if table["norm_ratio"].notna().any():
        lines.append(
            "At the depth where its norm is largest, position 0 has "
            f"{number(table['norm_ratio'].min())} to {number(table['norm_ratio'].max())} times the "
            "norm of later positions, depending on the model."
        )
    return lines


def replacement_sentences(folder: Path) -> list[str]:
    """What the mean embedding at position 0 does to the residual channel at early queries."""
    path = folder / "tables" / "replacement.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    table = table[table["primary"]]
    ranges = table.groupby("architecture")["fraction_removed"].agg(["min", "max"])
    shown = ", ".join(
        f"{name} {number(row['min'])} to {number(row['max'])}" for name, row in ranges.iterrows()
    )
    removed, grown = (table["low"] > 0).sum(), (table["high"] < 0).sum()
    return [
        "Replacing BOS by the mean embedding removes this fraction of V_R at early queries (the "
        f"study says 0.4), by architecture over its models: {shown}. V_R shrinks in {removed} of "
        f"{len(table)} models and grows in {grown} (where the 95% interval over items excludes 0)."
    ]


def stability_sentence(curves: pd.DataFrame, folder: Path) -> str:
    """Which models still changed their attention to key 0 when training ended."""
    models = set(pd.read_csv(folder / "tables" / "models.csv")["model"])
    changes = {model: last_change(one) for model, one in curves.groupby("model") if model in models}
    moved = {model: change for model, change in changes.items() if abs(change) > STABLE}
    shown = ", ".join(f"{model} {change:+.2f}" for model, change in moved.items())
    return (
        f"Over the last {LAST:,} steps of training (learning rate at the end "
        f"{number(float(curves['learning_rate'].iloc[-1]))}) the attention of a head to key 0 "
        f"(queries 1 to 31) changed by more than {STABLE} in {len(moved)} of {len(changes)} models"
        + (f", so their sinks were not stable when training ended: {shown}."
           if moved else f" (at most by {number(max(map(abs, changes.values())))}), so their "
           "attention to key 0 was stable when training ended.")
    )  # fmt: skip


def findings(parts: dict[str, dict]) -> list[str]:
    """What the page opens with: the primary test, and where the two kinds of evidence agree."""
    (main,) = (test for test in parts["family"]["tests"] if test["primary"])
    family = parts["family"]
    differ = "differ" if main["p_value"] < 1 - family["level"] else "are not shown to differ"
    models = family["architectures"]
    said = (
        f"- **The trained architectures ({', '.join(models)}) {differ} in the residual channel**: "
        f"{sum(map(len, models.values()))} models, V_R at mean depth, {shown_test(main)}. One "
        "checkpoint under several schemes is another question, and the table sets the two side by "
        "side."
    )
    return [said, "", *agreement(parts), "", "The study says that all three hypotheses hold.", ""]


def agreement(parts: dict[str, dict]) -> list[str]:
    """Where the comparisons agree on a hypothesis and where they do not."""
    first, second = (parts[name] for name in ("variants", "family"))
    columns = (
        "hypothesis",
        "on",
        "one checkpoint, not trained under the schemes",
        "trained families",
    )
    lines = [f"| {' | '.join(columns)} | |", "|---|---|---|---|---|"]
    for one, other in zip(first["answers"], second["answers"], strict=True):
        verdicts = [answer["verdict"].replace("_", " ") for answer in (one, other)]
        decided = {"supported", "contradicted"} >= set(verdicts)
        said = "undecided" if not decided else "agree" if len(set(verdicts)) == 1 else "disagree"
        name = f"{one['hypothesis']}: {one['statement']}"
        lines.append(f"| {name} | {one['value']} | {' | '.join(verdicts)} | {said} |")
    return lines


def summarise(report: Path, curves: pd.DataFrame) -> str:
    """README.md of the report, from what the comparisons wrote."""
    parts = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(report.glob("*/comparison.json"))
    }
    lines = [
        "# Two channels across architectures",
        "",
        *(findings(parts) if {"variants", "family"} <= set(parts) else ()),
        "`python analyses/02_architectures.py` writes this page; the protocol is at the top of "
        "that file. Variances are in nats². Intervals are 95% intervals over models where an "
        "architecture has several (shares: Fieller, from its models alone), and over items "
        "otherwise. Verdicts on H1 and H2 follow p-values adjusted by Holm's method; the intervals "
        "are not adjusted.",
        "",
    ]
    for name in [k for k in ("variants", "family", "controls", "gemma") if k in parts]:
        lines += [f"## {name} ([report]({name}/report.html))", ""]
        lines += part_lines(name, parts[name], report / name)
        if name == "variants":
            refused = json.loads((report / name / NOT_RUN).read_text(encoding="utf-8"))
            lines += [f"- not run: {variant}: {why}" for variant, why in refused.items()]
        if name in ("family", "controls") and len(curves):
            lines += ["", *sink_sentences(report / name), *replacement_sentences(report / name)]
            lines.append(stability_sentence(curves, report / name))
        lines.append("")
    if len(curves):
        lines += ["## Training", "", "![Training curves](figures/training.svg)", ""]
    return "\n".join(map(wrapped, lines))


def part_lines(name: str, part: dict, folder: Path) -> list[str]:
    """One comparison: the table, the primary test or why there is none, and every claim."""
    lines = [*contribution_table(folder), ""]
    tests = {(test["value"], test["response"], test["method"]): test for test in part["tests"]}
    main = next((test for test in part["tests"] if test["primary"]), None)
    if main is not None:
        said = "Descriptive test" if name == "controls" else "Primary test"
        lines.append(f"{said}, V_R at mean depth: {shown_test(main)}.")
        welch = tests.get(("V_R", "intercept", "Welch F"))
        if welch is not None:
            lines.append(f"Without equal variances (Welch): {shown_test(welch)}.")
        check = tests.get(("V_R", "intercept", "two-stage F"))
        if check is not None and check["check"]:
            lines.append(f"Its check, in two stages: {shown_test(check)}.")
    if part["reason"].get("V_R"):
        lines.append(f"Architectures are not tested: {part['reason']['V_R']}.")
    if part["compared"] != "models":
        lines.append("Variants are paired over items; architectures are not tested.")
    return [*lines, "", *map(claim_line, part["claims"]), *(f"- note: {n}" for n in part["notes"])]


def shown_test(test: dict) -> str:
    """An F test in one line."""
    freedom = f"F({test['df_between']}, {test['df_within']:.3g})"
    return f"{freedom} = {test['statistic']:.2f}, p = {test['p_value']:.2g}"


@click.command(help=__doc__.splitlines()[0])
@click.option("--part", type=click.Choice(["all", "variants", "family"]), default="all")
@click.option("--captures-only", is_flag=True, help="Make the captured files only.")
@click.option("--variants", default=VARIANTS, show_default=True, help="Variants of SmolLM2.")
@click.option("--n", default=16, show_default=True, help="Windows for SmolLM2.")
@click.option("--n-family", default=32, show_default=True, help="Windows for the family.")
@click.option("--gemma", is_flag=True, help="Also SmolLM2 and Gemma 3, if installed.")
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(
    part: str,
    captures_only: bool,
    variants: str,
    n: int,
    n_family: int,
    gemma: bool,
    files: Path,
    report: Path,
) -> None:
    """Capture what is missing, compare, and write the reports with their summary."""
    refused: dict[str, str] = {}
    compared: dict[str, list[Path]] = {}
    if part in ("all", "variants"):
        compared["variants"], refused = capture_variants(variants.split(","), files, n)
    if part in ("all", "family"):
        family = capture_family(files, n_family)
        studied = [name for name in family if name.split("/")[1].rpartition("-")[0] in STUDIED]
        compared["family"] = [path for name in studied for path in family[name]]
        if len(family) > len(studied):
            compared["controls"] = [path for paths in family.values() for path in paths]
    if gemma:
        pairs = [
            capture_all(m, files / m / "plain-640", n=8, length=640) for m in ("smollm2", "gemma3")
        ]
        compared["gemma"] = [path for paths in pairs for path in paths]
    if captures_only:
        return
    for name, paths in compared.items():
        blocks = seeds() if name in ("family", "controls") else None
        different = name == "gemma"
        print(posprobe.compare(paths, report / name, blocks=blocks, different_tokens=different))
    if "variants" in compared:
        (report / "variants" / NOT_RUN).write_text(json.dumps(refused, indent=1) + "\n")
    curves = training_curves()
    if len(curves):
        draw_training(curves, report / "figures" / "training.svg")
    (report / "README.md").write_text(summarise(report, curves), encoding="utf-8")
    print((report / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
