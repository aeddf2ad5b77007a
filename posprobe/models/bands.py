r"""Bands of rotation: which dimensions of a head turn how often over the length of a sequence.

A rotary embedding turns pair k of a head's dimensions by :math:`w_k` radians per token, so over T
tokens it turns :math:`w_k (T - 1) / 2 \pi` times. A band is the set of pairs whose number of turns
is in one range. Which dimensions make a pair is not taken from a configuration but measured: in a
sequence of one repeated token in which each position sees only itself, the query at position i is
the query at 0, rotated by i.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.interventions import Intervention
from posprobe.models.observable import ObservableModel
from posprobe.models.observation import Observer
from posprobe.models.proofs import random_tokens
from posprobe.models.rotary import Rotation, follows_length, rotations
from posprobe.models.scores import Observation

__all__ = ["MOST_BANDS", "Bands", "find_bands", "prove_bands"]

MOST_BANDS = 4  # each doubles the cost, and dimensions that do not rotate are one more
RATIO = 4  # the edges of bands are powers of this number of turns
UNROTATED = "unrotated"
# Largest errors of rotated queries and of sums over bands, relative to the largest value.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUNDED = 1e-1  # the same in coarser types


@dataclass(frozen=True)
class Bands:
    """The dimensions of the heads of every layer, by how often they turn.

    Attributes
    ----------
    names : tuple of str
        From the fastest band to the slowest; dimensions that do not rotate come last, if any.
    dimensions : tuple of tuple of tuple of int
        For each layer and band, the dimensions of a head. They may be none.
    """

    names: tuple[str, ...]
    dimensions: tuple[tuple[tuple[int, ...], ...], ...]

    def describe(self) -> dict[str, Any]:
        """Return what a file says: the names, and the number of dimensions by layer and band."""
        counts = [[len(dims) for dims in layer] for layer in self.dimensions]
        return {"names": list(self.names), "dimensions": counts}

    def zeroing(self, numbers: tuple[int, ...]) -> Intervention:
        """Return the intervention that leaves some bands out of all scores.

        Parameters
        ----------
        numbers : tuple of int
            Numbers of the bands, from 0 for the fastest.

        Returns
        -------
        Intervention

        Raises
        ------
        ModelError
            If there is no such band, no layer has a dimension in it, or nothing would be left.
        """
        for number in numbers:
            if not 0 <= number < len(self.names):
                raise ModelError(
                    f"there is no band {number} to zero; the model has 0 to {len(self.names) - 1} "
                    f"({', '.join(self.names)})"
                )
            if not any(layer[number] for layer in self.dimensions):
                raise ModelError(
                    f"band {number} ({self.names[number]}) has no dimensions in this model at this "
                    "length, so zeroing it changes nothing; zero another one"
                )
        if len(set(numbers)) == len(self.names):
            raise ModelError("zeroing all bands leaves no scores; leave one of them")
        zeroed = (
            (layer, tuple(sorted({d for number in numbers for d in bands[number]})))
            for layer, bands in enumerate(self.dimensions)
        )
        return Intervention(zero_dimensions=tuple((at, dims) for at, dims in zeroed if dims))


def find_bands(model: ObservableModel, length: int, n_bands: int) -> Bands:
    """Find which dimensions of each layer's heads turn how often over `length` tokens.

    Parameters
    ----------
    model : ObservableModel
        Model with a rotary embedding.
    length : int
        Tokens of the longest sequence.
    n_bands : int
        Number of bands, from 2 to `MOST_BANDS`. Their edges are 1 turn for two bands, 4 and 1/4
        for three, and 16, 1 and 1/16 for four.

    Returns
    -------
    Bands

    Raises
    ------
    ModelError
        If the number is out of range, the model rotates nothing, its frequencies follow the length
        of the sequence, or the queries of a layer are not rotated as its modules say.

    Examples
    --------
    >>> from posprobe.models import find_bands, load_model
    >>> bands = find_bands(load_model("zoo/rope-0"), 128, 3)
    >>> bands.names
    ('turns > 4', 'turns 1/4 to 4', 'turns < 1/4')
    >>> [len(dims) for dims in bands.dimensions[0]]
    [6, 10, 16]
    """
    if not 2 <= n_bands <= MOST_BANDS:
        raise ModelError(f"{n_bands} bands: give a number from 2 to {MOST_BANDS}")
    if follows_length(model.model):
        raise ModelError(
            f"model {model.name!r} has frequencies that follow the length of the sequence, so its "
            "pairs belong to no band; leave the bands out"
        )
    known = rotations(model.model)
    edges = [Fraction(RATIO) ** (n_bands - 2 - 2 * j) for j in range(n_bands - 1)]
    layers = []
    for layer, query in enumerate(_repeated_queries(model) if known else ()):
        turns = _frequencies(model, layer, query, known) * (length - 1) / (2 * np.pi)
        place = (turns[:, None] < [float(edge) for edge in edges]).sum(1)
        place[turns == 0] = n_bands
        layers.append([np.flatnonzero(place == band).tolist() for band in range(n_bands + 1)])
    if not any(dims for bands in layers for dims in bands[:n_bands]):
        raise ModelError(
            f"model {model.name!r} rotates nothing, so its scores have no bands of rotation; leave "
            "the bands out"
        )
    names = [
        f"turns > {edges[0]}",
        *(f"turns {low} to {high}" for high, low in itertools.pairwise(edges)),
        f"turns < {edges[-1]}",
        UNROTATED,
    ]
    kept = n_bands + any(bands[n_bands] for bands in layers)
    return Bands(tuple(names[:kept]), tuple(tuple(map(tuple, bands[:kept])) for bands in layers))


class _Queries(Observer):
    """Keeps the queries of each layer, while each position sees only itself."""

    def __init__(self) -> None:
        super().__init__(intervention=Intervention(window=1))
        self.queries: dict[int, Tensor] = {}

    def tempered(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, float]:
        self.queries[layer] = query[0].to("cpu", torch.float64)
        return query, scaling


def _repeated_queries(model: ObservableModel) -> list[NDArray[np.float64]]:
    """Queries (head, query, d) of every layer in a sequence of one repeated token."""
    token = random_tokens(model)[:1]
    observer = _Queries()
    model.run(token[:, :1].expand_as(token), observer)
    return [observer.queries[layer].numpy() for layer in range(model.n_layers)]


def _frequencies(
    model: ObservableModel,
    layer: int,
    query: NDArray[np.float64],
    known: dict[str, Rotation],
) -> NDArray[np.float64]:
    """The frequency of each dimension, (d,): that of the layout which turns the queries as seen."""
    found = [(_error(query, *layout), layout) for layout in _layouts(query.shape[-1], known)]
    error, (first, second, speeds) = min(found, key=lambda pair: pair[0])
    if not error <= TOLERANCE.get(model.model.dtype, ROUNDED):
        raise ModelError(
            f"model {model.name!r}: queries of layer {layer} are not rotated as its rotary "
            f"embedding says (off by {error:.1e}), so their bands are not known; leave the bands "
            "out"
        )
    frequencies = np.zeros(query.shape[-1])
    frequencies[first] = frequencies[second] = speeds
    return frequencies


def _layouts(
    size: int, known: dict[str, Rotation]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Ways in which pairs may lie in a head: the dimensions of each pair, and its frequency.

    Pairs are split into halves or are neighbours, at the start of the head or at its end; or the
    layer does not rotate.
    """
    nothing = np.arange(0)
    yield nothing, nothing, nothing.astype(float)
    for rotation in known.values():
        speeds = np.abs(rotation.frequencies)
        pairs = np.arange(len(speeds))
        for start in sorted({0, size - 2 * len(speeds)}):
            if start >= 0:
                yield start + pairs, start + pairs + len(speeds), speeds
                yield start + 2 * pairs, start + 2 * pairs + 1, speeds


