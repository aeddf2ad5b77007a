"""What a change of a model leaves of its channels, paired over the items of two captures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from posprobe.channels.reading import channel_effects
from posprobe.channels.variances import gather_variances
from posprobe.errors import DesignError
from posprobe.intervals import Array, fieller_ratio
from posprobe.store import ActivationStore

__all__ = ["remaining"]

VARIANCES = ("V_T", "V_M", "V_R")


def remaining(
    native: ActivationStore,
    changed: ActivationStore,
    *,
    first: int | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    r"""Estimate what a change leaves of each variance of position effects.

    .. math:: \frac{V(\text{changed})}{V(\text{native})}

    of the means over heads and layers, on the items that both captures have. An intervention such
    as a band left out of all scores, or position erased from the stream, leaves 1 where it does not
    matter, and 0 where it takes all.

    Parameters
    ----------
    native, changed : ActivationStore
        Captures of the shifted design, of the same items.
    first : int or None, default=None
        The first layer that counts. None means the first block whose stream was edited in the
        changed capture, or layer 0 if none was.
    level : float
        Nominal coverage.

    Returns
    -------
    pandas.DataFrame
        `variance` (V_T, V_M, V_R), its value `native` and `changed` in nats², `left` without unit,
        with `low` and `high` (Fieller's, of jackknife pseudo-values of the items; NaN if unbounded)
        and `items`.

    Raises
    ------
    DesignError
        If the captures have other layers, tokens or designs, fewer than three items in common, or
        no layer from `first` on; or if the stream was edited in the native one alone.

    Examples
    --------
    ::

        remaining(ActivationStore("shifted.h5"), ActivationStore("erased.h5"))
    """
    first = _edited(changed) if first is None else first
    _check(native, changed, first)
    items = np.intersect1d(native.item, changed.item)
    values = [_pseudo_values(store, items, first) for store in (native, changed)]
    rows = []
    for name in VARIANCES:
        pair = [each[name] for each in values]
        found = fieller_ratio(*pair, level=level, quantity="ratio", estimand=f"{name} left")
        low, high = np.array([found.low, found.high], float)
        sizes = dict(zip(("native", "changed"), (part.mean() for part in pair), strict=True))
        left = {"left": found.estimate, "low": low, "high": high, "items": len(items)}
        rows.append({"variance": name} | sizes | left)
    return pd.DataFrame(rows)


def _edits(store: ActivationStore) -> list[dict[str, Any]]:
    return list(store.header.config.get("posprobe_stream_edits", []))


def _edited(store: ActivationStore) -> int:
    return min((int(edit["layer"]) for edit in _edits(store)), default=0)


def _check(native: ActivationStore, changed: ActivationStore, first: int) -> None:
    names = f"{native.path.name} and {changed.path.name}"
    if _edits(native) and not _edits(changed):
        raise DesignError(
            f"the stream is edited in {native.path.name} and not in {changed.path.name}: give the "
            "native capture first"
        )
    if (native.n_layers, native.n_heads) != (changed.n_layers, changed.n_heads):
        raise DesignError(f"{names} are of models of other sizes: give two captures of one model")
    if not 0 <= first < native.n_layers:
        raise DesignError(f"first={first} must be a layer from 0 to {native.n_layers - 1}")
    for name in ("design", "prefixes", "window", "offsets"):
        here, there = getattr(native, name), getattr(changed, name)
        if here != there:
            raise DesignError(f"{names} have other {name}, {here} and {there}: capture both alike")
    items = np.intersect1d(native.item, changed.item)
    if len(items) < 3:
        raise DesignError(f"{names} have {len(items)} items in common, and an interval needs 3")
    if not np.array_equal(native.tokens_of(items), changed.tokens_of(items)):
        raise DesignError(f"{names} contain other tokens: capture both with the same text and seed")


def _pseudo_values(store: ActivationStore, items: Array, first: int) -> dict[str, Array]:
    """Jackknife pseudo-values of the items, of variances over all heads from a layer on."""
    places = np.searchsorted(np.unique(store.item), items)
    layers = (channel_effects(store, layer).take(places) for layer in range(first, store.n_layers))
    whole = gather_variances(layers).mean((0, 1))
    return {name: whole.pseudo[name][:, 0, 0] for name in VARIANCES}
