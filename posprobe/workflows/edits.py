"""Edits of the residual stream, fitted on a capture: position erased, or moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posprobe.errors import DesignError, ModelError
from posprobe.intervals import Array
from posprobe.models import ObservableModel, StreamEdit
from posprobe.probes import ClusterGram, Eraser, features, fit_eraser, position_slope
from posprobe.store import ActivationStore

__all__ = ["erase_position", "erase_random", "move_position"]


def erase_position(model: ObservableModel, path: str | Path, layer: int) -> StreamEdit:
    """Erase position and log(1 + position) from the stream that enters a block (LEACE).

    Parameters
    ----------
    model : ObservableModel
        The model that is to be edited.
    path : str or Path
        A capture of its residual streams in natural text, on which the eraser is fitted.
    layer : int
        Number of the block, from 1.

    Returns
    -------
    StreamEdit
        For ``model.editing``.

    Raises
    ------
    ModelError
        If the file is of another model.
    DesignError
        If it is not of the natural design, or lacks the stream of the block.

    Examples
    --------
    ::

        with model.editing(erase_position(model, "natural.h5", 10)):
            posprobe.capture(model, "erased.h5", design="shifted")
    """
    return _erasing(layer, "position erased", fit_eraser(_gram(model, path, layer)))


def erase_random(
    model: ObservableModel, path: str | Path, layer: int, *, seed: int = 0
) -> StreamEdit:
    """Erase as many random directions as `erase_position` erases: its control.

    Parameters
    ----------
    model, path, layer
        As in `erase_position`.
    seed : int
        Of the directions, drawn where the stream has variance 1.

    Returns
    -------
    StreamEdit
    """
    gram = _gram(model, path, layer)
    rank = fit_eraser(gram).rank
    eraser = fit_eraser(gram, random_rank=rank, seed=seed)
    return _erasing(layer, f"{rank} random directions erased", eraser)


def move_position(
    model: ObservableModel, path: str | Path, layer: int, start: int, stop: int
) -> StreamEdit:
    """Move the stream along position, as far as it moves from one position to another.

    The shift is the same for all tokens: the regression of the stream on position and
    log(1 + position), times the difference of these between the two positions.

    Parameters
    ----------
    model, path, layer
        As in `erase_position`.
    start, stop : int
        The two positions, in tokens; equal ones change nothing.

    Returns
    -------
    StreamEdit

    Raises
    ------
    DesignError
        Also if a position is not among those of the file.
    """
    gram = _gram(model, path, layer)
    with ActivationStore(path) as store:
        if not (1 <= start < store.length and 1 <= stop < store.length):
            raise DesignError(
                f"{store.path.name} has positions 1 to {store.length - 1}, and none is known "
                f"behind them: {start} to {stop} is out of range"
            )
    moved = np.array([stop - start, np.log1p(stop) - np.log1p(start)], float)
    shift: Array = moved @ position_slope(gram)
    mean = fit_eraser(gram).mean
    return StreamEdit(layer, f"moved from position {start} to {stop}", mean, shift=shift)


def _gram(model: ObservableModel, path: str | Path, layer: int) -> ClusterGram:
    """Statistics of the stream at unit RMS; the concept is position and log(1 + position)."""
    with ActivationStore(path) as store:
        if store.header.weights_digest != model.weights_digest():
            raise ModelError(
                f"{store.path.name} is of other weights than model {model.name!r}: fit the edit on "
                "a capture of this model"
            )
        if store.design != "natural":
            raise DesignError(f"{store.path.name} is of the {store.design} design: use a natural "
                              "one")  # fmt: skip
        X, y, groups, _ = features(store, layer, "residual")
        return ClusterGram.from_arrays(X, np.column_stack([y, np.log1p(y)]), groups)


def _erasing(layer: int, what: str, eraser: Eraser) -> StreamEdit:
    return StreamEdit(layer, what, eraser.mean, eraser.inward, eraser.outward)
