"""The whole study on one model: capture every stimulus, analyze the files, write the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from posprobe.analysis import analyze_files, count_steps, sort_files
from posprobe.claims import make_claims
from posprobe.errors import DesignError, StoreError
from posprobe.report import write_report
from posprobe.stimuli import Stimulus, default_corpus, make_stimulus
from posprobe.store import ActivationStore

if TYPE_CHECKING:
    from posprobe.models import ObservableModel

__all__ = ["REPLACEMENTS", "analyze", "audit"]

REPLACEMENTS = ("mean", "content")
N_NATURAL, N_SHIFTED, N_REPEATED = 40, 32, 4
LEAST_N = 5


@dataclass(frozen=True)
class Plan:
    """One capture of an audit."""

    file: str
    design: str
    n: int
    bos: str
    position0: str = "native"
    residual: bool = False


def audit(
    model: ObservableModel | str,
    folder: str | Path,
    *,
    variant: str = "standard",
    text: str | None = None,
    n: int | None = None,
    length: int = 256,
    replacements: Sequence[str] = REPLACEMENTS,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Find out where a model's absolute position comes from: capture, analyze, report.

    Captures the natural and the shifted design, the shifted one again with each replacement of
    position 0, and one repeated token with and without BOS. Interrupted, it goes on from there when
    it is called again with the same arguments.

    Parameters
    ----------
    model : ObservableModel or str
        Or what `load_model` takes.
    folder : str or Path
        Gets report.html, claims.json, tables/, figures/ and the captured files.
    variant : str
        See `posprobe.variants`; only with `model` given by name.
    text : str or None
        The text to draw from (None: the Python language reference that comes with CPython).
    n : int or None
        Sequences and windows, at least 5 (None: 40 natural sequences and 32 windows).
    length : int
        Tokens of the longest sequence.
    replacements : sequence of str
        Treatments of position 0, see `posprobe.captures.POSITION0`.
    seed : int
    progress : bool

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    PosprobeError
        For a model, text, size or folder that cannot be used, in one line.
    """
    from posprobe.models import load_model

    if n is not None and n < LEAST_N:
        raise DesignError(f"n={n} is too few: probes need {LEAST_N} folds of sequences, so raise n")
    with output_folder(folder) as made:
        if isinstance(model, str):
            model = load_model(model, variant=variant)
        paths = _capture_all(model, made, text, n, length, replacements, seed, progress)
        return analyze(paths, made, seed=seed, progress=progress)


def analyze(
    files: Iterable[str | Path], folder: str | Path, *, seed: int = 0, progress: bool = True
) -> Path:
    """Write tables, figures, claims and report from stored files alone, without a model.

    Parameters
    ----------
    files : iterable of str or Path
        Captures of one model and variant.
    folder : str or Path
    seed : int
        Of all resampling.
    progress : bool

    Returns
    -------
    Path
        Of the report.
    """
    captured = sort_files(ActivationStore(path) for path in files)
    off = None if progress else True
    total = count_steps(captured) + 1
    with output_folder(folder) as made, tqdm(total=total, unit="step", disable=off) as bar:

        def step(what: str) -> None:
            bar.set_description(f"analyze: {what}")
            bar.update()

        analysis = analyze_files(captured, seed=seed, step=step)
        bar.set_description("analyze: report")
        report = write_report(analysis, make_claims(analysis), made)
        bar.update()
    return report


@contextlib.contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder that can be written before any work is done; unmake it if it stays empty."""
    folder = Path(folder)
    probe = folder / ".writable"
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # which it is where something was written
            for path in new:
                path.rmdir()
        raise


def _plans(model: ObservableModel, n: int | None, replacements: Sequence[str]) -> list[Plan]:
    """The captures of an audit, in order; BOS is forced where the tokenizer has one."""
    bos = "none" if model.bos_id is None else "force"
    natural, shifted = (N_NATURAL, N_SHIFTED) if n is None else (n, n)
    plans = [
        Plan("natural.h5", "natural", natural, "native", residual=True),
        Plan("shifted.h5", "shifted", shifted, bos),
        *(Plan(f"replaced_{r}.h5", "shifted", shifted, bos, r) for r in replacements),
        Plan("repeated.h5", "repeated", N_REPEATED, "none"),
    ]
    if bos == "force":
        plans.append(Plan("bos_repeated.h5", "repeated", N_REPEATED, bos))
    return plans


def _capture_all(
    model: ObservableModel,
    folder: Path,
    text: str | None,
    n: int | None,
    length: int,
    replacements: Sequence[str],
    seed: int,
    progress: bool,
) -> list[Path]:
    from posprobe.captures import QUANTITIES, capture_stimulus

    corpus = model.tokenize(default_corpus() if text is None else text)
    work: list[tuple[Plan, Stimulus]] = []
    for plan in _plans(model, n, replacements):
        stimulus = make_stimulus(
            plan.design,
            corpus,
            n=plan.n,
            length=length,
            bos=plan.bos,
            native_bos=model.native_bos,
            bos_id=model.bos_id,
            seed=seed,
        )
        work.append((plan, stimulus))
    total = sum(int(stimulus.lengths.sum()) for _, stimulus in work)
    off = None if progress else True
    with tqdm(total=total, unit="token", unit_scale=True, disable=off) as bar:
        for plan, stimulus in work:
            bar.set_description(f"capture: {plan.file}")
            quantities = tuple(q for q in QUANTITIES if plan.residual or q != "residual")
            capture_stimulus(
                model,
                stimulus,
                folder / plan.file,
                quantities=quantities,
                position0=plan.position0,
                resume=True,
                progress=bar,
            )
    return [folder / plan.file for plan, _ in work]
