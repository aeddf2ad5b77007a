"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import difflib
import functools
import os
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from posprobe.cli.group import STATISTICS, check_limit
from posprobe.errors import PosprobeError


def shared(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command several options."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Numbers(click.ParamType):
    """Whole numbers with commas between them."""

    name = "N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Text to numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,4,8", param, ctx)


class Place(click.ParamType):
    """A file with a block, and with two positions: ``natural.h5:10`` or ``natural.h5:10:33:97``."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers
        self.name = "FILE:BLOCK" + ":FROM:TO" * (numbers == 3)

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Path, tuple[int, ...]]:
        """Text to the file and its numbers."""
        if isinstance(value, tuple):
            return value
        path, *numbers = str(value).rsplit(":", self.numbers)
        if not path or len(numbers) != self.numbers or not all(map(str.isdigit, numbers)):
            self.fail(
                f"{value!r}: write {self.name}, as in natural.h5:10{':33:97' * (self.numbers == 3)}"
            )
        return Path(path), tuple(map(int, numbers))


class Conditions(click.ParamType):
    """Factors with their levels, separated by blanks: ``position0=native,bos length=128,512``."""

    name = "FACTOR=LEVEL,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, tuple[Any, ...]]:
        """Text to levels by factor."""
        if isinstance(value, dict):
            return value
        found: dict[str, tuple[Any, ...]] = {}
        for part in shlex.split(value):
            factor, _, levels = part.partition("=")
            listed = tuple(level for level in levels.split(",") if level)
            if not listed or factor in found:
                self.fail(f"{part!r}: write each factor once, as in position0=native,bos", param)
            found[factor] = listed
        if "text" in found:
            from posprobe.stimuli import text_source

            found["text"] = tuple(text_source(text) for text in found["text"])
        if "length" in found:
            found["length"] = Numbers().convert(",".join(found["length"]), param, ctx)
        return found


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take a file's values for whatever the command line leaves out."""
    if path is None:
        return
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PosprobeError(
            f"{path} cannot be read as TOML ({reason}): write NAME = VALUE"
        ) from error
    known = {_key(other): other for other in ctx.command.params if other is not param}
    defaults = {}
    for name, value in given.items():
        if name not in known or known[name].name is None:
            near = difflib.get_close_matches(name, known, n=1) or [", ".join(sorted(known))]
            raise PosprobeError(
                f"{path}: {name!r} is not an option of {ctx.command.name}: did you mean {near[0]}?"
            )
        option = known[name]
        defaults[str(option.name)] = _typed(value, multiple=getattr(option, "multiple", False))
    ctx.default_map = defaults


def _key(param: click.Parameter) -> str:
    """The name of an option in a file: the long one, without dashes; or that of an argument."""
    return max(param.opts, key=len).lstrip("-")


def _typed(value: Any, *, multiple: bool = False) -> Any:
    """A value of TOML as it is written on the command line.

    Examples
    --------
    >>> _typed([1, 8]), _typed({"position0": ["native", "bos"], "length": [64]}), _typed(True)
    ('1,8', 'position0=native,bos length=64', 'True')
    """
    if isinstance(value, dict):
        factors = {name: each if isinstance(each, list) else [each] for name, each in value.items()}
        return shlex.join(f"{name}={_typed(each)}" for name, each in factors.items())
    if isinstance(value, list):
        parts = [str(each) for each in value]
        return parts if multiple else ",".join(parts)
    return [str(value)] if multiple else str(value)


