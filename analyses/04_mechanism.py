"""Analysis 4: which frequencies of the rotation carry position, and what happens without them.

Question. A score under RoPE is a sum over pairs of dimensions, each of which turns at its own
frequency. Which of them carry the two channels, is it the same under NTK and YaRN, and what is left
of the residual channel when they are taken out of all scores?

Protocol. SmolLM2-135M-Instruct (4 bits, RoPE base 1e5), the shifted design: windows of 32 tokens of
the Python language reference behind prefixes of 1 to 224 tokens, offsets 1, 2, 4, 8, position 0 as
the tokenizer has it (a token of the text). Three bands, by the turns that a pair makes over the 256
tokens: more than 4, 1/4 to 4, and less than 1/4. `ntk(8)` makes the base 8.6e5 (the 10^6 of later
models), `yarn(8)` divides the slow frequencies by 8.

Split. The part of a band in V_R is the covariance over positions of R by band and R; parts add up
to V_R exactly. Scores are sums over bands; a normalizer is the sum of the bands' Shapley values and
of the logarithm of the number of keys. docs/mechanism.md has the equations.

Intervention. Each band is left out of all scores of all layers, in the forward pass. Control: as
many pairs of each layer, drawn at random from all, are left out. Measured again: V_R, V_M, and the
loss on the tokens of the window behind the longest prefix.

Verdicts. A band carries the channel if the lower limit of its share is above 1/2. A band is needed
if the interval of the V_R that is left without it excludes 1 and does not overlap that of the
control. Intervals are at 95%, over items, and not adjusted for the number of bands and variants.

Run it with ``python analyses/04_mechanism.py``. The report goes to
``analyses/reports/04_mechanism``, captured files to ``out/04_mechanism``; interrupted, it goes on
where it was.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from mechanism.page import write_page
from tqdm.auto import tqdm

import posprobe
from posprobe.channels import (
    REQUIRED,
    channel_effects,
    decompose,
    decompose_bands,
    gather_variances,
)
from posprobe.intervals import fieller_ratio, mean_interval
from posprobe.models import (
    NO_INTERVENTION,
    Bands,
    Intervention,
    ObservableModel,
    Observer,
    find_bands,
    load_model,
)
from posprobe.store import ActivationStore

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "04_mechanism"
FILES = HERE.parent / "out" / "04_mechanism"
VARIANTS = ("standard", "ntk(8)", "yarn(8)")
N_BANDS, LENGTH = 3, 256


def random_pairs(bands: Bands, number: int, seed: int) -> Intervention:
    """Leave out as many pairs of each layer as a band has, drawn from all pairs of the layer."""
    rng = np.random.default_rng([seed, number])
    zeroed = []
    for layer, dims in enumerate(bands.dimensions):
        pairs = np.arange(sum(map(len, dims))).reshape(2, -1)  # a pair is split into halves
        drawn = rng.permutation(pairs.shape[1])[: len(dims[number]) // 2]
        zeroed.append((layer, tuple(sorted(pairs[:, drawn].ravel().tolist()))))
    return Intervention(zero_dimensions=tuple(zeroed))


def captured(model: ObservableModel, path: Path, n: int, **changes: object) -> ActivationStore:
    """The shifted stimulus with scores by band, without residual streams."""
    return posprobe.capture(
        model, path, design="shifted", n=n, length=LENGTH, quantities=REQUIRED, bands=N_BANDS,
        resume=True, progress=False, **changes,
    )  # fmt: skip


def losses(model: ObservableModel, store: ActivationStore, change: Intervention) -> np.ndarray:
    """Mean loss on the window behind the longest prefix, in nats per token: one value per item."""
    late = np.flatnonzero(store.prefix_length == store.prefixes[-1])
    found = {}
    for sequence in late:
        tokens = torch.from_numpy(store.tokens[sequence].astype(np.int64))[None]
        scores = model.logits(tokens, Observer(intervention=change))[0, -store.window - 1 : -1]
        loss = torch.nn.functional.cross_entropy(scores.double(), tokens[0, -store.window :])
        found[int(store.item[sequence])] = float(loss)
    return np.array([found[item] for item in sorted(found)])


def band_tables(stores: dict[str, ActivationStore]) -> pd.DataFrame:
    """Parts of every channel by band, under every variant."""
    tables = [
        decompose_bands(store).assign(variant=variant)
        for variant, store in tqdm(stores.items(), desc="bands")
    ]
    return pd.concat(tables, ignore_index=True)


def pseudo_values_of(store: ActivationStore, name: str) -> np.ndarray:
    """Jackknife pseudo-values of a variance, averaged over layers and heads: one per item."""
    effects = (channel_effects(store, layer) for layer in range(store.n_layers))
    return gather_variances(effects).mean((0, 1)).pseudo[name][:, 0, 0]


def zeroed_row(
    model: ObservableModel,
    native: ActivationStore,
    store: ActivationStore,
    change: Intervention,
    native_loss: np.ndarray,
) -> dict[str, object]:
    """What is left of V_R and V_M, and what the loss gains, paired by item."""
    row: dict[str, object] = {}
    for name in ("V_R", "V_M"):
        pair = (pseudo_values_of(each, name) for each in (native, store))
        left = fieller_ratio(*pair, quantity="ratio", estimand=f"{name} left")
        row |= {f"{name}_left": left.estimate, f"{name}_left_low": left.low}
        row[f"{name}_left_high"] = left.high
    gain = mean_interval(losses(model, native, change) - native_loss, estimand="loss gained")
    return row | {"loss": gain.estimate, "loss_low": gain.low, "loss_high": gain.high}


def zeroed_table(
    model: ObservableModel, native: ActivationStore, files: Path, n: int, seeds: range
) -> pd.DataFrame:
    """Each band left out of all scores, and as many pairs drawn from the others."""
    bands = find_bands(model, LENGTH, N_BANDS)
    native_loss = losses(model, native, NO_INTERVENTION)
    rows = []
    for number, band in enumerate(tqdm(bands.names, desc="zeroed")):
        changes = {"band": bands.zeroing((number,))}
        changes |= {f"random {seed}": random_pairs(bands, number, seed) for seed in seeds}
        for what, change in changes.items():
            path = files / f"zero_{number}_{what.replace(' ', '_')}.h5"
            store = captured(model, path, n, intervention=change)
            row = zeroed_row(model, native, store, change, native_loss)
            rows.append({"band": band, "zeroed": what} | row)
    return pd.DataFrame(rows).assign(native_loss=native_loss.mean())


@click.command(help=__doc__.splitlines()[0])
@click.option("--n", type=int, default=32, show_default=True, help="Items.")
@click.option("--draws", type=int, default=2, show_default=True, help="Random draws of pairs.")
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(n: int, draws: int, files: Path, report: Path) -> None:
    """Capture, zero, tabulate, and write the page."""
    files.mkdir(parents=True, exist_ok=True)
    (report / "tables").mkdir(parents=True, exist_ok=True)
    models = {variant: load_model("smollm2", variant=variant) for variant in VARIANTS}
    stores = {
        variant: captured(model, files / f"{variant.partition('(')[0]}.h5", n)
        for variant, model in tqdm(models.items(), desc="variants")
    }
    whole = [decompose(store).overall.assign(variant=v) for v, store in stores.items()]
    tables = {
        "bands": band_tables(stores),
        "channels": pd.concat(whole, ignore_index=True),
        "zeroed": zeroed_table(models["standard"], stores["standard"], files, n, range(draws)),
    }
    for name, table in tables.items():
        table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.6g")
    click.echo(write_page(report))


if __name__ == "__main__":
    main()
