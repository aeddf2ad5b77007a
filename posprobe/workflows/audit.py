"""`posprobe audit`: capture every stimulus of the study on one model, then analyze the files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePath
from typing import Any, Literal

from posprobe.analysis import (
    Head,
    mean_normalizers,
    random_heads,
    sink_reading_heads,
    strongest,
)
from posprobe.captures import (
    OFFSETS,
    QUANTITIES,
    CaptureOptions,
    capture_stimulus,
    fitting_length,
    warn_of_length,
)
from posprobe.channels import LEAST_ITEMS, MAX_UNITS, overall_variances, why_not_split
from posprobe.errors import DesignError, changed, noting, progress_bar
from posprobe.intervals import Goal, Inference, Interval, next_size
from posprobe.models import Intervention, ModelSource, ObservableModel, load_model
from posprobe.report import output_folder
from posprobe.stimuli import (
    BOS_POLICIES,
    Corpus,
    Stimulus,
    TextSource,
    make_stimulus,
    read_text,
)
from posprobe.store import ActivationStore, open_stores
from posprobe.workflows.analyze import analyze

__all__ = ["REPLACEMENTS", "audit"]

Cut = tuple[Head, ...] | Literal["all"]
Conditions = Mapping[str, Sequence[Any]]

REPLACEMENTS = ("mean", "content")
FULL_REPLACEMENTS = ("special", "noise", "zero")
FACTORS = ("position0", "text", "length")
POSITION0 = {"native": "native", "bos": "force", "none": "none"}  # conditions as BOS policies
N_NATURAL, N_SHIFTED, N_REPEATED, N_FULL = 40, 32, 4, 16
RANDOM_DRAWS = 2
LEAST_N = 5
PLANNED = ("V_R", "V_M", "V_T", "C_MR")
MAX_ITEMS = 512


@dataclass(frozen=True)
class Plan:
    """One capture of an audit; text and length are those of the main condition if None.

    `precision` is what its items were captured for, as in `Stimulus`.
    """

    file: str
    design: str
    n: int
    bos: str
    options: CaptureOptions
    text: Corpus | None = None
    length: int | None = None
    first_item: int = 0
    precision: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """How much an audit captures, and how the sequences of its main condition begin."""

    n: int | None
    length: int
    window: int
    prefixes: tuple[int, ...] | None
    offsets: tuple[int, ...]
    batch_tokens: int | None = None
    bos: str = "native"
    layers: tuple[int, ...] | str | None = None

    @property
    def options(self) -> CaptureOptions:
        """What the captures keep unless more is needed: all scores, no residual stream."""
        kept = tuple(name for name in QUANTITIES if name != "residual")
        return CaptureOptions(quantities=kept, offsets=self.offsets, batch_tokens=self.batch_tokens)

    @property
    def natural(self) -> CaptureOptions:
        """What the natural capture keeps: the residual stream too, for probes."""
        return self.options.changed(quantities=QUANTITIES, residual_layers=self.layers)

    @property
    def position0(self) -> str:
        """The main condition, by its name among the levels of `position0`."""
        return next(name for name, bos in POSITION0.items() if bos == self.bos)


def audit(
    model: ObservableModel | ModelSource,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    name: str = "",
    loading: Mapping[str, Any] | None = None,
    variant: str = "standard",
    text: TextSource = None,
    n: int | None = None,
    length: int | None = None,
    window: int = 32,
    prefixes: tuple[int, ...] | None = None,
    bos: str = "native",
    offsets: tuple[int, ...] = OFFSETS,
    residual_layers: tuple[int, ...] | str | None = None,
    batch_tokens: int | None = None,
    replacements: Sequence[str] = REPLACEMENTS,
    conditions: Conditions | None = None,
    full: bool = False,
    precision: float | tuple[str, float] | None = None,
    max_items: int = MAX_ITEMS,
    inference: Inference = Inference(),
    progress: bool = True,
    **changes: Any,
) -> Path:
    """Find out where a model's absolute position comes from: capture, analyze, report.

    Captures the natural and the shifted design, the shifted one again with each replacement of
    position 0, and one repeated token with and without BOS. The main condition is the one in which
    people use the model: position 0 is what its tokenizer puts there. Where that is no BOS, a
    forced one is a second condition: the shifted design again, natively and with the mean embedding
    at position 0. `conditions` asks for others. If the audit is interrupted, call it again with the
    same arguments: it continues where it stopped.

    A full audit also captures more replacements, and interventions: key 0 hidden from the
    sink-reading heads (chosen on one half of the natural sequences), from as many random other
    heads and from all heads; fixed denominators in the first layer; no causal mask; and a sliding
    window of an eighth of the length. Each is run on the first 16 windows and paired with the same
    windows of the native capture. Without the causal mask the audit also captures the first 16
    natural sequences, in which all queries then see the same number of keys.

    Parameters
    ----------
    model : ObservableModel, str or transformers.PreTrainedModel
        Model to run, or what `load_model` takes.
    folder : str or Path
        Gets report.html, claims.json, tables/, figures/ and the captured files. Tables and figures
        that only an earlier run made are deleted; captured files are kept.
    tokenizer : transformers tokenizer or None
        As in `load_model`; used only where the model is not an `ObservableModel`.
    name : str
        Name of the model in files and in the title of the report, likewise. By default, what it is
        loaded by.
    loading : mapping or None
        Further arguments of `load_model`, likewise: ``dtype``, ``device``, ``revision``, ...
    variant : str
        See `posprobe.models.variants`; used only where the model is not an `ObservableModel`.
    text : None, Text, str, Path, or a sequence of these
        The text to draw from, see `posprobe.stimuli.read_text` (None: the Python language reference
        that comes with CPython). A string is the text itself, unless it names a bundled text or a
        data set; a file is ``Path(...)``.
    n : int or None
        Sequences and windows, at least 5 (None: 40 natural sequences and 32 windows).
    length, window, prefixes
        Tokens of the longest sequence, tokens of the window, prefix lengths: see
        `posprobe.make_stimulus`. A length of None means 256, or as many as the model was made for
        where these are fewer.
    bos : {"native", "force", "none"}
        How sequences of the main condition begin. Unless it is native, `conditions` None means this
        one alone.
    offsets : tuple of int
        Distances, in tokens, at which scores are kept.
    residual_layers : tuple of int, str or None
        Layers whose residual stream is kept, and probed, as in `CaptureOptions`.
    batch_tokens : int or None
        Tokens per forward pass, as in `CaptureOptions`.
    replacements : sequence of str
        Treatments of position 0, see `posprobe.captures.position0.POSITION0`.
    conditions : mapping of str to sequence, or None
        Conditions to cross, by factor: ``position0`` ("native", "bos", "none"), ``text`` (what
        `posprobe.stimuli.read_text` takes) and ``length`` (tokens). Texts come in addition to
        `text`. Each condition is captured once: where the tokenizer puts a BOS, "native" and "bos"
        are one.
        None: native, and a BOS where the tokenizer has one.
    full : bool
        Also capture more replacements and the interventions; takes about twice as long.
    precision : float, (str, float) or None
        Wanted half width of an interval, over its estimate: of V_R, or of the named variance, as in
        ``("V_M", 0.1)``; in the shifted design of the main condition. Its first windows are then a
        pilot, and more are captured, each time as many as the width so far suggests, until the
        precision is reached. The report says what was asked for and what was reached.
    max_items : int
        Windows at which this ends. The length of the text may set a lower limit.
    inference : Inference
        How intervals are made; its seed also draws the stimuli.
    progress : bool
        Show a progress bar.
    **changes
        Single fields of `inference`: ``level=0.9``, ``seed=1``, ...

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    PosprobeError
        If a model, text, size or folder cannot be used; the message is one line.
    """
    inference = changed(inference, changes)
    _check_start(n, bos)
    words = read_text(text)
    kept = f"captured files in {folder} are kept; run the same command again to go on"
    with noting(kept), output_folder(folder) as made:
        if not isinstance(model, ObservableModel):
            given = {"tokenizer": tokenizer, "name": name, "variant": variant, **(loading or {})}
            model = load_model(model, **given)
        tokens = fitting_length(model, length)
        warn_of_length(model.name, length, tokens)
        size = Size(n, tokens, window, prefixes, tuple(offsets), batch_tokens, bos, residual_layers)
        main = Corpus.of_text(words, model.tokenize)
        asked = _asked(precision, max_items, size, main, inference.seed)
        capturing = _Capturing(model, made, main, size, inference.seed, progress)
        elsewhere = _condition_plans(model, size, main, conditions)
        paths = capturing.run(_plans(model, size, replacements, asked) + elsewhere)
        paths += _more_items(capturing, asked, inference)
        if full:
            paths += capturing.run(_full_plans(model, made, size, replacements))
        return analyze(paths, made, inference=inference, progress=progress)


def _check_start(n: int | None, bos: str) -> None:
    """Refuse too few sequences and an unknown policy, before anything is loaded."""
    if bos not in BOS_POLICIES:
        raise DesignError(f"bos={bos!r} is unknown: choose {', '.join(BOS_POLICIES)}")
    if n is not None and n < LEAST_N:
        raise DesignError(f"n={n} is too few: probes need {LEAST_N} folds of sequences, so raise n")


def _asked(
    precision: float | tuple[str, float] | None, max_items: int, size: Size, main: Corpus, seed: int
) -> dict[str, Any]:
    """The precision up to which windows are captured, as files record it; empty if none is."""
    if precision is None:
        return {}
    quantity, target = precision if isinstance(precision, tuple) else (PLANNED[0], precision)
    if quantity not in PLANNED:
        raise DesignError(f"precision of {quantity!r} is unknown: use one of {', '.join(PLANNED)}")
    target = Goal(target).precision
    pilot = N_SHIFTED if size.n is None else size.n
    if not LEAST_ITEMS <= pilot <= max_items:
        raise DesignError(
            f"n={pilot} windows cannot begin a search for a precision: give at least "
            f"{LEAST_ITEMS}, and at most max_items={max_items}"
        )
    corpus = main.shuffle(seed) if main.shuffled else main
    room = corpus.chunks(size.length - 1) - 1  # a window and the prefixes of the item before it
    return {
        "quantity": quantity,
        "target": target,
        "pilot": pilot,
        "most": max(pilot, min(max_items, room)),
    }


def _plans(
    model: ObservableModel,
    size: Size,
    replacements: Sequence[str],
    asked: Mapping[str, Any],
) -> list[Plan]:
    """The captures of the main condition, in order."""
    natural, shifted = (N_NATURAL, N_SHIFTED) if size.n is None else (size.n, size.n)
    scores = size.options
    plans = [
        Plan("natural.h5", "natural", natural, size.bos, size.natural),
        Plan("shifted.h5", "shifted", shifted, size.bos, scores, precision=asked),
        *(
            Plan(f"replaced_{r}.h5", "shifted", shifted, size.bos, scores.changed(position0=r))
            for r in replacements
        ),
        Plan("repeated.h5", "repeated", N_REPEATED, "none", scores),
    ]
    if model.bos_id is not None:
        plans.append(Plan("bos_repeated.h5", "repeated", N_REPEATED, "force", scores))
    return plans


def _condition_plans(
    model: ObservableModel, size: Size, main: Corpus, conditions: Conditions | None
) -> list[Plan]:
    """The captures of all conditions but the main one: factors crossed, each condition once."""
    if conditions is None:
        both = size.bos == "native" and model.bos_id is not None
        conditions = {"position0": ("native", "bos")} if both else {}
    factors: dict[str, list[Any]] = {
        "position0": [size.position0],
        "text": [main],
        "length": [size.length],
    }
    factors |= _levels(model, size, main, conditions)
    lead = {"native": model.native_bos, "bos": model.bos_id, "none": None}
    n, scores = N_SHIFTED if size.n is None else size.n, size.options
    treatments = {"shifted": scores, "replaced_mean": scores.changed(position0="mean")}
    usual = lead[size.position0]
    seen = {(main.name, size.length, usual)}
    plans = []
    for text, length, first in product(factors["text"], factors["length"], factors["position0"]):
        if (text.name, length, lead[first]) in seen:
            continue  # where the tokenizer puts a BOS, native and bos are one condition
        seen.add((text.name, length, lead[first]))
        ending = "".join(
            f"_{part}"
            for part, differs in (
                (_file_word(text.name), text.name != main.name),
                (length, length != size.length),
                (first, lead[first] != usual),
            )
            if differs
        )
        plans += [
            Plan(f"{name}{ending}.h5", "shifted", n, POSITION0[first], options, text, length)
            for name, options in treatments.items()
        ]
    return plans


def _file_word(text: str) -> str:
    """A text's name for use in a file name: without folders, ending and version.

    Examples
    --------
    >>> _file_word("code, Python 3.11.7"), _file_word("my texts/a b.txt")
    ('code', 'a_b')
    """
    return re.sub(r"\W+", "_", PurePath(text.partition(",")[0]).stem)


def _levels(
    model: ObservableModel, size: Size, main: Corpus, conditions: Conditions
) -> dict[str, list[Any]]:
    """The levels of each factor, with those that the model cannot have refused."""
    factors: dict[str, list[Any]] = {}
    for factor, levels in conditions.items():
        if factor not in FACTORS:
            raise DesignError(f"{factor!r} is not a condition: choose {', '.join(FACTORS)}")
        if not levels:
            raise DesignError(f"condition {factor!r} has no level: give one or more")
        factors[factor] = list(levels)
    for first in factors.get("position0", []):
        if first not in POSITION0:
            known = ", ".join(POSITION0)
            raise DesignError(f"position0={first!r} is not a condition: choose {known}")
        if first == "bos" and model.bos_id is None:
            raise DesignError(
                f"condition position0=bos needs a BOS token, and the tokenizer of {model.name!r} "
                "has none: leave it out"
            )
    if "length" in factors and size.prefixes is not None:
        raise DesignError("prefixes belong to one length: give prefixes or conditions of length")
    for other in factors.get("length", []):
        fitting_length(model, other)
    if "text" in factors:
        read = (read_text(text) for text in factors["text"])
        factors["text"] = [main, *(Corpus.of_text(text, model.tokenize) for text in read)]
    return factors


def _full_plans(
    model: ObservableModel, folder: Path, size: Size, replacements: Sequence[str]
) -> list[Plan]:
    """The captures that a full audit adds; heads and constants come from its natural capture."""
    count = N_FULL if size.n is None else size.n
    with ActivationStore(folder / "natural.h5") as natural:
        changes = {
            name: Intervention(cut_sink=heads) for name, heads in _cuts(natural, model).items()
        }
        constants = mean_normalizers(natural, layers=[0])
    changes["fixed_denominator"] = Intervention(fixed_denominator=constants)
    changes["no_causal"] = Intervention(causal=False)
    least = max(size.offsets, default=0) + 1  # the farthest key that is kept, and the query itself
    changes["window"] = Intervention(window=max(size.length // 8, least))
    options = {name: size.options.changed(intervention=c) for name, c in changes.items()}
    added = {
        f"replaced_{r}": size.options.changed(position0=r)
        for r in FULL_REPLACEMENTS
        if r not in replacements and (r != "special" or len(model.special_ids) > 1)
    }
    return [
        *(
            Plan(f"{name}.h5", "shifted", count, size.bos, o)
            for name, o in (added | options).items()
        ),
        Plan("no_causal_natural.h5", "natural", count, size.bos, options["no_causal"]),
    ]


def _cuts(natural: ActivationStore, model: ObservableModel) -> dict[str, Cut]:
    """Heads from which key 0 is hidden, by file; as many random heads as sink-reading ones."""
    reading = sink_reading_heads(natural)
    shape = natural.n_layers, natural.n_heads
    compared = strongest(reading, *shape)
    cuts: dict[str, Cut] = {"cut_all": "all"}
    if compared:
        cuts["cut_sink_reading"] = tuple(sorted(compared))
        draws = random_heads(compared, reading, shape, draws=RANDOM_DRAWS, seed=natural.header.seed)
        cuts |= {f"cut_random_{k}": tuple(heads) for k, heads in enumerate(draws, 1)}
    if len(compared) < len(reading) < shape[0] * shape[1]:
        cuts["cut_every_sink_reading"] = tuple(sorted(reading))
    return cuts


@dataclass(frozen=True)
class _Capturing:
    """What all captures of an audit share."""

    model: ObservableModel
    folder: Path
    main: Corpus
    size: Size
    seed: int
    progress: bool

    def run(self, plans: Sequence[Plan]) -> list[Path]:
        """Capture what the folder does not contain yet; all stimuli are drawn first."""
        stimuli = [self._stimulus(plan) for plan in plans]
        total = sum(int(stimulus.lengths.sum()) for stimulus in stimuli)
        with progress_bar(self.progress, total=total, unit="token", unit_scale=True) as bar:
            for plan, stimulus in zip(plans, stimuli, strict=True):
                bar.set_description(f"capture: {plan.file}")
                path = self.folder / plan.file
                capture_stimulus(
                    self.model, stimulus, path, plan.options, resume=True, progress=bar
                )
        return [self.folder / plan.file for plan in plans]

    def _stimulus(self, plan: Plan) -> Stimulus:
        drawn = make_stimulus(
            plan.design,
            plan.text or self.main,
            n=plan.n,
            length=plan.length or self.size.length,
            window=self.size.window,
            prefixes=self.size.prefixes,
            bos=plan.bos,
            **self.model.first_tokens(plan.bos),
            seed=self.seed,
            first_item=plan.first_item,
        )
        return dataclasses.replace(drawn, precision=plan.precision)


def _more_items(
    capturing: _Capturing, asked: Mapping[str, Any], inference: Inference
) -> list[Path]:
    """Capture windows behind those of the pilot, until the precision is reached or cannot be."""
    paths = [capturing.folder / "shifted.h5"]
    while asked:
        (store,) = open_stores(paths)
        with store:
            if why_not_split(store):
                break
            have, interval = store.n_items, _interval(store, asked["quantity"], inference)
        wanted = next_size(interval, asked["target"], asked["most"])
        if wanted - have < 2:
            break
        more = Plan(
            f"shifted_more_{len(paths)}.h5", "shifted", wanted - have, capturing.size.bos,
            capturing.size.options, first_item=have, precision=asked,
        )  # fmt: skip
        paths += capturing.run([more])
    return paths[1:]


def _interval(store: ActivationStore, quantity: str, inference: Inference) -> Interval:
    """The interval of a variance as the report will show it, on the number of windows."""
    variances = overall_variances(store, inference, max_units=MAX_UNITS)
    found = variances.interval(quantity, inference.level)
    return dataclasses.replace(found, n=store.n_items)
