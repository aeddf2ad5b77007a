"""Everything that is decided before the first forward pass of a capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from posprobe.captures.options import CaptureOptions
from posprobe.captures.position0 import check_treatment, replace_token
from posprobe.captures.selection import parse_layers, parse_positions
from posprobe.errors import StimulusError, StoreError
from posprobe.models import BLOCK, Intervention, ObservableModel, Observation, own_position
from posprobe.stimuli import Stimulus
from posprobe.store import OWN_POSITION, Header

__all__ = [
    "ALONE",
    "BATCH_TOKENS",
    "CapturePlan",
    "check_length",
    "effective_window",
    "plan_capture",
    "versions",
]

BATCH_TOKENS = 2048
ALONE = 64  # first tokens that run by themselves in one pass
REMASKED = {"remasked_normalizer", "remasked_body"}


@dataclasses.dataclass(frozen=True)
class CapturePlan:
    """All that is decided before the first forward pass: the same plan, the same file.

    Attributes
    ----------
    stimulus : Stimulus
        With the token that the treatment of position 0 puts there.
    header : Header
        Header of the file.
    observation : Observation
        What is read off.
    change : Intervention
        What the variant and the caller change.
    position0 : str
        Treatment of position 0.
    firsts : Stimulus
        The first tokens of all sequences, where `stimulus` may be a part.
    start : int
        Number of the part's first sequence.
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
        """The data sets of the file that are known beforehand."""
        return {name: getattr(self.stimulus, name) for name in self.header.index}

    def n_tokens(self, sequences: slice = slice(None)) -> int:
        """Tokens of some sequences, of all by default."""
        return int(self.stimulus.lengths[sequences].sum())

    def batches(self, done: int = 0) -> Iterator[slice]:
        """Sequences of each forward pass, from number `done` on.

        Raises
        ------
        StoreError
            If `done` is not the end of a pass: a journal that says so is of another capture.
        """
        batches = list(_batches(self.stimulus, self.header.batch_tokens))
        if done not in (0, *(batch.stop for batch in batches)):
            raise StoreError(
                f"the journal has {done} sequences, which is not the end of a batch of this "
                "capture: delete the .journal to write every sequence again"
            )
        return iter(batch for batch in batches if batch.start >= done)

    def part(self, sequences: slice) -> CapturePlan:
        """The plan for whole batches of it; `sequences` starts and stops between two batches."""
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
    stimulus : Stimulus
    options : CaptureOptions
    consumed : collection of str
        Quantities that are computed in addition to those of the file.
    known : Header or None
        Header of the same capture, finished before: what was measured for it is not measured again.

    Returns
    -------
    CapturePlan

    Raises
    ------
    PosprobeError
        As in `posprobe.captures.capture_stimulus`.
    """
    check_length(model, stimulus.tokens.shape[1], options.past_training)
    _check_tokens(model, stimulus)
    check_treatment(options.position0)
    change = model.intervention().combined(options.intervention)
    change.check_heads(model.n_layers, model.n_heads)
    stimulus = replace_token(model, stimulus, options.position0)
    own = _own_position(model, stimulus) if known is None else _noted_own_position(known)
    header = _header(model, stimulus, change, options, {*options.quantities, *consumed}, own)
    observation = Observation(
        n_queries=stimulus.n_queries,
        offsets=header.offsets,
        prefixes=stimulus.prefixes if REMASKED & {*options.quantities, *consumed} else (),
        window=stimulus.window,
        first_is_apart=stimulus.design != "repeated"
        or stimulus.bos_token is not None
        or options.position0 != "native",
    )
    firsts = dataclasses.replace(
        stimulus, tokens=stimulus.tokens[:, :1], lengths=np.ones_like(stimulus.lengths)
    )
    return CapturePlan(stimulus, header, observation, change, options.position0, firsts)


def _tokens_that_fit(model: ObservableModel, stimulus: Stimulus) -> int:
    """Tokens of a pass: few on a CPU, which more would not make faster; half the memory of a GPU.

    Counted are the largest arrays of one block: streams, the feed-forward layer, scores of late
    rows, and blocks of scores.
    """
    free = model.free_memory()
    if free is None:
        return BATCH_TOKENS
    inner = getattr(model.config, "intermediate_size", None) or 4 * model.width
    length = stimulus.tokens.shape[1]
    scores = 3 * model.n_heads * (stimulus.window + min(BLOCK, length) ** 2 / length)
    numbers = 12 * model.width + 3 * inner + scores
    return max(BATCH_TOKENS, 2 ** int(np.log2(free / 2 / (4 * numbers))))


def check_length(model: ObservableModel, length: int, past_training: bool) -> None:
    """Refuse sequences past the training length, unless asked for, and then what cannot run.

    Parameters
    ----------
    model : ObservableModel
    length : int
        Tokens of the longest sequence.
    past_training : bool
        As in `CaptureOptions`.

    Raises
    ------
    StimulusError
        With the positions that the model was made for.
    """
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
    own_position: dict[str, Any],
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
        offsets=options.offsets if "offset_score" in computed else (),
        residual_layers=_layers(options.residual_layers, model),
        residual_queries=_queries(options.residual_positions, stimulus),
        dtype=options.dtype,
        weights_digest=model.weights_digest(),
        config=model.effective_config()
        | {"posprobe_quantization": model.quantization}
        | {"posprobe_variant": model.variant_evidence(longest)}
        | own_position,
        trained_length=model.max_length or 0,
        variant=str(model.variant),
        position0_treatment=options.position0,
        interventions=[change.describe()],
        stimulus=stimulus.describe() | {"special_tokens": _special_tokens(model, stimulus)},
        seed=stimulus.seed,
        versions=versions(),
        batch_tokens=_tokens_that_fit(model, stimulus) if batch_tokens is None else batch_tokens,
    )


def _check_tokens(model: ObservableModel, stimulus: Stimulus) -> None:
    """Refuse tokens that the model has no embedding of."""
    known = model.model.get_input_embeddings().num_embeddings
    beyond = np.unique(stimulus.tokens[stimulus.tokens >= known])
    if len(beyond):
        raise StimulusError(
            f"token {beyond[0]} is beyond the {known} embeddings of model {model.name!r}: its "
            "tokenizer has tokens that the model was not resized for; use the tokenizer of these "
            "weights"
        )


def _special_tokens(model: ObservableModel, stimulus: Stimulus) -> dict[str, int]:
    """How often each special token occurs inside the sequences, after position 0."""
    inside = stimulus.tokens[:, 1:]
    ids, counts = np.unique(inside[np.isin(inside, model.special_ids)], return_counts=True)
    return {model.token_name(int(i)): int(n) for i, n in zip(ids, counts, strict=True)}


def _noted_own_position(header: Header) -> dict[str, Any]:
    return {key: value for key, value in header.config.items() if key == OWN_POSITION}


def _own_position(model: ObservableModel, stimulus: Stimulus) -> dict[str, Any]:
    """What a file says where scores move with position by themselves; nothing elsewhere."""
    found = own_position(
        model,
        int(stimulus.tokens[-1, stimulus.lengths[-1] - 1]),
        shortest=int(stimulus.lengths.min()),
        longest=int(stimulus.lengths.max()),
    )
    return {} if found is None else {OWN_POSITION: found}


def _layers(chosen: tuple[int, ...] | str | None, model: ObservableModel) -> tuple[int, ...] | None:
    """The layers whose residual stream is kept; None: all."""
    return parse_layers(chosen, model.n_layers) if isinstance(chosen, str) else chosen


def _queries(chosen: tuple[int, ...] | str | None, stimulus: Stimulus) -> tuple[int, ...]:
    """The queries at which the residual stream is kept; none: all."""
    if isinstance(chosen, str):
        chosen = parse_positions(chosen, stimulus.n_queries)
    if chosen is not None and not chosen:
        raise StimulusError("residual_positions is empty; leave 'residual' out of the quantities")
    return chosen or ()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: version(name) for name in ("posprobe", "torch", "transformers")}


def effective_window(native: int | None, change: Intervention, length: int) -> int | None:
    """The window that really hides keys at this length, or None."""
    windows = [w for w in (native, change.window) if w is not None and w < length]
    return min(windows, default=None)


def _batches(stimulus: Stimulus, batch_tokens: int) -> Iterator[slice]:
    """Runs of sequences of equal length."""
    lengths = stimulus.lengths
    start = 0
    while start < len(lengths):
        size = max(1, batch_tokens // int(lengths[start]))
        stop = start
        while stop < min(start + size, len(lengths)) and lengths[stop] == lengths[start]:
            stop += 1
        yield slice(start, stop)
        start = stop
