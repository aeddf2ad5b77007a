"""Whether the code for position that early positions have holds elsewhere."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from mechanism.findings import Finding
from mechanism.measuring import Blocks
from tqdm.auto import tqdm

import posprobe
from posprobe.report.words import number, with_interval
from posprobe.workflows.generalize import generalize

LENGTH, N, TRAINED_TO = 512, 40, 64
FILES = {
    "native": {},
    "ntk(8)": {"variant": "ntk(8)"},
    "yarn(8)": {"variant": "yarn(8)"},
    "BOS at position 0": {"bos": "force"},
    "code": {"text": "code"},
}
NATIVE = "natural_0.h5"  # the first of FILES
READ = 0.5  # R2 from which a code is called read


def natural_files(source: str, files: Path) -> dict[str, Path]:
    """Capture the streams of one text natively and under each change, and of another text."""
    files.mkdir(parents=True, exist_ok=True)
    paths = {}
    for what, options in tqdm(FILES.items(), desc="natural"):
        own = dict(options)
        model = posprobe.load_model(source, variant=own.pop("variant", "standard"))
        paths[what] = files / f"natural_{len(paths)}.h5"
        plan = dict(n=N, length=LENGTH, quantities=("residual",))
        plan["residual_layers"] = Blocks.of(model).read
        posprobe.capture(model, paths[what], resume=True, progress=False, **plan, **own).close()
    return paths


def elsewhere_table(paths: dict[str, Path]) -> pd.DataFrame:
    """Probes of the native capture, scored on it and on every other one."""
    native, *others = paths.values()
    table = generalize(native, others, trained_to=TRAINED_TO)
    names = {path.name: what for what, path in paths.items()}
    return table.assign(target_file=table["target_file"].map(names))


def elsewhere_finding(table: pd.DataFrame) -> Finding:
    """How far behind the trained range the best layer's probe still reads position."""
    far = table[table["question"] == "positions"]
    near, behind = far[far["start"] == 1], far[far["start"] > 1]
    best = near.loc[near["r2"].idxmax()]
    rows = behind[behind["layer"] == best["layer"]]
    said = "; ".join(
        f"{row['start']:.0f} to {row['stop'] - 1:.0f}: R² {with_interval(row, 'r2')}, slope "
        f"{with_interval(row, 'slope')}" for _, row in rows.iterrows()
    )  # fmt: skip
    holds = (rows["r2_low"] > READ).all()
    lost = (rows["r2_high"] < READ).all()
    verdict = "supported" if holds else "contradicted" if lost else "undecided"
    return Finding(
        f"The code for positions 1 to {TRAINED_TO} goes on behind them",
        verdict,
        f"R² {with_interval(rows.iloc[0], 'r2')} next behind",
        f"The best probe (block {best['layer']:.0f}, R² {with_interval(best, 'r2')} there) reads "
        f"at positions {said}.",
    )


def elsewhere_lines(table: pd.DataFrame) -> list[str]:
    """R2 by layer and range, and under every other condition; then between layers."""
    lines = [f"## Probes trained on positions 1 to {TRAINED_TO}, scored elsewhere", ""]
    lines += [
        "Sequences that a probe is scored on never trained it. R² is below 0 where guessing the "
        "mean position of the range would be better; the slope of predicted on true position is 1 "
        "where the code goes on as in training.",
        "",
    ]
    own = table[table["question"] != "layers"]
    ranges = own[["start", "stop"]].drop_duplicates().itertuples(index=False)
    spans = [(start, stop) for start, stop in ranges]
    head = ["scored on", "block", *(f"{start} to {stop - 1}" for start, stop in spans)]
    lines += [f"| {' | '.join(map(str, head))} |", "|---" * len(head) + "|"]
    for (what, layer), rows in own.groupby(["target_file", "layer"], sort=False):
        by_start = rows.set_index("start")
        cells = [
            f"{with_interval(by_start.loc[start], 'r2')}, slope "
            f"{number(float(by_start.loc[start, 'slope']))}"
            for start, _ in spans
        ]
        lines.append(f"| {what} | {layer} | " + " | ".join(cells) + " |")
    return [*lines, "", "![R² elsewhere](figures/elsewhere.svg)", ""]


def draw_elsewhere(table: pd.DataFrame) -> Figure:
    """R2 by range for each layer, and of every layer's probe in every other layer."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    own = table[(table["question"] == "positions")]
    for k, (layer, rows) in enumerate(own.groupby("layer")):
        places = range(len(rows))
        left.plot(places, rows["slope"], marker="o", ms=4, color=f"C{k}", label=f"block {layer}")
        left.vlines(places, rows["slope_low"], rows["slope_high"], color=f"C{k}")
    spans = [f"{a} to {b - 1}" for a, b in own[["start", "stop"]].drop_duplicates().to_numpy()]
    left.set_xticks(range(len(spans)), spans)
    left.axhline(1, color="#858585", ls="--", lw=1)
    left.axhline(0, color="#858585", lw=0.7)
    left.set(xlabel="positions that are scored", ylabel="slope of predicted on true position")
    left.set_title(
        f"1: the code of positions 1 to {TRAINED_TO} goes on; 0: it says nothing", size=9
    )
    left.legend(fontsize=7, frameon=False)
    between = pd.concat([table[table["question"] == "layers"], own[own["start"] == 1]])
    matrix = between.pivot(index="layer", columns="target_layer", values="r2")
    shown = right.imshow(matrix.clip(lower=-1), vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    right.set_xticks(range(len(matrix)), matrix.columns)
    right.set_yticks(range(len(matrix)), matrix.index)
    right.set(xlabel="scored in block", ylabel="trained in block")
    right.set_title(f"R² at positions 1 to {TRAINED_TO} (-1 and below: red)", size=9)
    figure.colorbar(shown, ax=right)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
