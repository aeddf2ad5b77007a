r"""Up to where an identity counts as kept, and from where on a finding is not rounding.

What holds exactly on paper holds in a file up to the rounding of its numbers. With e the largest
rounding of a quantity that the capture saw when it ran a few sequences again in float64, an
identity is judged against

.. math:: \max(\mathrm{smallest}, 4 e)

where `smallest` is the size below which nobody would care. Four, since other sequences round
further than the few: of 12 tokens repeated in SmolLM2, up to 1.5 times as far. Variances are judged
against the mean of e^2 over layers, products of effects against that of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from posprobe.analysis.files import Files
from posprobe.analysis.masks import NO_MASK, mask_name
from posprobe.store import ActivationStore

__all__ = ["FACTOR", "Limit", "floor", "limit", "limits_table"]

FACTOR = 4
Stores = Iterable[ActivationStore | None]


@dataclass(frozen=True)
class Limit:
    """Up to where an identity counts as kept.

    Attributes
    ----------
    value : float
        In `unit`, to two digits.
    unit : str
        "nats", or "1" for a relative size.
    rounding : float
        Largest rounding of what the identity is about; NaN where it is not known.
    source : str
        Where the value comes from, as a sentence.
    """

    value: float
    unit: str
    rounding: float
    source: str


@dataclass(frozen=True)
class _Identity:
    """What is 0 on paper: in which files, and the errors that add up in it, named in words."""

    stores: Callable[[Files], Stores]
    errors: tuple[str, ...]
    words: str
    smallest: float = 1e-4
    unit: str = "nats"
    layer: int | None = None


IDENTITIES = {
    "mask_isolated": _Identity(lambda f: [f.repeated], ("R",), "R"),
    "residual_opened": _Identity(lambda f: [f.bos_repeated], ("R",), "R"),
    "closed_system": _Identity(
        lambda f: [f.natural], ("position0",), "the stream at position 0", unit="1"
    ),
    "fingerprint_constant": _Identity(
        lambda f: [f.behind_one_token], ("position0",), "the stream at position 0", unit="1"
    ),
    "fingerprint_varies": _Identity(
        lambda f: [f.natural], ("position0",), "the stream at position 0", unit="1"
    ),
    "layer_0_residual": _Identity(lambda f: [f.shifted], ("R", "M"), "R and M", layer=0),
    "offsets_only": _Identity(
        lambda f: [f.shifted], ("moved",), "scores that move", smallest=1e-3, unit="1", layer=0
    ),
    "mask_removed": _Identity(
        lambda f: _masked(f, bare=True), ("M", "mismatch"), "M and normalizers"
    ),
    "window_closes_mask": _Identity(
        lambda f: _masked(f, bare=False), ("M", "mismatch"), "M and normalizers"
    ),
}
_EFFECTS = {"V_T": ("T", "T"), "V_M": ("M", "M"), "V_R": ("R", "R"), "C_MR": ("M", "R")}


def limit(identity: str, files: Files) -> Limit:
    """Up to where an identity counts as kept in these files.

    Parameters
    ----------
    identity : str
        Name of its claim, of `IDENTITIES`.
    files : Files

    Returns
    -------
    Limit
        The smallest size that matters where rounding is not known, as in files of format 1.
    """
    one = IDENTITIES[identity]
    stores = [store for store in one.stores(files) if store is not None]
    sizes = [_size(store, one.errors, one.layer) for store in stores]
    known = [size for size in sizes if size is not None]
    if not stores or len(known) < len(stores):
        return Limit(one.smallest, one.unit, float("nan"), _fixed(stores))
    rounding = max(known)
    value = max(one.smallest, FACTOR * rounding)
    types = " and ".join(dict.fromkeys(store.compute_type for store in stores))
    unit = " nats" if one.unit == "nats" else ""
    seen = (
        f"the rounding of {one.words} seen in float64 ({rounding:.2g}{unit}, computed in {types})"
    )
    if value > one.smallest:
        source = f"The limit is {FACTOR} times {seen}."
    else:
        source = f"The limit is the smallest size that matters; it exceeds {FACTOR} times {seen}."
    return Limit(float(f"{value:.2g}"), one.unit, rounding, source)


def limits_table(files: Files) -> pd.DataFrame:
    """Every limit that the files have an identity for: claim, limit, unit, rounding, source."""
    there = [
        name
        for name, one in IDENTITIES.items()
        if any(store is not None for store in one.stores(files))
    ]
    rows = [{"claim": name} | vars(limit(name, files)) for name in there]
    return pd.DataFrame(rows, columns=["claim", "value", "unit", "rounding", "source"])


def floor(store: ActivationStore, quantity: str) -> float:
    """What rounding alone can make of a variance or covariance of effects, in squared nats.

    Parameters
    ----------
    store : ActivationStore
    quantity : {"V_T", "V_M", "V_R", "C_MR"}

    Returns
    -------
    float
        Mean over layers of the product of the two effects' rounding; 0 where it is not known.
    """
    first, second = (_by_layer(store, effect) for effect in _EFFECTS[quantity])
    return float(np.mean(first * second))


def _by_layer(store: ActivationStore, effect: str) -> np.ndarray:
    """Largest rounding of an effect in each layer; T is M + R."""
    parts = ("M", "R") if effect == "T" else (effect,)
    sizes = [store.header.rounding.get(part) or [0.0] for part in parts]
    return np.sum(sizes, axis=0)


def _size(store: ActivationStore, errors: tuple[str, ...], layer: int | None) -> float | None:
    sizes = [store.rounding(name, layer) for name in errors]
    return None if None in sizes else float(sum(size for size in sizes if size is not None))


def _fixed(stores: list[ActivationStore]) -> str:
    """Why a limit does not follow the rounding."""
    reasons = [reason for store in stores if (reason := store.header.rounding.get("unknown"))]
    because = reasons[0] if reasons else "the file does not record it"
    return f"The limit is fixed, since rounding is not known: {because}."


def _masked(files: Files, *, bare: bool) -> Stores:
    """The shifted captures without a causal mask, or behind a window."""
    return [
        store
        for store in files.masks
        if store.design == "shifted" and (mask_name(store) == NO_MASK) == bare
    ]
