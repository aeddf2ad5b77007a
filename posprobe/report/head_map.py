"""A map of the heads for the page: coloured by one quantity, filtered, and read off by pointing.

It needs no script. Radio buttons and check boxes stand before the map, and `style.css` says what
each of them does to cells by their class and by the shares of colour that they carry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from posprobe.analysis import Analysis
from posprobe.figures import one_design
from posprobe.report.words import number, too_small

__all__ = ["head_map"]

MOST_HEADS = 2500  # beyond, the page would be megabytes: the figures and tables remain
TOP = 0.98  # the scale ends at this quantile, as that of the figures does
QUANTITIES = {
    "t": ("V_T", "total V_T", "total"),
    "m": ("V_M", "mask V_M", "mask"),
    "r": ("V_R", "residual stream V_R", "residual"),
    "k": ("attention", "attention to key 0", "sink"),
}


def head_map(analysis: Analysis) -> dict[str, Any] | None:
    """The heads of a model as rows of cells.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    dict or None
        None without the table `channels_by_head`, or for more heads than a page should carry.
    """
    table = analysis.tables.get("channels_by_head")
    if table is None:
        return None
    table = one_design(table).sort_values(["layer", "head"], ignore_index=True)
    if len(table) > MOST_HEADS:
        return None
    table = _with_sinks(table, analysis)
    quantities = [
        {"key": key, "label": label, "colour": colour, "top": number(_top(table[name]))}
        for key, (name, label, colour) in QUANTITIES.items()
        if table[name].notna().any()
    ]
    filters = [
        {"key": key, "label": label.format(n=int(chosen.sum())), "n": int(chosen.sum())}
        for key, (label, chosen) in _filters(table, analysis).items()
    ]
    return {
        "quantities": quantities,
        "filters": filters,
        "heads": sorted(table["head"].unique()),
        "rows": _rows(table, quantities, _filters(table, analysis)),
    }


def _with_sinks(table: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """The heads with their attention to key 0, and whether they are sink-reading."""
    keys = ["layer", "head"]
    for name, columns in (("sinks", ["attention"]), ("sink_heads", ["sink_reading"])):
        more = analysis.tables.get(name)
        if more is None:
            table = table.assign(**dict.fromkeys(columns, np.nan))
            continue
        typed = more[[*keys, *columns]].astype(dict.fromkeys(keys, int))
        table = table.astype(dict.fromkeys(keys, int)).merge(typed, "left", on=keys)
    return table


def _filters(table: pd.DataFrame, analysis: Analysis) -> dict[str, tuple[str, pd.Series]]:
    """What can be asked for, with the heads that it keeps."""
    alpha = 1 - analysis.level
    clear = (table["V_R_p_adjusted"] < alpha) & ~_each(table, lambda row: too_small(row, "V_R"))
    opposed = (table["relation"] == "opposed") & ~_each(table, lambda row: too_small(row, "C_MR"))
    found = {
        "c": (f"with a residual channel ({{n}}; adjusted p < {alpha:.2g})", clear),
        "o": ("whose channels oppose each other ({n})", opposed),
    }
    if table["sink_reading"].notna().any():
        found["s"] = ("that read the sink ({n})", table["sink_reading"].eq(True))
    return found


def _each(table: pd.DataFrame, ask: Callable[[pd.Series], bool]) -> pd.Series:
    return pd.Series([ask(row) for _, row in table.iterrows()], index=table.index, dtype=bool)


def _top(values: pd.Series) -> float:
    """Where the scale of a quantity ends."""
    return float(values.astype(float).quantile(TOP))


def _rows(
    table: pd.DataFrame,
    quantities: list[dict[str, Any]],
    filters: dict[str, tuple[str, pd.Series]],
) -> list[dict[str, Any]]:
    """One row for each layer, the last on top; cells by head."""
    shares = {}
    for one in quantities:
        values = table[QUANTITIES[one["key"]][0]].astype(float)
        top = _top(values)
        part = (values / top).clip(0, 1) if top > 0 else values * 0
        shares[one["key"]] = (100 * part.fillna(0)).round().astype(int)
    rows = []
    for layer in sorted(table["layer"].unique()):
        cells = [
            {
                "kept": " ".join(key for key, (_, chosen) in filters.items() if chosen.iloc[at]),
                "style": "".join(f"--{key}:{values.iloc[at]}%;" for key, values in shares.items()),
                "text": _text(table.iloc[at]),
            }
            for at in np.flatnonzero(table["layer"] == layer)
        ]
        rows.append({"layer": layer, "cells": cells})
    return rows[::-1]


def _text(row: pd.Series) -> str:
    """A head in words, read by pointing at it."""
    values = [f"{name} {number(float(row[name]))}" for name in ("V_T", "V_M", "V_R")]
    values.append(f"C {number(float(row['C_MR']))}")
    if pd.notna(row["attention"]):
        values.append(f"key 0 {number(float(row['attention']))}")
    return f"Layer {row['layer']}, head {row['head']}: {', '.join(values)}"
