"""Variants of one checkpoint at inference: rotary scalings, a sliding window, no causal mask.

A rotary embedding turns pair k of a head's D rotated dimensions by w_k = theta^(-2k/D) radians per
token. The rotary variants change w_k in the configuration, before the model is made. The other
variants are an `Intervention`, which is applied in the attention.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from posprobe.errors import ModelError
from posprobe.models.interventions import Intervention
from posprobe.models.rotary import STANDARD_ROPE

__all__ = ["MIN_TURN", "VARIANTS", "Variant", "parse_variant"]

VARIANTS = {
    "standard": "the model as it is",
    "ntk(s)": "rotary base theta * s^(D/(D-2)), static NTK scaling",
    "linear(s)": "rotary positions divided by s",
    "yarn(s)": "slow rotations divided by s, fast ones kept; scores times (0.1 ln s + 1)^2",
    "llama3": "slow rotations divided by 8, fast ones kept, as in Llama 3.1",
    "window(W)": "a sliding window of W tokens on every layer",
    "no_causal": "no causal mask",
}
DEFAULTS = {"ntk": 8.0, "linear": 8.0, "yarn": 8.0, "window": 64.0}
ROTARY = ("ntk", "linear", "yarn", "llama3")
# The parameters of Llama 3.1's configuration, except the length, which is the model's own.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# If layer types differ in their rotations, only this type is scaled. The others never look further
# than their window, and models that were extended to longer texts (Gemma 3) do not scale them.
GLOBAL = "full_attention"
LARGEST = 10**9
# A rotary variant is inert if it turns every pair by less than this over the whole length, in
# radians.
MIN_TURN = 0.1


@dataclass(frozen=True)
class Variant:
    """A named change of a model's attention at inference; `VARIANTS` lists the names.

    Parameters
    ----------
    kind : str
        The name without its number, such as ``"ntk"``.
    value : float or None, default=None
        The number in parentheses.
    """

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return self.kind
        return f"{self.kind}({int(self.value) if self.value.is_integer() else self.value!r})"

    @property
    def is_rotary(self) -> bool:
        """Whether the variant changes the rotary embedding."""
        return self.kind in ROTARY

    @property
    def intervention(self) -> Intervention:
        """The change of the mask; none for rotary variants."""
        if self.kind == "window" and self.value is not None:
            return Intervention(window=int(self.value))
        return Intervention(causal=self.kind != "no_causal")

    def check_length(self, length: int) -> None:
        """Refuse a length at which the variant is inert in every model.

        Parameters
        ----------
        length : int
            Number of tokens of the longest sequence.

        Raises
        ------
        ModelError
            If the sequence is not longer than the window, or, without a causal mask, has only one
            token.
        """
        window = self.intervention.window
        if window is not None and window >= length:
            raise ModelError(
                f"variant {self} is inert at length {length}: every token sees all before it; give "
                "a smaller window or a longer --length"
            )
        if not self.intervention.causal and length < 2:
            raise ModelError(f"variant {self} is inert at length 1; give a longer --length")

    @property
    def reach(self) -> float:
        """Factor by which the variant extends the length for which the checkpoint was made."""
        if not self.is_rotary:
            return 1.0
        return float(LLAMA3["factor"]) if self.value is None else self.value

    def change_config(self, config: Any) -> None:
        """Change the rotary embedding of a configuration, in place.

        The checkpoint's own parameters are kept in the configuration as ``posprobe_standard_rope``.
        If the parameters are nested by layer type, only those of full attention are changed.

        Parameters
        ----------
        config : transformers configuration
            Configuration to change. Variants that are not rotary leave it alone.

        Raises
        ------
        ModelError
            If the variant is rotary and the model has no rotary embedding or already scales it.
        """
        if not self.is_rotary:
            return
        parameters = getattr(config, "rope_parameters", None)
        if not parameters:
            raise ModelError(
                f"variant {self} does not apply: the model has no rotary position embedding"
            )
        nested = {kind: rope for kind, rope in parameters.items() if isinstance(rope, dict)}
        if GLOBAL in nested:
            nested = {GLOBAL: nested[GLOBAL]}
        setattr(config, STANDARD_ROPE, copy.deepcopy(parameters))
        for rope in nested.values() or [parameters]:
            if rope.get("rope_type", "default") != "default":
                raise ModelError(
                    f"variant {self} does not apply: the model already scales its rotary embedding "
                    f"({rope['rope_type']})"
                )
            self._scale(rope, config)

    def _scale(self, rope: dict[str, Any], config: Any) -> None:
        """Change one set of rotary parameters, in place."""
        original = {"original_max_position_embeddings": config.max_position_embeddings}
        if self.kind == "linear":
            rope.update(rope_type="linear", factor=self.value)
        elif self.kind == "yarn":
            rope.update(rope_type="yarn", factor=self.value, **original)
        elif self.kind == "llama3":
            rope.update(rope_type="llama3", **LLAMA3, **original)
        elif self.value is not None:
            size = getattr(config, "head_dim", None)
            size = size or config.hidden_size // config.num_attention_heads
            dim = int(size * rope.get("partial_rotary_factor", 1.0))
            if dim <= 2:
                raise ModelError(
                    f"variant {self} does not apply: heads rotate {dim} dimensions, and the first "
                    "two are left alone; use linear"
                )
            rope["rope_theta"] *= self.value ** (dim / (dim - 2))


def parse_variant(text: str) -> Variant:
    """Parse the name of a variant.

    Parameters
    ----------
    text : str
        One of `VARIANTS`, such as ``ntk(8)`` or ``no_causal``. A name without its number gets the
        default: 64 tokens for ``window``, 8 for the others.

    Returns
    -------
    Variant

    Raises
    ------
    ModelError
        If the name is unknown, its number is out of range, or it takes no number.

    Examples
    --------
    >>> from posprobe.models.variants import parse_variant
    >>> str(parse_variant("ntk"))
    'ntk(8)'
    >>> parse_variant("window(64)").intervention.window
    64
    """
    match = re.fullmatch(r"(\w+?)(?:\((\d+(?:\.\d+)?)\))?", text.strip())
    kind, number = match.groups() if match else (text, None)
    if kind == "dynamic":
        raise ModelError(
            f"variant {text!r} does nothing within the length that a model was made for, and "
            "remembers the longest text it saw; use ntk(s)"
        )
    known = {name.partition("(")[0] for name in VARIANTS}
    if kind not in known:
        raise ModelError(f"variant {text!r} is unknown; use one of {', '.join(VARIANTS)}")
    if kind not in DEFAULTS:
        if number is not None:
            raise ModelError(f"variant {text!r}: {kind} takes no number")
        return Variant(kind)
    value = DEFAULTS[kind] if number is None else float(number)
    if not value < LARGEST:
        raise ModelError(f"variant {text!r}: give a number below {LARGEST:,}")
    if kind == "window" and not (value >= 2 and value.is_integer()):
        raise ModelError(f"variant {text!r}: a window is a whole number of tokens, 2 or more")
    if kind != "window" and not value > 1:
        raise ModelError(f"variant {text!r} would change nothing; give a number above 1")
    return Variant(kind, value)
