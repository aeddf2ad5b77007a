"""Write captures to files, batch by batch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.digests import begin_digest, combined, digest_table, extended
from posprobe.store.files import (
    RESUME,
    check_place,
    journal_path,
    lock,
    partial_path,
    refusing,
    remove_shards,
    replace_file,
    suffixed,
    sync,
)
from posprobe.store.hdf5 import Place, compare, create_file, locate, open_complete
from posprobe.store.layout import FORMAT, VERSION, Header
from posprobe.store.values import checked_index, checked_values

__all__ = ["StoreWriter"]

_CHUNK = 2**22


class StoreWriter:
    """Write a capture to one file, batch by batch, so it can be killed and resumed.

    Use `create` or `resume` to make a writer. It writes ``PATH.partial`` and a journal of what is
    safely on disk. Leaving the context saves progress, but only `finish` completes the file and
    names it ``PATH``.

    Parameters
    ----------
    path : str or Path
        Name of the complete file.
    header : Header
        Shapes and provenance, all of which are known before the capture starts.
    sync_seconds : float
        Least time in seconds between two forced writes to disk.

    Attributes
    ----------
    done : int
        Number of complete sequences; the next batch starts there.
    complete : bool
        Whether ``PATH`` itself is complete, so there is nothing left to write.

    Examples
    --------
    >>> import tempfile
    >>> header = Header(model="tiny", design="natural", n_layers=1, n_heads=2, width=4,
    ...                 n_sequences=3, length=5, n_queries=5, quantities=("normalizer",),
    ...                 layer_window=(0,))
    >>> index = {"tokens": np.ones((3, 5)), "item": np.arange(3), "sequence_id": np.arange(3),
    ...          "prefix_length": np.zeros(3), "query_start": np.zeros(3)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StoreWriter.create(f"{folder}/a.h5", header, index) as writer:
    ...         writer.write({"normalizer": np.zeros((1, 2, 5, 2), "f4")})
    ...     with StoreWriter.resume(f"{folder}/a.h5", header, index) as writer:
    ...         print(writer.done)
    ...         writer.write({"normalizer": np.ones((1, 1, 5, 2), "f4")})
    ...         writer.finish().name
    2
    'a.h5'
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, sync_seconds: float) -> None:
        self.path = Path(path).absolute()
        self.header = header
        self.done = 0
        self.complete = False
        self.sync_seconds = sync_seconds
        self._index: Mapping[str, np.ndarray] = {}
        self._digests = self._begin_digests()  # of the complete sequences
        self._pending: dict[tuple[str, int], tuple[int, int]] = {}  # of the current batch
        self._places: dict[str, Place] = {}
        self._pool = ThreadPoolExecutor(1, "posprobe-digest")
        self._file = -1
        self._synced = time.monotonic()
        self._lock = lock(self.path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        header: Header,
        index: Mapping[str, Any],
        *,
        overwrite: bool = False,
        sync_seconds: float = 10.0,
    ) -> StoreWriter:
        """Lay out a new file.

        Parameters
        ----------
        path : str or Path
            Name of the complete file.
        header : Header
            Shapes and provenance.
        index : mapping of str to array
            ``tokens`` of shape (S, T), and ``item``, ``prefix_length``, ``sequence_id`` and
            ``query_start`` of shape (S,).
        overwrite : bool, default=False
            Whether to discard an unfinished capture of that name now, and to replace a complete
            one at `finish`.
        sync_seconds : float, default=10.0
            Least time in seconds between two forced writes to disk, which limits how much work a
            crash can lose.

        Returns
        -------
        StoreWriter

        Raises
        ------
        StoreError
            If the file exists, another process is writing it, the index does not fit the header,
            the disk is too small, or the folder cannot be written.
        """
        writer = cls(path, header, sync_seconds)
        with writer._closing_on_error():
            check_place(writer.path, overwrite=overwrite)
            writer._index = checked_index(header, index)
            writer._lay_out()
            writer._open()
        return writer

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        header: Header,
        index: Mapping[str, Any],
        *,
        sync_seconds: float = 10.0,
    ) -> StoreWriter:
        """Continue an interrupted capture, or start it if there is no file yet.

        Parameters
        ----------
        path : str or Path
            Name of the complete file.
        header : Header
            Shapes and provenance, the same as in the file.
        index : mapping of str to array
            Index data sets as in `create`, the same as in the file.
        sync_seconds : float, default=10.0
            Least time in seconds between two forced writes to disk.

        Returns
        -------
        StoreWriter
            If the file is already complete, so is the writer.

        Raises
        ------
        StoreError
            If another process is writing the file, the header or the index differs from the
            file's, the journal does not fit the file, or the file cannot be written.
        """
        writer = cls(path, header, sync_seconds)
        with writer._closing_on_error():
            partial = partial_path(writer.path)
            writer._index = checked = checked_index(header, index)
            if partial.exists():
                compare(partial, header, checked)
                writer._open()
                writer._continue()
            elif writer.path.exists():
                open_complete(writer.path)
                compare(writer.path, header, checked)
                writer.done, writer.complete = header.n_sequences, True
                writer._tidy()
                writer.close()
            else:
                writer._lay_out()
                writer._open()
        return writer

    def write(self, batch: Mapping[str, Any]) -> None:
        """Write every kept quantity of the next sequences, with all of its layers.

        Parameters
        ----------
        batch : mapping of str to array
            Arrays shaped as in `DATA_SETS`, except that the sequence axis has the length of the
            batch.

        Raises
        ------
        StoreError
            If the arrays differ in their number of sequences, or as in `put` and `advance`.
        """
        sizes = {np.shape(values)[1:2] for values in batch.values()}
        if len(sizes) != 1 or sizes == {()}:
            raise StoreError("batch: its arrays differ in number of sequences: pass one batch")
        for quantity, values in batch.items():
            self.put(quantity, values)
        self.advance(*sizes.pop())

    def put(self, quantity: str, values: Any, layer: int | None = None) -> None:
        """Write one quantity of the current batch, which starts at sequence `done`.

        Parameters
        ----------
        quantity : str
            A kept activation quantity.
        values : array
            With `layer`, of shape (batch, ...); without, (layers, batch, ...).
        layer : int, optional
            Layer number; for ``residual`` one of ``residual_layers``.

        Raises
        ------
        StoreError
            If the file is complete, the quantity or layer is not kept, the shape does not fit, or a
            value is infinite, too large for float16, or NaN in a quantity that always exists.
        """
        if self.complete:
            raise StoreError(f"{self.path} is complete: there is nothing to write")
        if quantity not in self.header.quantities:
            raise StoreError(
                f"quantity '{quantity}' is not in the header of {self.path.name}: "
                f"it keeps {', '.join(self.header.quantities)}"
            )
        layers = self.header.layers(quantity) if layer is None else (layer,)
        values = np.asarray(values)
        rows = values if layer is None else values[np.newaxis]
        self._check_shape(quantity, rows.shape, len(layers))
        digests = []  # each is computed while the next layers are written
        for number, row in zip(layers, rows, strict=True):
            stored = checked_values(quantity, number, self.done, row, self._places[quantity].dtype)
            position = self.header.row(quantity, number)
            before = self._digests[quantity, number]
            digests.append(self._pool.submit(extended, before, stored.data))
            self._pwrite(quantity, position * self.header.n_sequences + self.done, stored)
        for number, digest in zip(layers, digests, strict=True):
            self._pending[quantity, number] = rows.shape[1], digest.result()

    def advance(self, n_sequences: int) -> None:
        """Declare the current batch complete.

        Parameters
        ----------
        n_sequences : int
            Number of sequences in the batch.

        Raises
        ------
        StoreError
            If a kept quantity has not been `put` for all layers and all `n_sequences`.
        """
        for quantity, layer in self._digests:
            found, _ = self._pending.get((quantity, layer), (0, 0))
            if found != n_sequences:
                raise StoreError(
                    f"batch at sequence {self.done}: layer {layer} of '{quantity}' has {found} "
                    f"sequences of {n_sequences}: put every kept quantity before advancing"
                )
        self._digests.update({part: digest for part, (_, digest) in self._pending.items()})
        self._pending.clear()
        self.done += n_sequences
        if time.monotonic() - self._synced >= self.sync_seconds:
            self.sync()

    def sync(self) -> None:
        """Force all completed batches to disk, then record them in the journal.

        Raises
        ------
        StoreError
            If the disk is full or fails.
        """
        with refusing(self.path, "save progress"):
            os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
            journal = self._journal() | {"digest": combined(self._digests.values())}
            replace_file(journal_path(self.path), json.dumps(journal).encode())
        self._synced = time.monotonic()

    def finish(self) -> Path:
        """Mark the file complete and rename it to ``PATH``.

        Returns
        -------
        Path
            Path of the complete file.

        Raises
        ------
        StoreError
            If sequences are missing, or the disk fails.
        """
        if self.complete:
            return self.path
        if self.done != self.header.n_sequences:
            raise StoreError(
                f"{self.path} has {self.done} sequences of {self.header.n_sequences}: "
                "write the others before finishing"
            )
        self.sync()
        table = digest_table(self.header, self._index, self._digests.values())
        self._pwrite("digest", 0, table)
        self._pwrite("complete", 0, np.ones(1, "u1"))
        with refusing(self.path, "complete the file"):
            os.fsync(self._file)
            os.replace(partial_path(self.path), self.path)
            sync(self.path.parent)
            self._tidy()
        self.complete = True
        self.close()
        return self.path

    def close(self) -> None:
        """Release the file and its lock without completing it."""
        self._pool.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock >= 0:
            suffixed(self.path, ".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """Delete the unfinished file and its journal, and release the lock."""
        partial_path(self.path).unlink(missing_ok=True)
        journal_path(self.path).unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> StoreWriter:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        """Save progress and release the file; do not hide an exception behind a failed save."""
        if isinstance(error, KeyboardInterrupt):
            error.add_note(
                f"{partial_path(self.path)} keeps {self.done} of {self.header.n_sequences} "
                f"sequences; {RESUME}"
            )
        try:
            if self._file >= 0:
                with contextlib.suppress(StoreError) if kind else contextlib.nullcontext():
                    self.sync()
        finally:
            self.close()

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            with refusing(self.path, "write the file"):
                yield
        except BaseException:
            self.close()
            raise

    def _tidy(self) -> None:
        """Remove the journal and any shards, which only an unfinished capture needs."""
        journal_path(self.path).unlink(missing_ok=True)
        remove_shards(self.path)

    def _lay_out(self) -> None:
        needed = sum(self.header.nbytes(name) for name in self.header.datasets())
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise StoreError(
                f"{self.path} needs {needed:,} bytes and its disk has {free:,}: keep fewer "
                "sequences, quantities or layers, or use float16"
            )
        journal_path(self.path).unlink(missing_ok=True)
        temporary = suffixed(self.path, ".partial.tmp")
        try:
            create_file(temporary, self.header, self._index)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        os.replace(temporary, partial_path(self.path))
        sync(self.path.parent)

    def _open(self) -> None:
        self._places = locate(partial_path(self.path), self.header)
        self._file = os.open(partial_path(self.path), os.O_RDWR | os.O_CLOEXEC)

    def _begin_digests(self) -> dict[tuple[str, int], int]:
        """Return the digests of all layers before any data, in the order of `Header.parts`."""
        parts = self.header.parts()
        return {(name, n): begin_digest(name, n) for name, n in parts if n is not None}

    def _journal(self) -> dict[str, Any]:
        """Return the contents of the journal at this point, except for the digest of the data."""
        return {"format": FORMAT, "version": VERSION, "done": self.done}

    def _continue(self) -> None:
        """Continue where the journal ends, provided that its digest matches the data."""
        path = journal_path(self.path)
        if not path.exists():
            return
        try:
            journal = json.loads(path.read_bytes())
            self.done = _checked_done(journal, self.header.n_sequences)
            if (expected := self._journal() | {"digest": journal["digest"]}) != journal:
                raise ValueError(f"expected {expected}")
            self._digest_done()
            if journal["digest"] != combined(self._digests.values()):
                raise ValueError(f"the {self.done} sequences in the file are not those it counts")
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} is not a journal of this capture ({error}): delete it to write every "
                "sequence again"
            ) from error

    def _digest_done(self) -> None:
        """Recompute the digests of the complete sequences from the file itself."""
        for (quantity, layer), digest in self._digests.items():
            place = self._places[quantity]
            stride = math.prod(place.shape[2:]) * place.dtype.itemsize
            start = self.header.row(quantity, layer) * self.header.n_sequences * stride
            offset, rest = place.offset + start, self.done * stride
            while rest:
                read = os.pread(self._file, min(rest, _CHUNK), offset)
                if not read:
                    raise ValueError(f"'{quantity}' ends early")
                digest = extended(digest, read)
                offset, rest = offset + len(read), rest - len(read)
            self._digests[quantity, layer] = digest

    def _check_shape(self, quantity: str, found: tuple[int, ...], n_layers: int) -> None:
        tail = self.header.shape(quantity)[2:]
        room = self.header.n_sequences - self.done
        fits = len(found) >= 2 and found[0] == n_layers and found[2:] == tail
        if not fits or not 1 <= found[1] <= room:
            raise StoreError(
                f"quantity '{quantity}' at sequence {self.done} has shape {found}, expected "
                f"({n_layers}, 1 to {room}, {', '.join(map(str, tail))}): pass one batch"
            )

    def _pwrite(self, quantity: str, first: int, values: np.ndarray) -> None:
        if self._file < 0:
            raise StoreError(f"{self.path} is closed to writing: {RESUME}")
        place = self._places[quantity]
        stride = math.prod(place.shape[2:]) * place.dtype.itemsize
        offset, rest = place.offset + first * stride, values.data.cast("B")
        with refusing(self.path, f"write '{quantity}'"):
            while rest:
                written = os.pwrite(self._file, rest, offset)
                offset, rest = offset + written, rest[written:]


def _checked_done(journal: Any, n_sequences: int) -> int:
    """Return the number of complete sequences in a journal, or raise ValueError."""
    done = journal["done"]
    if type(done) is not int or not 0 <= done <= n_sequences:
        raise ValueError(f"{done!r} sequences of {n_sequences}")
    return done
