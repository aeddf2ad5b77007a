r"""Record the scores of one layer by band of rotation.

A score is a sum over the dimensions of a head, so it is a sum over bands of them,
:math:`s_{ij} = \sum_b s^b_{ij}`. A log-normalizer is not. With :math:`z(A)` the normalizer that a
row would have if its scores had the bands in :math:`A` only, the part of band b is its Shapley
value

.. math::

    \varphi^b = \sum_{A \not\ni b} \frac{|A|!\,(B - |A| - 1)!}{B!}
                \left(z(A \cup b) - z(A)\right), \qquad
    z = z(\emptyset) + \sum_b \varphi^b ,

the mean over all orders of the B bands of what b adds to those before it. Without any band all
scores are 0, and :math:`z(\emptyset)` is the logarithm of the number of visible keys. Adding a
constant to all scores of a row in one band changes :math:`s^b` and :math:`\varphi^b` alike.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.attention import Scoring, Visibility
from posprobe.models.scores import LateScores, Observation, fixed_scores, late_scores, remasked

__all__ = ["observe_bands"]


def observe_bands(
    query: Tensor,
    key: Tensor,
    visibility: Visibility,
    observation: Observation,
    scoring: Scoring,
    cut: list[int],
    bands: tuple[tuple[int, ...], ...],
) -> dict[str, Tensor]:
    """Compute what is recorded of one layer by band.

    Parameters
    ----------
    query, key, visibility, observation, scoring, cut
        As in `posprobe.models.scores.observe_scores`. The stored queries must be the rows of the
        mask counterfactual.
    bands : tuple of tuple of int
        The dimensions of each of the B bands. Together they are all dimensions of a head.

    Returns
    -------
    dict of str to Tensor
        In nats: ``band_sink_score`` of shape (batch, query, head, B); if there are offsets,
        ``band_offset_score`` of shape (batch, query, head, offset, B); and if there are prefixes,
        ``band_normalizer`` of shape (batch, prefix, row, head, B + 1), whose last part is that of
        the number of keys. It is NaN behind prefixes other than the rows' own, unless that is the
        longest one.

    Raises
    ------
    ModelError
        If scores are capped, so they are not sums over dimensions.
    """
    if scoring.softcap is not None:
        raise ModelError(
            f"scores are capped at {scoring.softcap:g} nats, so they are no sums over bands of "
            "rotation; leave the bands out"
        )
    queries = [_only(query, dims) for dims in bands]
    parts = [fixed_scores(each, key, observation, scoring) for each in queries]
    seen = {f"band_{name}": torch.stack([part[name] for part in parts], -1) for name in parts[0]}
    if observation.prefixes:
        rows = [
            late_scores(each, key, visibility, observation.window, scoring)
            for each in (torch.zeros_like(query), *queries)
        ]
        late = rows[0].own_prefix >= observation.prefixes[-1]
        kept = observation.prefixes if late else (rows[0].own_prefix,)
        part = dataclasses.replace(observation, prefixes=kept)
        values = [
            remasked(row, visibility, part, scoring, cut)["remasked_normalizer"]
            for row in _coalitions(rows[0], rows[1:])
        ]
        split = torch.stack([*_shapley(values, len(bands)), values[0]], -1)
        seen["band_normalizer"] = split if late else _at(split, kept[0], observation.prefixes)
    return seen


def _coalitions(empty: LateScores, bands: list[LateScores]) -> list[LateScores]:
    """Scores with some of the bands only, for each set of bands, by its bits."""
    found = [empty]
    for band in bands:
        found += [row.plus(band) for row in found]
    return found


def _only(query: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Set all dimensions of queries (..., d) but these to zero."""
    kept = torch.zeros(query.shape[-1], dtype=query.dtype, device=query.device)
    kept[list(dims)] = 1
    return query * kept


def _shapley(values: list[Tensor], n: int) -> list[Tensor]:
    """Shapley values of n players, from the values of all coalitions, by their bits."""
    parts = []
    for player in range(n):
        others = [subset for subset in range(2**n) if not subset >> player & 1]
        parts.append(
            torch.stack(
                [
                    (values[subset | 1 << player] - values[subset])
                    / (n * math.comb(n - 1, subset.bit_count()))
                    for subset in others
                ]
            ).sum(0)
        )
    return parts


def _at(split: Tensor, own: int, prefixes: tuple[int, ...]) -> Tensor:
    """Put the part of one prefix, (batch, 1, row, head, part), among all, which are NaN."""
    among = split.new_full((split.shape[0], len(prefixes), *split.shape[2:]), torch.nan)
    among[:, prefixes.index(own)] = split[:, 0]
    return among
