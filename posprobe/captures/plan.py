"""Everything that is decided before the first forward pass of a capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from importlib.metadata import version

import numpy as np

from posprobe.captures.position0 import POSITION0, replace_token
from posprobe.captures.selection import parse_layers, parse_positions
from posprobe.errors import StimulusError
from posprobe.models import BLOCK, NO_INTERVENTION, Intervention, ObservableModel, Observation
from posprobe.stimuli import Stimulus
from posprobe.store import Header

__all__ = [
    "ALONE",
    "BATCH_TOKENS",
    "OFFSETS",
    "QUANTITIES",
    "CapturePlan",
    "effective_window",
    "plan_capture",
    "versions",
]

OFFSETS = (1, 2, 4, 8)
BATCH_TOKENS = 2048
QUANTITIES = (
    "normalizer",
    "sink_score",
    "offset_score",
    "remasked_normalizer",
    "remasked_body",
    "sink_value",
    "residual",
    "position0",
    "position0_alone",
)
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
        Of the file.
    observation : Observation
        What is read off.
    change : Intervention
        Of the variant and of the caller.
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
        """Sequences of each forward pass, from number `done` on."""
        return _batches(self.stimulus, done, self.header.batch_tokens)

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
    *,
    quantities: tuple[str, ...] = QUANTITIES,
    residual_layers: tuple[int, ...] | str | None = None,
    residual_positions: tuple[int, ...] | str | None = None,
    offsets: tuple[int, ...] = OFFSETS,
    dtype: str = "float32",
    position0: str = "native",
    intervention: Intervention = NO_INTERVENTION,
    batch_tokens: int | None = None,
    past_training: bool = False,
    consumed: Collection[str] = (),
) -> CapturePlan:
    """Decide everything that a capture does.

    Parameters and errors are those of `posprobe.captures.capture_stimulus`; `consumed` are the
    quantities that are computed besides those of the file.

    Returns
    -------
    CapturePlan
    """
    _check_length(model, stimulus.tokens.shape[1], past_training)
    if position0 not in POSITION0:
        raise StimulusError(
            f"position0 {position0!r} is unknown; use one of {', '.join(POSITION0)}"
        )
    change = model.intervention().combined(intervention)
    change.check_heads(model.n_layers, model.n_heads)
    stimulus = replace_token(model, stimulus, position0)
    header = _header(model, stimulus, change, position0, dtype)
    if isinstance(residual_layers, str):
        residual_layers = parse_layers(residual_layers, model.n_layers)
    if isinstance(residual_positions, str):
        residual_positions = parse_positions(residual_positions, stimulus.n_queries)
    if residual_positions is not None and not residual_positions:
        raise StimulusError("residual_positions is empty; leave 'residual' out of the quantities")
    header = dataclasses.replace(
        header,
        residual_layers=residual_layers,
        residual_queries=residual_positions or (),
        offsets=offsets if "offset_score" in {*quantities, *consumed} else (),
        quantities=quantities,
        batch_tokens=_tokens_that_fit(model, stimulus) if batch_tokens is None else batch_tokens,
    )
    observation = Observation(
        n_queries=stimulus.n_queries,
        offsets=header.offsets,
        prefixes=stimulus.prefixes if REMASKED & {*quantities, *consumed} else (),
        window=stimulus.window,
        first_is_apart=stimulus.design != "repeated"
        or stimulus.bos_token is not None
        or position0 != "native",
    )
    firsts = dataclasses.replace(
        stimulus, tokens=stimulus.tokens[:, :1], lengths=np.ones_like(stimulus.lengths)
    )
    return CapturePlan(stimulus, header, observation, change, position0, firsts)


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


def _check_length(model: ObservableModel, length: int, past_training: bool) -> None:
    """Refuse sequences past the training length, unless asked for, and then what cannot run."""
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
    position0: str,
    dtype: str,
) -> Header:
    longest = stimulus.tokens.shape[1]
    windows = [effective_window(w, change, longest) or 0 for w in model.layer_windows]
    return Header(
        model=model.name,
        design=stimulus.design,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        width=model.width,
        n_sequences=len(stimulus.tokens),
        length=longest,
        n_queries=stimulus.n_queries,
        quantities=(),
        layer_window=tuple(windows),
        prefixes=stimulus.prefixes,
        window=stimulus.window,
        dtype=dtype,
        weights_digest=model.weights_digest(),
        config=model.effective_config()
        | {"posprobe_quantization": model.quantization}
        | {"posprobe_variant": model.variant_evidence(longest)},
        trained_length=model.max_length or 0,
        variant=str(model.variant),
        position0_treatment=position0,
        interventions=[change.describe()],
        stimulus=stimulus.describe(),
        seed=stimulus.seed,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: version(name) for name in ("posprobe", "torch", "transformers")}


def effective_window(native: int | None, change: Intervention, length: int) -> int | None:
    """The window that really hides keys at this length, or None."""
    windows = [w for w in (native, change.window) if w is not None and w < length]
    return min(windows, default=None)


def _batches(stimulus: Stimulus, done: int, batch_tokens: int) -> Iterator[slice]:
    """Runs of sequences of equal length, from sequence `done` on; the same whatever `done` is."""
    lengths = stimulus.lengths
    start = 0
    while start < len(lengths):
        size = max(1, batch_tokens // int(lengths[start]))
        stop = start
        while stop < min(start + size, len(lengths)) and lengths[stop] == lengths[start]:
            stop += 1
        if start >= done:
            yield slice(start, stop)
        start = stop
