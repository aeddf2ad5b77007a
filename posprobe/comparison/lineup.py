"""Which file belongs to which model, which model to which architecture, and what may be compared.

Files of different weights are models, the sample of a test of architecture. Files of the same
weights under several variants are one model: they are compared item by item, which does not test
architectures.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.analysis import INTERVENTIONS, Files, condition_of, listed, sort_files
from posprobe.errors import DesignError
from posprobe.store import ActivationStore

__all__ = ["Lineup", "Member", "line_up"]

SEED = re.compile(r"-\d+$")
STEP = re.compile(r"(?:step|iter|checkpoint)s?[-_=]?(\d+)", re.IGNORECASE)
SHAPES = {
    "prefixes": "the same --length and --window",
    "window": "the same --window",
    "offsets": "the same offsets",
}


@dataclass(frozen=True)
class Member:
    """One model, or one variant of a checkpoint.

    Attributes
    ----------
    name : str
        Unique; a variant other than the standard one follows in brackets.
    architecture : str
        Its architecture; for variants of one checkpoint, the variant.
    files : Files
        Its captures by role, a shifted one among them.
    block : str or None
        What it shares with models of other architectures, such as its seed.
    """

    name: str
    architecture: str
    files: Files
    block: str | None = None

    @property
    def shifted(self) -> ActivationStore:
        """The shifted capture, from which the channels are computed."""
        assert self.files.shifted is not None
        return self.files.shifted


@dataclass(frozen=True)
class Lineup:
    """Models side by side.

    Attributes
    ----------
    members : tuple of Member
        By architecture, then name; variants with the standard one first.
    paired : bool
        Whether they are variants of one checkpoint, compared over the same items.
    items : ndarray of int
        The items of the shifted design that all members have.
    same_tokens : bool
        Whether all members saw the same tokens.
    notes : tuple of str
        What a reader has to know, one line each.
    """

    members: tuple[Member, ...]
    paired: bool
    items: NDArray[np.int32]
    same_tokens: bool
    notes: tuple[str, ...]

    @property
    def architectures(self) -> dict[str, list[str]]:
        """Names of the members of each architecture, in order."""
        found: dict[str, list[str]] = {}
        for member in self.members:
            found.setdefault(member.architecture, []).append(member.name)
        return found

    def stores(self) -> list[ActivationStore]:
        """Every file."""
        return [store for member in self.members for store in member.files.all()]


def line_up(
    stores: Iterable[ActivationStore],
    *,
    architectures: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    different_tokens: bool = False,
) -> Lineup:
    """Sort captures of several models by model and architecture, and check that they compare.

    A model is known by the digest of its weights and by its variant. Its architecture is the last
    part of its name without a number at the end (``zoo/rope-0`` is of architecture ``rope``), with
    the variant where that is not the standard one, unless `architectures` says otherwise.

    Parameters
    ----------
    stores : iterable of ActivationStore
        For each model a shifted capture, and optionally its other captures. Where models have
        shifted captures in several conditions, the first one that all of them have is compared.
    architectures : mapping of str to str, optional
        Architecture to pattern (``*`` and ``?``) of model names or files; every model must match
        exactly one.
    blocks : mapping of str to str, optional
        Block to pattern, likewise, if models share something across architectures, such as a seed.
    different_tokens : bool
        Allow models that saw different tokens, such as those of different tokenizers: the same
        positions, not the same text.

    Returns
    -------
    Lineup

    Raises
    ------
    DesignError
        If there are fewer than two models, a model is given twice or lacks a shifted capture,
        stimuli differ, or only some of the models share their weights.

    Examples
    --------
    ::

        lineup = line_up(ActivationStore(path) for path in paths)
        lineup.architectures  # {'ntk': ['ntk-0', 'ntk-1'], 'rope': ['rope-0', 'rope-1']}
    """
    groups: dict[tuple[str, str], list[ActivationStore]] = {}
    for store in stores:
        header = store.header
        groups.setdefault((header.weights_digest or header.model, header.variant), []).append(store)
    if len(groups) < 2:
        raise DesignError(
            f"the files are of {len(groups)} model (weights and variant), and a comparison needs "
            "two; for one model use: posprobe analyze"
        )
    paired = len({digest for digest, _ in groups}) == 1
    if not paired:
        _check_independent(groups)
    names = _labels([group[0] for group in groups.values()])
    sorted_files = [files_of(n, group) for n, group in zip(names, groups.values(), strict=True)]
    sorted_files = _in_one_condition(sorted_files)
    homes = _architectures(names, sorted_files, architectures, paired)
    own_blocks = _blocks(names, sorted_files, blocks, paired)
    members = [Member(*row) for row in zip(names, homes, sorted_files, own_blocks, strict=True)]
    members.sort(key=lambda m: (paired and m.architecture != "standard", m.architecture, m.name))
    refuse_interventions(members)
    refuse_other_designs([member.shifted for member in members])
    refuse_other_naturals(members)
    items = common_items(members)
    same = same_tokens([member.shifted for member in members], items, different_tokens)
    notes = (*_step_notes(members, paired), *_notes(members, items, same))
    return Lineup(tuple(members), paired, items, same, notes)


def _check_independent(groups: Mapping[tuple[str, str], Sequence[ActivationStore]]) -> None:
    variants: dict[str, list[str]] = {}
    for digest, variant in groups:
        variants.setdefault(digest, []).append(variant)
    digests: dict[tuple[str, ...], str] = {}
    for (digest, _), group in groups.items():
        if digests.setdefault(_path(group[0]), digest) != digest:
            raise DesignError(
                f"the files contain two sets of weights named {group[0].model!r}: capture a model "
                "with one --model-dtype, and different models from folders of different names; "
                "checkpoints of one training run are compared with --steps"
            )
    for digest, found in variants.items():
        if len(found) > 1:
            model = groups[digest, found[0]][0].model
            raise DesignError(
                f"model {model!r} is given as {' and '.join(found)} together with other models, so "
                "the models are not an independent sample: give variants of one model, or one of "
                "each model"
            )


def _labels(stores: Sequence[ActivationStore]) -> list[str]:
    """The shortest ends of the models' names that all differ, each with its variant."""
    keys = [(store.header.variant, _path(store)) for store in stores]
    depth = 1
    while len({(variant, name[-depth:]) for variant, name in keys}) < len(keys):
        depth += 1
    return ["/".join(name[-depth:]) + _in_brackets(variant) for variant, name in keys]


