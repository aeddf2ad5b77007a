"""Hold quantities of a capture in memory, and read them as if they were in a file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import StoreError, as_html
from posprobe.store.layout import DATA_SETS, Header
from posprobe.store.reader import ActivationStore

__all__ = ["HeldStore"]


class HeldStore(ActivationStore):
    """A store in memory, which receives quantities from a capture.

    A `HeldStore` is a consumer for `posprobe.capture`. Everything that reads an `ActivationStore`
    also reads a `HeldStore`, with bit-identical results. It suits quantities that need only a few
    bytes per query and head, such as those of position effects, rather than the residual stream.

    Parameters
    ----------
    quantities : collection of str
        Names of the data sets to hold, from `DATA_SETS`.

    Notes
    -----
    The residual stream is held as float32, even if the file's ``dtype`` is float16.

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
        """Allocate arrays for a capture and drop those of any earlier one.

        Parameters
        ----------
        header : Header
            Header of the capture.
        index : mapping of str to ndarray
            Index data sets, by name.
        """
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
        """Store one quantity of one layer for some sequences.

        Parameters
        ----------
        quantity : str
            Name of the quantity.
        layer : int
            Number of the layer.
        sequences : slice
            Numbers of the sequences.
        values : ndarray of shape (batch, ...)
            Their values.
        """
        self._arrays[quantity][self.header.row(quantity, layer), sequences] = values

    def read(self, quantity: str, layer: int | None = None, sequences: Any = None) -> np.ndarray:
        """Return a data set, or one layer of it, as a read-only array.

        Parameters
        ----------
        quantity : str
            Name of a data set that is held.
        layer : int, optional
            Number of the layer.
        sequences : slice or array of int, optional
            Sequences to return. By default, all.

        Returns
        -------
        ndarray
            Shape and unit as in `ActivationStore.read`.

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
        """Iterate over one layer in blocks of sequences; see `ActivationStore.blocks`.

        Parameters
        ----------
        quantity : str
            Name of a data set with a layer axis.
        layer : int
            Number of the layer.
        n_sequences : int
            Sequences per block; the last block may be shorter.

        Yields
        ------
        sequences : slice
            Numbers of the sequences in the block.
        block : ndarray of shape (block, ...)
            Their values, as a writable copy.
        """
        for start in range(0, self.n_sequences, n_sequences):
            part = slice(start, min(start + n_sequences, self.n_sequences))
            yield part, self.read(quantity, layer, part).copy()

    def verify(self) -> int:
        """Return 0, the number of digests compared, since nothing was written to a file."""
        return 0

    def release(self) -> None:
        """Do nothing, since there is no file from which the arrays could be read again."""

    def close(self) -> None:
        """Do nothing; the arrays stay in memory."""

    def __repr__(self) -> str:
        """Return what is held, before and after a capture."""
        if not self._arrays:
            return f"HeldStore(nothing yet, for {', '.join(sorted(self.quantities))})"
        return super().__repr__()

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self._arrays else as_html(repr(self), {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store with all of its arrays."""
        return _restored, (self.quantities, self.header, self._arrays)


def _restored(quantities: Collection[str], header: Header, arrays: dict[str, Any]) -> HeldStore:
    held = HeldStore(quantities)
    held._hold(header, arrays)
    return held
