"""Write one layer in a background thread while the next is being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from posprobe.store.writer import StoreWriter

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """Write with a `StoreWriter` in a separate thread, in the same order.

    Parameters
    ----------
    writer : StoreWriter
        Writer to use; nothing else may use it until the context is left.
    max_bytes : int, default=128 * 2**20
        Bytes that may wait to be written. Beyond that `put` blocks, so memory does not grow if the
        disk is slower than the model. One array of any size may always wait.

    Raises
    ------
    StoreError
        If the writer refuses something. The error is raised by a later `put`, `advance` or `flush`
        or at the end of the context, and nothing after the refused call is written.

    Notes
    -----
    If the context is left by an exception, everything handed over before it is still written.

    Examples
    --------
    ::

        with StoreWriter.create("a.h5", header, index) as writer:
            with BackgroundWriter(writer) as background:
                background.put("normalizer", values, layer)
                background.advance(len(values))
            writer.finish()
    """

    def __init__(self, writer: StoreWriter, max_bytes: int = 128 * 2**20) -> None:
        self._writer = writer
        self._max_bytes = max_bytes
        self._pool = ThreadPoolExecutor(1, "posprobe-writer")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0
        self._failed = False

    def put(self, quantity: str, values: np.ndarray, layer: int | None = None) -> None:
        """Queue a call of `StoreWriter.put`; the array must not change afterwards.

        Parameters
        ----------
        quantity : str
            A kept activation quantity.
        values : ndarray
            With `layer`, of shape (batch, ...); without, (layers, batch, ...).
        layer : int, optional
            Layer number.
        """
        self._submit(values.nbytes, self._writer.put, quantity, values, layer)

    def advance(self, n_sequences: int) -> None:
        """Queue a call of `StoreWriter.advance`.

        Parameters
        ----------
        n_sequences : int
            Number of sequences in the batch.
        """
        self._submit(0, self._writer.advance, n_sequences)

    def flush(self) -> None:
        """Wait until everything in the queue is written."""
        while self._waiting:
            self._collect()

    def __enter__(self) -> BackgroundWriter:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the queue; after an exception, do not hide it behind an error of the writer."""
        self._pool.shutdown(wait=True)
        if kind is None:
            self.flush()

    def _submit(self, n_bytes: int, function: Callable[..., None], *args: Any) -> None:
        while self._waiting and (
            self._waiting[0][0].done() or self._bytes + n_bytes > self._max_bytes
        ):
            self._collect()
        self._waiting.append((self._pool.submit(self._run, function, args), n_bytes))
        self._bytes += n_bytes

    def _run(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            function(*args)
        except BaseException:
            self._failed = True
            raise

    def _collect(self) -> None:
        future, n_bytes = self._waiting.popleft()
        self._bytes -= n_bytes
        future.result()
