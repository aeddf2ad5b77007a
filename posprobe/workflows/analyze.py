"""`posprobe analyze`: from the stored files of one model to its report, without a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from posprobe.analysis import analyze_files, count_steps, sort_files
from posprobe.claims import make_claims
from posprobe.report import output_folder, write_report
from posprobe.store import ActivationStore

__all__ = ["analyze"]


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
