"""Which question each stored file answers, by its header."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from posprobe.errors import DesignError
from posprobe.store import ActivationStore

__all__ = ["Files", "sort_files"]

ISOLATIONS = ("cut_sink", "fixed_denominator")


@dataclass(frozen=True)
class Files:
    """Captures of one model, by the question that each answers.

    Attributes
    ----------
    natural, shifted : ActivationStore or None
        Native position 0.
    repeated, bos_repeated : ActivationStore or None
        One token all along; the same behind a BOS.
    replaced : list of ActivationStore
        The shifted stimulus with another embedding at position 0.
    cut : list of ActivationStore
        The shifted stimulus with key 0 hidden from some heads.
    fixed : ActivationStore or None
        The shifted stimulus under fixed denominators.
    """

    natural: ActivationStore | None = None
    shifted: ActivationStore | None = None
    repeated: ActivationStore | None = None
    bos_repeated: ActivationStore | None = None
    replaced: list[ActivationStore] = field(default_factory=list)
    cut: list[ActivationStore] = field(default_factory=list)
    fixed: ActivationStore | None = None

    def all(self) -> list[ActivationStore]:
        """Every file there is."""
        named = [self.natural, self.shifted, self.repeated, self.bos_repeated, self.fixed]
        return [store for store in named if store is not None] + self.replaced + self.cut


def sort_files(stores: Iterable[ActivationStore]) -> Files:
    """Recognise each file by its header.

    A cut sink or fixed denominators make a file answer a question of its own; where all files have
    the same change of attention, it belongs to the model, as a variant does.

    Raises
    ------
    DesignError
        If files are of different models, variants or other changes of attention, or two answer the
        same question.
    """
    stores = list(stores)
    if not stores:
        raise DesignError("no file was given; make one with: posprobe capture MODEL -o FILE.h5")
    isolated = len({json.dumps(store.header.interventions) for store in stores}) > 1
    first = next((s for s in stores if not (isolated and _isolation(s))), stores[0])
    found: dict[str, Any] = {"replaced": [], "cut": []}
    for store in stores:
        _check_same(store, first, isolated)
        role = _role(store, isolated)
        if role in ("replaced", "cut"):
            _check_new(store, found[role])
            found[role].append(store)
        elif role in found:
            raise DesignError(
                f"{store.path.name} and {found[role].path.name} are both {role} captures; give one"
            )
        else:
            found[role] = store
    for role in ("replaced", "cut"):  # the same report, in whatever order files were given
        found[role].sort(key=lambda store: store.path.name)
    return Files(**found)


def _check_same(store: ActivationStore, first: ActivationStore, isolated: bool) -> None:
    for name in ("weights_digest", "variant", "interventions"):
        values = [getattr(s.header, name) for s in (store, first)]
        if name == "interventions" and isolated:
            values = [
                [{k: v for k, v in change.items() if k not in ISOLATIONS} for change in changes]
                for changes in values
            ]
        if values[0] != values[1]:
            raise DesignError(
                f"{store.path.name} differs from {first.path.name} in {name}; analyze one "
                "model and one change of its attention at a time"
            )


def _check_new(store: ActivationStore, others: list[ActivationStore]) -> None:
    for other in others:
        treatment = store.header.position0_treatment
        if treatment != other.header.position0_treatment:
            continue
        if store.header.interventions == other.header.interventions:
            what = (
                f"replace position 0 by {treatment!r}"
                if treatment != "native"
                else "hide key 0 from the same heads"
            )
            raise DesignError(f"{store.path.name} and {other.path.name} both {what}; give one")


def _isolation(store: ActivationStore) -> str | None:
    """The kind of isolation that a file's interventions make."""
    kinds = [k for k in ISOLATIONS if any(change.get(k) for change in store.header.interventions)]
    if len(kinds) > 1:
        raise DesignError(
            f"{store.path.name} hides key 0 and fixes denominators at once, which no analysis "
            "uses; capture one change at a time"
        )
    return kinds[0] if kinds else None


def _role(store: ActivationStore, isolated: bool) -> str:
    kind = _isolation(store) if isolated else None
    if kind:
        if store.design != "shifted" or store.header.position0_treatment != "native":
            raise DesignError(
                f"{store.path.name} changes attention ({kind}) in the {store.design} design with "
                f"position 0 {store.header.position0_treatment!r}, which no analysis uses; capture "
                "it with --design shifted and --position0 native"
            )
        return {"cut_sink": "cut", "fixed_denominator": "fixed"}[kind]
    if store.header.position0_treatment != "native":
        return "replaced"
    if store.design == "repeated":
        has_bos = store.header.stimulus.get("bos_token") is not None
        return "bos_repeated" if has_bos else "repeated"
    if store.design in ("natural", "shifted"):
        return store.design
    raise DesignError(
        f"{store.path.name} is of design {store.design!r}, which no analysis uses; read it with "
        "posprobe.ActivationStore"
    )
