"""Read complete captures."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posprobe.errors import StoreError, as_html, fact_table
from posprobe.store.axes import AXES
from posprobe.store.digests import begin_digest, extended
from posprobe.store.exchange import export, to_pandas, to_xarray
from posprobe.store.files import refusing
from posprobe.store.hdf5 import Place, check_coordinates, locate, open_complete
from posprobe.store.layout import (
    ATTENTION_GAIN,
    BANDS,
    DATA_SETS,
    KEPT_AT_POSITION0,
    LEARNED_SINKS,
    ORIGIN,
    OWN_POSITION,
    Header,
)
from posprobe.store.repeats import repeated_items, repeats_in_words
from posprobe.store.values import check_index, check_stored, is_finite

if TYPE_CHECKING:
    import pandas as pd
    import xarray

__all__ = ["ActivationStore"]

_ROUNDING = {
    "normalizer": "z {:.2g} nats",
    "offset_score": "scores {:.2g} nats",
    "residual": "residual stream {:.2g} of its norm",
    "M": "M {:.2g} nats",
    "R": "R {:.2g} nats",
}
_CHUNK = 2**20  # bytes that are digested and checked while they are in the processor's cache


class ActivationStore:
    """Read a complete capture; a layer, or some sequences of it, at a time.

    Parameters
    ----------
    path : str or Path
        A file that ``posprobe capture`` completed. The store is pickled as this path.
    verify : bool, default=True
        Whether to check each layer when it is first read, against its digest if the file has
        digests, and for values that are not finite. The check reads the layer once more, at one to
        two gigabytes per second. Attributes and index data sets are always checked on opening.

    Attributes
    ----------
    header : Header
        Shapes and provenance.
    model : str
        Name of the model.
    design : str
        Name of the stimulus design.
    n_layers : int
        L, the number of layers.
    n_heads : int
        H, the number of query heads per layer.
    n_sequences : int
        S, the number of sequences.
    length : int
        T, the number of tokens of the longest sequence.
    offsets : tuple of int
        The D offsets of ``offset_score``, in tokens.
    prefixes : tuple of int
        The P prefix lengths of the re-masked quantities, in tokens.
    window : int
        W, the number of rows of the re-masked quantities.
    layer_window : tuple of int
        Sliding window of each layer in tokens, 0 for full attention.
    item : ndarray of shape (S,)
        Item of each sequence, the unit of resampling.
    prefix_length : ndarray of shape (S,)
        Number of tokens ahead of the window of each sequence, 0 in designs without a window.
    sequence_id : ndarray of shape (S,)
        Number of each sequence in the stimulus.
    tokens : ndarray of shape (S, T)
        Token ids, padded on the right with -1.
    positions : ndarray of shape (S, Q)
        Absolute position of every stored query, from 0.
    residual_rows : ndarray of shape (K,)
        Which of the Q stored queries have a stored residual stream, by default all.
    residual_positions : ndarray of shape (S, K)
        Absolute positions of these queries.

    Raises
    ------
    StoreError
        If the file is not HDF5, is of another format or version, or is incomplete or truncated; or
        if a data set or an attribute is missing, contradicts the header, or is not what was
        written.

    Examples
    --------
    ::

        with ActivationStore("smollm2.h5") as store:
            z = store.normalizer(5)                      # (S, Q, H), nats
            h = store["blocks.5.hook_resid_pre"]         # (S, K, d)
            for sequences, block in store.blocks("residual", 5, n_sequences=8):
                ...
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(path).absolute()
        self.header = header = open_complete(self.path)
        self._places = locate(self.path, header)
        self._closed = False
        with refusing(self.path, "read the file"):
            self._opened = self.path.stat()
        if any(self._opened.st_size < p.end for p in self._places.values()):
            raise self._shrunk()
        self._verify = verify
        self._row = {part: row for row, part in enumerate(header.parts(), 1)}  # of `digest`
        self._unchecked = set(self._row)
        for name in header.index:
            self._check(name, None)
        try:
            check_index(header, {name: self.read(name) for name in header.index})
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from error
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
        """Number of items: windows in the shifted design, sequences in the other designs."""
        return len(np.unique(self.item))

    @property
    def parts(self) -> tuple[ActivationStore, ...]:
        """The files that are read as one; here only this one."""
        return (self,)

    @property
    def has_bos(self) -> bool:
        """Whether every sequence begins with a BOS, native or forced."""
        return self.header.stimulus.get("bos_token") is not None

    @property
    def repeated_items(self) -> tuple[tuple[int, ...], ...]:
        """Groups of items that are the same, token for token, which intervals do not know."""
        return repeated_items(self.tokens, self.item, self.prefix_length)

    def repeats_in_words(self) -> str:
        """Say how many items repeat others and which, or "none"."""
        return repeats_in_words(self.repeated_items, self.n_items)

    def tokens_of(self, items: np.ndarray) -> np.ndarray:
        """Return the tokens of the sequences of some items.

        Parameters
        ----------
        items : array of int
            Numbers of the items.

        Returns
        -------
        ndarray of shape (S', T)
            Token ids, sorted by item and then by prefix length, padded on the right with -1.
        """
        order = np.lexsort((self.prefix_length, self.item))
        return self.tokens[order[np.isin(self.item[order], items)]]

    @property
    def own_position(self) -> dict[str, Any] | None:
        """How scores themselves change with position, a third channel; None if they do not."""
        return self.header.config.get(OWN_POSITION)

    @property
    def compute_type(self) -> str:
        """Type in which the model computed, such as bfloat16; or "unknown"."""
        return str(self.header.config.get("dtype") or "unknown")

    @property
    def learned_sinks(self) -> tuple[int, ...]:
        """Layers whose denominators have a learned logit: rows over real keys do not sum to 1."""
        return tuple(self.header.config.get(LEARNED_SINKS, ()))

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of rotation by which scores are split; none where they are not."""
        return self.header.bands

    @property
    def band_dimensions(self) -> tuple[tuple[int, ...], ...]:
        """Number of a head's dimensions in each band, by layer; none where there are no bands."""
        counts = self.header.config.get(BANDS, {}).get("dimensions", ())
        return tuple(map(tuple, counts))

    @property
    def origin(self) -> dict[str, Any] | None:
        """What is known of a model that was in memory; None if it was loaded by its name."""
        return self.header.config.get(ORIGIN)

    @property
    def attention_gain(self) -> tuple[float | None, ...]:
        """Factor between attention and the residual stream in each layer, counted in `sink_value`.

        None where a norm or a gate is in between: `sink_value` is what is written before it. Empty
        where the stream gets attention's output as it is.
        """
        return tuple(self.header.config.get(ATTENTION_GAIN, ()))

    @property
    def kept_at_position0(self) -> float:
        """Norm of what stays at position 0 without its embedding, relative to what was there.

        That is a learned position vector, which a replacement of the embedding leaves; 0 without.
        """
        return float(self.header.config.get(KEPT_AT_POSITION0, 0.0))

    def rounding(self, name: str, layer: int | None = None) -> float | None:
        """Largest error of a quantity or an effect against float64, of one layer or of all.

        Parameters
        ----------
        name : str
            A quantity; or ``M``, ``R``, ``mismatch``, ``moved``: see ``docs/format.md``.
        layer : int, optional
            0-based layer.

        Returns
        -------
        float or None
            In nats; of streams and of ``moved`` relative. None where it was not measured.
        """
        sizes = self.header.rounding.get(name)
        if not sizes:
            return None
        return float(max(sizes) if layer is None else sizes[layer])

    def rounding_in_words(self) -> str:
        """How far the numbers of the file are rounded, as seen in float64."""
        if reason := self.header.rounding.get("unknown"):
            return f"not known ({reason})"
        sizes = {name: self.rounding(name) for name in _ROUNDING}
        parts = [_ROUNDING[name].format(size) for name, size in sizes.items() if size is not None]
        return ", ".join(parts) or "not recorded"

    @property
    def n_digests(self) -> int:
        """Number of digests in the file; 0 in format 1, in which damaged data go unnoticed."""
        return 1 + len(self.header.parts()) if "digest" in self.header.datasets() else 0

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Kind of attention of each layer: ``full``, or ``window(W)`` with W in tokens."""
        return tuple(f"window({w})" if w else "full" for w in self.layer_window)

    def read(self, quantity: str, layer: int | None = None, sequences: Any = None) -> np.ndarray:
        """Return a stored data set, or one layer of it, or some of its sequences.

        Parameters
        ----------
        quantity : str
            Name of a data set in the file.
        layer : int, optional
            Layer number, from 0. For ``residual`` it is the block that the stream enters, or L for
            the output of the last block.
        sequences : slice or array of int, optional
            Sequences to return, by default all; no others are read.

        Returns
        -------
        ndarray
            Shape and unit are those in ``docs/format.md``, without the first axis if `layer` is
            given. The type is the stored one; ``residual`` may be float16, so widen it before
            summing.

        Raises
        ------
        StoreError
            If the quantity or the layer was not kept; the store is closed; the file was replaced or
            has shrunk since it was opened; or data read for the first time are not what was written
            or not finite.
        """
        place = self._place(quantity, layer)
        by_layer = DATA_SETS[quantity].by_layer and layer is None
        layers = self.header.layers(quantity) if by_layer else (layer,)
        for each in layers if self._verify else ():
            self._check(quantity, each)
        with self._open(quantity) as file:
            if sequences is None:
                return self._load(file, place)
            rows = np.arange(self.n_sequences)[sequences]
            parts = [self._rows(file, self._place(quantity, each), rows) for each in layers]
        return np.stack(parts) if by_layer else parts[0]

    def normalizer(self, layer: int) -> np.ndarray:
        """Return the log-normalizer of `layer` in nats, an array of shape (S, Q, H)."""
        return self.read("normalizer", layer)

    def residual(self, layer: int) -> np.ndarray:
        """Return the residual stream that enters block `layer`, an array of shape (S, K, d).

        Layer L is the output of the last block.
        """
        return self.read("residual", layer)

    def blocks(
        self, quantity: str, layer: int, n_sequences: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Iterate over one layer in blocks of sequences; memory does not grow with S.

        Parameters
        ----------
        quantity : str
            Name of a data set with a layer axis.
        layer : int
            Layer number, from 0.
        n_sequences : int
            Sequences per block; the last block may be shorter.

        Yields
        ------
        sequences : slice
            Numbers of the sequences in the block.
        block : ndarray of shape (block, ...)
            Their values, as a writable copy; float16 is widened to float32.

        Raises
        ------
        StoreError
            If the quantity or layer was not kept, `n_sequences` is below 1, or the file was
            replaced or has shrunk.
        """
        if n_sequences < 1:
            raise StoreError(f"blocks: n_sequences is {n_sequences}: it must be at least 1")
        place = self._place(quantity, layer)
        if self._verify:
            self._check(quantity, layer)
        with self._open(quantity) as file:
            for start in range(0, self.n_sequences, n_sequences):
                stop = min(start + n_sequences, self.n_sequences)
                block = self._rows(file, place, np.arange(start, stop))
                yield slice(start, stop), block.astype("<f4") if block.itemsize == 2 else block

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a data set by its name or by its TransformerLens hook name.

        ``blocks.L.hook_resid_pre`` is ``residual`` at L, ``blocks.L.hook_resid_post`` at L + 1.

        Raises
        ------
        StoreError
            If the file has no data set of that name; the message lists those it has.
        """
        if hook := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", name):
            return self.residual(int(hook[1]) + (hook[2] == "post"))
        return self.read(name)

    def verify(self) -> int:
        """Check every digest of the file, and that values are finite wherever they must be.

        Returns
        -------
        int
            Number of digests that were compared; 0 for a file of format 1, which has none.

        Raises
        ------
        StoreError
            If a data set is not what was written, or not finite, or if the coordinates of an axis
            are not those of the attributes; the message names the first and its layer.
        """
        check_coordinates(self.path, self.header)
        self._unchecked = set(self._row)
        for quantity, layer in self._row:
            self._check(quantity, layer)
        return self.n_digests

    def summary(self) -> dict[str, Any]:
        """Describe the file for ``posprobe inspect``.

        Returns
        -------
        dict
            ``path``; ``bytes``, the size of the file; ``digests``, their number (0 in format 1);
            ``compute_type``; ``rounding`` and ``repeated_items``, in words; ``attributes``, by
            name; and ``rows``, one dict per data set with ``name``, ``axes``, ``shape``, ``dtype``,
            ``unit``, ``bytes`` and ``meaning``.
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
            "bytes": self._opened.st_size,
            "digests": self.n_digests,
            "compute_type": self.compute_type,
            "rounding": self.rounding_in_words(),
            "repeated_items": self.repeats_in_words(),
            "attributes": header.attributes(),
            "rows": rows,
        }

    def to_xarray(
        self, quantities: Sequence[str] | str | None = None, layers: Sequence[int] | None = None
    ) -> xarray.Dataset:
        """Return quantities as an xarray Dataset with named axes, coordinates, units and meanings.

        Parameters
        ----------
        quantities : sequence of str, str or None
            Names of activation data sets (None: all in the file).
        layers : sequence of int or None
            Layers to take (None: all). What is chosen is read into memory, which
            ``xarray.open_dataset(path, engine="h5netcdf")`` does not do.

        Returns
        -------
        xarray.Dataset
            Item, prefix length and start of the queries are coordinates along `sequence`; the
            attributes are those of the file.

        Raises
        ------
        StoreError
            If the file lacks a quantity or a layer, or xarray is not installed.

        Examples
        --------
        ::

            data = store.to_xarray(["normalizer", "sink_score"])
            attention = np.exp(data.sink_score - data.normalizer)    # to key 0
            attention.mean(["sequence", "query"]).plot(x="head", y="layer")
        """
        return to_xarray(self.header, self.read, quantities, layers)

    def to_pandas(
        self, quantities: Sequence[str] | str | None = None, layers: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Return quantities as a table with one row for each number, or the table of sequences.

        Parameters
        ----------
        quantities : sequence of str, str or None
            Names of activation data sets that have the same axes. None: no activations, but one
            row for each sequence.
        layers : sequence of int or None
            Layers to take (None: all).

        Returns
        -------
        pandas.DataFrame
            Columns are the axes, `item`, the absolute `position` of the query, and the quantities.
            A vector of the residual stream is one cell.

        Raises
        ------
        StoreError
            If the file lacks a quantity or a layer, or the axes of two quantities differ.
        """
        return to_pandas(self.header, self.read, quantities, layers)

    def export(
        self,
        path: str | os.PathLike[str],
        quantities: Sequence[str] | str | None = None,
        layers: Sequence[int] | None = None,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Write chosen quantities to a safetensors or a Parquet file.

        Parameters
        ----------
        path : str or Path
            ``.safetensors`` holds the arrays as they are stored, those that index the sequences,
            and the attributes as metadata. ``.parquet`` holds the table of `to_pandas`.
        quantities : sequence of str, str or None
            Names of activation data sets (None: all in the file).
        layers : sequence of int or None
            Layers to take (None: all). The data must fit into memory.
        overwrite : bool
            Whether to replace an existing file.

        Returns
        -------
        Path

        Raises
        ------
        StoreError
            As in `to_pandas`; if the file exists or cannot be written; or without pyarrow.
        """
        return export(self.header, self.read, Path(path), quantities, layers, overwrite=overwrite)

    def close(self) -> None:
        """Read no more; arrays that were read stay valid."""
        self._closed = True

    def __enter__(self) -> ActivationStore:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store as its path; each worker opens the file itself."""
        return functools.partial(ActivationStore, verify=self._verify), (str(self.path),)

    def __repr__(self) -> str:
        """Return file, model, design and sizes in one line."""
        return (
            f"ActivationStore({str(self.path)!r}: {self.model}, {self.design}, "
            f"{self.n_sequences} sequences, {self.n_layers} layers)"
        )

    def _repr_html_(self) -> str:
        import pandas as pd

        header, stimulus = self.header, self.header.stimulus
        facts = {
            "model": f"{self.model}, {self.n_layers} layers of {self.n_heads} heads",
            "stimulus": f"{self.design}, {self.n_items} items in {self.n_sequences} sequences of "
            f"up to {self.length} tokens",
            "text": stimulus.get("corpus", ""),
            "position 0": f"BOS policy {stimulus.get('bos', 'unknown')}, embedding "
            f"{header.position0_treatment}",
            "variant": header.variant,
            "compute type": self.compute_type,
            "seed": header.seed,
        }
        data = pd.DataFrame(
            {
                "data set": name,
                "axes": ", ".join(AXES[axis].name for axis in DATA_SETS[name].axes),
                "shape": header.shape(name),
                "unit": DATA_SETS[name].unit,
                "meaning": DATA_SETS[name].meaning,
            }
            for name in header.quantities
        )
        return as_html(f"ActivationStore {self.path}", {"": fact_table(facts), "data": data})

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
        stride = math.prod(place.shape[1:]) * place.dtype.itemsize
        row = self.header.row(quantity, layer)
        return Place(place.offset + row * stride, place.shape[1:], place.dtype)

    @contextlib.contextmanager
    def _open(self, quantity: str) -> Iterator[FileIO]:
        """Open the file that the store was made from, and no other, to read a quantity."""
        if self._closed:
            raise StoreError(f"{self.path} is closed: open it again with ActivationStore")
        with refusing(self.path, f"read '{quantity}'"), FileIO(self.path) as file:
            if not os.path.samestat(os.fstat(file.fileno()), self._opened):
                raise StoreError(f"{self.path} was replaced while it was read: open it again")
            yield file

    def _shrunk(self) -> StoreError:
        return StoreError(f"{self.path} shrank while it was read: copy it again, then start again")

    def _fill(self, file: FileIO, offset: int, array: np.ndarray) -> None:
        """Read a contiguous array from one place of the file."""
        file.seek(offset)
        rest = array.reshape(-1).view("u1").data
        while rest:
            n_bytes = file.readinto(rest)
            if not n_bytes:
                raise self._shrunk()
            rest = rest[n_bytes:]

    def _load(self, file: FileIO, place: Place) -> np.ndarray:
        array = np.empty(place.shape, place.dtype)
        self._fill(file, place.offset, array)
        return array

    def _rows(self, file: FileIO, place: Place, rows: np.ndarray) -> np.ndarray:
        """Read some rows of the first axis; rows that follow one another are read at once."""
        found = np.empty((rows.size, *place.shape[1:]), place.dtype)
        stride = math.prod(place.shape[1:]) * place.dtype.itemsize
        flat = rows.ravel()
        edges = [0, *(np.flatnonzero(np.diff(flat) != 1) + 1), flat.size]
        for start, stop in itertools.pairwise(edges if flat.size else ()):
            self._fill(file, place.offset + flat[start] * stride, found[start:stop])
        return found.reshape((*rows.shape, *place.shape[1:]))

    def _check(self, quantity: str, layer: int | None) -> None:
        """Check one part against its digest and for values that are not finite, only once."""
        if (quantity, layer) not in self._unchecked:
            return
        place = self._place(quantity, layer)
        finite = self._digest(quantity, layer, place)
        if layer is not None and not finite:
            index = {name: self.read(name) for name in self.header.index}
            with self._open(quantity) as file:
                values = self._load(file, place)
            try:
                check_stored(self.header, quantity, layer, values, index)
            except StoreError as error:
                raise StoreError(f"{self.path}: {error}") from error
        self._unchecked.discard((quantity, layer))

    def _digest(self, quantity: str, layer: int | None, place: Place) -> bool:
        """Check one part against its digest, and return whether all of its values are finite."""
        found, finite, signed = begin_digest(quantity, layer), True, self.n_digests > 0
        chunk = np.empty(_CHUNK, "u1")
        with self._open(quantity) as file:
            for start in range(place.offset, place.end, _CHUNK):
                part = chunk[: place.end - start]
                self._fill(file, start, part)
                if signed:
                    found = extended(found, part.data)
                finite = finite and is_finite(part.view(place.dtype))
        if signed and found != self._written(quantity, layer):
            where = f"data set '/{quantity}'" + ("" if layer is None else f", layer {layer},")
            raise StoreError(
                f"{self.path}: {where} is not what was written (its CRC-32 differs): copy the "
                "file again, or capture again"
            )
        return finite

    def _written(self, quantity: str, layer: int | None) -> int:
        """Return the digest of one part that the file holds."""
        with self._open("digest") as file:
            return int(self._load(file, self._places["digest"])[self._row[quantity, layer]])
