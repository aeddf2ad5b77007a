"""One model in several conditions: what stands at position 0, which text, which length."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from posprobe.analysis.files import Condition, Files, condition_of
from posprobe.analysis.replacement import (
    PRIMARY_TREATMENT,
    common_items,
    fraction_removed,
    sink_rate,
)
from posprobe.analysis.wording import first_token
from posprobe.channels import (
    Decomposition,
    Variances,
    channel_effects,
    decompose,
    early_limit,
    gather_variances,
    why_not_split,
)
from posprobe.intervals import Inference
from posprobe.store import ActivationStore

__all__ = ["condition_tables", "measurable"]

COMPARED = ("V_T", "V_M", "V_R", "C_MR")
LEAST_TEXTS = 3


@dataclass(frozen=True)
class Measured:
    """The channels of one condition, averaged over layers, heads and offsets."""

    condition: Condition
    files: Files
    store: ActivationStore
    split: Decomposition

    @property
    def variances(self) -> Variances:
        """Those of the mean over layers and heads, (1, 1)."""
        return self.split.variances.mean((0, 1))

    @property
    def shuffled(self) -> bool:
        """Whether the tokens of its text are in random order: a control, not a sample of texts."""
        return bool(self.store.header.stimulus.get("text", {}).get("shuffled"))


def measurable(files: Files) -> list[Files]:
    """The conditions whose position effects can be split, the main one first."""
    every = [files, *files.conditions]
    return [one for one in every if one.shifted is not None and not why_not_split(one.shifted)]


def condition_tables(files: Files, inference: Inference = Inference()) -> dict[str, pd.DataFrame]:
    """Estimate the channels in every condition, their differences, and their mean over texts.

    Parameters
    ----------
    files : Files
        Of one model, in two conditions or more.
    inference : Inference
        How intervals are made.

    Returns
    -------
    dict of str to pandas.DataFrame
        conditions
            One row for each condition, the main one first: variances and shares as in
            `posprobe.decompose`; T, M and R (nats) at the earliest position; `sink_rate`. The unit
            is the item, so the limits are over items of this text.
        condition_replacement
            The fraction of V_R that the mean embedding at position 0 removes at early queries, in
            the conditions that were captured with it.
        condition_differences
            V_T, V_M, V_R and C_MR of one condition less those of another that has the same text
            and length, hence the same windows: paired by item.
        condition_texts
            For each token at position 0 and length that three texts or more were measured with:
            means over these texts with two kinds of limits, over items of these texts and over
            texts. Shuffled tokens are a control, and left out.
    """
    measured = [_measure(one, inference) for one in measurable(files)]
    labels = _labels([one.condition for one in measured])
    tables = {
        "conditions": _labelled(labels, [_row(one) for one in measured]),
        "condition_replacement": _labelled(labels, [_removed(one, inference) for one in measured]),
        "condition_differences": _differences(measured, inference),
        "condition_texts": _over_texts(measured, inference),
    }
    return {name: table for name, table in tables.items() if not table.empty}


def _measure(files: Files, inference: Inference) -> Measured:
    store = files.shifted
    assert store is not None
    return Measured(condition_of(store), files, store, decompose(store, inference=inference))


def _labelled(labels: list[str], rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows behind the label of their condition; empty ones are left out."""
    pairs = zip(labels, rows, strict=True)
    return pd.DataFrame([{"condition": label, **row} for label, row in pairs if row])


def _labels(conditions: list[Condition]) -> list[str]:
    """Each condition by what distinguishes it from the others.

    Examples
    --------
    >>> _labels([Condition("text", "prose", 256), Condition("BOS", "prose", 256)])
    ['text at position 0', 'BOS at position 0']
    """
    words = [(f"{c.position0} at position 0", c.text, f"{c.length} tokens") for c in conditions]
    differs = [len({parts[k] for parts in words}) > 1 for k in range(len(words[0]))]
    return [", ".join(p for p, d in zip(parts, differs, strict=True) if d) for parts in words]


