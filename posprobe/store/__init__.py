"""Write captures to HDF5 files and read them back.

The number of sequences and every shape are known before a capture starts. So the file is laid out
completely first, and activations are then written into it at fixed places. This never changes
HDF5's own metadata, so a process that is killed at any moment leaves a file that can be resumed.
The format is described in ``docs/format.md``, whose tables come from `posprobe.store.layout`.
"""

from posprobe.store.axes import AXES
from posprobe.store.background import BackgroundWriter
from posprobe.store.files import RESUME, check_place
from posprobe.store.held import HeldStore
from posprobe.store.joined import JoinedStore, open_stores, opened, path_list, why_apart
from posprobe.store.layout import (
    ATTENTION_GAIN,
    ATTRIBUTES,
    BAND_DATA_SETS,
    BANDED,
    BANDS,
    DATA_SETS,
    KEPT_AT_POSITION0,
    LEARNED_SINKS,
    ORIGIN,
    OWN_POSITION,
    DataSet,
    Header,
    difference,
)
from posprobe.store.reader import ActivationStore
from posprobe.store.repeats import repeated_items, repeats_in_words
from posprobe.store.shards import ShardFolder, missing_parts, write_shard
from posprobe.store.writer import StoreWriter

__all__ = [
    "ATTENTION_GAIN",
    "ATTRIBUTES",
    "AXES",
    "BANDED",
    "BANDS",
    "BAND_DATA_SETS",
    "DATA_SETS",
    "KEPT_AT_POSITION0",
    "LEARNED_SINKS",
    "ORIGIN",
    "OWN_POSITION",
    "RESUME",
    "ActivationStore",
    "BackgroundWriter",
    "DataSet",
    "Header",
    "HeldStore",
    "JoinedStore",
    "ShardFolder",
    "StoreWriter",
    "check_place",
    "difference",
    "missing_parts",
    "open_stores",
    "opened",
    "path_list",
    "repeated_items",
    "repeats_in_words",
    "why_apart",
    "write_shard",
]
