"""Checkpoints of one training run, in the order of their steps, and when each channel comes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.analysis import SINK_THRESHOLD, sink_attention
from posprobe.channels import channel_effects, gather_variances
from posprobe.comparison.lineup import (
    Member,
    asked_revision,
    common_items,
    files_of,
    named_step,
    place,
    refuse_interventions,
    refuse_other_designs,
    refuse_other_naturals,
    same_tokens,
)
from posprobe.errors import DesignError, Telling
from posprobe.intervals import Array, Inference, crossing, crossing_limits, max_t
from posprobe.probes import PositionProbe, features
from posprobe.store import ActivationStore

__all__ = ["CURVES", "Curve", "Training", "TrainingRun", "follow", "line_up_steps"]

CURVES = {
    "V_M": "mask channel V_M, nats²",
    "V_R": "residual channel V_R, nats²",
    "C_MR": "covariance C of both, nats²",
    "sink_rate": f"share of heads whose attention to key 0 is above {SINK_THRESHOLD}",
    "sink_attention": "attention to key 0 of the head that sinks most at the last step",
    "probe": "R² of ridge probes for position, mean over blocks",
}
TIMED = ("V_M", "V_R", "sink_attention", "probe")  # smooth, so half of a change has a place
OVERLAP = 12  # as in `PositionProbe.interval` of a fixed probe


@dataclass(frozen=True)
class TrainingRun:
    """Captures of one model at several steps of its training.

    Attributes
    ----------
    steps : tuple of int
        In ascending order.
    members : tuple of Member
        The files of each step.
    items : ndarray of int
        Items of the shifted design that all steps have.
    """

    steps: tuple[int, ...]
    members: tuple[Member, ...]
    items: NDArray[np.int32]

    def stores(self) -> list[ActivationStore]:
        """Every file."""
        return [store for member in self.members for store in member.files.all()]


@dataclass(frozen=True)
class Curve:
    """One quantity at every step, with what its intervals need.

    Attributes
    ----------
    name : str
        One of `CURVES`.
    values : ndarray of shape (K,)
        At each of the K steps.
    replicates : ndarray of shape (B, K)
        In bootstrap samples of items or sequences, the same ones at all steps.
    n : int
        Number of items or sequences.
    unit : {"items", "sequences"}
    errors : tuple of ndarray of shape (K,) and of shape (B, K), or None
        Standard errors in the data and in the samples, where the bootstrap is studentised.
    """

    name: str
    values: Array
    replicates: Array
    n: int
    unit: str
    errors: tuple[Array, Array] | None = None

    def band(self, level: float) -> tuple[Array, Array]:
        """Limits that cover the curve at all steps at once; NaN where all samples are equal."""
        low, high = np.full((2, len(self.values)), np.nan)
        moves = np.ptp(self.replicates, axis=0) > 1e-12 * np.abs(self.replicates).max(axis=0)
        if moves.any():
            errors = self.errors and (self.errors[0][moves], self.errors[1][:, moves])
            found = max_t(
                self.values[moves], self.replicates[:, moves], n=self.n, level=level, errors=errors
            )
            low[moves], high[moves] = found.low, found.high
        return low, high

    def changes(self, level: float) -> bool:
        """Whether the bands of the first and of the last step have nothing in common."""
        low, high = self.band(level)
        return bool(max(low[0], low[-1]) > min(high[0], high[-1]))


@dataclass(frozen=True, repr=False)
class Training(Telling):
    """What the checkpoints of a training run show.

    Attributes
    ----------
    run : TrainingRun
    tables : dict of str to DataFrame
        See `follow`.
    inference : Inference
        How every interval was made.
    """

    run: TrainingRun
    tables: dict[str, pd.DataFrame]
    inference: Inference

    def _line(self) -> str:
        first, last = self.run.steps[0], self.run.steps[-1]
        return f"{len(self.run.steps)} checkpoints from step {first:,} to {last:,}"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {name: self.tables[name] for name in ("half_way", "order") if name in self.tables}


def line_up_steps(
    stores: Iterable[ActivationStore], *, steps: Mapping[int, str] | None = None
) -> TrainingRun:
    """Sort captures of one training run by step.

    The step of a file is the number behind ``step`` in the revision of its model (``step1000``), in
    the last part of the model's name, or in the path of the file, whichever comes first, unless
    `steps` says otherwise.

    Parameters
    ----------
    stores : iterable of ActivationStore
        For each step a shifted capture, and optionally a natural one.
    steps : mapping of int to str, optional
        Step to pattern (``*`` and ``?``) of revisions, model names or files; every file must match
        exactly one.

    Returns
    -------
    TrainingRun

    Raises
    ------
    DesignError
        If a file has no step or two, a step has no shifted capture or two of one kind, there are
        fewer than three steps, or they were captured differently.
    """
    groups: dict[int, list[ActivationStore]] = {}
    for store in stores:
        groups.setdefault(_step(store, steps), []).append(store)
    if len(groups) < 3:
        raise DesignError(
            f"the files are of steps {', '.join(map(str, sorted(groups)))}, and a course of "
            "training needs three: capture more checkpoints"
        )
    for step, group in groups.items():
        _refuse_two_models(step, group)
    order = sorted(groups)
    members = [
        Member(f"step {step}", "checkpoint", files_of(f"step {step}", groups[step]))
        for step in order
    ]
    shifted = [member.shifted for member in members]
    refuse_interventions(members)
    refuse_other_designs(shifted)
    refuse_other_naturals(members)
    _refuse_mixed_naturals(members)
    items = common_items(members)
    same_tokens(shifted, items, different=False)
    return TrainingRun(tuple(order), tuple(members), items)


def _step(store: ActivationStore, steps: Mapping[int, str] | None) -> int:
    known = (asked_revision(store), store.model, str(store.path))
    if steps is not None:
        fitting = [k for k, p in steps.items() if any(fnmatch.fnmatchcase(t, p) for t in known)]
        if len(fitting) == 1:
            return int(fitting[0])
        found = f"steps {' and '.join(map(str, fitting))}" if fitting else "no --step"
        raise DesignError(
            f"{place(store)} matches {found}: give each file one, as in --step 1000='*step1000*'"
        )
    number = named_step(store)
    if number is not None:
        return number
    raise DesignError(
        f"{place(store)} says no training step, in its revision, model or path: put it into a "
        "folder such as step1000, or say --step 1000='PATTERN'"
    )


def _refuse_two_models(step: int, group: Sequence[ActivationStore]) -> None:
    kinds = {(one.header.weights_digest, one.header.variant): one for one in group}
    if len(kinds) > 1:
        first, second = (place(one) for one in list(kinds.values())[:2])
        raise DesignError(
            f"step {step} has two models ({first}, {second}): give one training run, and one "
            "variant of it"
        )


def _refuse_mixed_naturals(members: Sequence[Member]) -> None:
    """Refuse natural captures of some steps only, or of other text."""
    naturals = [member.files.natural for member in members]
    without = [m.name for m, natural in zip(members, naturals, strict=True) if natural is None]
    if without and len(without) < len(members):
        raise DesignError(
            f"{', '.join(without)} has no natural capture and other steps have: capture all steps "
            "in the same way, or leave the natural captures out"
        )
    there = [store for store in naturals if store is not None]
    for store in there[1:]:
        if not np.array_equal(store.tokens, there[0].tokens):
            raise DesignError(
                f"{place(store)} and {place(there[0])} contain different tokens: capture all steps "
                "with the same --n, --seed and text"
            )


def follow(
    run: TrainingRun,
    *,
    inference: Inference = Inference(),
    step: Callable[[str], None] = lambda what: None,
) -> Training:
    r"""Measure both channels, sinks and probes at every step, and when each of them comes.

    Half-way is where a curve has made half of its change from the first step to the last, for the
    first time, along :math:`\log_2(1 + \text{step})` and on straight lines between the checkpoints
    (`posprobe.intervals.crossing`). Its estimand is that of this one run of training: other seeds
    are another sample, of which one run says nothing.

    Parameters
    ----------
    run : TrainingRun
    inference : Inference
        How intervals are made; the same bootstrap samples serve all steps.
    step : callable
        Told what comes next, for a progress bar: once for each checkpoint.

    Returns
    -------
    Training
        With the tables `curves` (step, quantity, estimate, low, high, unit, n: limits cover the
        whole curve at once), `half_way` (quantity, step, low, high) and `order` (each pair of
        quantities: the ratio of the two steps plus one, with limits, and which comes first where
        the interval excludes 1). Limits of `half_way` and `order` are those of a bootstrap of items
        and sequences; they are NaN for curves that end where they began.

    Raises
    ------
    DesignError
        If a file lacks a quantity, or has fewer than three items.
    """
    curves = _curves(run, inference, step)
    level, axis = inference.level, np.log2(1 + np.array(run.steps, float))
    rows = [_rows(curve, run.steps, level) for curve in curves]
    timed = [curve for curve in curves if curve.name in TIMED and curve.changes(level)]
    places = {curve.name: (crossing(curve.values, axis), crossing(curve.replicates, axis))
              for curve in timed}  # fmt: skip
    tables = {
        "curves": pd.concat(rows, ignore_index=True),
        "half_way": _half_way(curves, places, level),
    }
    if len(places) > 1:
        tables["order"] = _order(places, level)
    return Training(run, tables, inference)


def _curves(run: TrainingRun, inference: Inference, step: Callable[[str], None]) -> list[Curve]:
    variances, attentions, probes = [], [], []
    for member in run.members:
        step(member.name)
        variances.append(_variances(member, run.items, inference))
        if member.files.natural is not None:
            attentions.append(_attention(member.files.natural))
            probes.append(_probes(member.files.natural))
    found = [_variance_curve(name, variances, len(run.items)) for name in ("V_M", "V_R", "C_MR")]
    if attentions:
        found += _sink_curves(np.stack(attentions), inference)
    if probes and all(len(scores) for scores in probes):
        found.append(_probe_curve(np.stack(probes), inference))
    return found


def _variances(
    member: Member, items: NDArray[np.int32], inference: Inference
) -> dict[str, tuple[float, float, Array, Array]]:
    """Of each variance, over all heads: estimate, standard error, and both in every sample."""
    store = member.shifted
    places = np.searchsorted(np.unique(store.item), items)
    layers = (channel_effects(store, layer).take(places) for layer in range(store.n_layers))
    whole = gather_variances(layers, inference).mean((0, 1))
    found = {}
    for name in ("V_M", "V_R", "C_MR"):
        draws, errors = (part[:, 0, 0] for part in whole.replicates(name))
        error = whole.pseudo[name].std(0, ddof=1).item() / np.sqrt(len(items))
        found[name] = (whole.estimate[name].item(), error, draws, errors)
    return found


def _variance_curve(name: str, variances: Sequence[Mapping[str, tuple]], n: int) -> Curve:
    values, error, draws, errors = (
        np.stack([one[name][part] for one in variances], axis=-1) for part in range(4)
    )
    return Curve(name, values, draws, n, "items", (error, errors))


def _attention(store: ActivationStore) -> Array:
    """Attention to key 0: (sequence, layer, head)."""
    return np.stack([sink_attention(store, layer) for layer in range(store.n_layers)], 1)


def _sink_curves(attention: Array, inference: Inference) -> list[Curve]:
    """Curves of attention to key 0 of shape (step, sequence, layer, head).

    The head is chosen on one half of the sequences, at the last step, and measured on the other.
    """
    n = attention.shape[1]
    draws = np.einsum("bs,ks...->bk...", inference.weights(n) / n, attention)
    rates = [(part > SINK_THRESHOLD).mean((-1, -2)) for part in (attention.mean(1), draws)]
    half = np.arange(n) % 2 == 0
    head = np.unravel_index(attention[-1, half].mean(0).argmax(), attention.shape[2:])
    chosen = attention[:, ~half][(..., *head)].T
    weights = inference.weights(len(chosen)) / len(chosen)
    return [
        Curve("sink_rate", rates[0], rates[1], n, "sequences"),
        Curve("sink_attention", chosen.mean(0), weights @ chosen, len(chosen), "sequences"),
    ]


def _probes(store: ActivationStore) -> Array:
    """Squared errors of probes out of fold and of the mean position: (block, 2, sequence)."""
    kept = "residual" in store.header.quantities
    layers = [k for k in store.header.residual_layers or () if k > 0 and kept]
    found = []
    for layer in layers:
        X, y, groups, _ = features(store, layer, "residual")
        probe = PositionProbe().fit(X, y, groups=groups)
        found.append([probe.sequence_sse_, probe.sequence_sst_])
    return np.array(found)


def _probe_curve(sums: Array, inference: Inference) -> Curve:
    """R2 of fixed probes from sums of shape (step, block, 2, sequence)."""
    n = sums.shape[-1]
    totals = sums.sum(-1)
    values = (1 - totals[..., 0] / totals[..., 1]).mean(-1)
    drawn = np.einsum("bs,kl...s->bkl...", inference.weights(n), sums)
    draws = (1 - drawn[..., 0] / drawn[..., 1]).mean(-1)
    wider = np.sqrt(n / (n - OVERLAP)) if n > OVERLAP else np.nan
    return Curve("probe", values, values + wider * (draws - values), n, "sequences")


def _rows(curve: Curve, steps: Sequence[int], level: float) -> pd.DataFrame:
    low, high = curve.band(level)
    return pd.DataFrame(
        {
            "quantity": curve.name, "step": steps, "estimate": curve.values, "low": low,
            "high": high, "unit": curve.unit, "n": curve.n,
        }
    )  # fmt: skip


def _half_way(
    curves: Sequence[Curve], places: Mapping[str, tuple[Array, Array]], level: float
) -> pd.DataFrame:
    rows = []
    for curve in curves:
        if curve.name not in TIMED:
            continue
        where, low, high = np.nan, np.nan, np.nan
        if curve.name in places:
            where = float(places[curve.name][0])
            low, high = crossing_limits(places[curve.name][1], level=level)
        first, last = curve.values[[0, -1]]
        rows.append(
            {"quantity": curve.name, "first": first, "last": last}
            | dict(zip(("step", "low", "high"), np.exp2([where, low, high]) - 1, strict=True))
        )
    return pd.DataFrame(rows)


def _order(places: Mapping[str, tuple[Array, Array]], level: float) -> pd.DataFrame:
    """How many times later one half-way is than another; which is first where 1 is excluded."""
    rows = []
    for one, other in combinations(sorted(places, key=lambda name: float(places[name][0])), 2):
        apart, drawn = (
            there - here for here, there in zip(places[one], places[other], strict=True)
        )
        low, high = crossing_limits(drawn, level=level)
        before = one if low > 0 else "open"
        limits = np.exp2([float(apart), low, high])
        ratio = dict(zip(("ratio", "low", "high"), limits, strict=True))
        rows.append({"earlier": one, "later": other, **ratio, "first": before})
    return pd.DataFrame(rows)