def _row(one: Measured) -> dict[str, Any]:
    """One condition as a row of the table."""
    overall = one.split.overall.iloc[0].drop(["layer", "head"])
    profile = one.split.positions
    earliest = profile[profile["layer"] == "all"].sort_values("position").iloc[0]
    return {
        **one.condition._asdict(),
        "native": one.files.native,
        "first_token": first_token(one.store),
        "n": one.variances.n_items,
        **{str(k): v for k, v in overall.items()},
        **{str(k): v for k, v in earliest.items() if str(k)[0] in "TMR"},
        "sink_rate": sink_rate(one.store),
    }


def _removed(one: Measured, inference: Inference) -> dict[str, Any]:
    """What the mean embedding at position 0 removes of V_R at early queries, if it was captured."""
    for replaced in one.files.replaced:
        if replaced.header.position0_treatment == PRIMARY_TREATMENT:
            interval, *_ = fraction_removed(
                one.store, replaced, up_to=early_limit(one.store), level=inference.level
            )
            return interval.row("fraction_removed")
    return {}


def _differences(measured: list[Measured], inference: Inference) -> pd.DataFrame:
    """Conditions that share their windows, the later less the earlier, paired by item."""
    rows = [
        {
            "text": one.condition.text,
            "length": one.condition.length,
            "contrast": f"{other.condition.position0} - {one.condition.position0}",
            **_difference(one, other, inference),
        }
        for one, other in combinations(measured, 2)
        if one.condition[1:] == other.condition[1:]
    ]
    return pd.DataFrame(rows)


def _difference(one: Measured, other: Measured, inference: Inference) -> dict[str, Any]:
    places = common_items(one.store, other.store)
    both = [
        _variances(m.store, items, inference) for m, items in zip((one, other), places, strict=True)
    ]
    difference = both[1].less(both[0])
    row: dict[str, Any] = {"n": difference.n_items}
    for name in COMPARED:
        found = difference.interval(name, inference.level)
        row |= {name: found.estimate, **found.limits(name)}
    return row


def _variances(store: ActivationStore, items: np.ndarray, inference: Inference) -> Variances:
    """Variances over some items of a file; two files with equal items get equal draws."""
    layers = (channel_effects(store, layer).take(items) for layer in range(store.n_layers))
    return gather_variances(layers, inference).mean((0, 1))


def _over_texts(measured: list[Measured], inference: Inference) -> pd.DataFrame:
    """Means over texts, with limits over their items and over texts."""
    groups: dict[tuple[str, int], list[Measured]] = {}
    for one in measured:
        if not one.shuffled:
            condition = one.condition
            groups.setdefault((condition.position0, condition.length), []).append(one)
    rows = [
        {"position0": position0, "length": length, "texts": len(group)}
        | {"quantity": name, **_mean_over_texts(group, name, inference.level)}
        for (position0, length), group in groups.items()
        if len(group) >= LEAST_TEXTS
        for name in COMPARED
    ]
    return pd.DataFrame(rows)


def _mean_over_texts(group: list[Measured], name: str, level: float) -> dict[str, float]:
    r"""Mean of K texts, :math:`\bar V`, with two standard errors.

    Over items of these texts, :math:`\sqrt{\sum_k SE_k^2} / K` with the jackknife's :math:`SE_k`
    and the degrees of freedom of Welch and Satterthwaite. Over texts, the standard deviation of the
    K estimates over :math:`\sqrt K`, with K - 1: it contains the noise of the items.
    """
    pseudo = [one.variances.pseudo[name][:, 0, 0] for one in group]
    values = np.array([one.variances.estimate[name][0, 0] for one in group])
    squares = np.array([p.var(ddof=1) / len(p) for p in pseudo])
    k = len(values)
    items = np.sqrt(squares.sum()) / k
    each = sum(s**2 / (len(p) - 1) for s, p in zip(squares, pseudo, strict=True))
    items_df = squares.sum() ** 2 / each if each else k - 1
    texts = values.std(ddof=1) / np.sqrt(k)
    mean, tail = float(values.mean()), (1 + level) / 2
    wide_items, wide_texts = stats.t.ppf(tail, items_df) * items, stats.t.ppf(tail, k - 1) * texts
    return {
        "estimate": mean,
        "low_items": mean - wide_items,
        "high_items": mean + wide_items,
        "low_texts": mean - wide_texts,
        "high_texts": mean + wide_texts,
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }
