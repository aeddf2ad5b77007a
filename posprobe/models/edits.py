r"""Edits of the residual stream that enters a block, in the forward pass.

With :math:`u = x / \mathrm{rms}(x)` the stream at unit RMS, as the block's own norm and the probes
see it, an edit adds

.. math:: \mathrm{rms}(x) \left(b - (u - \mu) A B\right)

at every position but 0, which no probe is fitted on: it erases what A reads, and moves by b.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posprobe.errors import ModelError

__all__ = ["StreamEdit", "editing_blocks"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StreamEdit:
    """A change of the residual stream that enters one block.

    Parameters
    ----------
    layer : int
        Number of the block, from 1. The stream that enters block 0 is the embedding.
    what : str
        What the edit does, in a few words for the file.
    mean : ndarray of shape (width,)
        Mean of the stream at unit RMS, from which the erased part is counted.
    inward : ndarray of shape (width, r) or None, default=None
        A, which reads what is erased. None erases nothing.
    outward : ndarray of shape (r, width) or None, default=None
        B, which writes it.
    shift : ndarray of shape (width,) or None, default=None
        b, by which the stream at unit RMS is moved. None moves nothing.
    """

    layer: int
    what: str
    mean: Numbers
    inward: Numbers | None = None
    outward: Numbers | None = None
    shift: Numbers | None = field(default=None)

    @property
    def rank(self) -> int:
        """Number of directions that are erased."""
        return 0 if self.outward is None else len(self.outward)

    def check(self, n_layers: int, width: int) -> None:
        """Refuse a block that a model does not have, and arrays of another width.

        Raises
        ------
        ModelError
            With the layer and both widths.
        """
        if not 1 <= self.layer < n_layers:
            raise ModelError(
                f"the stream that enters block {self.layer} cannot be edited; give a block from 1 "
                f"to {n_layers - 1}"
            )
        shapes = {
            "mean": (self.mean, (width,)),
            "inward": (self.inward, (width, self.rank)),
            "outward": (self.outward, (self.rank, width)),
            "shift": (self.shift, (width,)),
        }
        for name, (array, expected) in shapes.items():
            if array is not None and array.shape != expected:
                raise ModelError(
                    f"edit of block {self.layer}: {name} has shape {array.shape}, expected "
                    f"{expected}; fit it on a capture of this model"
                )
        if (self.inward is None) != (self.outward is None):
            raise ModelError(f"edit of block {self.layer}: give inward and outward together")

    def describe(self) -> dict[str, Any]:
        """Return what a file says of the edit: layer, words, rank, and a digest of its arrays."""
        digest = hashlib.sha256()
        for array in (self.mean, self.inward, self.outward, self.shift):
            digest.update(b"-" if array is None else np.ascontiguousarray(array, "<f8").tobytes())
        return {
            "layer": self.layer,
            "what": self.what,
            "rank": self.rank,
            "sha256": digest.hexdigest(),
        }

    def change(self, stream: Tensor) -> Tensor:
        """Return the edited stream.

        Parameters
        ----------
        stream : Tensor, shape (batch, token, width)
            The stream that enters the block.

        Returns
        -------
        Tensor, shape (batch, token, width)
            A new tensor, with position 0 as it was.
        """
        later = stream[:, 1:].to(torch.promote_types(stream.dtype, torch.float32))
        size = later.square().mean(-1, keepdim=True).sqrt()
        added = torch.zeros_like(later)
        if self.inward is not None and self.outward is not None:
            arrays = (self.inward, self.outward, self.mean)
            inward, outward, mean = (torch.from_numpy(array).to(later) for array in arrays)
            unit = later / size.clamp_min(torch.finfo(later.dtype).tiny)
            added = added - (unit - mean) @ inward @ outward
        if self.shift is not None:
            added = added + torch.from_numpy(self.shift).to(later)
        return torch.cat([stream[:, :1], (later + size * added).to(stream.dtype)], 1)


@contextlib.contextmanager
def editing_blocks(blocks: list[torch.nn.Module], edits: tuple[StreamEdit, ...]) -> Iterator[None]:
    """Edit the streams that enter some blocks, in every pass within the context."""

    def entering(edit: StreamEdit) -> Any:
        def change(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (edit.change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": edit.change(kwargs["hidden_states"])}

        return change

    with contextlib.ExitStack() as hooks:
        for edit in edits:
            hook = blocks[edit.layer].register_forward_pre_hook(
                entering(edit), with_kwargs=True, prepend=True
            )
            hooks.callback(hook.remove)
        yield
