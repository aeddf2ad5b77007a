r"""What replacing the embedding at position 0 removes of V_R, and what decides how much.

The specification curve over models, conditions and replacements has one row for each. Its response
is the log ratio log(V_R replaced / V_R native) at early queries, since a fraction removed has no
lower end. R is split exactly into S, the part that key 0's score makes, and the rest, so every row
also says what happens to V_S and to V_(R-S). Four explanations were written down before any row was
looked at:

attention
    log of the attention that key 0 keeps: mean over heads, layers and early queries, replaced over
    native. The residual channel is read off key 0, so it shrinks as key 0 is attended to less.
trajectory
    log of the distance between the replaced and the native residual stream at position 0, relative
    to the norm of the native one, median over layers. The channel is position 0's own state, so it
    changes with that state, whoever attends to it.
embedding
    log norm of the embedding at position 0 over that of later tokens, before replacement. A token
    unlike the others is replaced by one like the others.
sink
    sink rate before replacement: without a sink there is little to remove.

A fifth was added after the rows of the family, SmolLM2 and Gemma had been seen, and before those of
Qwen were:

mask
    log of the mask channel's V_M at early queries, replaced over native. What absorbs attention
    damps the mask channel; without it M grows, and R, which mostly opposes M, grows with it.

A line from each to the response is fitted on the controlled family alone (models are left out one
at a time to say how well it predicts there), and then predicts the real models without being
changed. An explanation counts if its rank correlation in the family is not chance (p < .05, whole
models permuted), and if it predicts the family and every real model better than the family's mean
response does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from posprobe import ActivationStore
from posprobe.analysis import Files, condition_of
from posprobe.analysis.replacement import fraction_removed, sink_rate
from posprobe.channels import channel_effects, early_limit, position_covariance

EXPLANATIONS = ("attention", "trajectory", "embedding", "sink", "mask")
CHANCE = 0.05


def removal_rows(model: str, files: Files) -> list[dict[str, object]]:
    """Every replacement in every condition of one model, with the explanations measured."""
    later = _later_norm(files.natural)
    return [
        {"model": model, **_row(one.shifted, replaced, later), "native": one.native}
        for one in (files, *files.conditions)
        if one.shifted is not None
        for replaced in one.replaced
    ]


def _row(native: ActivationStore, replaced: ActivationStore, later: float) -> dict[str, object]:
    interval, before, after = fraction_removed(native, replaced, up_to=early_limit(native))
    kept = _attention(replaced) / _attention(native)
    own, others = _parts(native), _parts(replaced)
    return {
        **condition_of(native)._asdict(),
        "replacement": replaced.header.position0_treatment,
        **interval.row("fraction_removed"),
        "V_R_native": before,
        "V_R_replaced": after,
        **{f"{name}_native": value for name, value in own.items()},
        **{f"{name}_replaced": value for name, value in others.items()},
        "log_ratio": _log(after / before),
        "attention_kept": kept,
        "attention": _log(kept),
        "trajectory": _log(_moved(native, replaced)),
        "embedding": _log(_first_norm(native) / later),
        "sink": sink_rate(native),
        "mask": _log(others["V_M"] / own["V_M"]),
        "sink_replaced": sink_rate(replaced),
    }


def _log(ratio: float) -> float:
    """The logarithm of a ratio, NaN where an estimate of a variance is not above 0."""
    return float(np.log(ratio)) if ratio > 0 else float("nan")


def _parts(store: ActivationStore) -> dict[str, float]:
    """V_M, V_S and V_(R-S) at early queries: means over layers, heads and offsets."""
    found: dict[str, list[float]] = {"V_M": [], "V_S": [], "V_(R-S)": []}
    for layer in range(store.n_layers):
        effects = channel_effects(store, layer).up_to(early_limit(store))
        parts = (effects.mask, effects.sink, effects.residual - effects.sink)
        for values, part in zip(found.values(), parts, strict=True):
            values.append(float(position_covariance(part, part).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _attention(store: ActivationStore) -> float:
    """Mean attention to key 0 over layers, heads and the window's rows behind early prefixes.

    Where a sliding window hides key 0 from a row, its attention is 0.
    """
    early = store.prefix_length <= early_limit(store)
    rows = store.positions[early][:, :, None]
    attention = []
    for layer in range(store.n_layers):
        weight = store.read("sink_score", layer)[early] - store.normalizer(layer)[early]
        seen = rows < (store.layer_window[layer] or np.inf)
        attention.append(np.exp(np.where(seen, weight, -np.inf).astype(float)).mean())
    return float(np.mean(attention))


def _moved(native: ActivationStore, replaced: ActivationStore) -> float:
    """Relative distance of two trajectories of position 0: median over layers and sequences."""
    n = min(native.n_sequences, replaced.n_sequences)
    moved = []
    for layer in range(1, native.n_layers + 1):
        own, other = (s.read("position0", layer)[:n].astype(float) for s in (native, replaced))
        moved.append(np.linalg.norm(other - own, axis=-1) / np.linalg.norm(own, axis=-1))
    return float(np.median(moved))


def _first_norm(store: ActivationStore) -> float:
    return float(np.median(np.linalg.norm(store.read("position0", 0).astype(float), axis=-1)))


def _later_norm(natural: ActivationStore) -> float:
    """Median norm of the embeddings behind position 0."""
    norms = np.linalg.norm(natural.residual(0).astype(float), axis=-1)
    return float(np.median(norms[natural.residual_positions > 0]))


def explain(family: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """How well each explanation, fitted on the family, predicts the family and the real models.

    Returns
    -------
    pandas.DataFrame
        One row for each explanation, and one ("mean of the family") for none: `slope` in the
        family; `rho`, Spearman's; `p_family`, two-sided, by permuting models within the family;
        `error_family`, mean absolute error of the log ratio with whole models left out; and for
        each real model the `error` of the unchanged line, and whether the explanation `counts`.
    """
    family, real = (table.dropna(subset=["log_ratio"]) for table in (family, real))
    mean = family["log_ratio"].mean()
    none = {
        "explanation": "mean of the family",
        "error_family": _left_out(family, None),
        **_errors(real, lambda rows: np.full(len(rows), mean)),
    }
    rows = [none, *(_explained(family, real, name) for name in EXPLANATIONS)]
    table = pd.DataFrame(rows)
    errors = table.filter(like="error")
    table["counts"] = (errors < errors.iloc[0]).all(axis=1) & (table["p_family"] < CHANCE)
    return table


def _explained(family: pd.DataFrame, real: pd.DataFrame, name: str) -> dict[str, object]:
    line = np.polyfit(family[name], family["log_ratio"], 1)
    return {
        "explanation": name,
        "slope": float(line[0]),
        "rho": float(stats.spearmanr(family[name], family["log_ratio"]).statistic),
        "p_family": _permuted(family, name),
        "error_family": _left_out(family, name),
        **_errors(real, lambda rows: np.polyval(line, rows[name])),
    }


def _errors(real: pd.DataFrame, predict: Callable[[pd.DataFrame], np.ndarray]) -> dict[str, float]:
    """Mean absolute error of the log ratio on each real model."""
    return {
        f"error_{model}": float(np.abs(rows["log_ratio"] - predict(rows)).mean())
        for model, rows in real.groupby("model", sort=False)
    }


def _left_out(table: pd.DataFrame, name: str | None) -> float:
    """Mean absolute error where each model is predicted from all others."""
    errors = []
    for model in table["model"].unique():
        own, others = table[table["model"] == model], table[table["model"] != model]
        if name is None:
            predicted = np.full(len(own), others["log_ratio"].mean())
        else:
            predicted = np.polyval(np.polyfit(others[name], others["log_ratio"], 1), own[name])
        errors.append(np.abs(own["log_ratio"] - predicted))
    return float(np.concatenate(errors).mean())


def _permuted(table: pd.DataFrame, name: str, draws: int = 2000) -> float:
    """p-value of Spearman's rho: the responses of whole models change places."""
    wide = table.pivot(index="model", columns="replacement", values=["log_ratio", name]).dropna()
    x, y = (stats.rankdata(wide[column]).reshape(len(wide), -1) for column in (name, "log_ratio"))
    x, y = x - x.mean(), y - y.mean()
    rng = np.random.default_rng(0)
    null = np.array([np.sum(x * y[rng.permutation(len(y))]) for _ in range(draws)])
    return float((1 + np.sum(np.abs(null) >= abs(np.sum(x * y)) - 1e-9)) / (1 + draws))
