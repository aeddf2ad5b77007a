"""From stored files of several models to a report that compares them: no model, no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posprobe.claims import answers, hypothesis_claims
from posprobe.comparison import TrainingRun, compare_lineup, follow, line_up, line_up_steps
from posprobe.errors import DesignError, changed, progress_bar
from posprobe.intervals import Inference
from posprobe.report import output_folder, write_comparison, write_training
from posprobe.store import open_stores, path_list

__all__ = ["compare"]


def compare(
    files: str | Path | Iterable[str | Path],
    folder: str | Path,
    *,
    architectures: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    different_tokens: bool = False,
    steps: bool | Mapping[int, str] = False,
    inference: Inference = Inference(),
    progress: bool = True,
    **changes: Any,
) -> Path:
    """Compare several models, variants of one, or checkpoints of one, from their stored files.

    Files of different weights are models. With several models per architecture, posprobe tests
    architectures against the variation between models (a mixed model, its two-stage check, planned
    contrasts). With one model of each, it describes them and says why it does not test them. Files
    of the same weights under several variants are compared item by item, which does not test
    architectures. With `steps`, files are checkpoints of one training run in the order of their
    steps: the report says when each channel, sinks and the code for position come.

    Parameters
    ----------
    files : str or Path, or an iterable of these
        A capture of the shifted design for each model; optionally its natural captures (for
        sinks) and its captures with position 0 replaced.
    folder : str or Path
        Gets report.html, comparison.json, tables/ and figures/.
    architectures : mapping of str to str, optional
        Architecture to pattern of model names or files. By default the architecture is the model's
        name without a number at its end: zoo/rope-0 and zoo/rope-1 are two models of rope.
    blocks : mapping of str to str, optional
        Block to pattern, if models share something across architectures: with
        ``{"0": "*-0", "1": "*-1"}`` models of one seed are compared with each other.
    different_tokens : bool
        Allow files of different tokens (models with different tokenizers).
    steps : bool or mapping of int to str
        Take the files as checkpoints of one training run. True: the step is the number behind
        ``step`` in the model's revision or name, or in the file's path. A mapping gives each step a
        pattern of these, such as ``{1000: "*step1000*"}``.
    inference : Inference
        How intervals are made: level, resamples, seed.
    progress : bool
        Show a progress bar.
    **changes
        Single fields of `inference`: ``level=0.9``, ``seed=1``, ...

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    PosprobeError
        If the files cannot be compared; the message is one line.

    Examples
    --------
    ::

        posprobe.compare(glob.glob("out/*/shifted.h5"), "out/report")
        posprobe.compare(glob.glob("out/step*/*.h5"), "out/training", steps=True)
    """
    inference = changed(inference, changes)
    paths = [Path(path).absolute() for path in path_list(files)]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise DesignError(f"file {twice[0]} is given twice: give each file once")
    stores = open_stores(paths)
    if steps:
        if architectures or blocks or different_tokens:
            raise DesignError(
                "checkpoints of one training run have one architecture, no blocks and one "
                "tokenizer: leave these out, or leave the steps out"
            )
        run = line_up_steps(stores, steps=None if steps is True else steps)
        return _training(run, folder, inference, progress)
    lineup = line_up(
        stores, architectures=architectures, blocks=blocks, different_tokens=different_tokens
    )
    with _reporting(folder, len(lineup.members) + 2, progress) as (made, step):
        comparison = compare_lineup(lineup, inference=inference, step=step)
        step("report")
        claims = hypothesis_claims(comparison)
        return write_comparison(comparison, claims, answers(comparison, claims), made)


def _training(run: TrainingRun, folder: str | Path, inference: Inference, progress: bool) -> Path:
    with _reporting(folder, len(run.members) + 1, progress) as (made, step):
        training = follow(run, inference=inference, step=step)
        step("report")
        return write_training(training, made)


@contextlib.contextmanager
def _reporting(
    folder: str | Path, total: int, progress: bool
) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Give the folder of a report, and what is told of every step towards it."""
    with output_folder(folder) as made, progress_bar(progress, total=total, unit="step") as bar:

        def step(what: str) -> None:
            bar.set_description(f"compare: {what}")
            bar.update()

        yield made, step
