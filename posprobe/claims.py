"""Each claim of the study as a test: estimate, interval, verdict, protocol.

The study is *Where does Absolute Position come from in decoder-only Transformers?*; only the claims
of its abstract are known here, so that every protocol below is posprobe's own. No claim is called
supported without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from posprobe.analysis import Analysis
from posprobe.intervals import Interval
from posprobe.replacement import PRIMARY
from posprobe.store import ActivationStore

__all__ = ["Claim", "Verdict", "make_claims"]

Verdict = Literal["supported", "contradicted", "inconclusive", "not_applicable"]
TOLERANCE = 1e-4
NEGLIGIBLE_R2 = 0.02
REMOVED_IN_STUDY = 0.40


@dataclass(frozen=True)
class Claim:
    """One sentence of the study, tested.

    Attributes
    ----------
    id : str
    statement : str
        What is claimed.
    estimate : float or None
    unit : str
    ci_low, ci_high : float or None
        None where there is no interval, or an unbounded one (`ci_method` says which).
    ci_level : float or None
    ci_method : str
    n : int or None
        Number of resampling units: sequences, or items of the shifted design.
    verdict : {"supported", "contradicted", "inconclusive", "not_applicable"}
    reference : float or None
        The study's own value.
    protocol : str
        How the number was made, or why the claim does not apply.
    """

    id: str
    statement: str
    estimate: float | None
    unit: str
    ci_low: float | None
    ci_high: float | None
    ci_level: float | None
    ci_method: str
    n: int | None
    verdict: Verdict
    reference: float | None
    protocol: str

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON: no NaN and no infinity."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }


def above(interval: Interval, bound: float) -> Verdict:
    """Supported where the whole interval is above `bound`, contradicted where it is below."""
    if interval.low is None or interval.high is None:
        return "inconclusive"
    if interval.low > bound:
        return "supported"
    return "contradicted" if interval.high < bound else "inconclusive"


def below(interval: Interval, bound: float) -> Verdict:
    """Supported where the whole interval is below `bound`, contradicted where it is above."""
    opposite: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}
    verdict = above(interval, bound)
    return opposite.get(verdict, verdict)


def _claim(
    name: str,
    statement: str,
    interval: Interval,
    unit: str,
    verdict: Verdict,
    protocol: str,
    reference: float | None = None,
) -> Claim:
    method = interval.method + (": unbounded" if interval.unbounded else "")
    return Claim(
        id=name,
        statement=statement,
        estimate=interval.estimate,
        unit=unit,
        ci_low=interval.low,
        ci_high=interval.high,
        ci_level=interval.level,
        ci_method=method,
        n=interval.n,
        verdict=verdict,
        reference=reference,
        protocol=protocol,
    )


def _not_applicable(name: str, statement: str, reason: str) -> Claim:
    return Claim(
        name, statement, None, "", None, None, None, "none", None, "not_applicable", None, reason
    )


def make_claims(analysis: Analysis) -> list[Claim]:
    """Test every claim that the analysis has the tables for; the others say what they lack.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    list of Claim
        In the order of the study's argument; the same analysis gives the same list.
    """
    makers: list[Callable[[Analysis], list[Claim]]] = [
        _channel_claims,
        _isolation_claims,
        _probe_claims,
        _sink_claims,
        _position0_claims,
        _replacement_claims,
        _architecture_claims,
    ]
    return [claim for make in makers for claim in make(analysis)]


def _channel_claims(analysis: Analysis) -> list[Claim]:
    statements = {
        "position_in_attention": "Attention distinguishes absolute position: at a fixed offset and "
        "fixed content, log attention weights change with position (V_T > 0).",
        "mask_channel": "The causal mask's softmax denominator carries absolute position "
        "(V_M > 0).",
        "residual_channel": "The residual stream carries absolute position (V_R > 0).",
        "channels_add": "The two channels add up: the residual stream reinforces the mask "
        "(C_MR > 0).",
    }
    store = analysis.files.shifted
    if store is None or "channels" not in analysis.tables:
        reason = "needs a capture of the shifted design (--design shifted)"
        return [_not_applicable(name, text, reason) for name, text in statements.items()]
    table = analysis.tables["channels"]
    row = table[table["stimulus"] == "shifted"].iloc[0]
    protocol = (
        f"{_shifted(store)} Mean over {store.n_layers} layers, {store.n_heads} heads and offsets "
        f"{_list(store.offsets)}. Variance over positions by a U-statistic over pairs of different "
        "items."
    )
    quantities = dict(zip(statements, ("V_T", "V_M", "V_R", "C_MR"), strict=True))
    claims = []
    for name, text in statements.items():
        interval = _row_interval(row, quantities[name], store, analysis.level)
        claims.append(_claim(name, text, interval, "nats^2", above(interval, 0.0), protocol))
    return [*claims, *_share_claims(row, store, protocol, analysis.level)]


def _share_claims(
    row: pd.Series, store: ActivationStore, protocol: str, level: float
) -> list[Claim]:
    claims = []
    for channel, other in (("mask", "residual stream"), ("residual", "mask")):
        statement = (
            f"The {channel} channel accounts for a positive share of the effect of position "
            f"(the rest is the {other}'s; shares add to 1, and one is negative where the channels "
            "oppose each other)."
        )
        name = f"share_{channel}"
        if row["status"] != "ok":
            reason = "undefined: the total effect V_T is not distinguishable from 0"
            claims.append(_not_applicable(name, statement, reason))
            continue
        interval = Interval(
            float(row[name]),
            float(row[f"{name}_low"]),
            float(row[f"{name}_high"]),
            level,
            "fieller",
            f"share of the {channel} channel in V_T",
            _n_items(store),
        )
        text = f"{protocol} Share (V + C)/V_T with Fieller's interval on jackknife pseudo-values."
        claims.append(_claim(name, statement, interval, "1", above(interval, 0.0), text))
    return claims


def _isolation_claims(analysis: Analysis) -> list[Claim]:
    closed = (
        "With one token repeated, and so all hidden states equal, nothing but the mask is left: "
        f"the residual channel is 0 (largest |R| < {TOLERANCE:g} nats)."
    )
    opened = "A BOS in front of the repeated token opens the residual channel (|R| > 0)."
    pairs = (
        ("mask_isolated", closed, analysis.files.repeated, below),
        ("residual_opened", opened, analysis.files.bos_repeated, above),
    )
    claims = []
    for name, statement, store, test in pairs:
        if store is None:
            reason = "needs a capture of the repeated design (--design repeated)"
            claims.append(_not_applicable(name, statement, reason))
            continue
        table = analysis.tables["repeated"]
        kind = "repeated" if name == "mask_isolated" else "bos_repeated"
        mask = float(table.loc[table["stimulus"] == kind, "mask"].max())
        interval = analysis.intervals[kind]
        protocol = (
            f"{_n_items(store)} tokens, each repeated to {store.length} tokens; positions "
            f"{_list(store.prefixes)}, window of {store.window} rows. Largest |R| over layers, "
            f"heads, offsets and positions, item by item; the largest |M| is {mask:.3g} nats."
        )
        claims.append(
            _claim(name, statement, interval, "nats", test(interval, TOLERANCE), protocol)
        )
    return claims


def _probe_claims(analysis: Analysis) -> list[Claim]:
    names = {
        "probe_normalizer": "Position can be read from the log-normalizers of one layer "
        "(mean R2 over layers > 0).",
        "probe_residual": "Position can be read from the residual stream entering a layer "
        "(mean R2 over layers > 0).",
        "residual_at_layer_0": "At layer 0, where the residual stream is the embedding, it tells "
        f"nothing about position (R2 < {NEGLIGIBLE_R2}).",
    }
    store = analysis.files.natural
    if store is None or "probes" not in analysis.tables:
        reason = "needs a capture of the natural design with the residual stream"
        return [_not_applicable(name, text, reason) for name, text in names.items()]
    protocol = (
        f"{_n_items(store)} natural sequences of {store.length} tokens without position 0; ridge, "
        "5 folds by sequence, penalty chosen on the same folds; R2 out of fold. The interval is "
        "that of the probes as fitted (cluster bootstrap of their scores, percentiles)."
    )
    probes = analysis.tables["probes"]
    fixed = probes[probes["estimand"] == "fixed_probe"]
    claims = []
    for features in ("normalizer", "residual"):
        name = f"probe_{features}"
        interval = analysis.intervals[name]
        claims.append(_claim(name, names[name], interval, "R2", above(interval, 0.0), protocol))
    first = fixed[(fixed["layer"] == 0) & (fixed["features"] == "residual")]
    if len(first):
        row = first.iloc[0]
        interval = Interval(
            row["r2"], row["low"], row["high"], row["level"], row["method"], "R2", int(row["n"])
        )
        verdict = below(interval, NEGLIGIBLE_R2)
        name = "residual_at_layer_0"
        claims.append(_claim(name, names[name], interval, "R2", verdict, protocol))
    return claims


def _sink_claims(analysis: Analysis) -> list[Claim]:
    statement = "There are sink-reading heads: heads whose mean attention to key 0 is > 0.3."
    store = analysis.files.natural
    if store is None:
        return [_not_applicable("sink_heads", statement, "needs a natural capture")]
    interval = analysis.intervals["sink_heads"]
    protocol = (
        f"{_n_items(store)} natural sequences of {store.length} tokens, "
        f"{_first(store)} at position 0. Share of all {store.n_layers * store.n_heads} heads whose "
        "attention to key 0, averaged over queries and sequences, is strictly > 0.3."
    )
    return [_claim("sink_heads", statement, interval, "1", above(interval, 0.0), protocol)]


def _position0_claims(analysis: Analysis) -> list[Claim]:
    claims = []
    natural, shifted = analysis.files.natural, analysis.files.shifted
    statement = (
        "Position 0 is a closed system: its activations equal those of a run on its token alone "
        f"(relative difference < {TOLERANCE:g})."
    )
    if natural is None:
        claims.append(_not_applicable("closed_system", statement, "needs a natural capture"))
    else:
        interval = analysis.intervals["closure"]
        protocol = (
            f"{natural.n_sequences} sequences; largest relative difference over "
            f"{natural.n_layers + 1} depths, averaged over sequences."
        )
        verdict = below(interval, TOLERANCE)
        claims.append(_claim("closed_system", statement, interval, "1", verdict, protocol))
    statement = "Behind a fixed first token, position 0 leaves the same fingerprint in every input."
    if shifted is None or len(np.unique(shifted.tokens[:, 0])) > 1:
        reason = "needs a capture with the same token at position 0 throughout (--bos force)"
        claims.append(_not_applicable("fingerprint_constant", statement, reason))
    else:
        interval = analysis.intervals["fingerprint_bos"]
        protocol = f"{_fingerprint(shifted)} First token: {_first(shifted)}."
        verdict = below(interval, TOLERANCE)
        claims.append(_claim("fingerprint_constant", statement, interval, "1", verdict, protocol))
    statement = "Without a fixed first token the fingerprint varies with the input."
    if natural is None or len(np.unique(natural.tokens[:, 0])) == 1:
        reason = "needs a natural capture whose sequences begin with different tokens (--bos none)"
        claims.append(_not_applicable("fingerprint_varies", statement, reason))
    else:
        interval = analysis.intervals["fingerprint_text"]
        protocol = f"{_fingerprint(natural)} First token: {_first(natural)}."
        verdict = above(interval, TOLERANCE)
        claims.append(_claim("fingerprint_varies", statement, interval, "1", verdict, protocol))
    return claims


def _replacement_claims(analysis: Analysis) -> list[Claim]:
    statement = (
        "Replacing the BOS embedding removes 40% of the residual-stream component at early queries."
    )
    store = analysis.files.shifted
    table = analysis.tables.get("replacement")
    primary = None if table is None else table[table["primary"]]
    if store is None or primary is None or primary.empty:
        reason = f"needs the shifted design captured with --position0 native and {PRIMARY}"
        return [_not_applicable("bos_replacement", statement, reason)]
    row = primary.iloc[0]
    bounded = pd.notna(row["low"])
    interval = Interval(
        float(row["fraction_removed"]),
        float(row["low"]) if bounded else None,
        float(row["high"]) if bounded else None,
        analysis.level,
        "fieller",
        "fraction of V_R removed",
        int(row["n"]),
    )
    protocol = (
        f"{_shifted(store)} Primary specification, fixed beforehand: the embedding at position 0 "
        f"({_first(store)}) replaced by the mean embedding; 1 - V_R(replaced)/V_R(native) over "
        f"prefixes up to {int(row['up_to'])} against {store.prefixes[-1]} tokens, mean over "
        f"layers, heads and offsets {_list(store.offsets)}; items paired. Heads that sink: "
        f"{row['sink_rate_native']:.0%} native, {row['sink_rate_replaced']:.0%} replaced. "
        "The study's own protocol is not known."
    )
    return [
        _claim(
            "bos_replacement",
            statement,
            interval,
            "1",
            _agrees(interval, REMOVED_IN_STUDY),
            protocol,
            REMOVED_IN_STUDY,
        )
    ]


def _agrees(interval: Interval, value: float) -> Verdict:
    """Contradicted where `value` is excluded, supported where 0 is excluded and `value` is not."""
    if interval.unbounded:
        return "inconclusive"
    if interval.excludes(value):
        return "contradicted"
    return "supported" if interval.excludes(0.0) else "inconclusive"


def _architecture_claims(analysis: Analysis) -> list[Claim]:
    reason = (
        "a claim about architectures: one model cannot test it; compare files of several models "
        "per architecture"
    )
    statements = {
        "ntk_suppresses": "NTK scaling suppresses the residual-stream component.",
        "window_accumulates": "Sliding-window attention lets the residual component accumulate "
        "with depth.",
        "standard_between": "Standard RoPE sits between the two.",
    }
    return [_not_applicable(name, text, reason) for name, text in statements.items()]


def _row_interval(row: pd.Series, name: str, store: ActivationStore, level: float) -> Interval:
    return Interval(
        float(row[name]),
        float(row[f"{name}_low"]),
        float(row[f"{name}_high"]),
        level,
        "t",
        name,
        _n_items(store),
    )


def _n_items(store: ActivationStore) -> int:
    return len(np.unique(store.item))


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(str(v) for v in values)


def _shifted(store: ActivationStore) -> str:
    return (
        f"{_n_items(store)} windows of {store.window} tokens, each behind prefixes of "
        f"{_list(store.prefixes)} tokens (reference: the last), {_first(store)} at position 0."
    )


def _first(store: ActivationStore) -> str:
    first = np.unique(store.tokens[:, 0])
    if len(first) > 1:
        return "whatever token the text begins with"
    forced = store.header.stimulus.get("bos_token") is not None
    return f"token {first[0]}" + (" (BOS)" if forced else "")


def _fingerprint(store: ActivationStore) -> str:
    return (
        f"{_n_items(store)} inputs; largest distance over depths to the mean input, relative to "
        "its norm, averaged over inputs."
    )
