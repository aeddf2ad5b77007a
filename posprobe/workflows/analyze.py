"""`posprobe analyze`: from the stored files of one model to its report, without a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posprobe.analysis import analyze_files, possible_steps, sort_files
from posprobe.claims import make_claims
from posprobe.errors import changed, progress_bar
from posprobe.intervals import Inference
from posprobe.report import output_folder, write_report
from posprobe.store import open_stores

__all__ = ["analyze"]


def analyze(
    files: str | Path | Iterable[str | Path],
    folder: str | Path,
    *,
    inference: Inference = Inference(),
    progress: bool = True,
    **changes: Any,
) -> Path:
    """Write tables, figures, claims and report from stored files alone, without a model.

    Parameters
    ----------
    files : str or Path, or an iterable of these
        Captures of one model and variant. Files of one design with different items are read as one.
    folder : str or Path
        Gets report.html, claims.json, tables/ and figures/; made if it does not exist.
    inference : Inference
        How intervals are made: level, resamples, refits, seed, processes.
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
        If the files cannot be analyzed together; the message is one line.
    """
    inference = changed(inference, changes)
    captured = sort_files(open_stores(files))
    total = len(possible_steps(captured)) + 1
    with output_folder(folder) as made, progress_bar(progress, total=total, unit="step") as bar:

        def step(what: str) -> None:
            bar.set_description(f"analyze: {what}")
            bar.update()

        analysis = analyze_files(captured, inference=inference, step=step)
        step("report")
        return write_report(analysis, make_claims(analysis), made)