def _path(store: ActivationStore) -> tuple[str, ...]:
    return PurePath(store.model.removesuffix(".gguf")).parts or ("model",)


def _in_brackets(variant: str) -> str:
    return "" if variant == "standard" else f" [{variant}]"


def place(store: ActivationStore) -> str:
    """A file with its folder: files of different models tend to have the same name."""
    return f"{store.path.parent.name}/{store.path.name}"


def files_of(name: str, group: Sequence[ActivationStore]) -> Files:
    seen: dict[str, ActivationStore] = {}
    for store in group:
        header = store.header
        condition = condition_of(store)
        # one file of each condition, or, of a repeated token, with and without a BOS
        where = {"shifted": condition, "repeated": condition.position0}.get(store.design, "")
        what = repr((store.design, header.position0_treatment, header.interventions, where))
        if what in seen:
            raise DesignError(
                f"model {name!r} is given twice ({place(seen[what])}, {place(store)}): give "
                "each of its captures once"
            )
        seen[what] = store
    files = sort_files(group)
    if files.shifted is None:
        raise DesignError(
            f"model {name!r} has no shifted capture among its files ({place(group[0])}); make one "
            "with: posprobe capture MODEL -o FILE.h5 --design shifted --bos force"
        )
    return files


def _in_one_condition(models: Sequence[Files]) -> list[Files]:
    """Files of the first condition that all models have; of each one's main condition otherwise."""
    captured = [
        {condition_of(one.shifted): one for one in (files, *files.conditions) if one.shifted}
        for files in models
    ]
    common = [c for c in captured[0] if all(c in conditions for conditions in captured)]
    chosen = [next(iter(c)) if not common else common[0] for c in captured]
    return [
        dataclasses.replace(
            files,
            shifted=conditions[condition].shifted,
            replaced=conditions[condition].replaced,
            conditions=[],
        )
        for files, conditions, condition in zip(models, captured, chosen, strict=True)
    ]


