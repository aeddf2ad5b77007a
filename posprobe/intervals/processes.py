"""Processes that refit or repeat: none takes the parent's signals, and none outlives the parent."""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.backend import resource_tracker as loky_tracker

__all__ = ["in_processes"]

WATCH = 1.0  # seconds between two looks at the parent


def in_processes(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """Call a function with each tuple of arguments, in processes, and yield results in order.

    Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every process of a job.
    The workers are started with both blocked, so the parent alone decides, and ends them.

    Parameters
    ----------
    function : callable
    calls : iterable of tuple
        Arguments of each call.
    n_jobs : int, optional
        Processes, as everywhere in joblib.

    Yields
    ------
    object
        What each call returned.

    Raises
    ------
    MemoryError
        If a process was killed, as the system does where memory runs out.
    """
    for tracker in (multiprocessing.resource_tracker, loky_tracker):
        tracker.ensure_running()  # as it starts, it unblocks what is blocked
    parallel = Parallel(
        n_jobs, return_as="generator", initializer=_leave_with, initargs=(os.getpid(),)
    )
    try:
        with _signals_blocked():  # processes start here, and inherit it
            results = parallel(delayed(function)(*call) for call in calls)
        with contextlib.closing(results):
            yield from results
    except BrokenProcessPool as error:
        raise MemoryError("a process was killed, likely for want of memory") from error


def _leave_with(parent: int) -> None:
    """Let a worker end when its parent has; by itself it would wait for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, name="posprobe-parent", daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
