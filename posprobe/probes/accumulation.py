"""Statistics that are gathered while a capture runs, so nothing large needs to be stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from posprobe.errors import DesignError
from posprobe.probes.feature_matrix import FEATURES, features
from posprobe.probes.gram.cluster_gram import ClusterGram
from posprobe.store import Header, HeldStore

__all__ = ["GramAccumulator"]

NEEDED = {
    "normalizer": ("normalizer",),
    "residual": ("residual",),
    "joint": ("normalizer", "residual"),
    "attention": ("normalizer", "offset_score"),
    "scores": ("offset_score",),
}


class GramAccumulator:
    r"""Gram matrices of features and position, layer by layer, from a capture as it runs.

    .. math:: G_s = Z_s^\top Z_s, \qquad Z_s = [X_s - c_x, 1, y_s - c_y]

    with X and y as in `posprobe.probes.features`, for every item s (see
    `posprobe.probes.gram.ClusterGram`). Pass it to a capture as one of its ``consumers``; the file
    need not keep the quantities.

    Parameters
    ----------
    which : str
        One of `posprobe.probes.feature_matrix.FEATURES`.
    layers : collection of int or None
        None: all whose quantities the capture shows.
    n_groups : int or None
        Sum the items into so many groups (item modulo `n_groups`), folds for instance: memory is
        then ``8 n_groups (p + 2)^2`` bytes per layer for p features, however many items there are.
        None: every item is a group of its own.

    Attributes
    ----------
    grams : dict of int to ClusterGram
        By layer; complete once the capture is.

    Raises
    ------
    DesignError
        If `which` is unknown, or `n_groups` is below 1.

    Notes
    -----
    For float32 files the Grams equal those of the stored file to the last bit, if those are taken
    from blocks of the same sequences about the same shift:
    ``ClusterGram.from_blocks(feature_blocks(store, layer), shift=grams[layer].shift)``.

    Examples
    --------
    ::

        grams = GramAccumulator("joint", layers=[5, 10], n_groups=5)
        posprobe.capture("smollm2", "natural.h5", quantities=(), consumers=[grams]).close()
        grams.grams[5].sum()          # X'X, X'y and y'y of all sequences
    """

    def __init__(
        self,
        which: str = "joint",
        *,
        layers: Collection[int] | None = None,
        n_groups: int | None = None,
    ) -> None:
        if which not in FEATURES:
            raise DesignError(f"features {which!r} are unknown; use one of {', '.join(FEATURES)}")
        if n_groups is not None and n_groups < 1:
            raise DesignError(f"n_groups is {n_groups}: give 1 or more, or None for one per item")
        self.which, self.n_groups = which, n_groups
        self.layers = None if layers is None else frozenset(layers)
        self.quantities = NEEDED[which]
        self.grams: dict[int, ClusterGram] = {}

    def begin(self, header: Header, index: Mapping[str, np.ndarray]) -> None:
        """Start anew, for a capture with this header and index."""
        self.grams = {}
        self._header, self._index = header, index
        self._waiting: dict[int, HeldStore] = {}
        self._missing: dict[int, set[str]] = {}

    def consume(self, quantity: str, layer: int, sequences: slice, values: np.ndarray) -> None:
        """Take one quantity of one layer; add to its Gram once it has all that it needs."""
        if layer >= self._header.n_layers or (self.layers is not None and layer not in self.layers):
            return
        if layer not in self._waiting:
            self._waiting[layer] = self._part(layer, sequences, len(values))
            self._missing[layer] = set(self.quantities)
        part = self._waiting[layer]
        part.consume(quantity, 0, slice(None), values)
        self._missing[layer].remove(quantity)
        if not self._missing[layer]:
            del self._waiting[layer]
            self._add(layer, part)

    def _part(self, layer: int, sequences: slice, n_sequences: int) -> HeldStore:
        """Room for one layer of some sequences, as a store of a single layer."""
        part = HeldStore(self.quantities)
        header = self._header.with_layer(layer).with_sequences(n_sequences)
        part.begin(header, {name: rows[sequences] for name, rows in self._index.items()})
        return part

    def _add(self, layer: int, part: HeldStore) -> None:
        X, y, groups, _ = features(part, 0, self.which)
        if self.n_groups is not None:
            groups = groups % self.n_groups
        old = self.grams.get(layer)
        new = ClusterGram.from_blocks([(X, y, groups)], shift=None if old is None else old.shift)
        self.grams[layer] = new if old is None else old + new
