"""Processes that share work: none takes the parent's signals, and none outlives the parent."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from posprobe.errors import signals_blocked

__all__ = ["in_processes"]

WATCH = 1.0  # seconds between two looks at the parent


def in_processes(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """Call a function with each tuple of arguments, in processes, and yield results in order.

    Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every process of a job.
    The workers are started with both blocked, so the parent alone decides, and ends them. A warning
    of a call is given here.

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
    tasks = (delayed(_heard)(function, call) for call in calls)
    attended = {"initializer": _leave_with, "initargs": (os.getpid(),)}
    try:
        parallel = Parallel(n_jobs, return_as="generator", **attended)
    except ValueError:  # a backend that the caller chose, which has all results at once
        yield from map(_given_here, Parallel(n_jobs)(tasks))
        return
    try:
        with signals_blocked("SIGINT", "SIGTERM"):
            results = parallel(tasks)
        with _abandoned(results):
            while (result := _next(results)) is not None:
                yield _given_here(result)
    except TerminatedWorkerError as error:
        raise MemoryError("a process was killed, likely for want of memory") from error


def _heard(
    function: Callable[..., Any], call: tuple[Any, ...]
) -> tuple[Any, list[warnings.WarningMessage]]:
    """Return the result of a call and its warnings, which a process would keep to itself."""
    with warnings.catch_warnings(record=True) as heard:
        return function(*call), heard


def _next(results: Iterator[Any]) -> Any:
    """Wait for the next result; a process that has grown is replaced, which concerns no user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
        return next(results, None)


def _given_here(result: tuple[Any, list[warnings.WarningMessage]]) -> Any:
    """Give the warnings of a call, and return its result."""
    found, heard = result
    for one in heard:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return found


@contextlib.contextmanager
def _abandoned(results: Generator[Any]) -> Iterator[None]:
    """Close results that are not all wanted any more, which joblib would advise against."""
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results.close()


def _leave_with(parent: int) -> None:
    """Let a worker end when its parent has; by itself it would wait for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, name="posprobe-parent", daemon=True).start()
