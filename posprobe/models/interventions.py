"""Interventions on the attention of a forward pass, as plain values that a file can record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.attention import Visibility

__all__ = ["NO_INTERVENTION", "Intervention", "parse_heads"]


@dataclass(frozen=True)
class Intervention:
    """A change of the attention in a forward pass.

    Parameters
    ----------
    causal : bool, default=True
        Whether to keep the causal mask.
    window : int or None, default=None
        Sliding window, in tokens, to apply to every layer.
    cut_sink : tuple of (layer, head), "all" or None, default=None
        Heads from which key 0 is hidden, except for query 0.
    fixed_denominator : tuple of (layer, head, c), default=()
        Heads whose weights are exp(s - c), with c in nats, instead of exp(s - z). Their rows no
        longer sum to 1 but to exp(z - c), so the row sums themselves then carry position.
    temperature : tuple of (layer, factor), default=()
        Factors on all scores of a layer, used to prove that a layer's scores move the logits.
    zero_dimensions : tuple of (layer, dimensions), default=()
        Dimensions of the heads of a layer, from 0 on, that are left out of all of its scores.
    """

    causal: bool = True
    window: int | None = None
    cut_sink: tuple[tuple[int, int], ...] | Literal["all"] | None = None
    fixed_denominator: tuple[tuple[int, int, float], ...] = ()
    temperature: tuple[tuple[int, float], ...] = ()
    zero_dimensions: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def combined(self, other: Intervention) -> Intervention:
        """Combine this change with another one.

        Parameters
        ----------
        other : Intervention
            The other change.

        Returns
        -------
        Intervention
            Both changes at once, with the smaller of two windows, and with the sink cut of `other`
            if it has one.
        """
        windows = [w for w in (self.window, other.window) if w is not None]
        return Intervention(
            causal=self.causal and other.causal,
            window=min(windows, default=None),
            cut_sink=other.cut_sink or self.cut_sink,
            fixed_denominator=self.fixed_denominator + other.fixed_denominator,
            temperature=self.temperature + other.temperature,
            zero_dimensions=self.zero_dimensions + other.zero_dimensions,
        )

    def visibility(self, native: Visibility) -> Visibility:
        """Return the keys visible under the intervention.

        Parameters
        ----------
        native : Visibility
            The keys visible in the model itself.

        Returns
        -------
        Visibility
        """
        windows = [w for w in (native.window, self.window) if w is not None]
        return Visibility(native.causal and self.causal, min(windows) if windows else None)

    def heads_without_sink(self, layer: int, n_heads: int) -> list[int]:
        """Return the heads of `layer` from which key 0 is hidden, of `n_heads` heads."""
        if self.cut_sink is None:
            return []
        if isinstance(self.cut_sink, str):
            return list(range(n_heads))
        return [head for at, head in self.cut_sink if at == layer]

    def without_dimensions(self, layer: int, query: Tensor) -> Tensor:
        """Leave the dimensions of `layer` that are zeroed out of its queries, hence of its scores.

        Parameters
        ----------
        layer : int
            Number of the layer.
        query : Tensor, shape (batch, head, query, d)
            Queries of the layer.

        Returns
        -------
        Tensor, shape (batch, head, query, d)
            The queries themselves if nothing is zeroed.
        """
        zeroed = sorted({d for at, dims in self.zero_dimensions if at == layer for d in dims})
        if not zeroed:
            return query
        return query.index_fill(-1, torch.tensor(zeroed, device=query.device), 0.0)

    def row_sums(self, layer: int, normalizer: Tensor) -> Tensor | None:
        """Return the sums of the attention rows of `layer`.

        Parameters
        ----------
        layer : int
            Number of the layer.
        normalizer : Tensor, shape (batch, head, query)
            Log-normalizers of the layer, in nats.

        Returns
        -------
        Tensor of shape (batch, head, query) or None
            None if all rows sum to 1.
        """
        fixed = {head: c for at, head, c in self.fixed_denominator if at == layer}
        if not fixed:
            return None
        sums = torch.ones_like(normalizer)
        for head, c in fixed.items():
            sums[:, head] = (normalizer[:, head] - c).exp()
        return sums

    def factor(self, layer: int) -> float:
        """Return the factor on all scores of `layer`."""
        return math.prod(factor for at, factor in self.temperature if at == layer)

    def check_heads(self, n_layers: int, n_heads: int) -> None:
        """Refuse heads that a model does not have.

        Parameters
        ----------
        n_layers : int
            Number of layers of the model.
        n_heads : int
            Number of query heads per layer.

        Raises
        ------
        ModelError
            If the intervention names such a head.
        """
        named = [] if isinstance(self.cut_sink, str) else list(self.cut_sink or ())
        for layer, head in named + [(layer, head) for layer, head, _ in self.fixed_denominator]:
            if not (0 <= layer < n_layers and 0 <= head < n_heads):
                raise ModelError(
                    f"there is no head {layer}:{head}; the model has layers 0 to {n_layers - 1} of "
                    f"heads 0 to {n_heads - 1}"
                )

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON; `from_description` reads them back.

        `zero_dimensions` is left out where it is empty, as in files that do not know it.
        """
        values = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in values.items() if name != "zero_dimensions" or value}

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Intervention:
        """Rebuild an intervention from the values that `describe` returned.

        Parameters
        ----------
        values : mapping of str to object
            Values by the names of the fields.

        Returns
        -------
        Intervention

        Raises
        ------
        ModelError
            If a field is unknown.

        Examples
        --------
        >>> from posprobe.models.interventions import Intervention
        >>> change = Intervention(window=64, cut_sink=((3, 1),))
        >>> Intervention.from_description(change.describe()) == change
        True
        """
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ModelError(
                f"intervention {sorted(unknown)[0]!r} is unknown; install the release that wrote it"
            )
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


