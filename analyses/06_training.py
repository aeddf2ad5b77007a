"""Analysis 6: when sinks, the mask channel and the residual channel come while a model trains.

Question. In which order do attention sinks, the mask channel, the residual channel and the code for
position come, and is the order the same in other architectures and seeds?

Protocol. Models of the family of analysis 2 (`rope`, `ntk`, `window`), trained by the same script
with seeds that were not looked at before (from 3 on), whose weights are kept at 18 steps from 0 to
6,000. At every step, with BOS at position 0: the shifted design (32 windows of 32 tokens behind
prefixes of several lengths, sequences of 128 tokens, offsets 1, 2, 4, 8), and 32 natural sequences
of 128 tokens of the text bundled as `python-reference`, which is not among what the family was
trained on. docs/training.md says what is measured and how the intervals are made.

Rule. Half-way is where a quantity has first made half of its change from step 0 to 6,000. Within a
run, one comes before another if the interval of the ratio of their steps excludes 1. The order of a
pair is supported for the family if it is the same, and known, in every run, and there are two or
more; contradicted if two runs say the opposite; undecided otherwise. Runs are few, so this
describes them and is no test.

Weights are not kept. `tables/` has what was measured at every step, with the digests of the
weights. Runs that the tables have are not measured again; delete their rows of `checkpoints.csv` to
have it done anew.

Run it with ``python analyses/06_training.py`` for what the tables and the snapshots below
``build/zoo`` have, or with ``--train rope-3`` to train such a model first (17 minutes on a core
that multiplies bfloat16, 40 on another). ``analyses/05_seeds.py --train`` keeps snapshots too.
"""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd
from checkpoints.measuring import is_kept, measure
from checkpoints.page import TABLES, write_page
from seeds.measuring import train
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "06_training"
FILES = HERE.parent / "out" / "06_training"
WORK = HERE.parent / "build" / "zoo"


def read_tables(report: Path) -> dict[str, pd.DataFrame]:
    """What was measured before; rows of a model without checkpoints are of one deleted there."""
    paths = {name: report / "tables" / f"{name}.csv" for name in TABLES}
    if not all(path.exists() for path in paths.values()):
        return {name: pd.DataFrame({"model": []}) for name in TABLES}
    tables = {name: pd.read_csv(path) for name, path in paths.items()}
    measured = set(tables["checkpoints"]["model"])
    return {name: table[table["model"].isin(measured)] for name, table in tables.items()}


def add(
    tables: dict[str, pd.DataFrame], found: dict[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Put one run behind those of the tables."""
    merged = {}
    for name, table in tables.items():
        rows = [part for part in (table, found.get(name)) if part is not None and len(part)]
        both = pd.concat(rows, ignore_index=True) if rows else table
        merged[name] = both.sort_values(["architecture", "seed"], kind="stable")
    return merged


@click.command(help=__doc__.splitlines()[0])
@click.option(
    "--train", "wanted", multiple=True, metavar="ARCH-SEED", help="Models to train first."
)
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True)
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(wanted: tuple[str, ...], work: Path, files: Path, report: Path) -> None:
    """Measure the runs that are missing, keep each, and write the page."""
    tables, snapshots = read_tables(report), work / "snapshots"
    for name in wanted:
        if not is_kept(snapshots, name):
            train(name, work)
    there = sorted(path.name for path in snapshots.glob("*-*") if is_kept(snapshots, path.name))
    new = [name for name in there if name not in set(tables["checkpoints"]["model"])]
    for name in tqdm(new, desc="runs", disable=None):
        tables = add(tables, measure(snapshots, name, files))
        write_page(report, tables)
    click.echo(write_page(report, tables))


if __name__ == "__main__":
    main()
