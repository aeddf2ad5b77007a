"""What a capture file holds: its data sets, its attributes, and the header that describes them.

`DATA_SETS` and `ATTRIBUTES` define the layout, the tables of ``docs/format.md``, the checks of the
reader, and the output of ``posprobe inspect``.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.schema import (
    INTERVENTIONS,
    NAMES,
    OBJECT,
    OPTIONS,
    ROUNDING,
    STIMULUS,
    STRINGS,
    Integer,
    Integers,
    Json,
    Kind,
    Text,
)

__all__ = [
    "ATTENTION_GAIN",
    "ATTRIBUTES",
    "BANDED",
    "BANDS",
    "BAND_DATA_SETS",
    "DATA_SETS",
    "FORMAT",
    "KEPT_AT_POSITION0",
    "LEARNED_SINKS",
    "ORIGIN",
    "OWN_POSITION",
    "READABLE",
    "VERSION",
    "DataSet",
    "Header",
    "difference",
]

FORMAT = "posprobe"
VERSION = 2
# The version of files with scores by band of rotation; others need no newer reader than before.
BANDED = 3
READABLE = (1, VERSION, BANDED)
# Key in a header's configuration that says how scores themselves change with position.
OWN_POSITION = "posprobe_own_position"
# The layers whose denominators have a learned logit.
LEARNED_SINKS = "posprobe_learned_sinks"
# Per layer, the factor between attention and the residual stream; None behind a norm or a gate.
ATTENTION_GAIN = "posprobe_attention_gain"
# What stays in the stream at position 0 if its embedding is zero, relative to what was there.
KEPT_AT_POSITION0 = "posprobe_kept_at_position0"
# The bands of rotation by which scores are split, and how many dimensions each has.
BANDS = "posprobe_bands"
# What is known of a model that was in memory; without this key, one was loaded by its name.
ORIGIN = "posprobe_origin"
_LAYER_AXES = ("L", "L+1", "R")
_RESIDUAL_TYPES = {"float32": "<f4", "float16": "<f2"}
# Attributes that came later, with the last version of which some files lack them.
_LATER = {"residual_queries": 1, "trained_length": 1, "rounding": 1, "options": 2}
_STREAMS = ("residual", "position0")  # whose rounding is known after the last block too
_COUNT, _SIZE, _ANY = Integer(1), Integer(0), Integer(0, 63)


@dataclass(frozen=True)
class DataSet:
    """One data set of the format.

    Parameters
    ----------
    axes : tuple of str
        Symbols of the axes, outermost first: L layers, L+1 layers and the last block's output,
        R kept residual layers, S sequences, T tokens, Q stored queries, K queries whose residual
        stream is stored, H heads, D offsets, P prefixes, W window rows, d width, G digests, B bands
        of rotation, B+1 bands and the number of keys.
    dtype : str
        Little-endian NumPy type; ``"float"`` is the header's ``dtype`` (float32 or float16).
    unit : str
        ``"nats"``, ``"tokens"``, or ``"1"`` for a pure number.
    meaning : str
        One phrase for people to read.
    nan : bool, default=False
        Whether the data set may contain NaN where the quantity does not exist. Infinities are never
        allowed.
    """

    axes: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    nan: bool = False

    @property
    def by_layer(self) -> bool:
        """Whether the first axis is a layer axis."""
        return self.axes[:1] != () and self.axes[0] in _LAYER_AXES


DATA_SETS: dict[str, DataSet] = {
    "complete": DataSet((), "|u1", "1", "1 once every sequence is in the file, 0 before"),
    "digest": DataSet(("G",), "<u4", "1", "CRC-32 of the attributes, and of each part of the data"),
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
    "band_sink_score": DataSet(
        ("L", "S", "Q", "H", "B"), "<f4", "nats", "part of each band of rotation in `sink_score`"
    ),
    "band_offset_score": DataSet(
        ("L", "S", "Q", "H", "D", "B"),
        "<f4",
        "nats",
        "part of each band of rotation in `offset_score`; NaN where there is no such key",
        nan=True,
    ),
    "band_normalizer": DataSet(
        ("L", "S", "P", "W", "H", "B+1"),
        "<f4",
        "nats",
        "Shapley value of each band in `remasked_normalizer`, and last the normalizer of scores "
        "that are all 0; NaN as there, and at all prefixes but its own in a sequence that is not "
        "behind the last",
        nan=True,
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
BAND_DATA_SETS = ("band_sink_score", "band_offset_score", "band_normalizer")
_INDEX = tuple(name for name, quantity in DATA_SETS.items() if quantity.axes[:1] == ("S",))


def _attribute(kind: Kind, meaning: str, **default: Any) -> Any:
    return field(metadata={"kind": kind, "meaning": meaning}, **default)


@dataclass(frozen=True)
class Header:
    """Everything that is known about a capture before it starts.

    The fields are the root attributes of the file. `ATTRIBUTES` says what each of them means.

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

    model: str = _attribute(
        Text(), "the name given to the model, else what it was loaded by: hub id, folder or file"
    )
    design: str = _attribute(Text(), "stimulus design: natural, shifted, iid, repeated, ...")
    n_layers: int = _attribute(_COUNT, "L, number of layers")
    n_heads: int = _attribute(_COUNT, "H, number of query heads per layer")
    width: int = _attribute(_COUNT, "d, width of the residual stream")
    n_sequences: int = _attribute(_COUNT, "S, number of sequences")
    length: int = _attribute(_COUNT, "T, tokens of the longest sequence")
    n_queries: int = _attribute(_COUNT, "Q, stored queries per sequence")
    quantities: tuple[str, ...] = _attribute(
        Json("list of strings", NAMES), "names of the activation data sets kept"
    )
    layer_window: tuple[int, ...] = _attribute(
        Integers(), "per layer: sliding window in tokens, 0 for full attention"
    )
    offsets: tuple[int, ...] = _attribute(Integers(), "D offsets of `offset_score`", default=())
    prefixes: tuple[int, ...] = _attribute(
        Integers(rising=True), "P prefix lengths of the re-masked quantities", default=()
    )
    window: int = _attribute(_SIZE, "W, rows of the re-masked quantities", default=0)
    residual_layers: tuple[int, ...] | None = _attribute(
        Integers(rising=True),
        "R kept rows of `residual`, numbered 0 to L (default: all)",
        default=None,
    )
    residual_queries: tuple[int, ...] = _attribute(
        Integers(rising=True),
        "K kept queries of `residual`, numbered 0 to Q-1 (empty, or no such attribute: all Q)",
        default=(),
    )
    dtype: str = _attribute(Text(), "type of `residual`: float32 or float16", default="float32")
    weights_digest: str = _attribute(Text(), "digest of the model's weights", default="")
    config: Mapping[str, Any] = _attribute(
        Json("object", OBJECT), "effective model config", default_factory=dict
    )
    trained_length: int = _attribute(
        _SIZE,
        "positions that the model was made for; 0, or no such attribute, where unknown",
        default=0,
    )
    variant: str = _attribute(Text(), "attention variant in force", default="standard")
    position0_treatment: str = _attribute(
        Text(), "what was done to the embedding at position 0", default="native"
    )
    interventions: Sequence[Any] = _attribute(
        Json("list of objects", INTERVENTIONS), "interventions on attention", default=()
    )
    stimulus: Mapping[str, Any] = _attribute(
        Json("object", STIMULUS), "stimulus: corpus, BOS policy, lengths", default_factory=dict
    )
    seed: int = _attribute(_ANY, "seed of the stimulus and of random treatments", default=0)
    batch_tokens: int = _attribute(Integer(1, 63), "tokens per forward pass, at most", default=1)
    versions: Mapping[str, str] = _attribute(
        Json("object of strings", STRINGS),
        "versions of posprobe, torch and transformers",
        default_factory=dict,
    )

    rounding: Mapping[str, Any] = _attribute(
        Json("object", ROUNDING),
        "largest errors against float64, by quantity and layer; empty where not measured",
        default_factory=dict,
    )
    options: Mapping[str, Any] = _attribute(
        Json("object", OPTIONS),
        "how the model was loaded, and what was asked for; empty or absent where unknown",
        default_factory=dict,
    )
    version: int = _attribute(Integer(1), "version of this format", default=VERSION)

    def __post_init__(self) -> None:
        """Convert every field to its kind, and refuse contradictions."""
        if self.residual_layers is None:
            n_layers = _COUNT.checked("n_layers", self.n_layers)
            object.__setattr__(self, "residual_layers", tuple(range(n_layers + 1)))
        for item in fields(self):
            value = item.metadata["kind"].checked(item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        object.__setattr__(self, "quantities", tuple(self.quantities))
        _check_header(self)
        if len(self.residual_queries) == self.n_queries:
            object.__setattr__(self, "residual_queries", ())

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every axis, by the symbol of the axis."""
        sizes = {
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
            "B": len(self.bands),
            "B+1": len(self.bands) + 1,
        }
        layers = sum(sizes[DATA_SETS[name].axes[0]] for name in self.quantities)
        return sizes | {"G": 1 + len(_INDEX) + layers}

    def coordinates(self) -> dict[str, np.ndarray]:
        """Return the coordinates along each axis that the file's data sets have, by its symbol."""
        numbered = {
            "R": self.residual_layers,
            "K": self.residual_queries,
            "D": self.offsets,
            "P": self.prefixes,
        }
        used = {axis for name in self.datasets() for axis in DATA_SETS[name].axes}
        return {
            axis: np.array(numbered.get(axis) or range(size), "<i4")
            for axis, size in self.sizes.items()
            if axis in used
        }

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of rotation by which scores are split; none where they are not."""
        return tuple(self.config.get(BANDS, {}).get("names", ()))

    @property
    def index(self) -> tuple[str, ...]:
        """Names of the index data sets, known beforehand, which have one row per sequence."""
        return _INDEX

    def with_sequences(self, n_sequences: int) -> Header:
        """Return the header of a file with another number of sequences of the same capture."""
        return replace(self, n_sequences=n_sequences)

    def with_layer(self, layer: int) -> Header:
        """Return the header of a file with one layer of the capture, which becomes layer 0."""
        return replace(
            self,
            n_layers=1,
            layer_window=self.layer_window[layer : layer + 1],
            residual_layers=(0,),
            rounding={},
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of data set `name`, whether or not it is kept."""
        return tuple(self.sizes[axis] for axis in DATA_SETS[name].axes)

    def stored_dtype(self, name: str) -> np.dtype:
        """Return the type in which data set `name` is stored."""
        code = DATA_SETS[name].dtype
        return np.dtype(_RESIDUAL_TYPES[self.dtype] if code == "float" else code)

    def datasets(self) -> tuple[str, ...]:
        """Return the names of all data sets in the file, in the order of `DATA_SETS`."""
        absent = {*_ACTIVATIONS} - {*self.quantities} | ({"digest"} if self.version == 1 else set())
        return tuple(name for name in DATA_SETS if name not in absent)

    def parts(self) -> tuple[tuple[str, int | None], ...]:
        """Return the parts that have digests, in the order of the data set `digest`.

        Returns
        -------
        tuple of (str, int or None)
            Name of a data set and number of its layer; None for index data sets.
        """
        kept = [name for name in _ACTIVATIONS if name in self.quantities]
        layers = [(name, layer) for name in kept for layer in self.layers(name)]
        return tuple((name, None) for name in _INDEX) + tuple(layers)

    def nbytes(self, name: str) -> int:
        """Return the size of data set `name` in bytes."""
        return math.prod(self.shape(name)) * self.stored_dtype(name).itemsize

    def layers(self, name: str) -> tuple[int, ...]:
        """Return the layer number of each row of data set `name`."""
        axis = DATA_SETS[name].axes[0]
        if axis == "R":
            return self.residual_layers or ()
        return tuple(range(self.n_layers + (axis == "L+1")))

    def row(self, name: str, layer: int) -> int:
        """Return the index of `layer` along the first axis of data set `name`.

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
        """Return the root attributes as they are written to a file.

        Returns
        -------
        dict of str to (str, int or list of int)
            Objects and lists of objects are JSON text.
        """
        values: dict[str, Any] = {"format": FORMAT}
        for item in fields(self):
            values[item.name] = item.metadata["kind"].written(item.name, getattr(self, item.name))
        return values

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Header:
        """Rebuild a header from the root attributes of a file.

        Parameters
        ----------
        attributes : mapping of str to object
            Root attributes as plain values.

        Returns
        -------
        Header

        Raises
        ------
        StoreError
            If an attribute is missing or invalid, or contradicts another.
        """
        values = {}
        for item in fields(cls):
            if item.name in attributes:
                kind = item.metadata["kind"]
                values[item.name] = kind.read(item.name, attributes[item.name])
            elif attributes.get("version") not in range(1, 1 + _LATER.get(item.name, 0)):
                raise StoreError(f"attribute '{item.name}' is missing")
        return cls(**values)


ATTRIBUTES: dict[str, tuple[str, str]] = {"format": ("string", "always `posprobe`")} | {
    item.name: (str(item.metadata["kind"]), item.metadata["meaning"]) for item in fields(Header)
}


def _check_header(header: Header) -> None:
    _check_quantities(header)
    if header.dtype not in _RESIDUAL_TYPES:
        raise StoreError(f"attribute 'dtype' is {header.dtype!r}: choose float32 or float16")
    if header.n_queries > header.length:
        raise StoreError(
            f"attribute 'n_queries' is {header.n_queries}, beyond length {header.length}: "
            "store fewer"
        )
    if header.prefixes and header.prefixes[-1] + header.window > header.length:
        raise StoreError(
            f"attribute 'prefixes' ends at {header.prefixes[-1]}, where a window of "
            f"{header.window} does not fit into length {header.length}: leave out the last"
        )
    if len(header.layer_window) != header.n_layers:
        raise StoreError(
            f"attribute 'layer_window' has {len(header.layer_window)} entries for "
            f"{header.n_layers} layers: give one per layer"
        )
    last = {"residual_layers": header.n_layers, "residual_queries": header.n_queries - 1}
    for name, limit in last.items():
        kept = getattr(header, name)
        if kept and kept[-1] > limit:
            raise StoreError(f"attribute '{name}' is {_ranges(kept)}, beyond {limit}: leave it out")
    _check_heads(header)
    _check_rounding(header)


def _check_rounding(header: Header) -> None:
    for name, sizes in header.rounding.items():
        n_layers = header.n_layers + (name in _STREAMS)
        if name not in ("sequences", "unknown") and len(sizes) != n_layers:
            raise StoreError(
                f"attribute 'rounding.{name}' has {len(sizes)} entries, expected {n_layers}: give "
                "one per layer"
            )


def _check_quantities(header: Header) -> None:
    names = header.quantities
    if twice := [name for name in names if names.count(name) > 1]:
        raise StoreError(f"attribute 'quantities' has {twice[0]!r} twice: name it once")
    for name in names:
        if name not in _ACTIVATIONS:
            raise StoreError(
                f"attribute 'quantities' has {name!r}, which is unknown: choose from "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if name in BAND_DATA_SETS and header.version < BANDED:
            raise StoreError(
                f"attribute 'quantities' has '{name}', which version {header.version} of the "
                f"format does not have: write version {BANDED}"
            )
        if 0 in header.shape(name):
            axes = [axis for axis in DATA_SETS[name].axes if header.sizes[axis] == 0]
            raise StoreError(
                f"attribute 'quantities' has '{name}', an axis of which has length 0 "
                f"({', '.join(axes)}): give its offsets, prefixes, window, bands or "
                "residual_layers, or leave it out"
            )


def _check_heads(header: Header) -> None:
    for change in header.interventions:
        cut = change.get("cut_sink") or ()
        named = [*(() if cut == "all" else cut), *change.get("fixed_denominator", ())]
        if beyond := [head for _, head, *_ in named if head >= header.n_heads]:
            raise StoreError(
                f"attribute 'interventions' names head {beyond[0]} of {header.n_heads}: "
                "heads are numbered from 0"
            )


def difference(
    there: Mapping[str, Any],
    now: Mapping[str, Any],
    names: tuple[str, str] = ("in the file", "now"),
) -> str | None:
    """Describe the first difference between the root attributes of a file and those to be written.

    Parameters
    ----------
    there : mapping of str to object
        Attributes of the file, as `Header.attributes` returns them.
    now : mapping of str to object
        Attributes as they would be written now.
    names : (str, str)
        What to call the two.

    Returns
    -------
    str or None
        The first attribute, or key within a JSON attribute, that differs, as in
        ``"attribute 'seed' is 1 in the file, 0 now"``. None if nothing differs.
    """
    absent = object()
    for name in dict.fromkeys(["version", *now, *there]):
        path, old, new = name, _plain(name, there.get(name)), _plain(name, now.get(name))
        while isinstance(old, dict) and isinstance(new, dict) and old != new:
            keys = sorted({*old, *new})
            key = next(k for k in keys if old.get(k, absent) != new.get(k, absent))
            path, old, new = f"{path}.{key}", old.get(key), new.get(key)
        if old != new:
            was, is_now = (f"{reprlib.repr(v)} {n}" for v, n in zip((old, new), names, strict=True))
            return f"attribute '{path}' is {was}, {is_now}"
    return None


def _plain(name: str, value: Any) -> Any:
    if ATTRIBUTES.get(name, ("",))[0].startswith("json") and isinstance(value, str):
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
