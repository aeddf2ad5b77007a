"""What a capture file holds: a table of data sets, a table of attributes, and a capture's header.

The layout, ``docs/format.md``, the checks of the reader and ``posprobe inspect`` all come from
`DATA_SETS` and `ATTRIBUTES`.
"""

from __future__ import annotations

import itertools
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from posprobe.errors import StoreError

__all__ = [
    "ATTRIBUTES",
    "DATA_SETS",
    "FORMAT",
    "OWN_POSITION",
    "VERSION",
    "DataSet",
    "Header",
    "difference",
    "shown",
]

FORMAT = "posprobe"
VERSION = 1
LARGEST = 2**31 - 1  # of what is counted in a file
# Where a header's configuration says how scores move with position by themselves.
OWN_POSITION = "posprobe_own_position"
_LAYER_AXES = ("L", "L+1", "R")
_RESIDUAL_TYPES = {"float32": "<f4", "float16": "<f2"}
_LATER = ("residual_queries", "trained_length")  # attributes that the first files do not have
_COUNTS = ("n_layers", "n_heads", "width", "n_sequences", "length", "n_queries", "batch_tokens")


@dataclass(frozen=True)
class DataSet:
    """One data set of the format.

    Parameters
    ----------
    axes : tuple of str
        Symbols of the axes, outermost first: L layers, L+1 layers and the last block's output,
        R kept residual layers, S sequences, T tokens, Q stored queries, K those of the residual
        stream, H heads, D offsets, P prefixes, W window rows, d width.
    dtype : str
        Little-endian NumPy type; ``"float"`` is the header's ``dtype`` (float32 or float16).
    unit : str
        ``"nats"``, ``"tokens"``, or ``"1"`` for a pure number.
    meaning : str
        One phrase for people.
    nan : bool
        Whether it may contain NaN, where the quantity does not exist; it never has infinities.
    """

    axes: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    nan: bool = False

    @property
    def by_layer(self) -> bool:
        """Whether the first axis is layers."""
        return self.axes[:1] != () and self.axes[0] in _LAYER_AXES


DATA_SETS: dict[str, DataSet] = {
    "complete": DataSet((), "|u1", "1", "1 once every sequence is in the file, 0 before"),
    "tokens": DataSet(("S", "T"), "<i4", "1", "token ids, padded on the right with -1"),
    "item": DataSet(
        ("S",), "<i4", "1", "content: sequences of one item share their window (resampling unit)"
    ),
    "prefix_length": DataSet(
        ("S",), "<i4", "tokens", "tokens ahead of the window, BOS included; 0 where not shifted"
    ),
    "sequence_id": DataSet(("S",), "<i8", "1", "number of the sequence in its stimulus"),
    "query_start": DataSet(("S",), "<i4", "tokens", "absolute position of the first stored query"),
    "normalizer": DataSet(
        ("L", "S", "Q", "H"), "<f4", "nats", "log-sum-exp of the query's visible scores"
    ),
    "sink_score": DataSet(
        ("L", "S", "Q", "H"), "<f4", "nats", "score of key 0, also where a window hides it"
    ),
    "offset_score": DataSet(
        ("L", "S", "Q", "H", "D"),
        "<f4",
        "nats",
        "score of the key `offsets` tokens back; NaN where there is none",
        nan=True,
    ),
    "remasked_normalizer": DataSet(
        ("L", "S", "P", "W", "H"),
        "<f4",
        "nats",
        "normalizer of the last W rows, seeing what they would behind `prefixes` tokens; "
        "NaN beyond the own prefix",
        nan=True,
    ),
    "remasked_body": DataSet(
        ("L", "S", "P", "W", "H"), "<f4", "nats", "the same without key 0", nan=True
    ),
    "sink_value": DataSet(
        ("L", "S", "H"),
        "<f4",
        "1",
        "norm of what key 0's value writes through each head, at attention 1; NaN where the "
        "output projection is not known",
        nan=True,
    ),
    "residual": DataSet(
        ("R", "S", "K", "d"),
        "float",
        "1",
        "residual stream entering block `residual_layers`; number L is the last block's output "
        "before the final norm",
    ),
    "position0": DataSet(("L+1", "S", "d"), "<f4", "1", "residual stream at position 0"),
    "position0_alone": DataSet(
        ("L+1", "S", "d"), "<f4", "1", "the same from a run on the first token alone"
    ),
}
_ACTIVATIONS = tuple(name for name, quantity in DATA_SETS.items() if quantity.by_layer)
_INDEX = tuple(name for name, quantity in DATA_SETS.items() if quantity.axes[:1] == ("S",))


