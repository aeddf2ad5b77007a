"""Find sink-reading heads, and measure what they write into the residual stream.

The sink rate of a head is the share of sequences in which its attention to key 0, averaged over
queries, is above 0.3. Heads are chosen on one half of the sequences and reported on the other.
Reporting them on the same half would make every chosen head look more extreme than it is.
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
from posprobe.intervals import Array, Inference, Interval, fieller_ratio, mean_interval
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
    """Return which sequences are used to choose heads.

    They are those of half of the items, drawn with the seed of the stimulus, so they are always
    the same for a file.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    ndarray of bool of shape (S,)
        True for each of the S sequences that is used to choose heads.

    Raises
    ------
    DesignError
        If there are fewer than four items, since each half needs two.
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
    """Estimate the sink rate of every head, in the half that chooses heads and in the other.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design.
    threshold : float
        A head is sink-reading if its sink rate in the choosing half is above this.
    inference : Inference
        Level of Wilson's intervals. They are not adjusted for the number of heads, since no head
        is tested.

    Returns
    -------
    pandas.DataFrame
        layer, head, sink_reading; rate_chosen with `_low` and `_high`, attention_chosen (mean
        attention to key 0) and n_chosen (sequences) of the choosing half; sink_rate with `_low`
        and `_high`, attention and n of the other half.

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
    """Return the heads whose sink rate in the choosing half is above `threshold`.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design.
    threshold : float
        Sink rate above which a head is sink-reading.

    Returns
    -------
    list of (layer, head)
        By descending sink rate. Many heads tie at a rate of 1, so ties are broken by their mean
        attention to key 0 in the same half.

    Raises
    ------
    DesignError
        If the file has fewer than four items.
    """
    table = sink_head_table(store, threshold=threshold)
    table = table[table["sink_reading"]].sort_values(
        ["rate_chosen", "attention_chosen", "layer", "head"], ascending=[False, False, True, True]
    )
    return [(int(layer), int(head)) for layer, head in table[["layer", "head"]].to_numpy()]


def strongest(heads: Sequence[Head], n_layers: int, n_heads: int) -> list[Head]:
    """Return the first of `heads`, as many as can be compared with random draws of other heads.

    At most a quarter of all heads are returned. If half of the heads were cut, each random draw
    would have to consist of all other heads, and the draws would not differ.

    Parameters
    ----------
    heads : sequence of (layer, head)
        Sink-reading heads, strongest first.
    n_layers, n_heads : int
        Numbers of layers, and of heads in each layer.

    Returns
    -------
    list of (layer, head)
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
    """Draw random heads that match given heads in number and, if possible, in layer.

    If a layer has too few other heads, the missing ones are drawn from all layers.

    Parameters
    ----------
    like : sequence of (layer, head)
        Heads to match; they are never drawn themselves.
    exclude : sequence of (layer, head)
        Further heads that are never drawn.
    shape : (int, int)
        Numbers of layers, and of heads in each layer.
    draws : int
        Number of draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    list of list of (layer, head)
        Each draw is sorted, and no two draws are equal. There may be fewer than `draws` if not
        enough different ones are found.

    Raises
    ------
    DesignError
        If there are fewer other heads than heads to match.
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
) -> tuple[pd.DataFrame, Interval]:
    r"""Estimate what sink-reading and other heads write of position 0 into the residual stream.

    For each head this is the norm of :math:`c A_{i0} v_0 W_O`, averaged over queries i, where c is
    the factor between attention and the stream (see `ActivationStore.attention_gain`). It is then
    averaged over the sink-reading heads and over the others. The groups are chosen on one half of
    the sequences and measured on the other. If the file contains the residual stream, the norm is
    also given relative to that of the stream that enters the layer (its mean over the positions
    after 0), unless a norm or a gate lies between attention and the stream.

    Parameters
    ----------
    store : ActivationStore
        A capture of the natural design with `sink_value`.
    threshold : float
        Sink rate above which a head is sink-reading.
    inference : Inference
        Level of the intervals.

    Returns
    -------
    table : pandas.DataFrame
        quantity ("written", "relative to the residual stream"), heads ("sink-reading", "other",
        "ratio"), n_heads, estimate, low, high (empty if unbounded), method, n (sequences). Means
        have Student's intervals over sequences, and their ratio has Fieller's.
    ratio : Interval
        That of the norms written, sink-reading heads to others.

    Raises
    ------
    DesignError
        If the file has no `sink_value`, the output projection of the model is not known, or all
        heads are in one group.
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
        and None not in store.attention_gain  # else a norm makes another size of it
    ):
        measures["relative to the residual stream"] = measures["written"] / _later_norm(store, half)
    rows = []
    ratios: dict[str, Interval] = {}
    for quantity, values in measures.items():
        groups = values[:, reading].mean(1), values[:, ~reading].mean(1)
        counts = int(reading.sum()), int((~reading).sum())
        for heads, each, count in zip(("sink-reading", "other"), groups, counts, strict=True):
            interval = mean_interval(each, estimand="norm written", level=inference.level)
            rows.append({"quantity": quantity, "heads": heads, "n_heads": count} | interval.row())
        ratio = fieller_ratio(
            groups[1],
            groups[0],
            quantity="ratio",
            level=inference.level,
            estimand="ratio of norms written",
        )
        rows.append({"quantity": quantity, "heads": "ratio", "n_heads": sum(counts)} | ratio.row())
        ratios[quantity] = ratio
    return pd.DataFrame(rows), ratios["written"]


def _written(store: ActivationStore, half: NDArray[np.bool_]) -> Array:
    """Average the norm of A_i0 v_0 W_O over queries: (sequence, layer, head)."""
    attention = np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)
    values = store.read("sink_value").transpose(1, 0, 2)
    return (attention[half] * values[half]).astype(float)


def _later_norm(store: ActivationStore, half: NDArray[np.bool_]) -> Array:
    """Average the norm of the stream entering each layer, after position 0: (sequence, L, 1)."""
    later = store.residual_positions[half] > 0
    norms = []
    for layer in range(store.n_layers):
        stream = store.residual(layer)[half].astype(np.float32)
        norm = np.sqrt(np.einsum("sqd,sqd->sq", stream, stream, dtype=np.float64))
        norms.append(np.where(later, norm, 0.0).sum(1) / later.sum(1))
    return np.stack(norms, 1)[:, :, None]


def _wilson(counts: NDArray[np.int64], n: int, level: float) -> tuple[Array, Array]:
    """Return Wilson's limits of binomial proportions."""
    limits = {
        int(k): stats.binomtest(int(k), n).proportion_ci(level, method="wilson")
        for k in np.unique(counts)
    }
    low = np.array([limits[int(k)].low for k in counts])
    high = np.array([limits[int(k)].high for k in counts])
    return low, high
