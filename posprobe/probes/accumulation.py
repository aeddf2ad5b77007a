"""Gather statistics while a capture runs, so nothing large needs to be stored."""

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
    r"""Accumulate Gram matrices of features and position, layer by layer, while a capture runs.

    For every item s, with X and y as in `posprobe.probes.features`,

    .. math:: G_s = Z_s^\top Z_s, \qquad Z_s = [X_s - c_x, 1, y_s - c_y]

    (see `posprobe.probes.ClusterGram`). Pass the accumulator to a capture as one of its
    ``consumers``. The file need not store the quantities.

    Parameters
    ----------
    which : {"joint", "normalizer", "residual", "attention", "scores"}
        The features, as in `posprobe.probes.features`.
    layers : collection of int or None
        Layers to accumulate; by default all layers whose quantities the capture emits.
    n_groups : int or None
        Sum the items into this many groups (item modulo `n_groups`), for instance into folds.
        Memory is then ``8 n_groups (p + 2)^2`` bytes per layer for p features, however many items
        there are. By default every item is a group of its own.

    Attributes
    ----------
    grams : dict of int to ClusterGram
        The statistics of each layer, complete when the capture is.

    Raises
    ------
    DesignError
        If `which` is unknown, or `n_groups` is below 1.

    Notes
    -----
    For float32 files the Grams are bit-identical to those of the stored file, if these are computed
    from blocks of the same sequences with the same shift:
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
        """Start again for a new capture.

        Parameters
        ----------
        header : Header
            Header of the capture.
        index : mapping of str to ndarray
            Index arrays of the capture, with one row for each sequence.
        """
        self.grams = {}
        self._header, self._index = header, index
        self._waiting: dict[int, HeldStore] = {}
        self._missing: dict[int, set[str]] = {}

    def consume(self, quantity: str, layer: int, sequences: slice, values: np.ndarray) -> None:
        """Take one quantity of one layer, and update its Gram once all quantities have arrived.

        Parameters
        ----------
        quantity : str
            Name of the quantity, one of `quantities`.
        layer : int
            Index of the layer.
        sequences : slice
            The sequences of the batch.
        values : ndarray of shape (sequences, ...)
            Values of the quantity.
        """
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
        """Make room for one layer of some sequences, as a store with a single layer."""
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