def _attribute(kind: str, meaning: str, form: str = "", **default: Any) -> Any:
    """A field of the header; `form` says what JSON of that kind has to be, of `_FORMS`."""
    return field(metadata={"kind": kind, "meaning": meaning, "form": form}, **default)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_object_of_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_FORMS: dict[str, Callable[[Any], bool]] = {
    "an object": _is_object,
    "a list of text": _is_texts,
    "a list of objects": _is_objects,
    "an object of text": _is_object_of_text,
}


@dataclass(frozen=True)
class Header:
    """Everything that is known of a capture before it starts; the root attributes of its file.

    Raises
    ------
    StoreError
        If a field contradicts another, or cannot be written as its kind of attribute.

    Examples
    --------
    >>> header = Header(
    ...     model="tiny", design="natural", n_layers=2, n_heads=3, width=8, n_sequences=4,
    ...     length=16, n_queries=16, quantities=("normalizer", "residual"), layer_window=(0, 4))
    >>> header.shape("normalizer")
    (2, 4, 16, 3)
    >>> header.shape("residual"), header.residual_layers
    ((3, 4, 16, 8), (0, 1, 2))
    """

    model: str = _attribute("string", "model as it was asked for: hub id, folder or file")
    design: str = _attribute("string", "stimulus design: natural, shifted, iid, repeated, ...")
    n_layers: int = _attribute("integer", "L, number of layers")
    n_heads: int = _attribute("integer", "H, number of query heads per layer")
    width: int = _attribute("integer", "d, width of the residual stream")
    n_sequences: int = _attribute("integer", "S, number of sequences")
    length: int = _attribute("integer", "T, tokens of the longest sequence")
    n_queries: int = _attribute("integer", "Q, stored queries per sequence")
    quantities: tuple[str, ...] = _attribute(
        "json", "names of the activation data sets kept", "a list of text"
    )
    layer_window: tuple[int, ...] = _attribute(
        "integers", "per layer: sliding window in tokens, 0 for full attention"
    )
    offsets: tuple[int, ...] = _attribute("integers", "D offsets of `offset_score`", default=())
    prefixes: tuple[int, ...] = _attribute(
        "integers", "P prefix lengths of the re-masked quantities", default=()
    )
    window: int = _attribute("integer", "W, rows of the re-masked quantities", default=0)
    residual_layers: tuple[int, ...] | None = _attribute(
        "integers", "R kept rows of `residual`, numbered 0 to L (default: all)", default=None
    )
    residual_queries: tuple[int, ...] = _attribute(
        "integers",
        "K kept queries of `residual`, numbered 0 to Q-1 (empty, or no such attribute: all Q)",
        default=(),
    )
    dtype: str = _attribute("string", "type of `residual`: float32 or float16", default="float32")
    weights_digest: str = _attribute("string", "digest of the model's weights", default="")
    config: Mapping[str, Any] = _attribute(
        "json", "effective model config", "an object", default_factory=dict
    )
    trained_length: int = _attribute(
        "integer",
        "positions that the model was made for; 0, or no such attribute, where unknown",
        default=0,
    )
    variant: str = _attribute("string", "attention variant in force", default="standard")
    position0_treatment: str = _attribute(
        "string", "what was done to the embedding at position 0", default="native"
    )
    interventions: Sequence[Any] = _attribute(
        "json", "interventions on attention", "a list of objects", default=()
    )
    stimulus: Mapping[str, Any] = _attribute(
        "json", "stimulus: corpus, BOS policy, lengths", "an object", default_factory=dict
    )
    seed: int = _attribute("integer", "seed of the stimulus and of random treatments", default=0)
    batch_tokens: int = _attribute("integer", "tokens per forward pass, at most", default=1)
    versions: Mapping[str, str] = _attribute(
        "json",
        "versions of posprobe, torch and transformers",
        "an object of text",
        default_factory=dict,
    )

    def __post_init__(self) -> None:
        """Normalize sequences to tuples and refuse contradictions."""
        if self.residual_layers is None:
            object.__setattr__(self, "residual_layers", tuple(range(self.n_layers + 1)))
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata["kind"] == "integers":
                object.__setattr__(self, item.name, tuple(int(v) for v in value))
        object.__setattr__(self, "quantities", tuple(self.quantities))
        every = len(self.residual_queries) == self.n_queries
        if every and self.residual_queries == tuple(range(self.n_queries)):
            object.__setattr__(self, "residual_queries", ())
        _check_header(self)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every axis by its symbol."""
        return {
            "L": self.n_layers,
            "L+1": self.n_layers + 1,
            "R": len(self.residual_layers or ()),
            "S": self.n_sequences,
            "T": self.length,
            "Q": self.n_queries,
            "K": len(self.residual_queries) or self.n_queries,
            "H": self.n_heads,
            "D": len(self.offsets),
            "P": len(self.prefixes),
            "W": self.window,
            "d": self.width,
        }

    @property
    def index(self) -> tuple[str, ...]:
        """Names of the data sets with one row per sequence that are known beforehand."""
        return _INDEX

    def with_sequences(self, n_sequences: int) -> Header:
        """The header of a file with fewer or more sequences of the same capture."""
        return replace(self, n_sequences=n_sequences)

    def with_layer(self, layer: int) -> Header:
        """The header of a file with one layer of the same capture, which is number 0 there."""
        return replace(
            self,
            n_layers=1,
            layer_window=self.layer_window[layer : layer + 1],
            residual_layers=(0,),
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of data set `name`, whether or not it is kept."""
        return tuple(self.sizes[axis] for axis in DATA_SETS[name].axes)

    def stored_dtype(self, name: str) -> np.dtype:
        """Type in which data set `name` is stored."""
        code = DATA_SETS[name].dtype
        return np.dtype(_RESIDUAL_TYPES[self.dtype] if code == "float" else code)

    def datasets(self) -> tuple[str, ...]:
        """Names of every data set in the file, in the order of the table."""
        return tuple(q for q in DATA_SETS if q not in _ACTIVATIONS or q in self.quantities)

    def nbytes(self, name: str) -> int:
        """Size of data set `name`, in bytes."""
        return int(np.prod(self.shape(name), dtype=np.int64)) * self.stored_dtype(name).itemsize

    def layers(self, name: str) -> tuple[int, ...]:
        """Layer numbers of the rows of data set `name`."""
        axis = DATA_SETS[name].axes[0]
        return tuple(self.residual_layers or ()) if axis == "R" else tuple(range(self.sizes[axis]))

    def row(self, name: str, layer: int) -> int:
        """Index along the first axis of data set `name` that holds `layer`.

        Raises
        ------
        StoreError
            If the layer does not exist or was not kept.
        """
        kept = self.layers(name)
        if layer not in kept:
            raise StoreError(
                f"layer {layer} of '{name}' is not in the file, which has layers {_ranges(kept)}: "
                "ask for one of these"
            )
        return kept.index(layer)

    def attributes(self) -> dict[str, Any]:
        """Root attributes as they are written: text, integers, integer arrays, and JSON text."""
        values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        for item in fields(self):
            values[item.name] = _encode(item.name, item.metadata["kind"], getattr(self, item.name))
        return values

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Header:
        """Rebuild a header from the root attributes of a file.

        Raises
        ------
        StoreError
            If an attribute is missing or is not of its kind.
        """
        values = {}
        for item in fields(cls):
            if item.name not in attributes:
                if item.name in _LATER:
                    continue
                raise StoreError(f"root attribute '{item.name}' is missing: capture again")
            kind, form = item.metadata["kind"], item.metadata["form"]
            try:
                value = _decode(kind, attributes[item.name])
            except (TypeError, ValueError, OverflowError) as error:
                raise StoreError(
                    f"root attribute '{item.name}' is not of kind {kind}: capture again"
                ) from error
            if form and not _FORMS[form](value):
                raise StoreError(
                    f"root attribute '{item.name}' is {reprlib.repr(value)}, which is not {form}: "
                    "capture again"
                )
            values[item.name] = value
        return cls(**values)


