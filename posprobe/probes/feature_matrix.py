"""Turn a stored file into what scikit-learn fits: X, y and groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posprobe.errors import DesignError
from posprobe.store import ActivationStore, opened

__all__ = ["FEATURES", "Features", "feature_blocks", "features"]

FEATURES = {
    "normalizer": "log-normalizers z of all heads (N)",
    "residual": "the residual stream entering the layer, each token at unit RMS (R)",
    "joint": "both (J)",
    "attention": "log attention weights s - z at fixed offsets (P)",
    "scores": "scores s at fixed offsets: attention under a fixed denominator (P_fix)",
}


class Features(NamedTuple):
    """The data for an estimator, with one row for each query.

    Attributes
    ----------
    X : ndarray of shape (n, p)
        Features, in float64.
    y : ndarray of shape (n,)
        Positions, in tokens.
    groups : ndarray of shape (n,)
        The item of each row: its sequence, or its window in the shifted design.
    feature_groups : dict of str to slice
        Columns of each feature group.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    groups: NDArray[np.int64]
    feature_groups: dict[str, slice]


def features(
    store: ActivationStore | str | Path,
    layer: int,
    which: str = "joint",
    *,
    sequences: slice = slice(None),
) -> Features:
    """Read the features of one layer, with position as the target and without position 0.

    Parameters
    ----------
    store : ActivationStore, str or Path
        A capture with the quantities of the features, or its file.
    layer : int
        Index of the layer. The residual stream is the one that enters it.
    which : {"joint", "normalizer", "residual", "attention", "scores"}
        The features: normalizers z of all heads (N), the residual stream (R), both (J), log
        attention weights s - z at fixed offsets (P), or scores s at these offsets (P_fix). Scores
        and normalizers are in nats.
    sequences : slice
        Stored sequences to read; by default all.

    Returns
    -------
    Features
        "attention" and "scores" leave out offsets that a sliding window hides, and rows whose
        largest offset would reach key 0. "residual" and "joint" have only the positions at which
        the residual stream was kept.

    Raises
    ------
    DesignError
        If `which` is unknown, a value is not finite, or no row or offset is left.
    StoreError
        If the file lacks the layer or the quantity.

    Notes
    -----
    The residual vector of each token is scaled to unit root mean square, as the norm of the block
    does before anything reads it. Without this, a single massive activation can dominate a linear
    fit: at layer 15 of SmolLM2 one token in 10,200 reduced the R2 of the probe from .56 to .00.

    Examples
    --------
    ::

        X, y, groups, feature_groups = features("natural.h5", layer=5)
        PositionProbe().fit(X, y, groups=groups).r2_  # out of fold; score(X, y) is in sample
    """
    if which not in FEATURES:
        raise DesignError(f"features {which!r} are unknown; use one of {', '.join(FEATURES)}")
    with opened(store) as own:
        return _read(own, layer, which, sequences)


def _read(store: ActivationStore, layer: int, which: str, sequences: slice) -> Features:
    blocks = _blocks(store, layer, which, sequences)
    first = 1 + (max(_seen_offsets(store, layer)) if which in ("attention", "scores") else 0)
    positions = store.residual_positions if which in ("residual", "joint") else store.positions
    positions = positions[sequences]
    keep = positions >= first
    if not keep.any():
        raise DesignError(
            f"{store.path.name} has no query from position {first} on; capture longer sequences"
        )
    widths = [math.prod(values.shape[2:]) for values in blocks.values()]
    edges = list(itertools.accumulate(widths, initial=0))
    feature_groups = dict(
        zip(blocks, itertools.starmap(slice, itertools.pairwise(edges)), strict=True)
    )
    X = np.empty((np.count_nonzero(keep), edges[-1]))
    for (name, part), values in zip(feature_groups.items(), blocks.values(), strict=True):
        flat = X[:, part]
        flat[:] = values.reshape(*keep.shape, -1)[keep]
        if not np.isfinite(flat).all():
            row = int(np.argwhere(keep)[~np.isfinite(flat).all(1)][0, 0])
            sequence = range(store.n_sequences)[sequences][row]
            raise DesignError(f"{name} of layer {layer}, sequence {sequence}, is not finite")
        if name == "residual":
            rms = np.sqrt(np.einsum("ij,ij->i", flat, flat) / flat.shape[1])
            flat /= np.where(rms > 0, rms, 1.0)[:, None]
    groups = np.broadcast_to(store.item[sequences, None], keep.shape)[keep].astype(np.int64)
    return Features(X, positions[keep].astype(float), groups, feature_groups)


def _seen_offsets(store: ActivationStore, layer: int) -> list[int]:
    limit = store.layer_window[layer] or np.inf
    seen = [offset for offset in store.offsets if offset < limit]
    if not seen:
        raise DesignError(
            f"layer {layer} of {store.path.name} has no score at an offset that its queries see; "
            "capture with offset_score and smaller offsets"
        )
    return seen


def feature_blocks(
    store: ActivationStore, layer: int, which: str = "joint", *, n_sequences: int = 16
) -> Iterator[Features]:
    """Stream the features of one layer in blocks, so memory does not grow with their number.

    Parameters
    ----------
    store, layer, which
        As in `features`.
    n_sequences : int
        Number of sequences in a block; the last block may have fewer.

    Yields
    ------
    Features
        The features of the next sequences.

    Raises
    ------
    DesignError, StoreError
        As in `features`.
    """
    for start in range(0, store.n_sequences, n_sequences):
        yield features(store, layer, which, sequences=slice(start, start + n_sequences))


def _blocks(
    store: ActivationStore, layer: int, which: str, sequences: slice
) -> dict[str, np.ndarray]:
    if which in ("attention", "scores"):
        seen = _seen_offsets(store, layer)
        scores = store.read("offset_score", layer, sequences)[..., np.isin(store.offsets, seen)]
        if which == "attention":
            scores = scores - store.read("normalizer", layer, sequences)[..., None]
        return {which: scores}
    blocks = {}
    if which in ("normalizer", "joint"):
        z = store.read("normalizer", layer, sequences)
        blocks["normalizer"] = z if which == "normalizer" else z[:, store.residual_rows]
    if which in ("residual", "joint"):
        blocks["residual"] = store.read("residual", layer, sequences)
    return blocks
