"""Sort stored files by the question that each answers, which follows from its header."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from posprobe.errors import DesignError
from posprobe.store import ActivationStore, why_apart

__all__ = ["INTERVENTIONS", "Condition", "Files", "condition_of", "sort_files"]

# The field of `Files` for captures under each kind of intervention.
INTERVENTIONS = {
    "cut_sink": "cut_sink",
    "fixed_denominator": "fixed_denominator",
    "causal": "masks",
    "window": "masks",
}
SEVERAL = ("replaced", "cut_sink", "masks")  # fields of `Files` that hold several captures


class Condition(NamedTuple):
    """The condition in which a model was captured, beside its weights and its variant.

    Attributes
    ----------
    position0 : str
        "BOS", or "text" where the first token of the text is at position 0.
    text : str
        Name of the text.
    length : int
        Tokens of the longest sequence.
    """

    position0: str
    text: str
    length: int

    def __str__(self) -> str:
        return f"{self.position0} at position 0, {self.text}, {self.length} tokens"


def condition_of(store: ActivationStore) -> Condition:
    """The condition of a file, by its header."""
    text = str(store.header.stimulus.get("corpus", ""))
    return Condition("BOS" if store.has_bos else "text", text, store.length)


@dataclass(frozen=True)
class Files:
    """Captures of one model in one condition, by the question that each answers.

    Attributes
    ----------
    natural, shifted : ActivationStore or None
        The native captures of both designs.
    repeated, bos_repeated : ActivationStore or None
        Captures of one repeated token, without and with a BOS in front.
    replaced : list of ActivationStore
        Captures of the shifted stimulus with another embedding at position 0.
    cut_sink : list of ActivationStore
        Captures of the shifted stimulus with key 0 hidden from some heads.
    fixed_denominator : ActivationStore or None
        The capture of the shifted stimulus with fixed denominators.
    masks : list of ActivationStore
        Captures of the shifted stimulus without causal mask or with a sliding window, and of the
        natural stimulus without causal mask.
    conditions : list of Files
        Captures of the same model in other conditions, each with a shifted one.
    """

    natural: ActivationStore | None = None
    shifted: ActivationStore | None = None
    repeated: ActivationStore | None = None
    bos_repeated: ActivationStore | None = None
    replaced: list[ActivationStore] = field(default_factory=list)
    cut_sink: list[ActivationStore] = field(default_factory=list)
    fixed_denominator: ActivationStore | None = None
    masks: list[ActivationStore] = field(default_factory=list)
    conditions: list[Files] = field(default_factory=list)

    @property
    def native(self) -> bool:
        """Whether position 0 of the shifted stimulus is what the tokenizer puts there by itself."""
        return self.shifted is not None and self.shifted.header.stimulus.get("bos") == "native"

    @property
    def behind_one_token(self) -> ActivationStore | None:
        """The first shifted capture, over all conditions, whose sequences all begin alike."""
        shifted = [one.shifted for one in (self, *self.conditions) if one.shifted is not None]
        return next((s for s in shifted if len(np.unique(s.tokens[:, 0])) == 1), None)

    def all(self) -> list[ActivationStore]:
        """Return all files in one list."""
        one = (self.natural, self.shifted, self.repeated, self.bos_repeated, self.fixed_denominator)
        there = [store for store in one if store is not None]
        own = there + self.replaced + self.cut_sink + self.masks
        return own + [store for other in self.conditions for store in other.all()]

    def intervened(self) -> list[ActivationStore]:
        """Return the files that were captured under an intervention."""
        fixed = [] if self.fixed_denominator is None else [self.fixed_denominator]
        return [*self.cut_sink, *fixed, *self.masks]


def sort_files(stores: Iterable[ActivationStore]) -> Files:
    """Sort files by the question that each answers, which follows from its header.

    A file whose attention was changed (key 0 hidden from heads, fixed denominators, no causal mask
    or a smaller window) answers a question of its own. A change that all files have in common
    counts as part of the model, as a variant does.

    Shifted captures may come from several conditions. The main one is native (position 0 is what
    the tokenizer puts there by itself) and has the text and the length of the natural capture, as
    far as the files allow.

    Parameters
    ----------
    stores : iterable of ActivationStore
        Captures of one model, in any order.

    Returns
    -------
    Files

    Raises
    ------
    DesignError
        If there is no file, if files differ in their weights, variant or other changes of
        attention, if two files answer the same question, or if no analysis uses a file.
    """
    stores = list(stores)
    if not stores:
        raise DesignError("no file was given; make one with: posprobe capture MODEL -o FILE.h5")
    weakest = _weakest(stores)
    first = next((s for s in stores if not _intervention(s, weakest)), stores[0])
    for store in stores:
        _check_same(store, first)
    main, *others = _by_condition(stores)
    return dataclasses.replace(
        _by_question(main, weakest),
        conditions=[_by_question(other, weakest) for other in others],
    )


def _by_condition(stores: list[ActivationStore]) -> list[list[ActivationStore]]:
    """Files by the condition of their shifted capture, the main one first, with all other files."""
    groups: dict[Condition, list[ActivationStore]] = {}
    for store in stores:
        if store.design == "shifted":
            groups.setdefault(condition_of(store), []).append(store)
    elsewhere = [store for store in stores if store.design != "shifted"]
    naturals = [condition_of(store) for store in elsewhere if store.design == "natural"]

    def order(condition: Condition) -> tuple[Any, ...]:
        native = any(s.header.stimulus.get("bos") == "native" for s in groups[condition])
        near = any(condition[1:] == natural[1:] for natural in naturals)
        return not native, not near, -len(groups[condition]), condition

    if not groups:
        return [elsewhere]
    main, *others = sorted(groups, key=order)
    others.sort(key=lambda other: (other[1:] != main[1:], other))
    return [[*groups[main], *elsewhere], *(groups[other] for other in others)]


def _by_question(stores: list[ActivationStore], weakest: dict[str, Any]) -> Files:
    """Files of one condition, by the question that each answers."""
    found: dict[str, Any] = {role: [] for role in SEVERAL}
    for store in stores:
        role = _role(store, _intervention(store, weakest))
        if role in SEVERAL:
            _check_new(store, found[role])
            found[role].append(store)
        elif role in found:
            raise DesignError(_both(found[role], store, role))
        else:
            found[role] = store
    for role in SEVERAL:  # so the report does not depend on the order of the files
        found[role].sort(key=lambda store: store.path.name)
    return Files(**found)


def _both(one: ActivationStore, other: ActivationStore, role: str) -> str:
    names = one.path.name, other.path.name
    why = why_apart(one.header, other.header, names)
    apart = f" and cannot be read as one ({why})" if why else ""
    return f"{names[1]} and {names[0]} are both {role} captures{apart}; give one"


def _check_same(store: ActivationStore, first: ActivationStore) -> None:
    for name in ("weights_digest", "variant", "interventions"):
        values = [getattr(s.header, name) for s in (store, first)]
        if name == "interventions":
            values = [
                [{k: v for k, v in change.items() if k not in INTERVENTIONS} for change in changes]
                for changes in values
            ]
        if values[0] != values[1]:
            raise DesignError(
                f"{store.path.name} differs from {first.path.name} in {name}; analyze one "
                "model and one change of its attention at a time" + _hint(store, first)
            )


def _hint(*stores: ActivationStore) -> str:
    """Where files with an edited stream belong."""
    edited = any("posprobe_stream_edits" in store.header.config for store in stores)
    return " (posprobe remains compares an edited stream with the native one)" if edited else ""


def _check_new(store: ActivationStore, others: list[ActivationStore]) -> None:
    for other in others:
        treatment = store.header.position0_treatment
        if treatment != other.header.position0_treatment or store.design != other.design:
            continue
        if store.header.interventions == other.header.interventions:
            what = (
                f"replace position 0 by {treatment!r}"
                if treatment != "native"
                else "change attention in the same way"
            )
            raise DesignError(f"{store.path.name} and {other.path.name} both {what}; give one")


def _changes(store: ActivationStore) -> dict[str, Any]:
    """Return what a file says about its attention, for each field of `INTERVENTIONS`."""
    values: dict[str, Any] = dict.fromkeys(INTERVENTIONS) | {"causal": True}
    for change in store.header.interventions:
        values |= {k: v for k, v in change.items() if k in INTERVENTIONS and v not in (None, [])}
    return values


def _weakest(stores: list[ActivationStore]) -> dict[str, Any]:
    """Return the attention of the model itself: what all files share, or the smallest change."""
    found = [_changes(store) for store in stores]
    weakest: dict[str, Any] = {}
    for name in INTERVENTIONS:
        values = [changes[name] for changes in found]
        if all(value == values[0] for value in values):
            weakest[name] = values[0]
        elif name == "window" and None not in values:
            weakest[name] = max(values)
        else:
            weakest[name] = True if name == "causal" else None
    return weakest


def _intervention(store: ActivationStore, weakest: dict[str, Any]) -> str | None:
    """Return how a file changes the attention of the model; None if it does not."""
    kinds = [name for name, value in _changes(store).items() if value != weakest[name]]
    if len(kinds) > 1:
        raise DesignError(
            f"{store.path.name} changes attention in two ways at once ({', '.join(kinds)}), which "
            "no analysis uses; capture one change at a time"
        )
    return kinds[0] if kinds else None


def _role(store: ActivationStore, kind: str | None) -> str:
    if kind:
        designs = ("shifted", "natural") if kind == "causal" else ("shifted",)
        if store.design not in designs or store.header.position0_treatment != "native":
            raise DesignError(
                f"{store.path.name} changes attention ({kind}) in the {store.design} design with "
                f"position 0 {store.header.position0_treatment!r}, which no analysis uses; capture "
                "it with --design shifted and --position0 native"
            )
        return INTERVENTIONS[kind]
    if store.header.position0_treatment != "native":
        return "replaced"
    if store.design == "repeated":
        return "bos_repeated" if store.has_bos else "repeated"
    if store.design in ("natural", "shifted"):
        return store.design
    raise DesignError(
        f"{store.path.name} is of design {store.design!r}, which no analysis uses; read it with "
        "posprobe.ActivationStore"
    )
