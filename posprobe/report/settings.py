"""How the intervals of a report were made: in words, as a table, and as options of a command."""

from __future__ import annotations

import dataclasses

import pandas as pd

from posprobe.intervals import Inference

__all__ = ["settings_as_options", "settings_in_words", "settings_table"]

MEANINGS = {
    "level": "nominal coverage of every interval",
    "n_resamples": "bootstrap samples of items or sequences, where an interval takes them",
    "n_refits": "bootstrap samples in which probes are fitted again",
    "seed": "seed of all resampling",
}


def settings_in_words(inference: Inference) -> str:
    """Level, samples and seed in one line.

    Examples
    --------
    >>> settings_in_words(Inference(level=0.9))
    'level 90%; 2,000 bootstrap samples where an interval takes them; 40 refits of probes; seed 0'
    """
    return (
        f"level {inference.percent}; {inference.n_resamples:,} bootstrap samples where an interval "
        f"takes them; {inference.n_refits} refits of probes; seed {inference.seed}"
    )


def settings_table(inference: Inference) -> pd.DataFrame:
    """One row for each setting: its name, its value and what it means.

    Examples
    --------
    >>> settings_table(Inference()).iloc[:2, :2].values.tolist()
    [['level', '0.95'], ['n_resamples', '2000']]
    """
    values = dataclasses.asdict(inference)
    rows = [(name, str(values[name]), meaning) for name, meaning in MEANINGS.items()]
    return pd.DataFrame(rows, columns=["setting", "value", "meaning"])


def settings_as_options(inference: Inference) -> str:
    """The options of a command that give these settings, with a blank ahead; defaults left out.

    Examples
    --------
    >>> settings_as_options(Inference(level=0.9, n_resamples=500)), settings_as_options(Inference())
    (' --level 0.9 --resamples 500', '')
    """
    usual = dataclasses.asdict(Inference())
    values = dataclasses.asdict(inference)
    return "".join(
        f" --{name.removeprefix('n_')} {values[name]}"
        for name in MEANINGS
        if values[name] != usual[name]
    )