def _error(
    query: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    speeds: NDArray[np.float64],
) -> float:
    """Largest difference between queries and query 0 rotated, relative to the largest query."""
    turned = query[..., first] + 1j * query[..., second]
    angle = np.exp(1j * np.outer(np.arange(query.shape[1]), speeds))
    rest = np.delete(query, np.concatenate([first, second]), axis=-1)
    gaps = [np.abs(turned - turned[:, :1] * angle), np.abs(rest - rest[:, :1])]
    return float(max(gap.max(initial=0.0) for gap in gaps) / np.abs(query).max())


def prove_bands(model: ObservableModel, bands: Bands, change: Intervention) -> None:
    """Prove that scores are sums over bands, and that bands which are zeroed are out of them.

    On a short random input, the scores of all bands must add up to the score, and the parts of the
    normalizer to the normalizer. The scores of a band that `change` zeroes must be 0, and the
    logits must differ from those of the same change without zeroed bands.

    Parameters
    ----------
    model : ObservableModel
    bands : Bands
        Result of `find_bands`.
    change : Intervention
        The change of attention of the capture.

    Raises
    ------
    ModelError
        If one of these does not hold, or scores are capped; the message names the model.
    """
    tokens = random_tokens(model)
    window = tokens.shape[1] // 2
    own = tokens.shape[1] - window
    seen: dict[tuple[str, int], Tensor] = {}

    def emit(name: str, layer: int, tensor: Tensor) -> None:
        seen[name, layer] = tensor

    observation = Observation(window, (1, window), (own,), window, bands=bands.dimensions)
    try:
        model.run(tokens, Observer(emit, observation, change))
    except ModelError as error:
        raise ModelError(f"model {model.name!r}: {error}") from error
    for layer in range(model.n_layers):
        _prove_sums(model, layer, seen)
    if change.zero_dimensions:
        _prove_zeroed(model, bands, change, seen)


SUMS = {
    "band_sink_score": "sink_score",
    "band_offset_score": "offset_score",
    "band_normalizer": "remasked_normalizer",
}


def _prove_sums(model: ObservableModel, layer: int, seen: dict[tuple[str, int], Tensor]) -> None:
    for parts, whole in SUMS.items():
        expected = seen[whole, layer]
        error = float((seen[parts, layer].sum(-1) - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE.get(model.model.dtype, ROUNDED):
            raise ModelError(
                f"model {model.name!r}: {parts} of layer {layer} adds up to {whole} only within "
                f"{error:.1e} (relative), so it cannot be split by band"
            )


def _prove_zeroed(
    model: ObservableModel, bands: Bands, change: Intervention, seen: dict[tuple[str, int], Tensor]
) -> None:
    for layer, zeroed in change.zero_dimensions:
        for band, dims in enumerate(bands.dimensions[layer]):
            scores = seen["band_sink_score", layer][..., band]
            if dims and set(dims) <= set(zeroed) and bool(scores.any()):
                raise ModelError(
                    f"model {model.name!r}: scores of layer {layer} still have band "
                    f"{bands.names[band]!r}, which was to be zeroed"
                )
    tokens = random_tokens(model)
    left = dataclasses.replace(change, zero_dimensions=())
    moved, still = (model.logits(tokens, Observer(intervention=each)) for each in (change, left))
    if torch.equal(moved, still):
        raise ModelError(
            f"model {model.name!r}: zeroing these bands does not reach the logits; zero another one"
        )
