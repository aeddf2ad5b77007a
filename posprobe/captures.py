"""Stimuli through a model into a file: every quantity is written as soon as its layer exists."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from posprobe.errors import ModelError, PosprobeError, StimulusError
from posprobe.models import ObservableModel, load_model
from posprobe.observation import NO_INTERVENTION, Intervention, Observation, Observer
from posprobe.selection import parse_layers, parse_positions
from posprobe.stimuli import Stimulus, corpus_name, default_corpus, make_stimulus
from posprobe.store import ActivationStore, Header, StoreWriter

__all__ = ["OFFSETS", "POSITION0", "QUANTITIES", "capture", "capture_stimulus"]

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
REMASKED = {"remasked_normalizer", "remasked_body"}
POSITION0 = {
    "native": "the token that stands there",
    "special": "another special token of the tokenizer",
    "content": "a random token of the text, drawn per item",
    "mean": "the mean of all token embeddings",
    "noise": "Gaussian noise with the norm of the native embedding, drawn per item",
    "zero": "a vector of zeros",
}


def capture(
    model: ObservableModel | str,
    path: str | Path,
    *,
    design: str = "natural",
    n: int = 40,
    length: int = 256,
    window: int = 32,
    prefixes: tuple[int, ...] | None = None,
    bos: str = "native",
    text: str | None = None,
    seed: int = 0,
    **options: object,
) -> ActivationStore:
    """Draw a stimulus, run it through a model, and write what is observed to one HDF5 file.

    Parameters
    ----------
    model : ObservableModel or str
        Or what `load_model` takes.
    path : str or Path
        The file to write; until it is complete it is called ``PATH.partial``.
    design : {"natural", "shifted", "iid", "repeated"}
    n, length, window, prefixes, bos, seed
        Items, tokens of the longest sequence, tokens of the window, prefix lengths, policy for the
        first token, seed: see `posprobe.make_stimulus`.
    text : str or None
        The text to draw from (None: the Python language reference that comes with CPython).
    **options
        Of `capture_stimulus`: what is kept, what is changed, and whether to resume.

    Returns
    -------
    ActivationStore

    Raises
    ------
    ModelError, StimulusError, StoreError
        For a model, a text or a file that cannot be used, in one line.
    """
    if isinstance(model, str):
        model = load_model(model)
    stimulus = draw(
        model,
        text,
        design=design,
        n=n,
        length=length,
        window=window,
        prefixes=prefixes,
        bos=bos,
        seed=seed,
    )
    return capture_stimulus(model, stimulus, path, **options)  # type: ignore[arg-type]


def draw(
    model: ObservableModel,
    text: str | None = None,
    *,
    design: str = "natural",
    n: int = 40,
    length: int = 256,
    **options: Any,
) -> Stimulus:
    """Draw a stimulus for a model: `make_stimulus` with the model's tokenizer and BOS.

    Parameters
    ----------
    model : ObservableModel
    text : str or None
        The text to draw from (None: the Python language reference that comes with CPython).
    design, n, length, **options
        As in `posprobe.make_stimulus`.

    Returns
    -------
    Stimulus

    Raises
    ------
    ModelError, StimulusError
        For a model without a tokenizer, or a text that gives no such sequences.
    """
    corpus = default_corpus() if text is None else text
    return make_stimulus(
        design,
        model.tokenize(corpus),
        corpus=corpus_name(corpus),
        n=n,
        length=length,
        native_bos=model.native_bos,
        bos_id=model.bos_id,
        **options,
    )


def capture_stimulus(
    model: ObservableModel,
    stimulus: Stimulus,
    path: str | Path,
    *,
    quantities: tuple[str, ...] = QUANTITIES,
    residual_layers: tuple[int, ...] | str | None = None,
    residual_positions: tuple[int, ...] | str | None = None,
    offsets: tuple[int, ...] = OFFSETS,
    dtype: str = "float32",
    position0: str = "native",
    intervention: Intervention = NO_INTERVENTION,
    batch_tokens: int = BATCH_TOKENS,
    past_training: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | tqdm = True,
) -> ActivationStore:
    """Run a stimulus through a model and write what is observed to one HDF5 file.

    Parameters
    ----------
    model : ObservableModel
    stimulus : Stimulus
    path : str or Path
    quantities : tuple of str
        Data sets to keep, of `QUANTITIES`.
    residual_layers : tuple of int, str or None
        Layers whose residual stream is kept (None: all; number L is the last block's output), or
        text as in `posprobe.selection.parse_layers`.
    residual_positions : tuple of int, str or None
        Positions at which the residual stream is kept (None: all), or text as in
        `posprobe.selection.parse_positions`; in the shifted design numbered from the start of the
        window, which stands elsewhere in each sequence.
    offsets : tuple of int
        Distances, in tokens, at which scores are kept.
    dtype : {"float32", "float16"}
        Of the residual stream in the file.
    position0 : str
        Treatment of position 0, one of `POSITION0`.
    intervention : Intervention
        Change of the attention, on top of the model's variant.
    batch_tokens : int
        Tokens per forward pass, at most (one sequence at least).
    past_training : bool
        Allow sequences longer than the model was made for, or than what its variant, which may
        scale the rotary embedding, makes of that. The file says so.
    resume : bool
        Continue an interrupted capture, to the very bytes of an uninterrupted one.
    overwrite : bool
        Replace an existing file.
    progress : bool or tqdm
        Show a progress bar on standard error; or a bar of the caller's, which counts tokens.

    Returns
    -------
    ActivationStore

    Raises
    ------
    StimulusError
        If the sequences are longer than the model was made for, or the treatment is unknown.
    ModelError
        If a layer's window is not the one that its configuration declares, the intervention
        names a head that the model does not have, or the model's variant is inert at this length.
    StoreError
        If the file cannot be written, exists, or is not the one to resume; or if a value does not
        fit into it, as one beyond float16. What refused a value or a window would refuse it again:
        nothing is left then to resume, as there is after an interruption or on a full disk.
    """
    plan = plan_capture(
        model,
        stimulus,
        quantities=quantities,
        residual_layers=residual_layers,
        residual_positions=residual_positions,
        offsets=offsets,
        dtype=dtype,
        position0=position0,
        intervention=intervention,
        batch_tokens=batch_tokens,
        past_training=past_training,
    )
    begin = StoreWriter.resume if resume else StoreWriter.create
    extra = {} if resume else {"overwrite": overwrite}
    with begin(path, plan.header, plan.index, **extra) as writer:
        with token_bar(progress, plan) as bar:
            bar.update(plan.n_tokens(slice(writer.done)))
            try:
                fill(writer, model, plan, bar)
            except PosprobeError as error:
                if not isinstance(error.__cause__, OSError):
                    writer.discard()
                raise
        writer.finish()
    return ActivationStore(path)


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
    """

    stimulus: Stimulus
    header: Header
    observation: Observation
    change: Intervention
    position0: str

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
    batch_tokens: int = BATCH_TOKENS,
    past_training: bool = False,
) -> CapturePlan:
    """Decide everything that a capture does; parameters and errors as in `capture_stimulus`.

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
    stimulus = _replace_token(model, stimulus, position0)
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
        offsets=offsets if "offset_score" in quantities else (),
        quantities=quantities,
        batch_tokens=batch_tokens,
    )
    observation = Observation(
        n_queries=stimulus.n_queries,
        offsets=header.offsets,
        prefixes=stimulus.prefixes if REMASKED & set(quantities) else (),
        window=stimulus.window,
        first_is_apart=stimulus.design != "repeated"
        or stimulus.bos_token is not None
        or position0 != "native",
    )
    return CapturePlan(stimulus, header, observation, change, position0)


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
    windows = [_effective_window(w, change, longest) or 0 for w in model.layer_windows]
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


def _effective_window(native: int | None, change: Intervention, length: int) -> int | None:
    """The window that really hides keys at this length, or None."""
    windows = [w for w in (native, change.window) if w is not None and w < length]
    return min(windows, default=None)


def fill(writer: StoreWriter, model: ObservableModel, plan: CapturePlan, bar: tqdm) -> None:
    """Run all batches of a plan that the file does not hold yet.

    Parameters
    ----------
    writer : StoreWriter
        Of a file with the plan's header.
    model : ObservableModel
        The model that the plan was made for.
    plan : CapturePlan
    bar : tqdm
        Counts tokens.

    Raises
    ------
    ModelError, StoreError
        As in `capture_stimulus`.
    """
    stimulus, change = plan.stimulus, plan.change
    kept = set(writer.header.quantities)
    residual_layers = writer.header.residual_layers or ()
    rows = list(writer.header.residual_queries)

    def emit(name: str, layer: int, tensor: Tensor) -> None:
        if name == "residual":
            if layer not in residual_layers:
                return
            tensor = tensor[:, rows] if rows else tensor
        if name in kept:
            writer.put(name, tensor.float().cpu().numpy(), layer)

    def emit_alone(name: str, layer: int, tensor: Tensor) -> None:
        if name == "position0":
            emit("position0_alone", layer, tensor)

    for batch in plan.batches(writer.done):
        length = int(stimulus.lengths[batch.start])
        tokens = torch.from_numpy(stimulus.tokens[batch, :length].astype(np.int64))
        embedding0 = _embedding0(model, stimulus, batch, plan.position0)
        observer = Observer(emit, plan.observation, change)
        model.run(tokens, observer, embedding0=embedding0)
        _check_windows(model, observer, change, length)
        if "position0_alone" in kept:
            alone = Observer(emit_alone, Observation(n_queries=1), change)
            model.run(tokens[:, :1], alone, embedding0=embedding0)
        writer.advance(len(tokens))
        bar.update(tokens.numel())


@contextlib.contextmanager
def token_bar(progress: bool | tqdm, plan: CapturePlan) -> Iterator[tqdm]:
    """A bar of our own, closed at the end, or the caller's, left open."""
    if not isinstance(progress, bool):
        yield progress
        return
    title, hidden = f"{plan.header.model} {plan.header.design}", None if progress else True
    with tqdm(
        desc=title, total=plan.n_tokens(), unit="token", unit_scale=True, disable=hidden
    ) as bar:
        yield bar


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


