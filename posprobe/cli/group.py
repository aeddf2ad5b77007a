"""The group of all commands: every mistake becomes one line and an exit status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import posprobe
from posprobe.errors import PosprobeError, PosprobeWarning, missing_package, shown, stoppable

__all__ = ["MODELS", "STATISTICS", "check_limit", "main", "print_json", "print_path", "say"]

PIPE = getattr(signal, "SIGPIPE", 13)
LESS_MEMORY = "give it more, or ask for less: --batch-tokens, --jobs 1, fewer --n or --layers"
NO_MEMORY = ("can't start new thread", "allocate memory", "out of memory")
MIB = 2**20
STATISTICS, MODELS = 512, 1024  # MiB of addresses (ulimit -v) that libraries take by themselves
CHECK_SYSTEM = "check the disk, the folder and permissions, then run it again"


STATUS = (
    "Exit status: 0 done; 2 something to change, said in one line; 1 a fault of posprobe, an "
    "interval that fails in selfcheck, or a rerun with other data; 128 + N after signal N (130: "
    "Ctrl-C, 143: SIGTERM)."
)


class Commands(click.Group):
    """A group whose commands say what was wrong in one line.

    The exit status is 0 if all went well, 2 if the user or the machine has to change something, 1
    for a fault of posprobe (with a traceback), a selfcheck that fails and a rerun with other data,
    and after a signal 128 and its number, as in a shell.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; the user and the machine make the mistakes named here, we any other."""
        verbose = ctx.params["verbose"]
        try:
            _check_folder()
            with stoppable(), contextlib.nullcontext() if verbose else _hushed():
                return super().invoke(ctx)
        except PosprobeError as error:
            if verbose:
                traceback.print_exception(error)
            line, status = str(error), 2
        except ModuleNotFoundError as error:
            line, status = _without(error), 2
        except BrokenPipeError:  # whoever read the output has seen enough
            line, status = None, 128 + PIPE
        except MemoryError as error:
            line, status = f"out of memory ({error or 'no size is known'}): {LESS_MEMORY}", 2
        except RuntimeError as error:  # what torch and Python's threads say instead
            if not any(words in str(error) for words in NO_MEMORY):
                raise
            line, status = f"out of memory ({shown(str(error))[:200]}): {LESS_MEMORY}", 2
        except OSError as error:
            where = shown(f"{error.filename}: ") if error.filename else ""
            line, status = f"{where}{shown(error.strerror or str(error))}: {CHECK_SYSTEM}", 2
        except KeyboardInterrupt as error:
            notes = getattr(error, "__notes__", ["nothing new was written; run it again"])
            line, status = f"interrupted: {shown(notes[-1])}", 128 + getattr(error, "number", 2)
        say(line)
        ctx.exit(status)


def _without(error: ModuleNotFoundError) -> str:
    """What to say of a package that captures need; any other that is missing is a fault."""
    known = missing_package(error)
    if known is None:
        raise error
    return str(known)


def _check_folder() -> None:
    """Refuse a working directory that is gone: libraries end the process where they miss it."""
    try:
        os.getcwd()
    except OSError as error:
        raise PosprobeError("the working directory is gone; change to another") from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep warnings of libraries off the terminal, in processes that start meanwhile too.

    What a user should know is said by posprobe. Who wants to see them sets PYTHONWARNINGS.
    """
    if sys.warnoptions:
        yield
        return
    with warnings.catch_warnings():
        warnings.showwarning = _show_own
        os.environ["PYTHONWARNINGS"] = "ignore"
        try:
            yield
        finally:
            del os.environ["PYTHONWARNINGS"]


def _show_own(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Say what posprobe itself warns of, in one line."""
    if issubclass(category, PosprobeWarning):
        say(f"warning: {message}")


def check_limit(needed: int) -> None:
    """Refuse a limit of memory under which numerical libraries end the process, or never end."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed * MIB:
        raise MemoryError(f"the limit is {limit // MIB} MiB, the least is {needed} MiB")


def say(line: str | None) -> None:
    """Say one line where standard error can take it; what could not be written stays unwritten."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
                if line is not None and stream is sys.stderr:
                    click.echo(f"posprobe: {line}", err=True)
        except (OSError, ValueError):  # the interpreter would try again at exit, and complain
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1))


def print_path(path: Path) -> None:
    """Print a path, without control characters."""
    click.echo(shown(str(path)))


@click.group(cls=Commands, epilog=STATUS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(posprobe.__version__)
@click.option(
    "-v", "--verbose", is_flag=True, help="Show warnings of libraries, and where an error arose."
)
def main(verbose: bool) -> None:
    """Find out where a decoder-only language model gets absolute position from."""
