"""How far rounding moves what a capture sees: a few of its sequences again in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from posprobe.captures.position0 import replaced_embedding
from posprobe.errors import ModelError
from posprobe.models import Intervention, ObservableModel, Observation, Seen, computed_and_exact
from posprobe.stimuli import Stimulus

__all__ = ["measure_rounding"]

STREAMS = ("residual", "position0")
SCORES = (
    "normalizer",
    "sink_score",
    "offset_score",
    "remasked_normalizer",
    "remasked_body",
)
DIGITS = 3  # of an error; its size alone matters


def measure_rounding(
    model: ObservableModel,
    stimulus: Stimulus,
    observation: Observation,
    change: Intervention,
    position0: str,
) -> dict[str, Any]:
    r"""Largest errors of a capture's quantities, layer by layer, against a pass in float64.

    The shortest and the longest sequence of the first item are run twice. With e the error of a
    value, computed less exact, and means over the rows of the window as in the effects themselves,

    .. math::

        e_M(p) = -\overline{e_{z'}(p) - e_{z'}(\mathrm{ref})}, \qquad
        e_R(p) = \overline{e_{s - z}(p) - e_{s - z}(\mathrm{ref})} - e_M(p),

    where z' are the re-masked normalizers: what rounding leaves of an effect in which most of it,
    being the same at every position, cancels.

    Parameters
    ----------
    model : ObservableModel
    stimulus : Stimulus
    observation, change, position0
        As in `CapturePlan`.

    Returns
    -------
    dict
        ``sequences``, their numbers, and lists by layer. Largest errors of the `SCORES` that are
        observed, in nats; of the `STREAMS`, relative to their norm; of the effects ``M`` and ``R``,
        and of a normalizer less its re-masked self, ``mismatch``, in nats; and of scores that move
        with the window, ``moved``, relative to the scores' spread. Or ``unknown``, the reason.
    """
    sequences = _sequences(stimulus)
    try:
        passes = [
            _both_passes(model, stimulus, sequence, observation, change, position0)
            for sequence in sequences
        ]
    except ModelError as error:
        return {"unknown": str(error)}
    errors = _Errors(passes, stimulus, observation, sequences)
    found: dict[str, list[float]] = {}
    for layer in range(model.n_layers + 1):
        values = errors.of_streams(layer)
        if layer < model.n_layers:
            values |= errors.of_scores(layer) | errors.of_effects(layer)
        for name, value in values.items():
            found.setdefault(name, []).append(float(f"{value:.{DIGITS}g}"))
    if not np.isfinite([value for values in found.values() for value in values]).all():
        return {"unknown": "the pass in float64 is not finite"}
    return {"sequences": sequences, **found}


def _sequences(stimulus: Stimulus) -> list[int]:
    """The shortest and the longest sequence of the first item: one, where an item has one."""
    of_item = np.flatnonzero(stimulus.item == stimulus.item[0])
    lengths = stimulus.lengths[of_item]
    return sorted({int(of_item[lengths.argmin()]), int(of_item[lengths.argmax()])})


def _both_passes(
    model: ObservableModel,
    stimulus: Stimulus,
    sequence: int,
    observation: Observation,
    change: Intervention,
    position0: str,
) -> tuple[Seen, Seen]:
    """One sequence as the model computes it, and in float64."""
    part = slice(sequence, sequence + 1)
    tokens = torch.from_numpy(stimulus.tokens[part, : stimulus.lengths[sequence]].astype(np.int64))
    embedding0 = replaced_embedding(model, stimulus, part, position0)
    return computed_and_exact(model, tokens, observation, change, embedding0=embedding0)


class _Errors:
    """Largest errors of one layer, by name."""

    def __init__(
        self,
        passes: list[tuple[Seen, Seen]],
        stimulus: Stimulus,
        observation: Observation,
        sequences: list[int],
    ) -> None:
        self.passes, self.observation, self.window = passes, observation, stimulus.window
        shifted = stimulus.design == "shifted"
        # the window is all that is stored of a shifted sequence, and at every position elsewhere
        self.starts = (0,) if shifted else stimulus.prefixes
        positions = stimulus.prefix_length[sequences].tolist() if shifted else stimulus.prefixes
        self.places = [stimulus.prefixes.index(position) for position in positions]

    def of_streams(self, layer: int) -> dict[str, float]:
        """Relative to the norm of the stream."""
        tiny = torch.finfo(torch.float64).tiny
        return {
            name: max(
                float(((own[name, layer] - exact[name, layer]).norm(dim=-1) / size).max())
                for own, exact in self.passes
                for size in [exact[name, layer].norm(dim=-1).clamp_min(tiny)]
            )
            for name in STREAMS
        }

    def of_scores(self, layer: int) -> dict[str, float]:
        """In nats."""
        return {
            name: max(_largest(own[name, layer] - exact[name, layer]) for own, exact in self.passes)
            for name in SCORES
            if (name, layer) in self.passes[0][0]
        }

    def of_effects(self, layer: int) -> dict[str, float]:
        """Of differences between positions; of those that the observation allows."""
        offsets = torch.tensor(self.observation.offsets)
        near = offsets < self.window
        if not near.any() or not self.places:
            return {}
        inside = offsets[near] <= torch.arange(self.window)[:, None]  # (row, offset)
        score = self._bands("offset_score", layer)[..., near].movedim(2, -1)
        exact = self._exact("offset_score", layer)[..., near].movedim(1, -1)
        moved, spread = (score - score[-1:])[:, inside], exact[inside].std(correction=0)
        found = {"moved": _largest(moved) / float(spread) if spread > 0 else 0.0}
        if not self.observation.prefixes:
            return found
        z = self._bands("normalizer", layer)
        own, exact_pass = self.passes[-1]
        key = "remasked_normalizer", layer
        remasked = (own[key] - exact_pass[key])[0][self.places]  # (position, row, head)
        mask = -_mean(remasked[:, :, None] - remasked[-1:, :, None], inside)
        weight = score - z[:, :, None]
        total = _mean(weight - weight[-1:], inside)
        return found | {
            "mismatch": _largest(z[-1] - remasked[-1]),
            "M": _largest(mask),
            "R": _largest(total - mask),
        }

    def _bands(self, name: str, layer: int) -> Tensor:
        """Errors in the window at every position: (position, row, head, ...)."""
        return torch.stack(
            [
                (own[name, layer] - exact[name, layer])[0, start : start + self.window]
                for own, exact in self.passes
                for start in self.starts
            ]
        )

    def _exact(self, name: str, layer: int) -> Tensor:
        """Values of the last band: (row, head, ...)."""
        start = self.starts[-1]
        return self.passes[-1][1][name, layer][0, start : start + self.window]


def _mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the rows whose key is inside the window: (position, offset, head)."""
    kept = inside[..., None]  # (row, offset, head)
    return torch.where(kept, values, 0.0).sum(1) / kept.sum(0)


def _largest(errors: Tensor) -> float:
    """The largest size; NaN marks what does not exist."""
    return float(errors.nan_to_num(0.0, torch.inf, -torch.inf).abs().max())
