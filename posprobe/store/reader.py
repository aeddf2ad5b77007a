"""Read a complete capture."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.files import refusing
from posprobe.store.hdf5 import Place, locate, open_complete
from posprobe.store.layout import DATA_SETS, OWN_POSITION, Header

__all__ = ["ActivationStore"]

_READ_AHEAD = 64 * 2**20


def _read_ahead(mapped: mmap.mmap, offset: int, n_bytes: int) -> None:
    """Ask for what will be read in one go, where the system can; page faults ask piecemeal."""
    if hasattr(mmap, "MADV_WILLNEED"):
        start = offset - offset % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, start, min(offset + n_bytes - start, _READ_AHEAD))


class ActivationStore:
    """Read a complete capture; arrays are mapped from the file, not copied.

    Parameters
    ----------
    path : str or Path
        A file that ``posprobe capture`` completed. The store pickles by this path.

    Attributes
    ----------
    header : Header
        Shapes and provenance.
    model, design : str
        Name of the model and of the stimulus design.
    n_layers, n_heads, n_sequences, length : int
        L, H, S, and T, the tokens of the longest sequence.
    offsets, prefixes, layer_window : tuple of int
        D offsets, P prefix lengths, and the L sliding windows (0: full attention), in tokens.
    window : int
        W, the rows of the re-masked quantities.
    item, prefix_length, sequence_id : ndarray of shape (S,)
        Resampling unit, tokens ahead of the window, and number in the stimulus, per sequence.
    tokens : ndarray of shape (S, T)
        Token ids, padded with -1.
    positions : ndarray of shape (S, Q)
        Absolute 0-based position of every stored query.
    residual_positions : ndarray of shape (S, K)
        The same of the queries whose residual stream was kept, all Q by default.
    residual_rows : ndarray of shape (K,)
        Numbers of these queries among the Q stored ones.

    Raises
    ------
    StoreError
        If the file is not HDF5, of another format or version, incomplete, truncated, or if a data
        set or an attribute is missing or not of the shape that the header says.

    Examples
    --------
    ::

        with ActivationStore("smollm2.h5") as store:
            z = store.normalizer(5)                      # (S, Q, H), nats
            h = store["blocks.5.hook_resid_pre"]         # (S, K, d)
            for sequences, block in store.blocks("residual", 5, n_sequences=8):
                ...
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.header = header = open_complete(self.path)
        self._places = locate(self.path, header)
        with refusing(self.path, "map the file"), open(self.path, "rb") as file:
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._describe(header)

    def _describe(self, header: Header) -> None:
        self.model, self.design = header.model, header.design
        self.n_layers, self.n_heads = header.n_layers, header.n_heads
        self.n_sequences, self.length = header.n_sequences, header.length
        self.offsets, self.prefixes, self.window = header.offsets, header.prefixes, header.window
        self.layer_window = header.layer_window
        self.tokens = self.read("tokens").copy()
        self.item = self.read("item").copy()
        self.prefix_length = self.read("prefix_length").copy()
        self.sequence_id = self.read("sequence_id").copy()
        self.positions = self.read("query_start")[:, np.newaxis] + np.arange(header.n_queries)
        self.residual_rows = np.array(header.residual_queries or range(header.n_queries))
        self.residual_positions = self.positions[:, self.residual_rows]

    @property
    def n_items(self) -> int:
        """Number of items, the units of resampling: windows if shifted, sequences elsewhere."""
        return len(np.unique(self.item))

    def tokens_of(self, items: np.ndarray) -> np.ndarray:
        """Tokens of the sequences of some items, by item and then by prefix length: (S', T)."""
        order = np.lexsort((self.prefix_length, self.item))
        return self.tokens[order[np.isin(self.item[order], items)]]

    @property
    def own_position(self) -> dict[str, Any] | None:
        """How scores move with position by themselves, a third channel; None where they do not."""
        return self.header.config.get(OWN_POSITION)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """What each layer sees: ``full``, or ``window(W)`` tokens."""
        return tuple(f"window({w})" if w else "full" for w in self.layer_window)

    def read(self, quantity: str, layer: int | None = None, sequences: Any = None) -> np.ndarray:
        """Return a stored data set, or one layer of it, as a read-only array on the file.

        Parameters
        ----------
        quantity : str
            Name of a data set in the file.
        layer : int, optional
            0-based layer; of ``residual`` the block that is entered, or L for the last output.
        sequences : slice or array of int, optional
            Which sequences; a slice copies nothing.

        Returns
        -------
        ndarray
            Shape as in ``docs/format.md``, without the first axis where `layer` is given, in the
            stored type (``residual`` may be float16: widen it before summing).

        Raises
        ------
        StoreError
            If the quantity or the layer was not kept, or the store is closed.

        Notes
        -----
        Arrays stay valid after `close`, which only drops the store's own hold on the file.
        """
        place = self._place(quantity, layer)
        if self._map is None:
            raise StoreError(f"{self.path} is closed: open it again with ActivationStore")
        count = int(np.prod(place.shape, dtype=np.int64))
        if layer is not None and sequences is None:
            _read_ahead(self._map, place.offset, count * place.dtype.itemsize)
        flat = np.frombuffer(self._map, place.dtype, count, place.offset)
        array = flat.reshape(place.shape)
        if sequences is None:
            return array
        by_layer = DATA_SETS[quantity].by_layer and layer is None
        return array[:, sequences] if by_layer else array[sequences]

    def normalizer(self, layer: int) -> np.ndarray:
        """Log-normalizer of `layer`, in nats: array of shape (S, Q, H) on the file."""
        return self.read("normalizer", layer)

    def residual(self, layer: int) -> np.ndarray:
        """Residual stream entering block `layer` (L: the last output), of shape (S, K, d)."""
        return self.read("residual", layer)

    def blocks(
        self, quantity: str, layer: int, n_sequences: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Stream one layer in blocks of sequences, in memory that does not grow with S.

        Parameters
        ----------
        quantity : str
            Name of a data set with a layer axis.
        layer : int
            0-based layer.
        n_sequences : int
            Sequences per block; the last block may be shorter.

        Yields
        ------
        sequences : slice
            Which sequences these are.
        block : ndarray
            Their values, a writable copy; float16 comes widened to float32.

        Raises
        ------
        StoreError
            If the quantity or layer was not kept, or `n_sequences` is below 1.
        """
        if n_sequences < 1:
            raise StoreError(f"blocks: n_sequences is {n_sequences}: it must be at least 1")
        place = self._place(quantity, layer)
        each = int(np.prod(place.shape[1:], dtype=np.int64))
        with refusing(self.path, f"read '{quantity}'"), open(self.path, "rb") as file:
            file.seek(place.offset)
            for start in range(0, self.n_sequences, n_sequences):
                stop = min(start + n_sequences, self.n_sequences)
                flat = np.fromfile(file, place.dtype, (stop - start) * each)
                block = flat.reshape(stop - start, *place.shape[1:])
                yield slice(start, stop), block.astype("<f4") if block.itemsize == 2 else block

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a data set by its name or by its TransformerLens hook name.

        ``blocks.L.hook_resid_pre`` is ``residual`` at L, ``blocks.L.hook_resid_post`` at L + 1.

        Raises
        ------
        StoreError
            If nothing of that name is in the file; the message says what is.
        """
        if hook := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", name):
            return self.residual(int(hook[1]) + (hook[2] == "post"))
        return self.read(name)

    def summary(self) -> dict[str, Any]:
        """Describe the file for ``posprobe inspect``.

        Returns
        -------
        dict
            ``path``, ``bytes``, ``attributes`` (by name), and ``rows``: one dict per data set with
            ``name``, ``axes``, ``shape``, ``dtype``, ``unit``, ``bytes`` and ``meaning``.
        """
        header = self.header
        rows = [
            {
                "name": name,
                "axes": ", ".join(DATA_SETS[name].axes),
                "shape": header.shape(name),
                "dtype": header.stored_dtype(name).name,
                "unit": DATA_SETS[name].unit,
                "bytes": header.nbytes(name),
                "meaning": DATA_SETS[name].meaning,
            }
            for name in header.datasets()
        ]
        return {
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "attributes": header.attributes(),
            "rows": rows,
        }

    def release(self) -> None:
        """Give back the memory of what was read; arrays stay valid, and are read again if used."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay valid."""
        self._map = None

    def __enter__(self) -> ActivationStore:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by path: workers map the file themselves."""
        return ActivationStore, (str(self.path),)

    def __repr__(self) -> str:
        """One line: file, model, design and sizes."""
        return (
            f"ActivationStore({str(self.path)!r}: {self.model}, {self.design}, "
            f"{self.n_sequences} sequences, {self.n_layers} layers)"
        )

    def _place(self, quantity: str, layer: int | None) -> Place:
        if quantity not in self._places:
            raise StoreError(
                f"'{quantity}' is not in {self.path}: read one of {', '.join(self._places)}"
                " (blocks.L.hook_resid_pre and _post are names for residual)"
            )
        place = self._places[quantity]
        if layer is None:
            return place
        if not DATA_SETS[quantity].by_layer:
            raise StoreError(f"'{quantity}' has no layers: read it without one")
        stride = int(np.prod(place.shape[1:], dtype=np.int64)) * place.dtype.itemsize
        row = self.header.row(quantity, layer)
        return Place(place.offset + row * stride, place.shape[1:], place.dtype)
