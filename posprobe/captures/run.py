"""Stimuli through a model into a file: each quantity is written as soon as its layer exists."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from posprobe.captures.options import CaptureOptions
from posprobe.captures.plan import (
    ALONE,
    CapturePlan,
    check_length,
    effective_window,
    plan_capture,
)
from posprobe.captures.position0 import replaced_embedding
from posprobe.errors import ModelError, PosprobeError, StoreError
from posprobe.models import (
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    load_model,
)
from posprobe.stimuli import Corpus, Stimulus, TextSource, make_stimulus, read_text
from posprobe.store import ActivationStore, BackgroundWriter, Header, StoreWriter

__all__ = ["Consumer", "capture", "capture_stimulus", "draw", "fill", "token_bar"]


class Consumer(Protocol):
    """What takes quantities as they are computed, whether or not the file keeps them.

    Attributes
    ----------
    quantities : collection of str
        Names that it wants, of `QUANTITIES`.
    """

    quantities: Collection[str]

    def begin(self, header: Header, index: Mapping[str, np.ndarray]) -> None:
        """Before the first pass: header and index data sets of the file."""

    def consume(self, quantity: str, layer: int, sequences: slice, values: np.ndarray) -> None:
        """Take one quantity of one layer for some sequences, in order; do not change it.

        Parameters
        ----------
        quantity : str
        layer : int
        sequences : slice
            Numbers of the sequences in the file.
        values : ndarray of float32, shape (batch, ...)
            As in the file, before any rounding to float16.
        """


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
    text: TextSource = None,
    seed: int = 0,
    options: CaptureOptions = CaptureOptions(),
    consumers: Sequence[Consumer] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | tqdm = True,
    **changes: Any,
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
    text : None, Text, str, Path, or a sequence of these
        The text to draw from, see `posprobe.stimuli.read_text` (None: the Python language reference
        that comes with CPython). A string is the text itself, unless it names a bundled text or a
        data set; a file is ``Path(...)``.
    options : CaptureOptions
        What is kept and what is changed.
    consumers, resume, overwrite, progress
        As in `capture_stimulus`.
    **changes
        Fields of `options` by themselves: ``position0="mean"``, ``offsets=(1, 2)``, ...

    Returns
    -------
    ActivationStore

    Raises
    ------
    ModelError, StimulusError, StoreError
        For a model, a text or a file that cannot be used, in one line.
    """
    options = options.changed(**changes)
    words = read_text(text)
    if isinstance(model, str):
        model = load_model(model)
    stimulus = draw(
        model,
        words,
        design=design,
        n=n,
        length=length,
        window=window,
        prefixes=prefixes,
        bos=bos,
        seed=seed,
        past_training=options.past_training,
    )
    return capture_stimulus(
        model,
        stimulus,
        path,
        options,
        consumers=consumers,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def draw(
    model: ObservableModel,
    text: TextSource = None,
    *,
    design: str = "natural",
    n: int = 40,
    length: int = 256,
    bos: str = "native",
    past_training: bool = False,
    **options: Any,
) -> Stimulus:
    """Draw a stimulus for a model: `make_stimulus` with the model's tokenizer and BOS.

    Parameters
    ----------
    model : ObservableModel
    text : None, Text, str, Path, or a sequence of these
        The text to draw from, see `posprobe.stimuli.read_text` (None: the Python language reference
        that comes with CPython). A string is the text itself, unless it names a bundled text or a
        data set; a file is ``Path(...)``.
    design, n, length, bos, **options
        As in `posprobe.make_stimulus`.
    past_training : bool
        As in `CaptureOptions`.

    Returns
    -------
    Stimulus

    Raises
    ------
    ModelError, StimulusError
        For a model without a tokenizer or of fewer positions, or a text that gives no such
        sequences.
    """
    check_length(model, length, past_training)
    return make_stimulus(
        design,
        Corpus.of_text(read_text(text), model.tokenize),
        n=n,
        length=length,
        bos=bos,
        **model.first_tokens(bos),
        **options,
    )


def capture_stimulus(
    model: ObservableModel,
    stimulus: Stimulus,
    path: str | Path,
    options: CaptureOptions = CaptureOptions(),
    *,
    consumers: Sequence[Consumer] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | tqdm = True,
    **changes: Any,
) -> ActivationStore:
    """Run a stimulus through a model and write what is observed to one HDF5 file.

    Parameters
    ----------
    model : ObservableModel
    stimulus : Stimulus
    path : str or Path
    options : CaptureOptions
        What is kept and what is changed.
    consumers : sequence of Consumer
        Get what they want of every layer as soon as it exists, as the file does: statistics that
        need no stored activations. `residual_layers` and `residual_positions` apply to them too.
    resume : bool
        Continue an interrupted capture, to the very bytes of an uninterrupted one.
    overwrite : bool
        Replace an existing file.
    progress : bool or tqdm
        Show a progress bar on standard error; or a bar of the caller's, which counts tokens.
    **changes
        Fields of `options` by themselves.

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
        If the file cannot be written, exists, or is not the one to resume; if it holds sequences
        already that the consumers would never see; or if a value does not
        fit into it, as one beyond float16. What refused a value or a window would refuse it again:
        nothing is left then to resume, as there is after an interruption or on a full disk.
    """
    consumed = {name for consumer in consumers for name in consumer.quantities}
    known = ActivationStore(path).header if resume and Path(path).exists() else None
    plan = plan_capture(model, stimulus, options.changed(**changes), consumed=consumed, known=known)
    begin = StoreWriter.resume if resume else StoreWriter.create
    extra = {} if resume else {"overwrite": overwrite}
    with begin(path, plan.header, plan.index, **extra) as writer:
        with token_bar(progress, plan) as bar:
            bar.update(plan.n_tokens(slice(writer.done)))
            try:
                fill(writer, model, plan, bar, consumers)
            except PosprobeError as error:
                if not isinstance(error.__cause__, OSError):
                    writer.discard()
                raise
        writer.finish()
    return ActivationStore(path)


def fill(
    writer: StoreWriter,
    model: ObservableModel,
    plan: CapturePlan,
    bar: tqdm,
    consumers: Sequence[Consumer] = (),
) -> None:
    """Run all batches of a plan that the file does not hold yet.

    Parameters
    ----------
    writer : StoreWriter
        Writer of a file with the plan's header; it writes in a thread of its own meanwhile.
    model : ObservableModel
        The model that the plan was made for.
    plan : CapturePlan
    bar : tqdm
        Counts tokens.
    consumers : sequence of Consumer
        See `capture_stimulus`.

    Raises
    ------
    ModelError, StoreError
        As in `capture_stimulus`.
    """
    if consumers and writer.done:
        raise StoreError(
            f"{writer.path} holds {writer.done} sequences that no consumer has seen: capture into "
            "another file, without resuming"
        )
    for consumer in consumers:
        consumer.begin(plan.header, plan.index)
    stimulus, change = plan.stimulus, plan.change
    with BackgroundWriter(writer) as background:
        stream = Stream(background, plan.header, consumers)
        alone = FirstTokens(model, plan)
        for batch in plan.batches(writer.done):
            stream.sequences = batch
            length = int(stimulus.lengths[batch.start])
            tokens = torch.from_numpy(stimulus.tokens[batch, :length].astype(np.int64))
            observer = Observer(stream.emit, plan.observation, change)
            embedding0 = replaced_embedding(model, stimulus, batch, plan.position0)
            model.run(tokens, observer, embedding0=embedding0)
            _check_windows(model, observer, change, length)
            if "position0_alone" in stream.wanted:
                for layer, values in enumerate(alone.of(batch)):
                    stream.give("position0_alone", layer, values)
            background.advance(len(tokens))
            bar.update(tokens.numel())


class Stream:
    """Hand each quantity of each layer to the file and to the consumers that want it."""

    def __init__(
        self, background: BackgroundWriter, header: Header, consumers: Sequence[Consumer]
    ) -> None:
        self.background, self.header, self.consumers = background, header, consumers
        self.wanted = {*header.quantities, *(q for c in consumers for q in c.quantities)}
        self.rows = list(header.residual_queries)
        self.sequences = slice(0)

    def emit(self, name: str, layer: int, tensor: Tensor) -> None:
        """Take what the observer sees; a copy, since the model goes on with its own."""
        if name not in self.wanted:
            return
        if name == "residual":
            if layer not in (self.header.residual_layers or ()):
                return
            tensor = tensor[:, self.rows] if self.rows else tensor
        self.give(name, layer, torch.empty(tensor.shape).copy_(tensor).numpy())

    def give(self, name: str, layer: int, values: np.ndarray) -> None:
        """Give an array that nobody changes any more."""
        if name in self.header.quantities:
            self.background.put(name, values, layer)
        for consumer in self.consumers:
            if name in consumer.quantities:
                consumer.consume(name, layer, self.sequences, values)


class FirstTokens:
    """The residual stream of first tokens by themselves.

    They run `ALONE` at a time, always the same ones together: a pass reads all weights, however
    few its tokens are, and another number of rows would change the last bits.
    """

    def __init__(self, model: ObservableModel, plan: CapturePlan) -> None:
        self.model, self.plan = model, plan
        self.groups: dict[int, np.ndarray] = {}

    def of(self, batch: slice) -> np.ndarray:
        """Values of the sequences of a batch: (layer, sequence, width)."""
        numbers = np.arange(batch.start, batch.stop) + self.plan.start
        needed = np.unique(numbers // ALONE).tolist()
        self.groups = {g: self.groups[g] if g in self.groups else self._run(g) for g in needed}
        values = np.concatenate([self.groups[group] for group in needed], axis=1)
        return np.ascontiguousarray(values[:, numbers - needed[0] * ALONE])

    def _run(self, group: int) -> np.ndarray:
        sequences, firsts = slice(group * ALONE, (group + 1) * ALONE), self.plan.firsts
        tokens = torch.from_numpy(firsts.tokens[sequences].astype(np.int64))
        layers: dict[int, np.ndarray] = {}

        def emit(name: str, layer: int, tensor: Tensor) -> None:
            if name == "position0":
                layers[layer] = torch.empty(tensor.shape).copy_(tensor).numpy()

        observer = Observer(emit, Observation(n_queries=1), self.plan.change)
        embedding0 = replaced_embedding(self.model, firsts, sequences, self.plan.position0)
        self.model.run(tokens, observer, embedding0=embedding0)
        return np.stack([layers[layer] for layer in sorted(layers)])


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


def _check_windows(
    model: ObservableModel, observer: Observer, change: Intervention, length: int
) -> None:
    """Manipulation check: the window that each layer really had is the one that the file names."""
    for layer, native in enumerate(model.layer_windows):
        expected = effective_window(native, change, length)
        found = effective_window(observer.visibilities[layer].window, change, length)
        if found != expected:
            raise ModelError(
                f"model {model.name!r}: layer {layer} has a window of {found} tokens, its "
                f"configuration says {expected}"
            )
