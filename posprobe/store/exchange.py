"""Captured data in the forms of other tools: xarray, pandas, safetensors, Parquet.

Arrays are read as they are stored, layer by layer where layers are chosen. What is returned has the
names of `posprobe.store.axes` and of the data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.axes import AXES, Axis
from posprobe.store.files import REPLACE
from posprobe.store.layout import DATA_SETS, DataSet, Header

if TYPE_CHECKING:
    import pandas as pd
    import xarray

__all__ = ["export", "to_pandas", "to_xarray"]

Read = Callable[..., np.ndarray]
VECTORS = "d"  # the axis that stays within one cell of a table
QUERIES = ("Q", "K")  # axes that count from `query_start`
INSTALL = "pip install 'posprobe[notebook]'"


def _checked(header: Header, quantities: Sequence[str] | str | None) -> tuple[str, ...]:
    """The quantities that were asked for, or all; refused where the file lacks one."""
    names = (quantities,) if isinstance(quantities, str) else quantities
    chosen = header.quantities if names is None else tuple(names)
    missing = [name for name in chosen if name not in header.quantities]
    if missing or not chosen:
        asked = repr(missing[0]) if missing else "no quantity"
        raise StoreError(
            f"{asked} is not in the file: choose some of {', '.join(header.quantities) or 'none'}"
        )
    return chosen


def _values(read: Read, name: str, layers: Sequence[int] | None) -> np.ndarray:
    """A quantity as it is stored, of all layers or of some, (layer, sequence, ...)."""
    if layers is None:
        return read(name)
    return np.stack([read(name, layer) for layer in layers])


def _along(header: Header, name: str, layers: Sequence[int] | None) -> dict[str, np.ndarray]:
    """The coordinates of a quantity along its axes, by symbol."""
    every = header.coordinates()
    found = {axis: every[axis] for axis in DATA_SETS[name].axes}
    if layers is not None:
        found[DATA_SETS[name].axes[0]] = np.array(layers)
    return found


def to_xarray(
    header: Header,
    read: Read,
    quantities: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
) -> xarray.Dataset:
    """Return a Dataset; see `ActivationStore.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise StoreError(f"to_xarray needs xarray: {INSTALL}") from error
    chosen = _checked(header, quantities)
    variables, coordinates = {}, {}
    for name in (*header.index, *chosen):
        kept = layers if name in chosen else None
        along = _along(header, name, kept)
        for axis, values in along.items():
            dimension = AXES[axis]
            described = _described(dimension)
            coordinates[dimension.name] = (dimension.name, values, described)
        described = _described(DATA_SETS[name])
        dimensions = tuple(AXES[axis].name for axis in along)
        variables[name] = (dimensions, _values(read, name, kept), described)
    whole = xarray.Dataset(variables, coordinates, header.attributes())
    return whole.set_coords([name for name in header.index if name != "tokens"])


def _described(what: Axis | DataSet) -> dict[str, str]:
    """Meaning and unit, as plots show them; a number without unit has none to show."""
    described = {"long_name": what.meaning}
    return described if what.unit == "1" else described | {"units": what.unit}


def to_pandas(
    header: Header,
    read: Read,
    quantities: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return a table; see `ActivationStore.to_pandas`."""
    import pandas as pd  # which takes longer to import than the rest of this room

    if quantities is None:
        index = {name: read(name) for name in header.index}
        index["tokens"] = (index["tokens"] >= 0).sum(1)
        return pd.DataFrame({"sequence": np.arange(header.n_sequences)} | index)
    chosen = _checked(header, quantities)
    axes = DATA_SETS[chosen[0]].axes
    if other := [name for name in chosen if DATA_SETS[name].axes != axes]:
        raise StoreError(
            f"'{chosen[0]}' and '{other[0]}' have different axes, so they do not fit into one "
            "table: make one of each"
        )
    along = _along(header, chosen[0], layers)
    along.pop(VECTORS, None)
    keys = np.meshgrid(*along.values(), indexing="ij")
    columns: dict[str, Any] = {}
    for axis, key in zip(along, keys, strict=True):
        columns[AXES[axis].name] = key.ravel()
        if axis == "S":
            columns["item"] = read("item")[key.ravel()]
        if axis in QUERIES:
            columns["position"] = read("query_start")[columns["sequence"]] + key.ravel()
    for name in chosen:
        flat = _values(read, name, layers).reshape(keys[0].size, -1)
        columns[name] = list(flat.astype("<f4")) if axes[-1] == VECTORS else flat[:, 0]
    return pd.DataFrame(columns)


def export(
    header: Header,
    read: Read,
    path: Path,
    quantities: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a file for other tools; see `ActivationStore.export`."""
    writers = {".safetensors": _write_tensors, ".parquet": _write_table}
    if path.suffix not in writers:
        raise StoreError(f"{path.name} ends in neither .safetensors nor .parquet: choose one")
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists: choose another name, or {REPLACE}")
    chosen = _checked(header, quantities)
    try:
        writers[path.suffix](header, read, path, chosen, layers)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _write_tensors(
    header: Header, read: Read, path: Path, chosen: tuple[str, ...], layers: Sequence[int] | None
) -> None:
    from safetensors.numpy import save_file

    tensors = {
        name: np.ascontiguousarray(_values(read, name, layers if name in chosen else None))
        for name in (*header.index, *chosen)
    }
    attributes = {name: str(value) for name, value in header.attributes().items()}
    save_file(tensors, path, attributes | ({} if layers is None else {"layers": str([*layers])}))


def _write_table(
    header: Header, read: Read, path: Path, chosen: tuple[str, ...], layers: Sequence[int] | None
) -> None:
    table = to_pandas(header, read, chosen, layers)
    try:
        table.to_parquet(path, index=False)
    except ImportError as error:
        raise StoreError(f"Parquet needs pyarrow: {INSTALL}") from error