NO_INTERVENTION = Intervention()


def parse_heads(text: str) -> tuple[tuple[int, int], ...] | Literal["all"]:
    """Parse a selection of heads.

    Parameters
    ----------
    text : str
        ``all``, pairs as in ``3:1,12:0`` (layer:head), or the path of a ``.json`` file with a list
        of [layer, head].

    Returns
    -------
    tuple of (layer, head), or "all"
        Sorted pairs without duplicates.

    Raises
    ------
    ModelError
        If the text is malformed, or the file cannot be read or is not a list of [layer, head].

    Examples
    --------
    >>> from posprobe.models.interventions import parse_heads
    >>> parse_heads("3:1,0:2")
    ((0, 2), (3, 1))
    """
    text = text.strip()
    if text == "all":
        return "all"
    if text.endswith(".json"):
        return _read_heads(Path(text))
    pairs = [re.fullmatch(r"(\d+):(\d+)", part.strip()) for part in text.split(",")]
    if not all(pairs):
        raise ModelError(
            f"heads {text!r} are not understood; give all, layer:head,layer:head (as 3:1,12:0) or "
            "a .json file with a list of [layer, head]"
        )
    return tuple(sorted({(int(pair[1]), int(pair[2])) for pair in pairs if pair}))


def _read_heads(path: Path) -> tuple[tuple[int, int], ...]:
    wrong = f"{path} does not hold a list of [layer, head], as [[3, 1], [12, 0]]"
    try:
        pairs = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give a .json file") from error
    except ValueError as error:
        raise ModelError(wrong) from error
    if not isinstance(pairs, list) or not pairs or not all(_is_head(pair) for pair in pairs):
        raise ModelError(wrong)
    return tuple(sorted({(pair[0], pair[1]) for pair in pairs}))


def _is_head(pair: Any) -> bool:
    return (
        isinstance(pair, list) and len(pair) == 2 and all(type(x) is int and x >= 0 for x in pair)
    )
