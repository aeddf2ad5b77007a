r"""What replacing the embedding at position 0 removes of V_R, and what decides how much.

The specification curve over models, conditions and replacements has one row for each. Its response
is the log ratio log(V_R replaced / V_R native) at early queries, since a fraction removed has no
lower end. Four explanations were written down before any row was looked at:

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

A line from each to the response is fitted on the controlled family alone (models are left out one
at a time to say how well it predicts there), and then predicts the real models without being
changed. An explanation counts if it predicts both better than the family's mean response does.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from posprobe import ActivationStore
from posprobe.analysis import Files, condition_of
from posprobe.analysis.replacement import fraction_removed, sink_rate
from posprobe.channels import early_limit

EXPLANATIONS = ("attention", "trajectory", "embedding", "sink")


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
    return {
        **condition_of(native)._asdict(),
        "replacement": replaced.header.position0_treatment,
        **interval.row("fraction_removed"),
        "V_R_native": before,
        "V_R_replaced": after,
        "log_ratio": float(np.log(after / before)) if min(before, after) > 0 else np.nan,
        "attention_kept": kept,
        "attention": float(np.log(kept)),
        "trajectory": float(np.log(_moved(native, replaced))),
        "embedding": float(np.log(_first_norm(native) / later)),
        "sink": sink_rate(native),
        "sink_replaced": sink_rate(replaced),
    }


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
        family; `rho` and `rho_real`, Spearman's; `error_family`, mean absolute error of the log
        ratio with whole models left out; `error_real`, that of the unchanged line on the real
        models; `p_family`, two-sided, by permuting models within the family.
    """
    family, real = (table.dropna(subset=["log_ratio"]) for table in (family, real))
    y, x_real = family["log_ratio"].to_numpy(), real["log_ratio"].to_numpy()
    rows: list[dict[str, object]] = [
        {
            "explanation": "mean of the family",
            "error_family": _left_out(family, None),
            "error_real": float(np.abs(x_real - y.mean()).mean()),
        }
    ]
    for name in EXPLANATIONS:
        slope, start = np.polyfit(family[name], y, 1)
        rows.append(
            {
                "explanation": name,
                "slope": float(slope),
                "rho": float(stats.spearmanr(family[name], y).statistic),
                "p_family": _permuted(family, name),
                "rho_real": float(stats.spearmanr(real[name], x_real).statistic),
                "error_family": _left_out(family, name),
                "error_real": float(np.abs(x_real - start - slope * real[name]).mean()),
            }
        )
    return pd.DataFrame(rows)


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
    x, y = wide[name].to_numpy(), wide["log_ratio"].to_numpy()
    rng = np.random.default_rng(0)
    found = abs(stats.spearmanr(x.ravel(), y.ravel()).statistic)
    null = [
        abs(stats.spearmanr(x.ravel(), y[rng.permutation(len(y))].ravel()).statistic)
        for _ in range(draws)
    ]
    return float((1 + np.sum(np.asarray(null) >= found - 1e-12)) / (1 + draws))
