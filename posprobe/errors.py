"""What posprobe tells its user: errors, ways out, how far it has come, and what an object is.

The message of an error says what was wrong, with which name, and what to do next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import logging
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

__all__ = [
    "ClusterError",
    "DesignError",
    "ModelError",
    "PosprobeError",
    "PosprobeWarning",
    "StimulusError",
    "Stopped",
    "StoreError",
    "Telling",
    "as_html",
    "changed",
    "fact_table",
    "in_short",
    "missing_package",
    "noting",
    "progress_bar",
    "quieted",
    "shown",
    "signals_blocked",
    "stoppable",
]

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
ROWS = 12  # of each table of an object in a notebook
EVERY = 30.0  # seconds between two lines about progress in a log
WITH_MODELS = ("torch", "transformers", "accelerate", "gguf")  # the extra `models`
LINE = "{desc} {n_fmt} of {total_fmt} {unit}s ({percentage:.0f}%), {elapsed} gone, {remaining} left"
REPEATED = 1.0  # seconds within which a signal is the same one again, by another way


def changed(settings: Any, fields: Mapping[str, Any]) -> Any:
    """Return a copy of settings with some fields changed.

    Parameters
    ----------
    settings : dataclass
        The settings, such as `posprobe.intervals.Inference`.
    fields : mapping of str to value
        New values, by the names of the fields: the arguments of a call that are none of its own.

    Returns
    -------
    dataclass

    Raises
    ------
    TypeError
        If a field does not exist. The message names it, and those that do.
    """
    known = [field.name for field in dataclasses.fields(settings)]
    if unknown := [name for name in fields if name not in known]:
        raise TypeError(
            f"{unknown[0]!r} is no argument of this call, nor a field of "
            f"{type(settings).__name__} ({', '.join(known)})"
        )
    return dataclasses.replace(settings, **fields)


def shown(text: str) -> str:
    r"""Return text with an escape for every character that does not print.

    Control characters, line ends, marks that turn the direction of text, and halves of surrogate
    pairs: a terminal obeys some of them, and a page shows none.

    Examples
    --------
    >>> print(shown("a\x1b]0;b\nc"))
    a\x1b]0;b\nc
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def in_short(error: Exception) -> str:
    r"""Describe an exception of another library's code in one line.

    Examples
    --------
    >>> in_short(ValueError("first\nsecond"))
    'ValueError: first second'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class PosprobeError(ValueError):
    """The user's input cannot be used as it is; the message is one line that names it.

    The command line prints the message without a traceback and exits with status 2. Names and
    values in it may come from anywhere, so it is `shown`: one line that no terminal obeys.
    """

    def __str__(self) -> str:
        """The message, in one line."""
        return shown(super().__str__())


class PosprobeWarning(UserWarning):
    """The input can be used, but not all that is printed of it means what it says."""

    def __str__(self) -> str:
        """The message, in one line."""
        return shown(super().__str__())


class ModelError(PosprobeError):
    """A model cannot be found, loaded, or observed."""


class StimulusError(PosprobeError):
    """A text, a length, or a first-token policy does not give usable token sequences."""


class StoreError(PosprobeError):
    """A file is not a complete posprobe file of a version that this release reads."""


class DesignError(PosprobeError):
    """The data do not allow the statistic that was asked for."""


class ClusterError(PosprobeError):
    """A cluster cannot be reached, or its workers cannot do what is asked of them."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end: Ctrl-C, a scheduler's limit, or a terminal that closed.

    Notes (`noting`) say what is saved and how to go on.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def missing_package(error: ModuleNotFoundError) -> ModelError | None:
    """What to say where a package is not installed that only captures need.

    Parameters
    ----------
    error : ModuleNotFoundError

    Returns
    -------
    ModelError or None
        None for any other package, whose absence is a fault of the installation.

    Examples
    --------
    >>> from posprobe.errors import missing_package
    >>> print(missing_package(ModuleNotFoundError("No module named 'torch'", name="torch")))
    models and captures need torch, which is not installed: run pip install 'posprobe[models]'
    (stored files can be analyzed, compared and inspected without it)
    """
    package = (error.name or "").partition(".")[0]
    if package not in WITH_MODELS:
        return None
    return ModelError(
        f"models and captures need {package}, which is not installed: run pip install "
        "'posprobe[models]' (stored files can be analyzed, compared and inspected without it)"
    )


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` where a signal would end the process, so whatever is open is closed.

    The same signal often comes twice, from the terminal and from a program around this one. One
    that comes later ends the process at once, since files bear that too. Signals that somebody else
    handles or ignores, as under nohup, stay as they are.
    """
    first: list[float] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Stopped(number)
        if time.monotonic() - first[0] > REPEATED:
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in handled}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_blocked(*names: str) -> Iterator[None]:
    """Block signals for a while, and for good in the processes that start meanwhile.

    A terminal's Ctrl-C reaches all of its processes. This one ends the others, without their
    tracebacks.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM as it starts
    numbers = [getattr(signal, name) for name in names]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def noting(text: str) -> Iterator[None]:
    """Note on an interruption what is saved and how to go on; the outermost note is shown."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(text)
        raise


@contextlib.contextmanager
def quieted(logger: str, level: int = logging.ERROR) -> Iterator[None]:
    """Keep what a library logs below a level off the terminal, where posprobe says it in one line.

    Parameters
    ----------
    logger : str
        Name of the library's logger.
    level : int
        Least level that is still shown.
    """
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


class _Log(io.TextIOBase):
    """Takes what a bar draws, and passes on a line every 30 seconds."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def write(self, drawn: str) -> int:
        """Write the bar's text as a line of standard error, if it is time for one."""
        line, now = drawn.strip(), time.monotonic()
        if line and now - self.last >= EVERY and sys.stderr is not None:
            self.last = now
            print(f"posprobe: {line}", file=sys.stderr, flush=True)
        return len(drawn)


def progress_bar(shown: bool, **options: Any) -> tqdm:
    """Make a bar, for whatever standard error is.

    Parameters
    ----------
    shown : bool
        Whether to show anything.
    **options
        Arguments of tqdm: ``total``, ``unit``, ``desc``, ...

    Returns
    -------
    tqdm
        A bar on a terminal and in a notebook. Elsewhere, as in a log, it writes one plain line
        about every 30 seconds: what is done, and the time that is left.

    Examples
    --------
    >>> from posprobe.errors import progress_bar
    >>> with progress_bar(False, total=3) as bar:
    ...     _ = bar.update()
    """
    from tqdm.auto import tqdm  # which takes longer to import than all of this module

    if not shown:
        return tqdm(disable=True, **options)
    widgets = any("notebook" in kind.__module__ for kind in tqdm.__mro__)
    if widgets or (sys.stderr is not None and sys.stderr.isatty()):
        return tqdm(**options)
    slow = {"mininterval": EVERY, "maxinterval": EVERY, "bar_format": LINE}
    return tqdm(file=_Log(), **options | slow)


class Telling:
    """Gives an object a telling ``repr``, and a page for notebooks.

    A class says what it tells in `_line`, and in `_tables` what a notebook shows below.
    """

    def _line(self) -> str:
        raise NotImplementedError

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {}

    def __repr__(self) -> str:
        """Name of the class and what matters most, in one line."""
        return shown(f"<{type(self).__name__}: {self._line()}>")

    def _repr_html_(self) -> str:
        return as_html(repr(self), self._tables())


def as_html(line: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """Return a line and tables below it as HTML, with everything escaped.

    Parameters
    ----------
    line : str
        The line.
    tables : mapping of str to pandas.DataFrame
        Tables by their captions. No more than 12 rows of each are shown, and empty ones are not.

    Returns
    -------
    str

    Examples
    --------
    >>> import pandas as pd
    >>> as_html("<b>", {"n < 3": pd.DataFrame({"x": ["<i>"]})}).count("&lt;")
    3
    """
    parts = [f"<p><code>{_escaped(line)}</code></p>"]
    parts += [_table(caption, table) for caption, table in tables.items() if len(table)]
    return f'<div class="posprobe">{"".join(parts)}</div>'


def fact_table(facts: Mapping[str, Any]) -> pd.DataFrame:
    """Return facts as a table with a name and a value in each row."""
    import pandas as pd  # which takes longer to import than all of this module

    return pd.DataFrame({"": facts.keys(), " ": [str(value) for value in facts.values()]})


def _escaped(value: Any) -> str:
    return html.escape(shown(str(value)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return "" if value is None else _escaped(value)


def _table(caption: str, table: pd.DataFrame) -> str:
    head = "".join(f"<th>{_escaped(name)}</th>" for name in table.columns)
    rows = (
        "".join(f"<td>{_cell(value)}</td>" for value in row)
        for row in table.head(ROWS).itertuples(index=False)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    left = len(table) - ROWS
    more = f" (first {ROWS} of {len(table)} rows)" if left > 0 else ""
    return (
        f"<table><caption>{_escaped(caption + more)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
