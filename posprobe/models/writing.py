"""How what attention writes reaches the residual stream: times a factor, or through a norm or gate.

A block adds attention's output to the stream. Some models scale it on the way (Granite). Others
normalise it or gate it (Gemma 2, OLMo 2), and then what one head writes depends on the others.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from posprobe.models.observation import Observer, observing, output_projection

__all__ = ["find_gains"]

# Attention's output is made this many times as large as the stream. The rest of a block normalises
# what it reads, so it hardly changes when an output of this size is doubled.
SIZE, SMALL_SIZE = 2.0**13, 2.0**5
# Largest distance of a factor from 1, and of the stream's movement from its direction, by rounding.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
COARSE = 2e-2


class Observable(Protocol):
    """The part of `posprobe.models.ObservableModel` that is needed here."""

    blocks: list[torch.nn.Module]

    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Compute the next-token logits."""


def find_gains(observable: Observable, tokens: Tensor) -> tuple[float | None, ...]:
    r"""Measure the factor between attention's output and the residual stream, layer by layer.

    Random outputs :math:`u` of attention, much larger than the stream, take the place of the
    layer's own. The block is called with :math:`u` and with :math:`2u`, and the difference of what
    leaves it is compared with :math:`u W_O`:

    .. math:: y(2u) - y(u) = c\, u W_O

    Parameters
    ----------
    observable : ObservableModel
        A model whose attention posprobe computes.
    tokens : Tensor of int, shape (batch, token)
        Any tokens.

    Returns
    -------
    tuple of (float or None)
        :math:`c` of each layer: 1 where the stream gets the output as it is, and where the output
        projection is not known. None where no factor explains the movement, because a norm or a
        gate is in between.
    """
    gains: dict[int, float | None] = {}

    def measure(layer: int) -> Any:
        def hook(block: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            gains[layer] = _gain(block, args, kwargs, _stream(output))

        return hook

    hooks = [
        block.register_forward_hook(measure(layer), with_kwargs=True)
        for layer, block in enumerate(observable.blocks)
    ]
    try:
        observable.logits(tokens, Observer())
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(gains[layer] for layer in range(len(observable.blocks)))


class _Writer(Observer):
    """Puts random outputs in place of attention's own.

    Attributes
    ----------
    written : Tensor or None
        What the output projection makes of these outputs, without its bias.
    """

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size
        self.written: Tensor | None = None

    def output(self, module: torch.nn.Module, output: Tensor) -> Tensor:
        """Random numbers, the same in each call, times `size`."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        random = drawn.to(output) * self.size
        project = output_projection(module)
        if project is not None:
            heads = random.transpose(1, 2).flatten(2)
            self.written = (project(heads) - project(torch.zeros_like(heads))).double()
        return random


def _gain(block: torch.nn.Module, args: Any, kwargs: Any, stream: Tensor) -> float | None:
    """The factor of one block, which is called as it was just called."""
    ratio = SMALL_SIZE if stream.dtype == torch.float16 else SIZE
    size = ratio * max(float(stream.double().square().mean().sqrt()), 1.0)
    once, twice = _Writer(size), _Writer(2 * size)
    streams = []
    for writer in (once, twice):
        with observing(writer):  # `forward` itself, since calling the block would call this hook
            streams.append(_stream(block.forward(*args, **kwargs)).double())
    if once.written is None:
        return 1.0
    moved, written = streams[1] - streams[0], once.written.to(streams[0].device)
    gain = float((moved * written).sum() / written.square().sum())
    missed = float((moved - gain * written).norm() / written.norm())
    tolerance = TOLERANCE.get(stream.dtype, COARSE)
    if not (missed <= tolerance * max(1.0, abs(gain)) and abs(gain) > tolerance):
        return None
    return 1.0 if abs(gain - 1) <= tolerance else float(f"{gain:.4g}")


def _stream(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
