"""What a capture keeps and what it changes: one object for Python, command line and cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posprobe.errors import StimulusError
from posprobe.models import NO_INTERVENTION, Intervention

__all__ = ["OFFSETS", "QUANTITIES", "CaptureOptions"]

OFFSETS = (1, 2, 4, 8)
QUANTITIES = (
    "normalizer",
    "sink_score",
    "offset_score",
    "remasked_normalizer",
    "remasked_body",
    "sink_value",
    "residual",
    "position0",
    "position0_alone",
)


@dataclasses.dataclass(frozen=True)
class CaptureOptions:
    """What a capture keeps and what it changes, whatever the stimulus.

    Parameters
    ----------
    quantities : tuple of str
        Data sets to keep, of `QUANTITIES`.
    residual_layers : tuple of int, str or None
        Layers whose residual stream is kept (None: all; number L is the last block's output), or
        text as in `posprobe.captures.selection.parse_layers`.
    residual_positions : tuple of int, str or None
        Positions at which the residual stream is kept (None: all), or text as in
        `posprobe.captures.selection.parse_positions`; in the shifted design numbered from the start
        of the window, whose position differs between sequences.
    offsets : tuple of int
        Distances, in tokens, at which scores are kept.
    dtype : {"float32", "float16"}
        Type of the residual stream in the file.
    position0 : str
        Treatment of position 0, one of `posprobe.captures.position0.POSITION0`.
    intervention : Intervention
        Change of the attention, on top of the model's variant.
    batch_tokens : int or None
        Tokens per forward pass, at most (one sequence at least). None: 2,048, or on a GPU as many
        as half of its free memory takes; the file says how many.
    past_training : bool
        Allow sequences longer than the model was made for, or than what its variant, which may
        scale the rotary embedding, makes of that. The file says so.

    Raises
    ------
    StimulusError
        If there is no such quantity, or offsets are not different whole numbers.

    Examples
    --------
    >>> from posprobe.captures import CaptureOptions
    >>> options = CaptureOptions(position0="mean", offsets=(1, 2))
    >>> options.changed(dtype="float16").dtype
    'float16'
    """

    quantities: tuple[str, ...] = QUANTITIES
    residual_layers: tuple[int, ...] | str | None = None
    residual_positions: tuple[int, ...] | str | None = None
    offsets: tuple[int, ...] = OFFSETS
    dtype: str = "float32"
    position0: str = "native"
    intervention: Intervention = NO_INTERVENTION
    batch_tokens: int | None = None
    past_training: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.quantities if name not in QUANTITIES]
        if unknown:
            raise StimulusError(
                f"quantity {unknown[0]!r} is unknown; use some of {', '.join(QUANTITIES)}"
            )
        wrong = [d for d in self.offsets if not isinstance(d, int) or d < 0]
        if wrong or len(set(self.offsets)) < len(self.offsets):
            raise StimulusError(f"offsets {self.offsets} must be different whole numbers of tokens")

    def changed(self, **fields: Any) -> CaptureOptions:
        """The same options but for some fields.

        Raises
        ------
        TypeError
            If there is no such field.
        """
        return dataclasses.replace(self, **fields)

    def split(self, given: Mapping[str, Any]) -> tuple[CaptureOptions, dict[str, Any]]:
        """Change the fields that are among keywords; return the rest of the keywords, too.

        Examples
        --------
        >>> from posprobe.captures import CaptureOptions
        >>> options, rest = CaptureOptions().split({"n": 4, "position0": "zero"})
        >>> options.position0, rest
        ('zero', {'n': 4})
        """
        names = {field.name for field in dataclasses.fields(self)}
        own = {name: value for name, value in given.items() if name in names}
        return self.changed(**own), {k: v for k, v in given.items() if k not in names}
