"""Stage one across architectures: reduce every model to one value and one slope over depth.

The layers of a model are not a sample of it, so they are not replicates, and a model with twice as
many layers does not count more. `posprobe.architectures.two_stage` compares the summaries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from posprobe.architectures.tables import plain_table
from posprobe.errors import DesignError
from posprobe.intervals import Interval

__all__ = ["KEYS", "ModelSummary", "check_table", "reference_depth", "summarise_models"]

KEYS = ("architecture", "model", "layer", "depth")
LARGEST = 1e100  # of a value, or of its reciprocal: beyond, squares and their sums leave float64


@dataclass(frozen=True)
class ModelSummary:
    """The value and the slope of one model.

    Attributes
    ----------
    architecture, model : str
        Names of the architecture and the model.
    n_layers : int
        Number of measured layers.
    n_sequences : int or None
        Number of sequences; None if the table has no column for them.
    intercept : float
        Fitted value at the reference depth, in the unit of the value.
    slope : float or None
        Fitted change of the value from the first layer to the last, in the same unit; None if only
        one layer was measured.
    intercept_interval, slope_interval : Interval or None
        Intervals over sequences. They describe this model, not its architecture.
    block : str or None
        What the model shares with models of other architectures, for instance its seed.
    """

    architecture: str
    model: str
    n_layers: int
    n_sequences: int | None
    intercept: float
    slope: float | None
    intercept_interval: Interval | None = None
    slope_interval: Interval | None = None
    block: str | None = None


def check_table(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Check a tidy table and return a copy of the columns in use, the value renamed to `value`.

    Parameters
    ----------
    table : pandas.DataFrame
        One row for each model and layer (and sequence), with the columns architecture, model,
        layer, depth (0 for the first layer, 1 for the last), the value, and optionally sequence
        and block.
    value : str
        Name of the column of the value.

    Returns
    -------
    pandas.DataFrame
        Sorted by model and layer.

    Raises
    ------
    DesignError
        If the table is empty, lacks a column or names or numbers in one, a number is missing, not
        finite or too large or small to be squared, a depth lies outside [0, 1], a layer has two
        depths, a model has two architectures or two blocks, or a row is given twice.
    """
    table, value = plain_table(table), str(value)
    missing = [name for name in (*KEYS, value) if name not in table.columns]
    if missing:
        raise DesignError(
            f"the table lacks column {missing[0]!r}: it needs {', '.join((*KEYS, value))}"
        )
    if table.empty:
        raise DesignError("the table has no rows: give one row per model and layer")
    keys = [*KEYS, "sequence"] if "sequence" in table.columns else list(KEYS)
    named = [*keys, "block"] if "block" in table.columns else keys
    clean = table[named].assign(value=table[value])
    _check_names(clean, named)
    _check_numbers(clean, value)
    _check_replication(clean, [k for k in keys if k not in ("architecture", "depth")])
    return clean.sort_values(["model", "layer"], kind="stable").reset_index(drop=True)


def _check_names(clean: pd.DataFrame, keys: Iterable[str]) -> None:
    for key in keys:
        if key != "depth" and clean[key].isna().any():
            row = int(np.flatnonzero(clean[key].isna())[0])
            raise DesignError(f"row {row} has no {key}: name it or drop the row")
        try:
            sorted({*clean[key].tolist()})
        except TypeError as error:
            raise DesignError(
                f"column {key!r} holds labels that cannot be told apart or sorted: use only "
                "numbers, or only text"
            ) from error


def _check_numbers(clean: pd.DataFrame, value: str) -> None:
    for column, shown in (("depth", "depth"), ("value", value)):
        dtype = clean[column].dtype
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise DesignError(f"column {shown!r} is not numeric: convert it to real numbers first")
        bad = ~np.isfinite(clean[column].to_numpy(dtype=float, na_value=np.nan))
        if bad.any():
            row = clean.loc[bad].iloc[0]
            raise DesignError(
                f"model {row.model!r} layer {row.layer} has {shown} {row[column]}: "
                "measure it again or drop the layer from every model"
            )
    largest = float(np.abs(clean["value"].to_numpy(dtype=float)).max())
    if not 1 / LARGEST <= largest <= LARGEST and largest > 0:
        raise DesignError(
            f"column {value!r} has values of size {largest:.0e}, whose squares leave the range of "
            "float64: give it in another unit"
        )
    outside = ~clean["depth"].between(0.0, 1.0)
    if outside.any():
        row = clean.loc[outside].iloc[0]
        raise DesignError(
            f"model {row.model!r} layer {row.layer} has depth {row.depth:g}: depth runs from 0 "
            "(first layer) to 1 (last), so divide the layer by the number of layers less one"
        )


