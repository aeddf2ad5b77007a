"""What a root attribute may hold: a few kinds of values, and shapes of JSON.

A file may come from anyone. So every attribute is checked against its kind before anything is
computed from it, and characters that do not print are escaped in its text.
"""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from posprobe.errors import StoreError, shown

__all__ = [
    "INTERVENTIONS",
    "NAMES",
    "OBJECT",
    "OPTIONS",
    "ROUNDING",
    "STIMULUS",
    "STRINGS",
    "Integer",
    "Integers",
    "Json",
    "Kind",
    "Text",
    "plain",
]


def plain(value: Any) -> Any:
    """Return a JSON value with `shown` applied to all of its text, keys included."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


# A shape is a function that names the first part of a JSON value that does not fit, as in
# "'stimulus.bos' is 3, expected ...", or returns None.
Shape = Callable[[str, Any], str | None]


def _shape(expected: str, fits: Callable[[Any], bool]) -> Shape:
    def check(name: str, value: Any) -> str | None:
        return None if fits(value) else f"'{name}' is {reprlib.repr(value)}, expected {expected}"

    return check


def _object(known: Mapping[str, Shape], others: Shape | None = None) -> Shape:
    """Return the shape of an object; known keys have their own shapes, and any may be absent."""
    object_ = _shape("an object", lambda v: isinstance(v, Mapping) and all(map(_named, v)))

    def check(name: str, value: Any) -> str | None:
        if wrong := object_(name, value):
            return wrong
        parts = ((key, each, known.get(key, others)) for key, each in value.items())
        found = (shape(f"{name}.{shown(key)}", each) for key, each, shape in parts if shape)
        return next(filter(None, found), None)

    return check


def _list(each: Shape) -> Shape:
    list_ = _shape("a list", lambda v: isinstance(v, list | tuple))

    def check(name: str, value: Any) -> str | None:
        if wrong := list_(name, value):
            return wrong
        return next(filter(None, (each(f"{name}[{i}]", v) for i, v in enumerate(value))), None)

    return check


def _named(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any, low: int = 0) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= low


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_whole, value))


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _of_head(value: Any, *rest: Callable[[Any], bool]) -> bool:
    """Whether a list holds a layer number, followed by one value for each check in `rest`."""
    checks = (_whole, *rest)
    return (
        isinstance(value, list | tuple)
        and len(value) == len(checks)
        and all(fits(each) for fits, each in zip(checks, value, strict=True))
    )


_STRING = _shape("a string", _named)
_TRUE_OR_FALSE = _shape("true or false", lambda v: isinstance(v, bool))
_HEADS = _list(_shape("[layer, head]", lambda v: _of_head(v, _whole)))

_ROPE = _object({})
_OWN_POSITION = _shape(
    "an object with layer and change",
    lambda v: isinstance(v, Mapping) and _whole(v.get("layer")) and _number(v.get("change")),
)

NAMES = _list(_STRING)
_COUNT = _shape("a count", _whole)
OBJECT = _object(
    {
        "rope_parameters": lambda n, v: None if v is None else _ROPE(n, v),
        "posprobe_own_position": lambda n, v: None if v is None else _OWN_POSITION(n, v),
        "posprobe_other_rotation": _shape("a number", _number),
        "posprobe_learned_sinks": _list(_shape("a layer", _whole)),
        "posprobe_attention_gain": _list(
            _shape("a number or null", lambda v: v is None or _number(v))
        ),
        "posprobe_bands": _object({"names": NAMES, "dimensions": _list(_list(_COUNT))}),
        "posprobe_stream_edits": _list(_object({"layer": _COUNT, "rank": _COUNT, "what": _STRING})),
        "posprobe_origin": _object({"adapters": _list(_STRING)}),
        "posprobe_kept_at_position0": _shape("a number", _number),
    }
)
STRINGS = _object({}, _STRING)
TEXT = _object(
    {
        "sha256": _STRING,
        "documents": _COUNT,
        "joined": _COUNT,
        "characters": _COUNT,
        "limit": _COUNT,
        "shuffled": _TRUE_OR_FALSE,
        "kind": _STRING,
        "source": _STRING,
        "licence": _STRING,
        "field": _STRING,
        "given": NAMES,
        "notes": NAMES,
    }
)
_ABOVE_0 = _shape("a number above 0", lambda v: _number(v) and v > 0)
PRECISION = _object(
    {
        "quantity": _STRING,
        "target": _ABOVE_0,
        "pilot": _COUNT,
        "most": _COUNT,
    }
)
STIMULUS = _object(
    {
        "corpus": _STRING,
        "text": TEXT,
        "bos": _STRING,
        "first_item": _COUNT,
        "precision": PRECISION,
        "bos_token": _shape("a token or null", lambda v: v is None or _whole(v)),
        "first_tokens": _list(_shape("a token", _whole)),
        "tokens_sha256": _STRING,
        "special_tokens": _object({}, _COUNT),
    }
)
ROUNDING = _object(
    {"unknown": _STRING, "sequences": _list(_shape("a sequence", _whole))},
    _list(_shape("a size", lambda v: _number(v) and v >= 0)),
)
_INTERVENTION = _object(
    {
        "cut_sink": lambda n, v: None if v in (None, "all") else _HEADS(n, v),
        "window": _shape("1 or more, or null", lambda v: v is None or _whole(v, 1)),
        "causal": _TRUE_OR_FALSE,
        "fixed_denominator": _list(
            _shape("[layer, head, number]", lambda v: _of_head(v, _whole, _number))
        ),
        "temperature": _list(_shape("[layer, factor]", lambda v: _of_head(v, _number))),
        "zero_dimensions": _list(_shape("[layer, dimensions]", lambda v: _of_head(v, _are_whole))),
    }
)
INTERVENTIONS = _list(_INTERVENTION)
_STRING_OR_NULL = _shape("a string or null", lambda v: v is None or _named(v))
_ROWS = _shape(
    "numbers, a string or null",
    lambda v: v is None or _named(v) or (isinstance(v, list | tuple) and all(map(_whole, v))),
)
OPTIONS = _object(
    {
        "model": _object(
            {
                "model": _STRING,
                "name": _STRING,
                "variant": _STRING,
                "dtype": _STRING,
                "device": _STRING,
                "revision": _STRING_OR_NULL,
                "asked_revision": _STRING_OR_NULL,
                "trust_remote_code": _TRUE_OR_FALSE,
            }
        ),
        "capture": _object(
            {
                "quantities": NAMES,
                "residual_layers": _ROWS,
                "residual_positions": _ROWS,
                "offsets": _list(_COUNT),
                "dtype": _STRING,
                "position0": _STRING,
                "intervention": _INTERVENTION,
                "batch_tokens": _COUNT,
                "bands": _shape("a count or null", lambda v: v is None or _whole(v)),
                "zero_band": _list(_COUNT),
                "past_training": _TRUE_OR_FALSE,
            }
        ),
    }
)


class Kind:
    """What one attribute may hold.

    The string form of a kind is its name in ``docs/format.md`` and in refusals.
    """

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as a header holds it.

        Parameters
        ----------
        name : str
            Name of the attribute, for the message.
        value : object
            Value to check.

        Raises
        ------
        StoreError
            If the value is not of this kind.
        """
        try:
            return self.held(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise StoreError(
                f"attribute '{name}' is {reprlib.repr(value)}, expected {self}"
            ) from error

    def read(self, name: str, value: Any) -> Any:
        """Return the plain value of an attribute from a file."""
        return value

    def written(self, name: str, value: Any) -> Any:
        """Return a header's value in the form in which a file holds it."""
        return value

    def held(self, value: Any) -> Any:
        """Return the value converted to this kind, or raise ValueError."""
        raise NotImplementedError


class Text(Kind):
    """UTF-8 text."""

    def __str__(self) -> str:
        return "string"

    def held(self, value: Any) -> str:
        """As `Kind.held`."""
        if not isinstance(value, str):
            raise ValueError("not text")
        return shown(value)


@dataclass(frozen=True)
class Integer(Kind):
    """An integer from `low` to 2^`bits` - 1."""

    low: int
    bits: int = 31

    def __str__(self) -> str:
        return f"integer, {self.low} to 2^{self.bits} - 1"

    def held(self, value: Any) -> int:
        """As `Kind.held`."""
        if not _whole(value, self.low) or value >= 2**self.bits:
            raise ValueError("not such an integer")
        return int(value)


@dataclass(frozen=True)
class Integers(Kind):
    """Integers from 0 on, strictly increasing if `rising`."""

    rising: bool = False

    def __str__(self) -> str:
        return f"integers, {'rising, ' * self.rising}0 to 2^31 - 1"

    def held(self, value: Any) -> tuple[int, ...]:
        """As `Kind.held`."""
        numbers = tuple(Integer(0).held(each) for each in value)
        if self.rising and any(a >= b for a, b in itertools.pairwise(numbers)):
            raise ValueError("not rising")
        return numbers

    def written(self, name: str, value: Any) -> list[int]:
        """As `Kind.written`."""
        return list(value)


@dataclass(frozen=True)
class Json(Kind):
    """A value that is written as JSON text and has a given shape."""

    what: str
    shape: Shape

    def __str__(self) -> str:
        return f"json, {self.what}"

    def checked(self, name: str, value: Any) -> Any:
        """As `Kind.checked`; the message names the part that does not fit."""
        try:
            wrong = self.shape(name, value)
            value = plain(value)
        except RecursionError as error:
            raise StoreError(f"attribute '{name}' is nested too deeply") from error
        if wrong:
            raise StoreError(f"attribute {wrong}")
        return value

    def read(self, name: str, value: Any) -> Any:
        """As `Kind.read`; NaN and infinities are refused, since they are not JSON."""
        try:
            return json.loads(value, parse_constant=_refuse_constant)
        except (RecursionError, TypeError, ValueError) as error:
            raise StoreError(
                f"attribute '{name}' is {reprlib.repr(value)}, expected {self}"
            ) from error

    def written(self, name: str, value: Any) -> str:
        """As `Kind.written`."""
        try:
            return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"attribute '{name}' cannot be written as JSON ({error}): pass plain values"
            ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
