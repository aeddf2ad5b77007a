"""In which conditions a claim holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from posprobe.analysis import Analysis
from posprobe.claims.position0 import agrees_with_study
from posprobe.claims.verdicts import SMALLEST, Claim, Judged, Verdict, found
from posprobe.intervals import Interval

__all__ = ["with_scope"]

NAMES = ["condition", "position0", "text", "length", "native"]
REMOVED = ["condition", "fraction_removed", "low", "high", "n"]
REPLACED = "bos_replacement"
# Claims that every condition tests, by the column of the table `conditions` that they rest on.
TESTED = {
    "position_in_attention": "V_T",
    "mask_channel": "V_M",
    "residual_channel": "V_R",
    "channels_add": "C_MR",
    "share_mask": "share_mask",
    "share_residual": "share_residual",
    REPLACED: "fraction_removed",
}


def with_scope(claims: list[Claim], analysis: Analysis) -> list[Claim]:
    """Say of each claim in which conditions it was tested, and with which verdict.

    Parameters
    ----------
    claims : list of Claim
        On the main condition.
    analysis : Analysis

    Returns
    -------
    list of Claim
        The same claims; those that several conditions test have `scope` and `conditions`.
    """
    if "conditions" not in analysis.tables:
        return claims
    return [_scoped(claim, analysis) if claim.id in TESTED else claim for claim in claims]


def _scoped(claim: Claim, analysis: Analysis) -> Claim:
    table, column = analysis.tables["conditions"], TESTED[claim.id]
    test: Callable[[Interval], Judged] = partial(found, unit=claim.unit or "1")
    limits = column
    if claim.id == REPLACED:
        replaced = analysis.tables.get("condition_replacement", pd.DataFrame(columns=REMOVED))
        table = table[[*NAMES, "V_R"]].merge(replaced, "left", on="condition")
        table.loc[table["V_R"] < SMALLEST["nats^2"], column] = np.nan  # nothing to remove
        limits, test = "", agrees_with_study
    tested = [_tested(row, column, limits, test, analysis.level) for _, row in table.iterrows()]
    return dataclasses.replace(claim, scope=_scope(claim.verdict, tested), conditions=tuple(tested))


def _tested(
    row: pd.Series, column: str, limits: str, test: Callable[[Interval], Judged], level: float
) -> dict[str, Any]:
    """The verdict on a claim in one condition, with what it rests on."""
    named = {name: row[name] for name in NAMES}
    named |= {"length": int(row["length"]), "native": bool(row["native"])}
    if pd.isna(row[column]):
        missing = dict.fromkeys(("estimate", "ci_low", "ci_high"))
        return named | missing | {"verdict": "not_applicable"}
    interval = Interval.of_row(row, column, limits=limits, level=level, method="", n=int(row["n"]))
    values = {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high}
    return named | values | {"verdict": test(interval).verdict}


def _scope(verdict: Verdict, tested: list[dict[str, Any]]) -> str:
    """A verdict in words: in how many conditions it is the same, and what it is in the others."""
    others: dict[str, list[str]] = {}
    for one in tested:
        if one["verdict"] != verdict:
            others.setdefault(one["verdict"], []).append(str(one["condition"]))
    same = sum(one["verdict"] == verdict for one in tested)
    text = f"{verdict} in {same} of {len(tested)} conditions".replace("_", " ")
    parts = [f"{name} with {'; '.join(where)}" for name, where in others.items()]
    return text + "".join(f"; {part}" for part in parts).replace("_", " ")
