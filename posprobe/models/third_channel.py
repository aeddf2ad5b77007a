"""Detect a third channel: scores that themselves change with position.

With a rotary embedding, position enters a score only through the offset of query and key. In some
models it also enters otherwise: through a temperature that grows with position (Llama 4, Ministral
3), or through frequencies that depend on the length of the sequence (longrope, and dynamic scaling
past the trained length). Then T = M + R + P with a third channel P, and R = T - M would include P.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.exact import computed_and_exact
from posprobe.models.observation import Observer
from posprobe.models.scores import Observation

if TYPE_CHECKING:
    from posprobe.models.observable import ObservableModel

__all__ = ["own_position"]

Run = dict[int, dict[str, Tensor]]

OFFSETS = tuple(range(9))
# Relative to the spread of a layer's scores, or to the norm of its stream. The angles of a rotation
# are rounded in float32, whatever the precision of the model. What exceeds these limits is run
# again in float64.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1}
ROUNDING_OF_ANGLES = 4 * torch.finfo(torch.float32).eps


def own_position(
    model: ObservableModel, token: int, *, shortest: int, longest: int
) -> dict[str, Any] | None:
    """Test whether scores change with position in a sequence of one repeated token.

    If all tokens are the same, the stream that enters the first block is the same at every
    position. If the position encoding depends on offsets only, the scores at each offset are then
    also the same, hence the stream that enters the next block, and so on. Layers are compared as
    long as the stream that enters them is the same at every position.

    Parameters
    ----------
    model : ObservableModel
        Model to test, with its variant.
    token : int
        Id of the token that is repeated.
    shortest : int
        Tokens in the shortest sequence of the stimulus.
    longest : int
        Tokens in the longest sequence of the stimulus. Both lengths are compared, since rotations
        may depend on the length.

    Returns
    -------
    dict or None
        ``layer``, the first layer whose scores change with position, and ``change``, their largest
        change in nats. None if the scores of no layer change before the stream itself does. In a
        model that adds learned positions to its embeddings, the stream changes from the start.
    """
    offsets = tuple(offset for offset in OFFSETS if offset < shortest)
    lengths, dtype = sorted({shortest, longest}), model.model.dtype
    rounding = TOLERANCE.get(dtype, 1e-1) + ROUNDING_OF_ANGLES * longest
    found = _moved(_computed(model, token, lengths, offsets), rounding)
    if found is None and dtype in (torch.float32, torch.float64):
        return None
    try:  # in float64, what is left is not rounding
        return _moved(_exact(model, token, lengths, offsets), TOLERANCE[torch.float64])
    except ModelError:
        return found


def _moved(runs: list[Run], tolerance: float) -> dict[str, Any] | None:
    """The first layer whose scores move while the stream that enters it does not."""
    for layer in range(max(runs[0])):
        streams = torch.cat([run[layer]["residual"] for run in runs])
        if (streams - streams[:1]).norm(dim=-1).max() > tolerance * streams[0].norm():
            return None
        scores = torch.cat([run[layer]["offset_score"] for run in runs])
        change = _range(scores)
        if change > tolerance * float(scores[scores.isfinite()].std()):
            return {"layer": layer, "change": change}
    return None


def _range(scores: Tensor) -> float:
    """Return the largest range of scores over queries, among all heads and offsets."""
    missing = scores.isnan()  # there is no key this far back
    highest = scores.masked_fill(missing, -torch.inf).amax(0)
    lowest = scores.masked_fill(missing, torch.inf).amin(0)
    return float((highest - lowest).max())


def _computed(
    model: ObservableModel, token: int, lengths: list[int], offsets: tuple[int, ...]
) -> list[Run]:
    """Streams (query, width) and scores (query, head, offset) of each layer, by length."""
    runs: list[Run] = [{} for _ in lengths]
    for run, length in zip(runs, lengths, strict=True):

        def emit(name: str, layer: int, tensor: Tensor, run: Run = run) -> None:
            if name in ("residual", "offset_score"):
                run.setdefault(layer, {})[name] = tensor[0].double().cpu()

        observation = Observation(n_queries=length, offsets=offsets)
        observer = Observer(emit, observation, model.intervention())
        model.run(torch.full((1, length), token), observer)
    return runs


def _exact(
    model: ObservableModel, token: int, lengths: list[int], offsets: tuple[int, ...]
) -> list[Run]:
    """The same in float64."""
    runs: list[Run] = [{} for _ in lengths]
    for run, length in zip(runs, lengths, strict=True):
        observation = Observation(n_queries=length, offsets=offsets)
        tokens = torch.full((1, length), token)
        _, exact = computed_and_exact(model, tokens, observation, model.intervention())
        for (name, layer), tensor in exact.items():
            run.setdefault(layer, {})[name] = tensor[0]
    return runs
