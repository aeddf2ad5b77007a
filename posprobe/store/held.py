"""Quantities of a capture held in memory, read as if they stood in a file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.layout import DATA_SETS, Header
from posprobe.store.reader import ActivationStore

__all__ = ["HeldStore"]


class HeldStore(ActivationStore):
    """A store without a file: it takes quantities from a capture and holds them.

    Whatever reads an `ActivationStore` reads it, with the same result to the last bit: position
    effects need some bytes per query and head, where the residual stream needs kilobytes.

    Parameters
    ----------
    quantities : collection of str
        Names that are held, of `DATA_SETS`.

    Notes
    -----
    The residual stream comes as float32, whatever the file's ``dtype``.

    Examples
    --------
    ::

        held = HeldStore(posprobe.channels.REQUIRED)
        posprobe.capture("smollm2", "shifted.h5", design="shifted", quantities=(),
                         consumers=[held]).close()
        posprobe.decompose(held)
    """

    def __init__(self, quantities: Collection[str]) -> None:
        self.path = Path("memory")
        self.quantities = frozenset(quantities)
        self._arrays: dict[str, np.ndarray] = {}

    def begin(self, header: Header, index: Mapping[str, np.ndarray]) -> None:
        """Make room for a capture with this header and index; what was held is dropped."""
        held = tuple(name for name in DATA_SETS if name in self.quantities)
        header = replace(header, quantities=held, dtype="float32")
        arrays = {name: np.asarray(index[name]) for name in header.index}
        self._hold(
            header, arrays | {name: np.full(header.shape(name), np.nan, "<f4") for name in held}
        )

    def _hold(self, header: Header, arrays: dict[str, np.ndarray]) -> None:
        self.header, self._arrays = header, arrays
        self._describe(header)

    def consume(self, quantity: str, layer: int, sequences: slice, values: np.ndarray) -> None:
        """Take one quantity of one layer for some sequences."""
        self._arrays[quantity][self.header.row(quantity, layer), sequences] = values

    def read(self, quantity: str, layer: int | None = None, sequences: Any = None) -> np.ndarray:
        """As `ActivationStore.read`.

        Raises
        ------
        StoreError
            If the quantity or the layer is not held.
        """
        if quantity not in self._arrays:
            raise StoreError(
                f"'{quantity}' is not held in memory: read one of {', '.join(self._arrays)}"
            )
        array = self._arrays[quantity].view()
        array.flags.writeable = False
        if layer is not None:
            if not DATA_SETS[quantity].by_layer:
                raise StoreError(f"'{quantity}' has no layers: read it without one")
            array = array[self.header.row(quantity, layer)]
        if sequences is None:
            return array
        by_layer = DATA_SETS[quantity].by_layer and layer is None
        return array[:, sequences] if by_layer else array[sequences]

    def blocks(
        self, quantity: str, layer: int, n_sequences: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """As `ActivationStore.blocks`."""
        for start in range(0, self.n_sequences, n_sequences):
            part = slice(start, min(start + n_sequences, self.n_sequences))
            yield part, self.read(quantity, layer, part).copy()

    def verify(self) -> int:
        """Compare nothing: what is held was never written."""
        return 0

    def release(self) -> None:
        """Give nothing back: there is no file to read it from again."""

    def close(self) -> None:
        """Do nothing: what is held stays."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process with all that is held."""
        return _restored, (self.quantities, self.header, self._arrays)


def _restored(quantities: Collection[str], header: Header, arrays: dict[str, Any]) -> HeldStore:
    held = HeldStore(quantities)
    held._hold(header, arrays)
    return held