ATTRIBUTES: dict[str, tuple[str, str]] = {
    "format": ("string", "always `posprobe`"),
    "version": ("integer", "version of this format"),
} | {item.name: (item.metadata["kind"], item.metadata["meaning"]) for item in fields(Header)}


def _encode(name: str, kind: str, value: Any) -> Any:
    if kind == "json":
        try:
            return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"attribute '{name}' cannot be written as JSON ({error}): pass plain values"
            ) from error
    return {"string": str, "integer": int, "integers": list}[kind](value)


def _decode(kind: str, value: Any) -> Any:
    if kind == "json":
        return json.loads(value, parse_constant=_refuse_constant)
    if kind == "integers":
        numbers = np.asarray(value).reshape(-1)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(f"expected integers, found {numbers.dtype}")
        return tuple(int(v) for v in numbers)
    if kind == "integer":
        return int(value)
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return shown(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def shown(text: str) -> str:
    r"""Text whose control characters are escaped, for terminals and pages.

    Examples
    --------
    >>> print(shown("model" + chr(27) + "]0;title" + chr(7)))
    model\x1b]0;title\x07
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _check_header(header: Header) -> None:
    for name in _COUNTS:
        count = getattr(header, name)
        if not 1 <= count <= LARGEST:
            raise StoreError(f"header: '{name}' is {count}: it must be between 1 and {LARGEST}")
    for name in ("offsets", "prefixes", "layer_window"):
        wrong = [value for value in getattr(header, name) if not 0 <= value <= LARGEST]
        if wrong:
            raise StoreError(f"header: '{name}' has {wrong[0]}: it must be between 0 and {LARGEST}")
    for name in ("window", "trained_length", "seed"):
        if getattr(header, name) < 0:
            raise StoreError(
                f"header: '{name}' is {getattr(header, name)}: it must not be negative"
            )
    for name in header.quantities:
        if name not in _ACTIVATIONS:
            raise StoreError(
                f"header: quantity '{name}' is unknown: choose from {', '.join(_ACTIVATIONS)}"
            )
        if 0 in header.shape(name):
            axes = [axis for axis in DATA_SETS[name].axes if header.sizes[axis] == 0]
            raise StoreError(
                f"header: quantity '{name}' has an axis of length 0 ({', '.join(axes)}): "
                "give its offsets, prefixes, window or residual_layers, or leave it out"
            )
    if header.dtype not in _RESIDUAL_TYPES:
        raise StoreError(f"header: dtype '{header.dtype}' is unknown: choose float32 or float16")
    if header.n_queries > header.length:
        raise StoreError(
            f"header: n_queries {header.n_queries} exceeds length {header.length}: store fewer"
        )
    if len(header.layer_window) != header.n_layers:
        raise StoreError(
            f"header: layer_window has {len(header.layer_window)} entries for "
            f"{header.n_layers} layers: give one per layer"
        )
    kept = header.residual_layers or ()
    if not _rises_within(kept, header.n_layers):
        raise StoreError(
            f"header: residual_layers {list(kept)} must rise within 0 to {header.n_layers}"
        )
    queries, last = header.residual_queries, header.n_queries - 1
    if not _rises_within(queries, last):
        raise StoreError(
            f"header: residual_queries {_ranges(queries)} must rise within 0 to {last}"
        )


def _rises_within(numbers: Sequence[int], last: int) -> bool:
    """Whether numbers rise, and all are within 0 to `last`."""
    rises = all(one < other for one, other in itertools.pairwise(numbers))
    return rises and (not numbers or (numbers[0] >= 0 and numbers[-1] <= last))


def difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first root attribute, or key within a JSON attribute, in which two files differ.

    Parameters
    ----------
    there, now : mapping
        Attributes as `Header.attributes` returns them: of a file, and as they would be written.

    Returns
    -------
    str or None
        ``"attribute 'seed' is 1 in the file, 0 now"``; None where nothing differs.
    """
    absent = object()
    for name in dict.fromkeys([*now, *there]):
        path, old, new = name, _plain(name, there.get(name)), _plain(name, now.get(name))
        while isinstance(old, dict) and isinstance(new, dict) and old != new:
            keys = sorted({*old, *new})
            key = next(k for k in keys if old.get(k, absent) != new.get(k, absent))
            path, old, new = f"{path}.{key}", old.get(key), new.get(key)
        if old != new:
            return f"attribute '{path}' is {reprlib.repr(old)} in the file, {reprlib.repr(new)} now"
    return None


def _plain(name: str, value: Any) -> Any:
    if ATTRIBUTES.get(name, ("",))[0] == "json" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _ranges(numbers: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