def _architectures(
    names: Sequence[str],
    files: Sequence[Files],
    asked: Mapping[str, str] | None,
    paired: bool,
) -> list[str]:
    stores = [found.shifted for found in files if found.shifted is not None]
    if paired:
        if asked:
            raise DesignError(
                "all files are of one model's weights, so its variants are compared: leave "
                "--architecture out"
            )
        return [store.header.variant for store in stores]
    if not asked:
        return [
            SEED.sub("", PurePath(name.partition(" [")[0]).name) + _in_brackets(s.header.variant)
            for name, s in zip(names, stores, strict=True)
        ]
    example = "--architecture rope='*rope-*'"
    return [_asked(name, store, asked, example) for name, store in zip(names, stores, strict=True)]


def _blocks(
    names: Sequence[str], files: Sequence[Files], asked: Mapping[str, str] | None, paired: bool
) -> list[str] | list[None]:
    if not asked:
        return [None] * len(names)
    if paired:
        raise DesignError(
            "all files are of one model's weights, so its variants are compared over the same "
            "items: leave --block out"
        )
    stores = [found.shifted for found in files if found.shifted is not None]
    example = "--block 0='*-0'"
    return [_asked(name, store, asked, example) for name, store in zip(names, stores, strict=True)]


def _asked(name: str, store: ActivationStore, asked: Mapping[str, str], example: str) -> str:
    known = (name, store.model, store.path.name, str(store.path))
    fitting = [
        label
        for label, pattern in asked.items()
        if any(fnmatch.fnmatchcase(text, pattern) for text in known)
    ]
    if len(fitting) != 1:
        found = f"no {example.partition(' ')[0]}" if not fitting else " and ".join(fitting)
        raise DesignError(
            f"model {name!r} ({place(store)}) matches {found}: give each model one, as in {example}"
        )
    return fitting[0]


def refuse_interventions(members: Sequence[Member]) -> None:
    """Refuse interventions: a change that is not the variant's does not define an architecture."""
    for member in members:
        header = member.shifted.header
        own = {"window": "window", "no_causal": "causal"}.get(header.variant.partition("(")[0])
        changes = [(k, v) for change in header.interventions for k, v in change.items()]
        for name, value in changes:
            changed = not value if name == "causal" else value not in (None, [])
            if name in (*INTERVENTIONS, "temperature") and name != own and changed:
                raise DesignError(
                    f"{place(member.shifted)} was captured under an intervention ({name}), which "
                    "does not define an architecture: give the capture without it"
                )


def refuse_other_naturals(members: Sequence[Member]) -> None:
    """Refuse different lengths: attention to key 0 is averaged over all queries."""
    stores = [member.files.natural for member in members if member.files.natural is not None]
    for store in stores[1:]:
        here, there = (s.tokens.shape[1] for s in (store, stores[0]))
        if here != there:
            raise DesignError(
                f"{place(store)} has sequences of {here} tokens and {place(stores[0])} of "
                f"{there}: make all natural captures with the same --length"
            )