def _check_replication(clean: pd.DataFrame, keys: list[str]) -> None:
    homes = clean.groupby("model")["architecture"].nunique()
    if (homes > 1).any():
        model = homes.index[homes > 1][0]
        names = sorted(map(str, clean.loc[clean["model"] == model, "architecture"].unique()))
        raise DesignError(
            f"model {model!r} is listed under the architectures {' and '.join(names)}: give every "
            "model one architecture and a name of its own"
        )
    if "block" in clean.columns:
        blocks = clean.groupby("model")["block"].nunique()
        if (blocks > 1).any():
            model = blocks.index[blocks > 1][0]
            raise DesignError(f"model {model!r} is in two blocks: give it one")
    twice = clean.duplicated(keys)
    if twice.any():
        row = clean.loc[twice].iloc[0]
        raise DesignError(
            f"model {row.model!r} layer {row.layer} is given twice: keep one row per "
            f"{' x '.join(keys)}"
        )
    depths = clean.groupby(["model", "layer"])["depth"].nunique()
    if (depths > 1).any():
        model, layer = depths.index[depths > 1][0]
        raise DesignError(f"model {model!r} layer {layer} has two depths: give it one")


def reference_depth(clean: pd.DataFrame) -> float:
    """Return the depth at which intercepts are taken, the mean over models of their mean depth."""
    layers = clean.drop_duplicates(["model", "layer"])
    return float(layers.groupby("model")["depth"].mean().mean())


def summarise_models(
    clean: pd.DataFrame, *, at: float, level: float = 0.95
) -> tuple[ModelSummary, ...]:
    """Reduce every model to its value at depth `at` and its slope over depth.

    The value is regressed on (1, depth - `at`) by least squares within each model. If the table has
    sequences, each sequence of a model is fitted separately, and the mean over S sequences gets a
    t(S - 1) interval.

    Parameters
    ----------
    clean : pandas.DataFrame
        A table from `check_table`.
    at : float
        Reference depth, in [0, 1].
    level : float
        Nominal coverage of the intervals over sequences.

    Returns
    -------
    tuple of ModelSummary
        Sorted by model.

    Raises
    ------
    DesignError
        If some models have one layer (or one depth) and others several, or if the layers of a
        model were not measured on the same sequences.
    """
    depths = clean.groupby("model")["depth"].nunique()
    flat = depths.index[depths == 1]
    if 0 < len(flat) < len(depths):
        raise DesignError(
            f"model {flat[0]!r} has one layer while {depths.idxmax()!r} has {depths.max()}: "
            "measure the same layers in every model, or drop it"
        )
    return tuple(_summarise(str(model), rows, at, level) for model, rows in clean.groupby("model"))


def _summarise(model: str, rows: pd.DataFrame, at: float, level: float) -> ModelSummary:
    values, depth = _layers_by_sequences(model, rows)
    sloped = np.ptp(depth) > 0
    columns = [np.ones_like(depth), depth - at] if sloped else [np.ones_like(depth)]
    fits = np.linalg.lstsq(np.column_stack(columns), values, rcond=None)[0]
    # Set slopes that are only rounding error to 0, or the F test would take them for spread.
    fits[1:][np.abs(fits[1:]) < 1e-12 * np.abs(values).max()] = 0.0
    replicated = "sequence" in rows.columns
    intervals = [
        _sequence_interval(fit, f"{name} of model {model}", level) if replicated else None
        for fit, name in zip(fits, ("intercept", "slope"), strict=False)
    ]
    return ModelSummary(
        architecture=str(rows["architecture"].iloc[0]),
        model=model,
        n_layers=len(depth),
        n_sequences=values.shape[1] if replicated else None,
        intercept=float(fits[0].mean()),
        slope=float(fits[1].mean()) if sloped else None,
        intercept_interval=intervals[0],
        slope_interval=intervals[1] if sloped else None,
        block=str(rows["block"].iloc[0]) if "block" in rows.columns else None,
    )


def _layers_by_sequences(
    model: str, rows: pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values as (layers, sequences) and the depths as (layers,)."""
    depth = rows.groupby("layer")["depth"].first()
    if "sequence" not in rows.columns:
        values = rows.set_index("layer")["value"].loc[depth.index].to_frame()
    else:
        values = rows.pivot(index="layer", columns="sequence", values="value").loc[depth.index]
    gaps = values.isna().to_numpy()
    if gaps.any():
        layer, sequence = (int(k) for k in np.argwhere(gaps)[0])
        raise DesignError(
            f"model {model!r} layer {values.index[layer]} lacks sequence "
            f"{values.columns[sequence]}: measure all layers of a model on the same sequences"
        )
    return values.to_numpy(dtype=float), depth.to_numpy(dtype=float)


def _sequence_interval(fits: NDArray[np.float64], estimand: str, level: float) -> Interval:
    n = len(fits)
    if n < 2:
        return Interval(float(fits.mean()), None, None, level, "one sequence", estimand, n)
    half = stats.t.ppf(0.5 + level / 2, n - 1) * fits.std(ddof=1) / np.sqrt(n)
    mean = float(fits.mean())
    return Interval(
        mean, float(mean - half), float(mean + half), level, f"t({n - 1}) over sequences",
        estimand, n,
    )  # fmt: skip
