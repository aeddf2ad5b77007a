"""Analysis 5: more seeds, so that the order of architectures can be decided.

Question. Three seeds of each architecture leave H1 and H2 open (analysis 2). How many would decide,
and what do they say?

Plan. Made from the three seeds of analysis 2 before a fourth was trained, by `posprobe plan`: with
seeds as blocks, a power of .8 on V_R needs 8 seeds for the trend (window less NTK), 4 for the slope
of window less the others, 18 for rope less NTK, and 182 for window less rope. So eight are trained:
they decide the trend and the slope if the first three are like the rest, and are not expected to
decide the steps. Verdicts wait until all eight are measured; the page gives interim estimates until
then, since a test that is looked at after every seed rejects too often.

Protocol. `rope`, `ntk` and `window` of analysis 2, trained by the same script (`zoo/train.py`). A
model of seed s shares its initial weights and the order of its data with the others of that seed,
so seeds are blocks. V_T, V_M, V_R and C of each layer are measured as in analysis 2: 32 windows of
32 tokens behind prefixes of several lengths, BOS at position 0, sequences of 128 tokens, offsets 1,
2, 4, 8. A contrast is taken within each seed, and its interval is Student's over seeds. P-values of
the contrasts on one quantity are adjusted by Holm's method.

Weights of the seeds from 3 on are not kept. `tables/layers.csv` has what was measured on them, and
`tables/models.csv` their digests and how they were trained. Seeds that the tables have are not
measured again; delete a row of `models.csv` to have it done anew.

Seed 3 was trained where a processor has no instructions for bfloat16: products were computed in
float32 and rounded once, as such instructions do (column `products`). Contrasts are within seeds,
so this does not mix with architecture.

Run it with ``python analyses/05_seeds.py`` for what is bundled and in the tables, or with
``--train 1`` to train the next seed that is missing (three models: an hour on a core that
multiplies bfloat16 by itself, two on another). Checkpoints go to ``build/zoo``; interrupted, it
goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd
from seeds.measuring import ARCHITECTURES, measure, train
from seeds.page import PLANNED, write_page
from tqdm.auto import tqdm

from posprobe.models.bundled import list_zoo

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "05_seeds"
FILES = HERE.parent / "out" / "05_seeds"
WORK = HERE.parent / "build" / "zoo"


def read_tables(report: Path) -> dict[str, pd.DataFrame]:
    """What was measured before: a row for each model, and one for each of its layers."""
    paths = {name: report / "tables" / f"{name}.csv" for name in ("models", "layers")}
    return {
        name: pd.read_csv(path) if path.exists() else pd.DataFrame({"model": []})
        for name, path in paths.items()
    }


def missing_models(tables: dict[str, pd.DataFrame], seeds: int) -> list[str]:
    """Models of the plan that are not in the tables, seed by seed."""
    measured = set(tables["models"]["model"])
    planned = [f"{name}-{seed}" for seed in range(seeds) for name in ARCHITECTURES]
    return [name for name in planned if name not in measured]


def add(tables: dict[str, pd.DataFrame], model: dict, layers: pd.DataFrame) -> None:
    """Put one model behind those of the tables; layers without a model are of one deleted there."""
    known = tables["layers"]["model"].isin(tables["models"]["model"])
    for name, rows in (("models", pd.DataFrame([model])), ("layers", layers)):
        kept = tables["layers"][known] if name == "layers" else tables["models"]
        merged = pd.concat([kept, rows], ignore_index=True) if len(kept) else rows
        tables[name] = merged.sort_values(["architecture", "model"], kind="stable")


@click.command(help=__doc__.splitlines()[0])
@click.option("--train", "n_train", type=click.IntRange(0), default=0, help="Seeds to train.")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True)
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(n_train: int, work: Path, files: Path, report: Path) -> None:
    """Measure what is missing, keep it after every model, and write the page."""
    tables = read_tables(report)
    bundled = {name.removeprefix("zoo/") for name in list_zoo()}
    missing = missing_models(tables, PLANNED)
    trained = [name for name in missing if name not in bundled][: n_train * len(ARCHITECTURES)]
    for name in tqdm(
        [*(name for name in missing if name in bundled), *trained], desc="models", disable=None
    ):
        source = f"zoo/{name}" if name in bundled else str(train(name, work))
        add(tables, *measure(name, source, files))
        write_page(report, tables)
    click.echo(write_page(report, tables))


if __name__ == "__main__":
    main()