def _check_windows(
    model: ObservableModel, observer: Observer, change: Intervention, length: int
) -> None:
    """Manipulation check: the window that each layer really had is the one that the file names."""
    for layer, native in enumerate(model.layer_windows):
        expected = _effective_window(native, change, length)
        found = _effective_window(observer.visibilities[layer].window, change, length)
        if found != expected:
            raise ModelError(
                f"model {model.name!r}: layer {layer} has a window of {found} tokens, its "
                f"configuration says {expected}"
            )


def _replace_token(model: ObservableModel, stimulus: Stimulus, position0: str) -> Stimulus:
    """Put another token at position 0, for the treatments that are tokens."""
    if position0 == "special":
        others = [t for t in model.special_ids if t not in stimulus.first_token]
        if not others:
            raise StimulusError(
                f"position0 'special': model {model.name!r} has no other special token"
            )
        chosen = np.full(len(stimulus.tokens), others[0])
    elif position0 == "content":
        text = stimulus.tokens[stimulus.tokens >= 0]
        content = np.setdiff1d(text, model.special_ids)
        choices = [content[content != native] for native in stimulus.first_token]
        if not all(len(tokens) for tokens in choices):
            raise StimulusError(
                "position0 'content': the text holds no other token; pass more text"
            )
        chosen = np.array(
            [_item_rng(stimulus, i).choice(o) for i, o in zip(stimulus.item, choices, strict=True)]
        )
    else:
        return stimulus
    tokens = stimulus.tokens.copy()
    tokens[:, 0] = chosen
    return dataclasses.replace(stimulus, tokens=tokens)


def _embedding0(
    model: ObservableModel, stimulus: Stimulus, batch: slice, position0: str
) -> Tensor | None:
    """Embeddings that replace those at position 0 of a batch: the treatments that are no token."""
    if position0 not in ("zero", "mean", "noise"):
        return None
    first = torch.from_numpy(stimulus.tokens[batch, 0].astype(np.int64))
    native = model.embed(first).float().cpu()
    if position0 == "zero":
        return torch.zeros_like(native)
    if position0 == "mean":
        return model.mean_embedding.expand_as(native)
    draws = [_item_rng(stimulus, i).standard_normal(native.shape[-1]) for i in stimulus.item[batch]]
    noise = torch.from_numpy(np.stack(draws)).to(native)
    return noise * (native.norm(dim=-1) / noise.norm(dim=-1)).unsqueeze(-1)


def _item_rng(stimulus: Stimulus, item: int) -> np.random.Generator:
    """Randomness that belongs to an item: all of its sequences get the same draw."""
    return np.random.default_rng([stimulus.seed, int(item), 1])
