"""Commands on stored files, without a model: analyze, compare, plan, inspect and others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import posprobe
from posprobe.cli.group import STATISTICS, check_limit, main, print_json, print_path
from posprobe.cli.options import (
    ARCHITECTURE,
    BLOCK,
    JSON,
    QUIET,
    REPORT,
    STEP,
    Numbers,
    inference_options,
)
from posprobe.errors import shown

if TYPE_CHECKING:
    from posprobe.intervals import Inference


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@REPORT
@inference_options
@QUIET
def analyze(files: tuple[Path, ...], out: Path, inference: Inference, quiet: bool) -> None:
    """Write statistics and report from stored FILES alone: no model, no torch."""
    from posprobe.workflows.analyze import analyze as run

    print_path(run(files, out, inference=inference, progress=not quiet))


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@REPORT
@ARCHITECTURE
@BLOCK
@click.option(
    "--different-tokens", is_flag=True, help="Allow different tokens (one text, other tokenizers)."
)
@click.option(
    "--steps",
    is_flag=True,
    help="FILES are checkpoints of one training run; their steps are in revisions, names or paths.",
)
@STEP
@inference_options
@QUIET
def compare(
    files: tuple[Path, ...],
    out: Path,
    architectures: dict[str, str],
    blocks: dict[str, str],
    different_tokens: bool,
    steps: bool,
    step: dict[int, str],
    inference: Inference,
    quiet: bool,
) -> None:
    """Compare models, variants or checkpoints from stored FILES alone: no model, no torch."""
    from posprobe.workflows.compare import compare as run

    report = run(
        files,
        out,
        architectures=architectures,
        blocks=blocks,
        different_tokens=different_tokens,
        steps=step or steps,
        inference=inference,
        progress=not quiet,
    )
    print_path(report)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--quantity", default="V_R", show_default=True, help="V_T, V_M, V_R, C_MR; of models: relative."
)
@click.option(
    "--precision",
    type=float,
    help="Wanted: half of the interval's width over the estimate.  [default: 0.1 for items and "
    "texts, none for models]",
)
@click.option(
    "--power", type=float, default=0.8, show_default=True, help="Wanted: interval without 0."
)
@click.option(
    "--assurance",
    type=float,
    default=0.8,
    show_default=True,
    help="Share of studies that are to reach the precision.",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of intervals.")
@ARCHITECTURE
@BLOCK
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation.")
@JSON
def plan(paths: tuple[Path, ...], as_json: bool, **wanted: Any) -> None:
    """Say how many items, texts or models are needed.

    PATHS are captures of one model (items; of three texts, texts too) or of several models, or the
    folder of a comparison (models of each architecture; with blocks, complete blocks).
    """
    check_limit(STATISTICS)
    from posprobe.workflows.plan import plan as run

    plans = run(paths, **wanted)
    if as_json:
        click.echo(json.dumps([one.asdict() for one in plans], indent=1, allow_nan=False))
        return
    for one in plans:
        click.echo(one.sentences())
        click.echo(one.table.to_string(index=False, float_format="%.3g") + "\n")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--which",
    type=click.Choice(["residual", "normalizer"]),
    default="residual",
    show_default=True,
    help="Features of the probes.",
)
@click.option("--layers", type=Numbers(), help="Layers.  [default: all that every file has]")
@click.option("--trained-to", type=int, help="Last position to train on.  [default: a quarter]")
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table as CSV.")
@QUIET
def generalize(
    file: Path, others: tuple[Path, ...], output: Path | None, quiet: bool, **options: Any
) -> None:
    """Score probes of position where they were not trained.

    Probes are trained on the early positions of the natural capture FILE, and scored at later
    positions, in other layers, and on the captures OTHERS of the same model.
    """
    check_limit(STATISTICS)
    from posprobe.workflows.generalize import generalize as run

    table = run(file, others, progress=not quiet, **options)
    if output is not None:
        table.to_csv(output, index=False)
        print_path(output)
        return
    shown = table.drop(columns=["sequences", "bias", "bias_low", "bias_high"])
    click.echo(shown.to_string(index=False, float_format="%.3g"))


@main.command()
@click.argument("native", type=click.Path(path_type=Path))
@click.argument("changed", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--first", type=int, help="First layer that counts.  [default: 0, or the first edited block]"
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of intervals.")
@JSON
def remains(
    native: Path, changed: tuple[Path, ...], first: int | None, level: float, as_json: bool
) -> None:
    """Say what changes of a model leave of its channels.

    NATIVE is a capture of the shifted design, CHANGED are captures of the same items with
    something taken away: a band, a mask, position in the stream.
    """
    from posprobe.channels import remaining

    store = posprobe.ActivationStore(native)
    tables = {
        str(path): remaining(store, posprobe.ActivationStore(path), first=first, level=level)
        for path in changed
    }
    if as_json:
        print_json({path: json.loads(t.to_json(orient="records")) for path, t in tables.items()})
        return
    for path, table in tables.items():
        click.echo(f"{shown(path)}\n{table.to_string(index=False, float_format='%.3g')}\n")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@JSON
@click.option("--verify", is_flag=True, help="Read it all, and compare it with its digests.")
def inspect(file: Path, as_json: bool, verify: bool) -> None:
    """List what a captured FILE contains."""
    with posprobe.ActivationStore(file) as store:
        summary = store.summary() | ({"verified": store.verify()} if verify else {})
        own = {k: v for k, v in store.header.config.items() if k.startswith("posprobe_")}
    if as_json:
        print_json(summary)
        return
    for name, value in summary["attributes"].items():
        text = str(value)
        click.echo(f"{name:20} {text if len(text) <= 100 else text[:97] + '...'}")
    for name, value in own.items():  # what posprobe added to the configuration, which was cut above
        click.echo(f"{name:22} {json.dumps(value)}")
    click.echo(f"{'compute type':20} {summary['compute_type']}")
    click.echo(f"{'rounding':20} {summary['rounding']}")
    click.echo(f"{'repeated items':20} {summary['repeated_items']}")
    click.echo(f"{'digests':20} {_digests(summary)}")
    click.echo()
    for row in summary["rows"]:
        shape = " x ".join(map(str, row["shape"])) or "scalar"
        click.echo(f"{row['name']:20} {shape:28} {row['dtype']:8} {row['unit']:7} {row['meaning']}")


def _digests(summary: dict[str, Any]) -> str:
    """Whether damage to a file would show, and whether it was looked for."""
    count = summary["digests"]
    if not count:
        return "none, as in all files of format 1: damage to its data does not show"
    if "verified" not in summary:
        return f"{count} of CRC-32; --verify compares them"
    return f"{count} of CRC-32, all as written"


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write: .safetensors (arrays) or .parquet (a table of quantities of equal axes).",
)
@click.option(
    "--quantities", metavar="NAME,...", help="Data sets, as `inspect` lists them.  [default: all]"
)
@click.option("--layers", type=Numbers(), help="Layers.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(
    file: Path,
    output: Path,
    quantities: str | None,
    layers: tuple[int, ...] | None,
    overwrite: bool,
) -> None:
    """Write chosen data of a captured FILE for other tools: no model, no torch."""
    names = None if quantities is None else [name.strip() for name in quantities.split(",")]
    with posprobe.ActivationStore(file) as store:
        print_path(store.export(output, names, layers, overwrite=overwrite))


@main.command()
@click.option(
    "--repetitions",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Data sets drawn for each study and size.",
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table as CSV."
)
@JSON
@QUIET
def selfcheck(repetitions: int, jobs: int, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure the coverage of the intervals by simulation; exit status 1 if one fails."""
    from posprobe.workflows.selfcheck import run

    table = run(repetitions=repetitions, n_jobs=jobs, progress=not quiet)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
    else:
        click.echo(table.to_string(index=False))
    if out is not None:
        table.to_csv(out, index=False, float_format="%.4f")
    if not table["passed"].all():
        sys.exit(1)
