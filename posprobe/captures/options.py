"""What a capture keeps and what it changes, in one object for Python, command line and cluster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from posprobe.errors import StimulusError, changed
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
    quantities : tuple of str, default=QUANTITIES
        Names of the data sets to keep, from `QUANTITIES`.
    residual_layers : tuple of int, str or None, default=None
        Layers whose residual stream is kept, where layer L is the output of the last block. Text is
        read by `posprobe.captures.selection.parse_layers`. None keeps all layers.
    residual_positions : tuple of int, str or None, default=None
        Positions at which the residual stream is kept. In the shifted design they are counted from
        the start of the window, since the window's own position differs between sequences. Text is
        read by `posprobe.captures.selection.parse_positions`. None keeps all positions.
    offsets : tuple of int, default=OFFSETS
        Distances between query and key, in tokens, at which scores are kept.
    dtype : {"float32", "float16"}, default="float32"
        Type of the residual stream in the file.
    position0 : str, default="native"
        Treatment of position 0, one of `posprobe.captures.position0.POSITION0`.
    intervention : Intervention, default=NO_INTERVENTION
        Change of the attention, in addition to the model's variant.
    batch_tokens : int or None, default=None
        Largest number of tokens per forward pass; a pass has at least one sequence. None means
        2,048, or on a GPU as many as fit into half of its free memory. The file records the number.
    bands : int or None, default=None
        Number of bands of rotation, from 2 to 4, by which scores are recorded too; only in the
        shifted design. See `posprobe.models.bands.find_bands`. None records no bands.
    zero_band : tuple of int, default=()
        Bands that are left out of all scores, numbered from 0 for the fastest.
    past_training : bool, default=False
        Whether sequences may be longer than the model was made for, or than the length to which a
        variant extends that by scaling the rotary embedding. The file records the model's length.

    Raises
    ------
    StimulusError
        If a quantity is unknown, the offsets are not distinct whole numbers from 0 on, or bands
        are to be zeroed but none are defined.

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
    bands: int | None = None
    zero_band: tuple[int, ...] = ()
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
        if self.zero_band and self.bands is None:
            raise StimulusError(
                f"zero_band names bands {self.zero_band} of a number that is not given; give bands"
            )

    def changed(self, **fields: Any) -> CaptureOptions:
        """Return a copy of the options with some fields changed.

        Parameters
        ----------
        **fields
            New values, by the names of the fields.

        Returns
        -------
        CaptureOptions

        Raises
        ------
        StimulusError
            If a new value is not valid.
        TypeError
            If a field does not exist.
        """
        return changed(self, fields)

    def split(self, given: Mapping[str, Any]) -> tuple[CaptureOptions, dict[str, Any]]:
        """Separate the fields of the options from other keywords.

        Parameters
        ----------
        given : mapping of str to object
            Keywords, some of which may be fields of the options.

        Returns
        -------
        options : CaptureOptions
            A copy in which the given fields are changed.
        rest : dict of str to object
            The other keywords.

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

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON; `from_description` reads them back."""
        values = dataclasses.asdict(self) | {"intervention": self.intervention.describe()}
        return json.loads(json.dumps(values, default=int))  # NumPy's integers too

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> CaptureOptions:
        """Rebuild options from the values that `describe` returned.

        Parameters
        ----------
        values : mapping of str to object
            Values by the names of the fields.

        Returns
        -------
        CaptureOptions

        Raises
        ------
        StimulusError
            If a field is unknown, or a value is not valid.

        Examples
        --------
        >>> from posprobe.captures import CaptureOptions
        >>> options = CaptureOptions(residual_layers=(0, 3), position0="zero")
        >>> CaptureOptions.from_description(options.describe()) == options
        True
        """
        unknown = sorted({*values} - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise StimulusError(
                f"option {unknown[0]!r} is unknown; install the release that wrote it"
            )
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if "intervention" in fields:
            fields["intervention"] = Intervention.from_description(fields["intervention"])
        return cls(**fields)