def refuse_other_designs(stores: Sequence[ActivationStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        for name, wanted in SHAPES.items():
            here, there = (_shown(getattr(s, name)) for s in (store, first))
            if here != there:
                raise DesignError(
                    f"{place(store)} has {name} {here} and {place(first)} {there}: capture all "
                    f"models with {wanted}"
                )
        here, there = (_leads(s) for s in (store, first))
        if here != there:
            raise DesignError(
                f"{place(store)} has {here} at position 0 and {place(first)} {there}: capture "
                "all models with the same --bos"
            )


def _shown(value: Any) -> str:
    return listed(value) if isinstance(value, tuple) else str(value)


def _leads(store: ActivationStore) -> str:
    return "a BOS" if store.has_bos else "text"


def common_items(members: Sequence[Member]) -> NDArray[np.int32]:
    items: NDArray[np.int32] = reduce(np.intersect1d, (m.shifted.item for m in members))
    if len(items) < 3:
        raise DesignError(
            f"the models have {len(items)} items in common, and intervals need 3: capture all of "
            "them with the same --seed and a larger --n"
        )
    return items


def same_tokens(
    stores: Sequence[ActivationStore], items: NDArray[np.int32], different: bool
) -> bool:
    texts = [store.tokens_of(items) for store in stores]
    for store, text in zip(stores, texts, strict=True):
        if not np.array_equal(text, texts[0]):
            if different:
                return False
            raise DesignError(
                f"{place(store)} and {place(stores[0])} contain different tokens: use one text "
                "and --seed; where tokenizers differ, --different-tokens compares positions alone"
            )
    return True


def _notes(
    members: Sequence[Member], items: NDArray[np.int32], same_tokens: bool
) -> tuple[str, ...]:
    """What has to be known about the comparison, in the order in which it is printed."""
    return (
        *_item_notes(members, items),
        *_digest_notes(members),
        *_repeat_notes(members),
        *_token_notes(same_tokens),
        *_offset_notes(members),
        *_first_token_notes(members),
        *_causal_notes(members),
        *_window_notes(members),
    )


def _item_notes(members: Sequence[Member], items: NDArray[np.int32]) -> list[str]:
    counts = {member.shifted.n_items for member in members}
    if len(counts) == 1:
        return []
    return [
        f"the files have {min(counts)} to {max(counts)} items: the {len(items)} that all of them "
        "have are compared"
    ]


def _step_notes(members: Sequence[Member], paired: bool) -> list[str]:
    """One note where the files look like checkpoints of one training run."""
    steps = {named_step(member.shifted) for member in members}
    names = {STEP.sub("", PurePath(member.shifted.model).name) for member in members}
    if paired or len(names) > 1 or None in steps or len(steps) < len(members):
        return []
    return [
        "the models look like checkpoints of one training run, and here they count as independent: "
        "posprobe compare --steps follows a run"
    ]


def asked_revision(store: ActivationStore) -> str:
    """Return the revision of the hub that a capture asked for, or an empty text."""
    return str(store.header.options.get("model", {}).get("asked_revision") or "")


def named_step(store: ActivationStore) -> int | None:
    """Return the training step in a file's revision, model's name or path, or None."""
    for text in (
        asked_revision(store),
        PurePath(store.model).name,
        *reversed(store.path.parts[-2:]),
    ):
        if numbers := STEP.findall(text):
            return int(numbers[-1])
    return None


def _digest_notes(members: Sequence[Member]) -> list[str]:
    names = [m.name for m in members if not all(store.n_digests for store in m.files.all())]
    if not names:
        return []
    return [f"files of {', '.join(names)} have format 1, which does not show damage to data"]


def _repeat_notes(members: Sequence[Member]) -> list[str]:
    """One note on each file in which items repeat others."""
    return [
        f"{place(store)}: {store.repeats_in_words()}, and intervals take them as independent"
        for member in members
        for store in member.files.all()
        if store.repeated_items
    ]


def _token_notes(same_tokens: bool) -> list[str]:
    if same_tokens:
        return []
    return ["the models saw different tokens: positions are the same, the text is not"]


def _offset_notes(members: Sequence[Member]) -> list[str]:
    """One note per model with a window that is too narrow for an offset."""
    notes = []
    for member in members:
        offsets = member.shifted.offsets
        window = min((w for w in member.shifted.layer_window if w), default=None)
        if window is not None and window <= max(offsets, default=0):
            notes.append(
                f"{member.name}: its window of {window} tokens hides some of the offsets "
                f"{listed(offsets)}, which are left out for it"
            )
    return notes


def _first_token_notes(members: Sequence[Member]) -> list[str]:
    """Whether natural captures begin with different kinds of token."""
    leads = {
        member.name: _leads(member.files.natural)
        for member in members
        if member.files.natural is not None
    }
    if len(set(leads.values())) < 2:
        return []
    bare = [name for name, lead in leads.items() if lead == "text"]
    return [
        f"natural captures of {', '.join(bare)} begin with text, the others with a BOS: "
        "attention to key 0 there is attention to another kind of token"
    ]


def _causal_notes(members: Sequence[Member]) -> list[str]:
    blind = [m.name for m in members if m.shifted.header.variant == "no_causal"]
    if not blind:
        return []
    return [
        f"{', '.join(blind)}: without a causal mask V_M = 0 by construction and V_R reflects "
        "sequence length, not the residual channel; left out of H3"
    ]


def _window_notes(members: Sequence[Member]) -> list[str]:
    """How a window changes what both channels mean."""
    windowed = dict.fromkeys(m.architecture for m in members if any(m.shifted.layer_window))
    if not windowed:
        return []
    names = ", ".join(windowed)
    return [
        f"late queries of {names} do not see key 0 through a sliding window: the mask channel "
        "there also includes the effect of key 0 becoming visible, at the late row's score",
        f"with prefixes as long as its sliding window or longer the mask channel of {names} is "
        "closed (M = 0): the residual channel may be larger relative to the mask's, "
        "V_R/(V_R + V_M), because V_M is smaller; read V_R and V_M themselves",
    ]