def _go_offline(_ctx: click.Context, _param: click.Parameter, offline: bool) -> None:
    """Keep Hugging Face's libraries, which are not imported yet, off the network."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file with options, named as here without dashes; those given here win.",
)
OFFLINE = click.option(
    "--offline",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_go_offline,
    help="Do not use the network: models and data sets that this machine has.",
)


class Precision(click.ParamType):
    """A precision, of V_R or of a named variance: ``0.1`` or ``V_M=0.1``."""

    name = "[NAME=]NUMBER"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | tuple[str, float]:
        """Text to a number, with its name if there is one."""
        if not isinstance(value, str):
            return value
        name, _, number = value.rpartition("=")
        try:
            return (name, float(number)) if name else float(number)
        except ValueError:
            self.fail(f"{value!r} is not a number such as 0.1, or V_M=0.1", param, ctx)


TEXT = shared(
    click.option(
        "--text",
        "texts",
        multiple=True,
        metavar="TEXT",
        help="What to draw from: a file, a folder, a bundled text, or hf:NAME[@CONFIG][:SPLIT]; "
        "repeatable. `posprobe texts` lists them.  [default: python-reference]",
    ),
    click.option(
        "--text-field",
        metavar="NAME",
        help="Field with the text in JSON lines, Parquet and data sets.  [default: text]",
    ),
    click.option(
        "--text-characters",
        type=click.IntRange(min=1),
        help="Characters to read of each file and data set.  [default: all of a file, 4,000,000 of "
        "a data set]",
    ),
)
LOADING = shared(
    click.option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, or auto (layers over all GPUs).  [default: a GPU if there is one]",
    ),
    click.option(
        "--model-dtype",
        type=click.Choice(["float32", "float64", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Precision of weights and activations.",
    ),
    click.option("--name", default="", help="Name of the model in files and reports."),
    click.option("--revision", help="Branch, tag or commit of a hub model.  [default: main]"),
    OFFLINE,
)
BATCH = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens per forward pass.  [default: 2048; on a GPU by its free memory]",
)
REPORT = click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the report."
)


def _named_patterns(
    context: click.Context, option: click.Parameter, written: tuple[str, ...]
) -> dict[str, str]:
    """Return the pattern of each name, of an option that takes NAME=PATTERN."""
    pairs = [one.partition("=") for one in written]
    names = [name for name, *_ in pairs]
    if not all(name and pattern for name, _, pattern in pairs):
        raise click.BadParameter("write NAME=PATTERN", context, option)
    if twice := {name for name in names if names.count(name) > 1}:
        said = f"{min(twice)} is given twice: write one PATTERN that matches all of its models"
        raise click.BadParameter(said, context, option)
    return {name: pattern for name, _, pattern in pairs}


def _numbered_patterns(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[int, str]:
    try:
        return {int(step): pattern for step, pattern in _named_patterns(ctx, param, given).items()}
    except ValueError as error:
        raise click.BadParameter(
            f"{' '.join(given)!r}: steps are whole numbers, as in 1000='*step1000*'", ctx, param
        ) from error


ARCHITECTURE = click.option(
    "--architecture",
    "architectures",
    multiple=True,
    metavar="NAME=PATTERN",
    callback=_named_patterns,
    help="Architecture of the models whose name or file matches, e.g. rope='*rope-*'; repeatable.  "
    "[default: the model's name without a number at its end]",
)
BLOCK = click.option(
    "--block",
    "blocks",
    multiple=True,
    metavar="NAME=PATTERN",
    callback=_named_patterns,
    help="Block of the models whose name or file matches, e.g. 0='*-0': models that share a seed "
    "are compared with each other; repeatable.",
)
STEP = click.option(
    "--step",
    multiple=True,
    metavar="N=PATTERN",
    callback=_numbered_patterns,
    help="Training step of the files whose revision, model or path matches, e.g. "
    "1000='*step1000*'; repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Hide the progress.")
EXISTING = shared(
    click.option("--resume", is_flag=True, help="Continue an interrupted capture."),
    click.option("--overwrite", is_flag=True, help="Replace an existing file."),
)
SIZE_OPTIONS = shared(
    click.option(
        "--bos",
        default="native",
        show_default=True,
        help="Beginning of sequence: native (as the tokenizer does), force or none.",
    ),
    click.option(
        "--length",
        type=int,
        help="Tokens of the longest sequence.  [default: 256, or fewer if the model takes no more]",
    ),
    click.option(
        "--window",
        type=int,
        default=32,
        show_default=True,
        help="Tokens of the window of text in the shifted design.",
    ),
    click.option(
        "--prefixes",
        type=Numbers(),
        help="Positions of the window in the shifted design.  [default: five, up to the length]",
    ),
    click.option(
        "--offsets",
        type=Numbers(),
        default="1,2,4,8",
        show_default=True,
        help="Offsets at which scores are kept.",
    ),
    click.option(
        "--layers",
        "residual_layers",
        metavar="LAYERS",
        help="Layers whose residual stream is kept: 0-5,last or blocks.5.hook_resid_pre,...  "
        "[default: all]",
    ),
)


def inference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of all intervals, passed on as one `inference`."""

    @click.option(
        "--level", type=float, default=0.95, show_default=True, help="Level of all intervals."
    )
    @click.option(
        "--resamples", type=int, default=2000, show_default=True, help="Bootstrap samples."
    )
    @click.option(
        "--refits",
        type=int,
        default=40,
        show_default=True,
        help="Bootstrap samples in which probes are refitted.",
    )
    @click.option(
        "--jobs", type=int, default=-1, show_default=True, help="Processes; -1: one per core."
    )
    @click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of all random draws."
    )
    @functools.wraps(command)
    def wrapped(
        *, level: float, resamples: int, refits: int, jobs: int, seed: int, **others: Any
    ) -> Any:
        check_limit(STATISTICS)
        from posprobe.intervals import Inference

        inference = Inference(level, resamples, refits, seed, jobs)
        return command(inference=inference, **others)

    return wrapped
