"""Sink-reading heads: which they are, and what they write into the residual stream.

A head's sink rate is the share of sequences in which its attention to key 0, averaged over queries,
is above 0.3. Heads are chosen by it on one half of the sequences and reported on the other: the
same data would make every chosen head look more extreme than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from posprobe.analysis.sinks import SINK_THRESHOLD, sink_attention
from posprobe.errors import DesignError
from posprobe.intervals import Array, Inference, fieller_ratio, mean_interval
from posprobe.store import ActivationStore

__all__ = [
    "SINK_RATE",
    "Head",
    "held_back_half",
    "random_heads",
    "sink_head_table",
    "sink_reading_heads",
    "strongest",
    "writing_table",
]

Head = tuple[int, int]
SINK_RATE = 0.5
TRIES = 20


def held_back_half(store: ActivationStore) -> NDArray[np.bool_]:
    """Which sequences serve to choose heads: half of the items, drawn by the stimulus's seed: (S,).

    The same for the same file, whoever asks.

    Raises
    ------
    DesignError
        With fewer than four items: each half needs two.
    """
    items = np.unique(store.item)
    if len(items) < 4:
        raise DesignError(
            f"{store.path.name} has {len(items)} items; choosing heads on one half and reporting "
            "them on the other takes at least 4, so capture with a larger --n"
        )
    order = np.random.default_rng([store.header.seed, 2]).permutation(items)
    return np.isin(store.item, order[: len(items) // 2])


def sink_head_table(
    store: ActivationStore, *, threshold: float = SINK_RATE, inference: Inference = Inference()
) -> pd.DataFrame:
    """Sink rate of every head in the half that chooses and in the half that reports.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design.
    threshold : float
        A head is sink-reading if its sink rate in the held-back half is above this.
    inference : Inference
        Level of Wilson's interval, head by head and not adjusted for their number: no head is
        tested.

    Returns
    -------
    pandas.DataFrame
        layer, head, sink_reading, rate_chosen, rate_chosen_low, rate_chosen_high (held-back half),
        sink_rate, sink_rate_low, sink_rate_high, attention (mean to key 0; other half),
        attention_chosen, n_chosen, n (sequences).

    References
    ----------
    Gu et al. (2024), When attention sink emerges in language models, arXiv 2410.10781; Wilson
    (1927), J. Am. Stat. Assoc. 22, 209.
    """
    chosen = held_back_half(store)
    attention = np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)
    layers, heads = np.indices(attention.shape[1:])
    columns: dict[str, Any] = {"layer": layers.ravel(), "head": heads.ravel()}
    for name, half in (("rate_chosen", chosen), ("sink_rate", ~chosen)):
        counts = (attention[half] > SINK_THRESHOLD).sum(0).ravel()
        low, high = _wilson(counts, int(half.sum()), inference.level)
        columns |= {name: counts / half.sum(), f"{name}_low": low, f"{name}_high": high}
    columns |= {
        "attention": attention[~chosen].mean(0).ravel(),
        "attention_chosen": attention[chosen].mean(0).ravel(),
        "n_chosen": int(chosen.sum()),
        "n": int((~chosen).sum()),
    }
    table = pd.DataFrame(columns)
    table.insert(2, "sink_reading", table["rate_chosen"] > threshold)
    return table


def sink_reading_heads(store: ActivationStore, *, threshold: float = SINK_RATE) -> list[Head]:
    """Heads whose sink rate in the held-back half is above `threshold`, strongest first.

    Ties, of which a rate of 1 makes many, are broken by mean attention to key 0 in that half.
    """
    table = sink_head_table(store, threshold=threshold)
    table = table[table["sink_reading"]].sort_values(
        ["rate_chosen", "attention_chosen", "layer", "head"], ascending=[False, False, True, True]
    )
    return [(int(layer), int(head)) for layer, head in table[["layer", "head"]].to_numpy()]


def strongest(heads: Sequence[Head], n_layers: int, n_heads: int) -> list[Head]:
    """The first of `heads` that can be compared with as many others: a quarter of all at most.

    In a model where half of the heads read the sink, as many others are all the others there are,
    and several random draws would be one and the same.
    """
    total = n_layers * n_heads
    return list(heads[: min(total // 4, total - len(heads))])


def random_heads(
    like: Sequence[Head],
    exclude: Sequence[Head],
    shape: tuple[int, int],
    *,
    draws: int = 2,
    seed: int = 0,
) -> list[list[Head]]:
    """As many random other heads, several times; from the same layers as far as these have any.

    Parameters
    ----------
    like : sequence of (layer, head)
        Heads to match in number and layer.
    exclude : sequence of (layer, head)
        Heads never drawn, `like` among them or not.
    shape : (int, int)
        Layers, and heads per layer.
    draws : int
    seed : int

    Returns
    -------
    list of list of (layer, head)
        Each sorted, no two the same: fewer than asked for where there are no more. Where a layer
        has too few others, those missing come from all layers.

    Raises
    ------
    DesignError
        If there are fewer other heads than are to be matched.
    """
    taken = {*like, *exclude}
    others = [head for head in np.ndindex(*shape) if head not in taken]
    if len(others) < len(like):
        raise DesignError(
            f"{len(like)} random heads were asked for, but only {len(others)} of "
            f"{shape[0] * shape[1]} are not sink-reading; match fewer heads"
        )
    rng = np.random.default_rng([seed, 3])
    tries = (_draw(like, others, rng) for _ in range(draws * TRIES))
    distinct = dict.fromkeys(tuple(drawn) for drawn in tries)
    return [list(drawn) for drawn in distinct][:draws]


def _draw(like: Sequence[Head], others: list[Head], rng: np.random.Generator) -> list[Head]:
    shuffled = [others[k] for k in rng.permutation(len(others))]
    wanted = pd.Series([layer for layer, _ in like]).value_counts().to_dict()
    drawn = []
    for head in shuffled:
        if wanted.get(head[0], 0) > 0:
            wanted[head[0]] -= 1
            drawn.append(head)
    rest = [head for head in shuffled if head not in set(drawn)]
    return sorted(drawn + rest[: len(like) - len(drawn)])


def writing_table(
    store: ActivationStore, *, threshold: float = SINK_RATE, inference: Inference = Inference()
) -> pd.DataFrame:
    r"""What sink-reading heads and all others write of position 0 into the residual stream.

    Head by head the norm of :math:`A_{i0} v_0 W_O`, averaged over queries; then over the heads of a
    group, chosen on one half of the sequences and measured on the other. Also relative to the norm
    of the residual stream that enters the layer (mean over queries after position 0), where the
    file holds it.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design with `sink_value`.
    threshold : float
        Sink rate above which a head is sink-reading.
    inference : Inference

    Returns
    -------
    pandas.DataFrame
        quantity ("written", "relative to the residual stream"), heads ("sink-reading", "other",
        "ratio"), n_heads, estimate, low, high (empty where unbounded), method, n (sequences).
        Means by Student's t over sequences, their ratio by Fieller's method.

    Raises
    ------
    DesignError
        If the file has no `sink_value`, the model's output projection is not known, or all heads
        are in one group.
    """
    if "sink_value" not in store.header.quantities:
        raise DesignError(f"{store.path.name} has no 'sink_value'; capture it again")
    half = ~held_back_half(store)
    table = sink_head_table(store, threshold=threshold)
    reading = table["sink_reading"].to_numpy().reshape(store.n_layers, store.n_heads)
    if reading.all() or not reading.any():
        raise DesignError(
            f"{int(reading.sum())} of {reading.size} heads of {store.path.name} are sink-reading: "
            "there are no two groups to compare"
        )
    measures = {"written": _written(store, half)}
    if not np.isfinite(measures["written"]).all():
        raise DesignError(
            f"the output projection of {store.model} is not known, so what its heads write "
            "is not in the file"
        )
    if (
        "residual" in store.header.quantities
        and set(store.header.residual_layers or ()) >= set(range(store.n_layers))
        and (store.residual_positions > 0).any(1).all()
    ):
        measures["relative to the residual stream"] = measures["written"] / _later_norm(store, half)
    rows = []
    for quantity, values in measures.items():
        groups = values[:, reading].mean(1), values[:, ~reading].mean(1)
        counts = int(reading.sum()), int((~reading).sum())
        for heads, each, count in zip(("sink-reading", "other"), groups, counts, strict=True):
            interval = mean_interval(each, estimand="norm written", level=inference.level)
            rows.append({"quantity": quantity, "heads": heads, "n_heads": count} | interval.row())
        ratio = fieller_ratio(groups[1], groups[0], quantity="ratio", level=inference.level)
        rows.append({"quantity": quantity, "heads": "ratio", "n_heads": sum(counts)} | ratio.row())
    return pd.DataFrame(rows)


def _written(store: ActivationStore, half: NDArray[np.bool_]) -> Array:
    """Mean over queries of the norm of A_i0 v_0 W_O: (sequence, layer, head)."""
    attention = np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)
    values = store.read("sink_value").transpose(1, 0, 2)
    return (attention[half] * values[half]).astype(float)


def _later_norm(store: ActivationStore, half: NDArray[np.bool_]) -> Array:
    """Mean norm of the residual stream after position 0, entering each layer: (sequence, L, 1)."""
    later = store.residual_positions[half] > 0
    norms = []
    for layer in range(store.n_layers):
        stream = store.residual(layer)[half].astype(np.float32)
        norm = np.sqrt(np.einsum("sqd,sqd->sq", stream, stream, dtype=np.float64))
        norms.append(np.where(later, norm, 0.0).sum(1) / later.sum(1))
    return np.stack(norms, 1)[:, :, None]


def _wilson(counts: NDArray[np.int64], n: int, level: float) -> tuple[Array, Array]:
    """Wilson's limits of binomial shares."""
    limits = {
        int(k): stats.binomtest(int(k), n).proportion_ci(level, method="wilson")
        for k in np.unique(counts)
    }
    low = np.array([limits[int(k)].low for k in counts])
    high = np.array([limits[int(k)].high for k in counts])
    return low, high
