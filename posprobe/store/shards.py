"""Shards: parts of one capture that many processes write, to be merged into a single file.

A shard is itself a posprobe file. It holds whole batches of the capture, sequences A to B, and
gets its name ``FILE.shards/A-B.h5`` only when it is complete. So the names in the folder tell how
far the capture has come.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.files import (
    REPLACE,
    RESUME,
    journal_path,
    partial_path,
    refusing,
    remove_shards,
    shard_folder,
)
from posprobe.store.hdf5 import compare
from posprobe.store.layout import Header
from posprobe.store.reader import ActivationStore
from posprobe.store.writer import StoreWriter

__all__ = ["ShardFolder", "missing_parts", "write_shard"]


class ShardFolder:
    """The folder ``FILE.shards`` that holds the finished shards of a capture.

    Parameters
    ----------
    path : str or Path
        Name of the complete file, next to which the folder lies.

    Attributes
    ----------
    folder : Path
        Name of the folder.

    Examples
    --------
    >>> ShardFolder("/data/a.h5").path(slice(8, 16)).as_posix()
    '/data/a.h5.shards/00000008-00000016.h5'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).absolute()
        self.folder = shard_folder(self._file)

    def path(self, sequences: slice) -> Path:
        """Return the name of the shard of `sequences`."""
        return self.folder / f"{sequences.start:08d}-{sequences.stop:08d}.h5"

    def open(self, *, resume: bool, overwrite: bool) -> list[slice]:
        """Create the folder if necessary, and return the sequences of its finished shards.

        Parameters
        ----------
        resume : bool
            Whether to keep shards of an earlier run.
        overwrite : bool
            Whether to remove them.

        Returns
        -------
        list of slice
            Sequences of each finished shard, in increasing order.

        Raises
        ------
        StoreError
            If there are shards and neither `resume` nor `overwrite` is true, or the folder cannot
            be written.
        """
        with refusing(self.folder, "write the shards"):
            self.folder.mkdir(exist_ok=True)
        found = self._finished()
        if found and overwrite:
            self.remove()
            self.folder.mkdir(exist_ok=True)
            return []
        if found and not resume:
            raise StoreError(f"{self.folder} holds {len(found)} shards: {RESUME}, or {REPLACE}")
        return found

    def merge(self, writer: StoreWriter, sequences: slice, index: Mapping[str, np.ndarray]) -> None:
        """Copy a finished shard to its place in the whole file, layer by layer, and remove it.

        Parameters
        ----------
        writer : StoreWriter
            Writer of the whole file, which must be complete up to the first of `sequences`.
        sequences : slice
            Sequences of the file that the shard holds.
        index : mapping of str to array
            Index data sets of these sequences.

        Raises
        ------
        StoreError
            If the shard is missing, damaged, or belongs to another capture.
        """
        path = self.path(sequences)
        if not path.exists():
            raise StoreError(
                f"{path} was written by a worker but is not here: put the output on a file system "
                "that all workers share"
            )
        header = writer.header.with_sequences(sequences.stop - sequences.start)
        compare(path, header, index)
        with ActivationStore(path) as shard:
            try:
                shard.verify()
            except StoreError as error:
                raise StoreError(f"{error}: delete this shard, then {RESUME}") from error
            for quantity in header.quantities:
                for layer in header.layers(quantity):
                    writer.put(quantity, shard.read(quantity, layer), layer)
        writer.advance(header.n_sequences)
        writer.sync()  # the shard may be removed only when its copy is safely on disk
        path.unlink()

    def remove(self) -> None:
        """Remove the folder and whatever killed workers left in it."""
        remove_shards(self._file)

    def _finished(self) -> list[slice]:
        names = [re.fullmatch(r"(\d{8,})-(\d{8,})\.h5", p.name) for p in self.folder.iterdir()]
        found = [slice(int(name[1]), int(name[2])) for name in names if name]
        return sorted(found, key=lambda part: (part.start, part.stop))


@contextlib.contextmanager
def write_shard(path: Path, header: Header, index: Mapping[str, Any]) -> Iterator[StoreWriter]:
    """Write a shard under a temporary name, and rename it in one step when it is complete.

    Several processes may write the same shard at once, as happens if a worker is given up for lost
    while it is still alive. The last one replaces the others with the same bytes.

    Parameters
    ----------
    path : Path
        Name of the complete shard.
    header : Header
        Header of the shard's own sequences.
    index : mapping of str to array
        Index data sets of these sequences, as for `StoreWriter`.

    Yields
    ------
    StoreWriter
        Writer to fill. Leaving the context without an error finishes the shard.

    Raises
    ------
    StoreError
        If the shard cannot be written, or is not complete at the end of the context.
    """
    attempt = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.h5")
    try:
        with StoreWriter.create(attempt, header, index, sync_seconds=math.inf) as writer:
            yield writer
            writer.finish()
        with refusing(path, "complete the shard"):
            os.replace(attempt, path)
    except BaseException:
        for leftover in (attempt, partial_path(attempt), journal_path(attempt)):
            leftover.unlink(missing_ok=True)
        raise


def missing_parts(
    batches: list[slice], finished: list[slice], size: int
) -> tuple[list[slice], list[slice]]:
    """Find which finished shards can be used and which parts are still to be captured.

    Parameters
    ----------
    batches : list of slice
        Sequences of every forward pass that the file does not hold yet, in order, without gaps.
    finished : list of slice
        Sequences of the finished shards. An earlier run with another number of workers may have
        cut them differently.
    size : int
        Largest number of batches in a new part.

    Returns
    -------
    kept : list of slice
        Finished shards that begin and end between batches and do not overlap.
    missing : list of slice
        Parts to capture: whole batches that no kept shard holds.

    Examples
    --------
    >>> batches = [slice(s, s + 2) for s in range(0, 12, 2)]
    >>> kept, missing = missing_parts(batches, [slice(4, 6)], 2)
    >>> kept, missing
    ([slice(4, 6, None)], [slice(0, 4, None), slice(6, 10, None), slice(10, 12, None)])
    """
    starts, stops = {b.start for b in batches}, {b.stop for b in batches}
    kept: list[slice] = []
    for shard in finished:
        fits = shard.start in starts and shard.stop in stops
        if fits and (not kept or kept[-1].stop <= shard.start):
            kept.append(shard)
    held = {b.start for b in batches for k in kept if k.start <= b.start < k.stop}
    missing: list[slice] = []
    room = 0
    for batch in batches:
        if batch.start in held:
            room = 0
        elif room:
            missing[-1] = slice(missing[-1].start, batch.stop)
            room -= 1
        else:
            missing.append(batch)
            room = size - 1
    return kept, missing
