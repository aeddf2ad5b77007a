"""Read several captures of one design, with different items, as one store."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from posprobe.errors import StoreError
from posprobe.store.layout import DATA_SETS, KEPT_AT_POSITION0, OWN_POSITION, Header, difference
from posprobe.store.reader import ActivationStore
from posprobe.store.repeats import repeated_items, repeats_in_words

__all__ = ["JoinedStore", "open_stores", "opened", "path_list", "why_apart"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# What may differ between captures of other items of the same stimulus.
OF_FILE = ("n_sequences", "rounding", "versions", "batch_tokens", "options", "version")
OF_ITEMS = {
    "stimulus": (
        *("n_items", "n_sequences", "first_item"),
        *("first_tokens", "tokens_sha256", "special_tokens"),
    ),
    "config": (OWN_POSITION, KEPT_AT_POSITION0),
}


class JoinedStore(ActivationStore):
    """Several captures of one design, read as one.

    The files have the same model, design and protocol, and different items: the first ones, and
    those that ``posprobe capture --first-item`` added. Sequences come file after file, in the order
    of their items. Everything that reads an `ActivationStore` also reads this; a layer is copied
    when it is read.

    Parameters
    ----------
    paths : iterable of str or Path
        Two or more captures.
    verify : bool, default=True
        As in `ActivationStore`.

    Raises
    ------
    StoreError
        If the captures differ in anything but their items, have items in common, or have items that
        repeat those of another file token for token.

    Examples
    --------
    ::

        posprobe.capture(model, "a.h5", design="shifted", n=32).close()
        posprobe.capture(model, "b.h5", design="shifted", n=16, first_item=32).close()
        posprobe.decompose(JoinedStore(["a.h5", "b.h5"]))        # 48 items
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], *, verify: bool = True) -> None:
        stores = [ActivationStore(path, verify=verify) for path in paths]
        if len(stores) < 2:
            raise StoreError(f"there are {len(stores)} files to join: give two or more captures")
        self._join(stores)

    def _join(self, stores: list[ActivationStore]) -> None:
        self._stores = sorted(stores, key=lambda store: int(store.item.min()))
        self._verify = stores[0]._verify
        _check_joinable(self._stores)
        name = " + ".join(store.path.name for store in self._stores)
        self.path = self._stores[0].path.with_name(name)
        self.header = _joined_header(self._stores)
        self._describe(self.header)

    @property
    def parts(self) -> tuple[ActivationStore, ...]:
        """The files that are read as one, in the order of their items."""
        return tuple(self._stores)

    def read(self, quantity: str, layer: int | None = None, sequences: Any = None) -> np.ndarray:
        """Return a data set, or one layer of it, as a new array; see `ActivationStore.read`."""
        if quantity in DATA_SETS and "S" not in DATA_SETS[quantity].axes:
            raise StoreError(f"'{quantity}' belongs to one file: open that with ActivationStore")
        rows = np.arange(self.n_sequences)[slice(None) if sequences is None else sequences]
        ends = np.cumsum([store.n_sequences for store in self._stores])
        home = np.searchsorted(ends, rows, side="right")
        parts = [
            store.read(quantity, layer, rows[home == k] - (ends[k] - store.n_sequences))
            for k, store in enumerate(self._stores)
        ]
        axis = int(DATA_SETS[quantity].by_layer and layer is None)
        array = np.concatenate(parts, axis=axis)
        if sequences is None:
            return array
        back = np.argsort(np.argsort(home.ravel(), kind="stable")).reshape(rows.shape)
        return np.take(array, back, axis=axis)

    def blocks(
        self, quantity: str, layer: int, n_sequences: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Iterate over one layer in blocks of sequences, none of them across two files."""
        ahead = 0
        for store in self._stores:
            for part, block in store.blocks(quantity, layer, n_sequences):
                yield slice(ahead + part.start, ahead + part.stop), block
            ahead += store.n_sequences

    @property
    def n_digests(self) -> int:
        """Number of digests in all files; 0 if one of them has none."""
        counts = [store.n_digests for store in self._stores]
        return sum(counts) if all(counts) else 0

    def verify(self) -> int:
        """Check every digest of every file, and return their number."""
        return sum(store.verify() for store in self._stores)

    def close(self) -> None:
        """Close all files."""
        for store in self._stores:
            store.close()

    def summary(self) -> dict[str, Any]:
        """Describe the files as one; see `ActivationStore.summary`."""
        parts = [store.summary() for store in self._stores]
        rows = [
            row
            | {"shape": self.header.shape(row["name"]), "bytes": self.header.nbytes(row["name"])}
            for row in parts[0]["rows"]
        ]
        return parts[0] | {
            "path": str(self.path),
            "bytes": sum(part["bytes"] for part in parts),
            "digests": self.n_digests,
            "rounding": self.rounding_in_words(),
            "repeated_items": self.repeats_in_words(),
            "attributes": self.header.attributes(),
            "rows": rows,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store as the paths of its files."""
        return _reopened, ([str(store.path) for store in self._stores], self._verify)


def _reopened(paths: list[str], verify: bool) -> JoinedStore:
    return JoinedStore(paths, verify=verify)


def path_list(paths: Paths) -> list[str | os.PathLike[str]]:
    """Return paths as a list; a single path is a list of one, not of its letters.

    >>> path_list("a.h5"), path_list(["a.h5", "b.h5"])
    (['a.h5'], ['a.h5', 'b.h5'])
    """
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


@contextlib.contextmanager
def opened(store: ActivationStore | str | os.PathLike[str]) -> Iterator[ActivationStore]:
    """Give a store as it is, or open the capture of this name and close it again."""
    if isinstance(store, str | os.PathLike):
        with ActivationStore(store) as own:
            yield own
    else:
        yield store


def open_stores(paths: Paths) -> list[ActivationStore]:
    """Open captures, and join those that differ in nothing but their items.

    Parameters
    ----------
    paths : str or Path, or an iterable of these
        Captures.

    Returns
    -------
    list of ActivationStore
        In the order of their first files.

    Raises
    ------
    StoreError
        If a file cannot be read, or if captures of one design have items in common, as the same
        file given twice has.
    """
    groups: list[list[ActivationStore]] = []
    for store in map(ActivationStore, path_list(paths)):
        for group in groups:
            if why_apart(group[0].header, store.header) is None:
                group.append(store)
                break
        else:
            groups.append([store])
    return [_joined(group) if len(group) > 1 else group[0] for group in groups]


def _joined(stores: list[ActivationStore]) -> JoinedStore:
    joined = JoinedStore.__new__(JoinedStore)
    joined._join(stores)
    return joined


def why_apart(
    one: Header, other: Header, names: tuple[str, str] = ("one", "the other")
) -> str | None:
    """Say what keeps two captures from being parts of one.

    Parameters
    ----------
    one, other : Header
        Headers of the two captures.
    names : (str, str)
        Names of their files.

    Returns
    -------
    str or None
        The first attribute that differs and is not about their items; None if all are the same.
    """
    return difference(_protocol(one), _protocol(other), (f"in {names[0]}", f"in {names[1]}"))


def _protocol(header: Header) -> dict[str, Any]:
    """The root attributes that captures of other items have too."""
    kept = {name: value for name, value in header.attributes().items() if name not in OF_FILE}
    for name, left_out in OF_ITEMS.items():
        values = {k: v for k, v in getattr(header, name).items() if k not in left_out}
        kept[name] = json.dumps(values)
    return kept


def _check_joinable(stores: list[ActivationStore]) -> None:
    """Refuse stores that differ in more than their items, or not in all of them."""
    first = stores[0]
    for store in stores[1:]:
        names = (first.path.name, store.path.name)
        why = why_apart(first.header, store.header, names)
        if why:
            raise StoreError(
                f"{names[0]} and {names[1]} cannot be read as one capture: {why}; "
                "give captures that differ in their items only (capture --first-item)"
            )
        if first.header.position0_treatment == "content":
            raise StoreError(
                f"{names[0]} and {names[1]} cannot be read as one capture: position0 'content' "
                "draws from the text of all items of a file; capture all items into one file"
            )
    _check_items(stores)


def _check_items(stores: list[ActivationStore]) -> None:
    file_of: dict[int, str] = {}
    for store in stores:
        for item in np.unique(store.item).tolist():
            if item in file_of:
                raise StoreError(
                    f"{file_of[item]} and {store.path.name} both hold item {item}: capture others "
                    "with --first-item, or give one of the files"
                )
            file_of[item] = store.path.name
    tokens, item, ahead = (
        np.concatenate([getattr(store, name) for store in stores])
        for name in ("tokens", "item", "prefix_length")
    )
    groups = [
        group
        for group in repeated_items(tokens, item, ahead)
        if len({file_of[one] for one in group}) > 1
    ]
    if groups:
        names = " and ".join(store.path.name for store in stores)
        raise StoreError(
            f"{names} cannot be read as one capture: {repeats_in_words(groups, len(file_of))}, in "
            "another file; give a text without repeats"
        )


def _joined_header(stores: list[ActivationStore]) -> Header:
    headers = [store.header for store in stores]
    config: dict[str, Any] = {}
    for header in reversed(headers):
        config |= header.config
    return replace(
        headers[0],
        n_sequences=sum(header.n_sequences for header in headers),
        config=config,
        stimulus=_joined_stimulus([header.stimulus for header in headers]),
        rounding=_largest([header.rounding for header in headers]),
    )


def _joined_stimulus(stimuli: list[Mapping[str, Any]]) -> dict[str, Any]:
    joined = {k: v for k, v in stimuli[0].items() if k not in OF_ITEMS["stimulus"]}
    for name in ("n_items", "n_sequences"):
        joined[name] = sum(stimulus.get(name, 0) for stimulus in stimuli)
    joined["first_tokens"] = sorted({t for s in stimuli for t in s.get("first_tokens", ())})
    digests = [str(stimulus.get("tokens_sha256", "")) for stimulus in stimuli]
    joined["tokens_sha256"] = " + ".join(digest[:16] for digest in digests)
    special: dict[str, int] = {}
    for stimulus in stimuli:
        for token, count in stimulus.get("special_tokens", {}).items():
            special[token] = special.get(token, 0) + count
    return joined | {"special_tokens": special}


def _largest(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest errors of all files; empty or unknown where those of one file are."""
    for part in parts:
        if not part or "unknown" in part:
            return dict(part)
    names = [name for name in parts[0] if name != "sequences" and all(name in p for p in parts)]
    return {"sequences": list(parts[0].get("sequences", ()))} | {
        name: np.max([part[name] for part in parts], axis=0).tolist() for name in names
    }
