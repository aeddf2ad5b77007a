"""Variants of one checkpoint at inference: rotary scalings, a sliding window, no causal mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from posprobe.errors import ModelError
from posprobe.observation import Intervention

__all__ = ["VARIANTS", "Variant", "parse_variant"]

VARIANTS = {
    "standard": "the model as it is",
    "ntk(s)": "rotary base theta * s^(D/(D-2)), static NTK scaling",
    "linear(s)": "rotary positions divided by s",
    "window(W)": "a sliding window of W tokens on every layer",
    "no_causal": "no causal mask",
}
DEFAULTS = {"ntk": 8.0, "linear": 8.0, "window": 64.0}


@dataclass(frozen=True)
class Variant:
    """A named change of a model's attention.

    Parameters
    ----------
    kind : str
        The name without its number.
    value : float or None
        The number in brackets.
    """

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}({self.value:g})"

    @property
    def intervention(self) -> Intervention:
        """What changes in the mask."""
        if self.kind == "window" and self.value is not None:
            return Intervention(window=int(self.value))
        return Intervention(causal=self.kind != "no_causal")

    def change_config(self, config: Any) -> None:
        """Change the rotary embedding of a configuration, in place.

        Raises
        ------
        ModelError
            If the variant scales rotary embeddings and the model has none, or other ones already.
        """
        if self.kind not in ("ntk", "linear") or self.value is None:
            return
        parameters = getattr(config, "rope_parameters", None)
        if not parameters:
            raise ModelError(
                f"variant {self} does not apply: the model has no rotary position embedding"
            )
        nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
        for rope in nested:
            if rope.get("rope_type", "default") != "default":
                raise ModelError(
                    f"variant {self} does not apply: the model already scales its rotary embedding "
                    f"({rope['rope_type']})"
                )
            if self.kind == "linear":
                rope.update(rope_type="linear", factor=self.value)
            else:
                dim = getattr(config, "head_dim", None)
                dim = dim or config.hidden_size // config.num_attention_heads
                dim *= rope.get("partial_rotary_factor", 1.0)
                rope["rope_theta"] *= self.value ** (dim / (dim - 2))


def parse_variant(text: str) -> Variant:
    """Read a variant such as ``ntk(8)``; a bare name takes its default number.

    Raises
    ------
    ModelError
        If the name is unknown or the number makes no sense.

    Examples
    --------
    >>> from posprobe.variants import parse_variant
    >>> str(parse_variant("ntk"))
    'ntk(8)'
    >>> parse_variant("window(64)").intervention.window
    64
    """
    match = re.fullmatch(r"(\w+?)(?:\((\d+(?:\.\d+)?)\))?", text.strip())
    kind, number = match.groups() if match else (text, None)
    known = {name.partition("(")[0] for name in VARIANTS}
    if kind not in known:
        raise ModelError(f"variant {text!r} is unknown; use one of {', '.join(VARIANTS)}")
    if kind not in DEFAULTS:
        if number is not None:
            raise ModelError(f"variant {text!r}: {kind} takes no number")
        return Variant(kind)
    value = DEFAULTS[kind] if number is None else float(number)
    if kind == "window" and not (value >= 2 and value.is_integer()):
        raise ModelError(f"variant {text!r}: a window is a whole number of tokens, 2 or more")
    if kind != "window" and not value > 1:
        raise ModelError(f"variant {text!r} would change nothing; give a number above 1")
    return Variant(kind, value)
