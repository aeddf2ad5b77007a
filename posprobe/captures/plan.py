"""Everything that is decided before the first forward pass of a capture."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from posprobe.captures.options import CaptureOptions
from posprobe.captures.position0 import check_treatment, kept_at_position0, replace_token
from posprobe.captures.rounding import measure_rounding
from posprobe.captures.selection import parse_layers, parse_positions
from posprobe.errors import PosprobeWarning, StimulusError, StoreError
from posprobe.models import (
    BLOCK,
    Bands,
    Intervention,
    ObservableModel,
    Observation,
    find_bands,
    own_position,
    prove_bands,
)
from posprobe.stimuli import Stimulus
from posprobe.store import (
    ATTENTION_GAIN,
    BAND_DATA_SETS,
    BANDED,
    BANDS,
    KEPT_AT_POSITION0,
    LEARNED_SINKS,
    ORIGIN,
    OWN_POSITION,
    Header,
    repeated_items,
    repeats_in_words,
)

__all__ = [
    "ALONE",
    "BATCH_TOKENS",
    "LENGTH",
    "CapturePlan",
    "effective_window",
    "fitting_length",
    "plan_capture",
    "versions",
    "warn_of_length",
    "warn_of_repeats",
]

BATCH_TOKENS = 2048
LENGTH = 256  # tokens of the longest sequence where nobody says how many
ALONE = 64  # first tokens that are run together in one pass, each without its sequence
REMASKED = {"remasked_normalizer", "remasked_body", "band_normalizer"}
BY_OFFSET = {"offset_score", "band_offset_score"}


@dataclasses.dataclass(frozen=True)
class CapturePlan:
    """Everything that is decided before the first forward pass; equal plans give equal files.

    Attributes
    ----------
    stimulus : Stimulus
        The sequences to run, with the token that the treatment puts at position 0.
    header : Header
        Header of the file.
    observation : Observation
        What is recorded of each layer's scores.
    change : Intervention
        What the variant and the caller change in the attention.
    position0 : str
        Treatment of position 0.
    firsts : Stimulus
        The first tokens of all sequences of the capture, even if `stimulus` is only a part of it.
    start : int
        Number of the first sequence of `stimulus` within the whole capture.
    """

    stimulus: Stimulus
    header: Header
    observation: Observation
    change: Intervention
    position0: str
    firsts: Stimulus
    start: int = 0

    @property
    def index(self) -> dict[str, np.ndarray]:
        """The index data sets of the file, by name."""
        return {name: getattr(self.stimulus, name) for name in self.header.index}

    def n_tokens(self, sequences: slice = slice(None)) -> int:
        """Count the tokens of some sequences, by default of all."""
        return int(self.stimulus.lengths[sequences].sum())

    def batches(self, done: int = 0) -> Iterator[slice]:
        """Iterate over the sequences of each forward pass, from number `done` on.

        Raises
        ------
        StoreError
            If `done` is not the end of a pass, which means that the journal is not of this capture.
        """
        batches = list(_batches(self.stimulus, self.header.batch_tokens))
        if done not in (0, *(batch.stop for batch in batches)):
            raise StoreError(
                f"the journal has {done} sequences, which is not the end of a batch of this "
                "capture: delete the .journal to write every sequence again"
            )
        return iter(batch for batch in batches if batch.start >= done)

    def part(self, sequences: slice) -> CapturePlan:
        """Return the plan of some sequences, which must start and stop between two batches."""
        rows = {
            name: getattr(self.stimulus, name)[sequences]
            for name in ("lengths", *self.header.index)
        }
        return dataclasses.replace(
            self,
            stimulus=dataclasses.replace(self.stimulus, **rows),
            header=self.header.with_sequences(len(rows["item"])),
            start=self.start + range(len(self.stimulus.tokens))[sequences].start,
        )


def plan_capture(
    model: ObservableModel,
    stimulus: Stimulus,
    options: CaptureOptions,
    *,
    consumed: Collection[str] = (),
    known: Header | None = None,
) -> CapturePlan:
    """Decide everything that a capture does.

    Parameters
    ----------
    model : ObservableModel
        Model to run.
    stimulus : Stimulus
        Sequences to run, before any treatment of position 0.
    options : CaptureOptions
        What to keep and what to change.
    consumed : collection of str, default=()
        Quantities to compute in addition to those of the file.
    known : Header or None, default=None
        Header of the same capture if it was completed before. Its own-position measurement is then
        taken over instead of being repeated.

    Returns
    -------
    CapturePlan

    Raises
    ------
    PosprobeError
        As in `posprobe.captures.capture_stimulus`.
    """
    model.check()
    _check_length(model, stimulus.tokens.shape[1], options.past_training)
    _check_tokens(model, stimulus)
    check_treatment(options.position0)
    change = model.intervention().combined(options.intervention)
    change.check_heads(model.n_layers, model.n_heads)
    bands = _bands(model, stimulus, options.bands)
    if bands is not None:
        change = change.combined(bands.zeroing(options.zero_band))
        prove_bands(model, bands, change)
    drawn, stimulus = stimulus, replace_token(model, stimulus, options.position0)
    _check_repeats(drawn)
    own = _measured(model, stimulus, options.position0) if known is None else _noted(known)
    computed = {*options.quantities, *consumed} | (set() if bands is None else {*BAND_DATA_SETS})
    header = _header(model, stimulus, change, options, computed, own)
    if bands is not None:
        header = _with_bands(header, bands)
    observation = Observation(
        n_queries=stimulus.n_queries,
        offsets=header.offsets,
        prefixes=stimulus.prefixes if REMASKED & computed else (),
        window=stimulus.window,
        first_is_apart=stimulus.design != "repeated"
        or stimulus.bos_token is not None
        or options.position0 != "native",
    )
    header = dataclasses.replace(
        header,
        rounding=measure_rounding(model, stimulus, observation, change, options.position0)
        if known is None
        else known.rounding,
        options={"model": model.loading, "capture": _resolved(options, header).describe()},
    )
    if bands is not None:  # whose rounding is not measured
        observation = dataclasses.replace(observation, bands=bands.dimensions)
    firsts = dataclasses.replace(
        stimulus, tokens=stimulus.tokens[:, :1], lengths=np.ones_like(stimulus.lengths)
    )
    return CapturePlan(stimulus, header, observation, change, options.position0, firsts)


def _bands(model: ObservableModel, stimulus: Stimulus, n_bands: int | None) -> Bands | None:
    """Return the bands of rotation by which scores are split, or None if they are not."""
    if n_bands is None:
        return None
    if stimulus.design != "shifted":
        raise StimulusError(
            f"bands are recorded in the shifted design only, not in {stimulus.design}; choose "
            "design shifted or leave the bands out"
        )
    return find_bands(model, stimulus.tokens.shape[1], n_bands)


def _with_bands(header: Header, bands: Bands) -> Header:
    """Return the header of a file that also has scores by band."""
    return dataclasses.replace(
        header,
        quantities=(*header.quantities, *BAND_DATA_SETS),
        config={**header.config, BANDS: bands.describe()},
        version=BANDED,
    )


def _tokens_that_fit(model: ObservableModel, stimulus: Stimulus) -> int:
    """Choose the number of tokens per pass.

    On a CPU few tokens are enough, since more would not be faster. On a GPU a pass may take half of
    the free memory. The estimate counts the largest arrays of one block: residual streams, the
    feed-forward layer, the scores of late rows, and blocks of scores.
    """
    free = model.free_memory()
    if free is None:
        return BATCH_TOKENS
    inner = getattr(model.config, "intermediate_size", None) or 4 * model.width
    length = stimulus.tokens.shape[1]
    scores = 3 * model.n_heads * (stimulus.window + min(BLOCK, length) ** 2 / length)
    numbers = 12 * model.width + 3 * inner + scores
    return max(BATCH_TOKENS, 2 ** int(np.log2(free / 2 / (4 * numbers))))


def fitting_length(model: ObservableModel, length: int | None, past_training: bool = False) -> int:
    """Return the length that was asked for, or by default one that the model takes.

    Parameters
    ----------
    model : ObservableModel
    length : int or None
        Tokens of the longest sequence. None means 256, or fewer where the model was made for fewer.
    past_training : bool
        As in `CaptureOptions`.

    Returns
    -------
    int

    Raises
    ------
    StimulusError
        If a length that was asked for exceeds the positions that the model was made for.
    """
    if length is None and model.max_length is not None:
        length = min(LENGTH, model.max_length)  # of all variants, so they can be compared
    length = LENGTH if length is None else length
    _check_length(model, length, past_training)
    return length


def warn_of_length(model: str, asked: int | None, length: int) -> None:
    """Warn of a default that is shorter than usual, since the model takes no more.

    Parameters
    ----------
    model : str
        Name of the model.
    asked : int or None
        The length that was asked for.
    length : int
        The length that was taken.

    Warns
    -----
    PosprobeWarning
        If none was asked for, and the model was made for fewer than 256 tokens.
    """
    if asked is None and length < LENGTH:
        warnings.warn(
            f"sequences have {length} tokens instead of {LENGTH}: model {model!r} was made for no "
            "more",
            PosprobeWarning,
            stacklevel=3,
        )


def _check_length(model: ObservableModel, length: int, past_training: bool) -> None:
    """Refuse sequences past the training length, unless they were asked for and can run."""
    if model.max_length is None or length <= model.max_length:
        return
    made_for = f"the {model.max_length} positions that model {model.name!r} was made for"
    if getattr(model.config, "rope_parameters", None) is None:
        raise StimulusError(
            f"length {length} exceeds {made_for}, which has no embedding of later ones; "
            "give a smaller --length"
        )
    reach = int(model.max_length * model.variant.reach)
    if length > reach and not past_training:
        scaled = f", and the {reach} that {model.variant} makes of them" * (
            reach > model.max_length
        )
        raise StimulusError(
            f"length {length} exceeds {made_for}{scaled}; give a smaller --length, a --variant "
            "that scales its rotations further, or --past-training"
        )


def _header(
    model: ObservableModel,
    stimulus: Stimulus,
    change: Intervention,
    options: CaptureOptions,
    computed: set[str],
    measured: dict[str, Any],
) -> Header:
    longest = stimulus.tokens.shape[1]
    windows = [effective_window(w, change, longest) or 0 for w in model.layer_windows]
    batch_tokens = options.batch_tokens
    return Header(
        model=model.name,
        design=stimulus.design,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        width=model.width,
        n_sequences=len(stimulus.tokens),
        length=longest,
        n_queries=stimulus.n_queries,
        quantities=options.quantities,
        layer_window=tuple(windows),
        prefixes=stimulus.prefixes,
        window=stimulus.window,
        offsets=options.offsets if BY_OFFSET & computed else (),
        residual_layers=_layers(options.residual_layers, model),
        residual_queries=_queries(options.residual_positions, stimulus),
        dtype=options.dtype,
        weights_digest=model.weights_digest(),
        config=model.effective_config()
        | {"posprobe_quantization": model.quantization}
        | {"posprobe_variant": model.variant_evidence(longest)}
        | ({LEARNED_SINKS: list(model.learned_sinks)} if model.learned_sinks else {})
        | ({ATTENTION_GAIN: list(model.gains)} if {*model.gains} != {1.0} else {})
        | ({ORIGIN: model.origin} if model.borrowed else {})
        | measured,
        trained_length=model.max_length or 0,
        variant=str(model.variant),
        position0_treatment=options.position0,
        interventions=[change.describe()],
        stimulus=stimulus.describe() | {"special_tokens": _special_tokens(model, stimulus)},
        seed=stimulus.seed,
        versions=versions(),
        batch_tokens=_tokens_that_fit(model, stimulus) if batch_tokens is None else batch_tokens,
    )


def _resolved(options: CaptureOptions, header: Header) -> CaptureOptions:
    """The options with what was left to the model or written as text, however it was asked for."""
    return options.changed(
        residual_layers=header.residual_layers,
        residual_positions=header.residual_queries or None,
        batch_tokens=header.batch_tokens,
    )


def _check_tokens(model: ObservableModel, stimulus: Stimulus) -> None:
    """Refuse tokens for which the model has no embedding."""
    known = model.model.get_input_embeddings().num_embeddings
    beyond = np.unique(stimulus.tokens[stimulus.tokens >= known])
    if len(beyond):
        raise StimulusError(
            f"token {beyond[0]} is beyond the {known} embeddings of model {model.name!r}: its "
            "tokenizer has tokens that the model was not resized for; use the tokenizer of these "
            "weights"
        )


def _check_repeats(stimulus: Stimulus) -> None:
    """Refuse items that are all the same."""
    groups = repeated_items(stimulus.tokens, stimulus.item, stimulus.prefix_length)
    n_items = len(np.unique(stimulus.item))
    if groups and len(groups[0]) == n_items:
        raise StimulusError(
            f"all {n_items} items are the same tokens, so nothing varies between them; give a text "
            "without repeats"
        )


def warn_of_repeats(plan: CapturePlan) -> None:
    """Warn of items that repeat others, since intervals take them as independent.

    Warns
    -----
    PosprobeWarning
        If some do; it names them.
    """
    drawn = plan.stimulus
    groups = repeated_items(drawn.tokens, drawn.item, drawn.prefix_length)
    if groups:
        warnings.warn(
            f"{repeats_in_words(groups, len(np.unique(drawn.item)))}: intervals take them as "
            "independent and are too narrow; give a text without repeats",
            PosprobeWarning,
            stacklevel=3,
        )


def _special_tokens(model: ObservableModel, stimulus: Stimulus) -> dict[str, int]:
    """Count each special token inside the sequences, after position 0."""
    inside = stimulus.tokens[:, 1:]
    ids, counts = np.unique(inside[np.isin(inside, model.special_ids)], return_counts=True)
    return {model.token_name(int(i)): int(n) for i, n in zip(ids, counts, strict=True)}


def _measured(model: ObservableModel, stimulus: Stimulus, position0: str) -> dict[str, Any]:
    """Return the header entries that take forward passes."""
    return _own_position(model, stimulus) | _kept_at_position0(model, stimulus, position0)


def _noted(header: Header) -> dict[str, Any]:
    """Return these entries of a header that has them."""
    noted = (OWN_POSITION, KEPT_AT_POSITION0)
    return {key: value for key, value in header.config.items() if key in noted}


def _own_position(model: ObservableModel, stimulus: Stimulus) -> dict[str, Any]:
    """Return the header entry for scores that themselves change with position, or no entry."""
    found = own_position(
        model,
        int(stimulus.tokens[-1, stimulus.lengths[-1] - 1]),
        shortest=int(stimulus.lengths.min()),
        longest=int(stimulus.lengths.max()),
    )
    return {} if found is None else {OWN_POSITION: found}


def _kept_at_position0(
    model: ObservableModel, stimulus: Stimulus, position0: str
) -> dict[str, Any]:
    """Return the header entry for what a replacement leaves at position 0, or no entry."""
    if position0 == "native":
        return {}
    kept = kept_at_position0(model, int(stimulus.tokens[0, 0]))
    return {KEPT_AT_POSITION0: kept} if kept else {}


def _layers(chosen: tuple[int, ...] | str | None, model: ObservableModel) -> tuple[int, ...] | None:
    """Return the layers whose residual stream is kept; None means all."""
    return parse_layers(chosen, model.n_layers) if isinstance(chosen, str) else chosen


def _queries(chosen: tuple[int, ...] | str | None, stimulus: Stimulus) -> tuple[int, ...]:
    """Return the queries at which the residual stream is kept; an empty tuple means all."""
    if isinstance(chosen, str):
        chosen = parse_positions(chosen, stimulus.n_queries)
    if chosen is not None and not chosen:
        raise StimulusError("residual_positions is empty; leave 'residual' out of the quantities")
    return chosen or ()


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute the numbers."""
    return {name: version(name) for name in ("posprobe", "torch", "transformers")}


def effective_window(native: int | None, change: Intervention, length: int) -> int | None:
    """Return the window, in tokens, that hides keys at this length, or None if none does."""
    windows = [w for w in (native, change.window) if w is not None and w < length]
    return min(windows, default=None)


def _batches(stimulus: Stimulus, batch_tokens: int) -> Iterator[slice]:
    """Cut the sequences into batches of consecutive sequences of equal length."""
    lengths = stimulus.lengths
    start = 0
    while start < len(lengths):
        size = max(1, batch_tokens // int(lengths[start]))
        stop = start
        while stop < min(start + size, len(lengths)) and lengths[stop] == lengths[start]:
            stop += 1
        yield slice(start, stop)
        start = stop
