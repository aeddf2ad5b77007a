"""Run a stimulus through a model; each layer is written as soon as it has been computed."""

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
    effective_window,
    fitting_length,
    plan_capture,
    warn_of_length,
    warn_of_repeats,
)
from posprobe.captures.position0 import replaced_embedding
from posprobe.errors import ModelError, PosprobeError, StoreError, progress_bar
from posprobe.models import (
    Intervention,
    ModelSource,
    ObservableModel,
    Observation,
    Observer,
    load_model,
    plain_torch,
)
from posprobe.stimuli import Corpus, Stimulus, TextSource, make_stimulus, read_text
from posprobe.store import ActivationStore, BackgroundWriter, Header, StoreWriter, check_place

__all__ = ["Consumer", "capture", "capture_stimulus", "draw", "fill", "token_bar"]


class Consumer(Protocol):
    """Interface of objects that receive quantities as they are computed.

    A consumer receives its quantities whether or not the file keeps them.

    Attributes
    ----------
    quantities : collection of str
        Names of the quantities to receive, from `QUANTITIES`.
    """

    quantities: Collection[str]

    def begin(self, header: Header, index: Mapping[str, np.ndarray]) -> None:
        """Prepare for a capture; called once, before the first forward pass.

        Parameters
        ----------
        header : Header
            Header of the file.
        index : mapping of str to ndarray
            Index data sets of the file, by name.
        """

    def consume(self, quantity: str, layer: int, sequences: slice, values: np.ndarray) -> None:
        """Receive one quantity of one layer for the next sequences.

        Parameters
        ----------
        quantity : str
            Name of the quantity.
        layer : int
            Number of the layer, from 0.
        sequences : slice
            Numbers of the sequences in the file.
        values : ndarray of float32, shape (batch, ...)
            The values in the shape of the file, before any rounding to float16. They must not be
            changed.
        """


def capture(
    model: ObservableModel | ModelSource,
    path: str | Path,
    *,
    tokenizer: Any = None,
    design: str = "natural",
    n: int = 40,
    length: int | None = None,
    window: int = 32,
    prefixes: tuple[int, ...] | None = None,
    bos: str = "native",
    text: TextSource = None,
    seed: int = 0,
    first_item: int = 0,
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
    model : ObservableModel, str or transformers.PreTrainedModel
        Model to run, or what `load_model` takes.
    path : str or Path
        File to write. Until it is complete it is called ``PATH.partial``.
    tokenizer : transformers tokenizer or None, default=None
        As in `load_model`; used only where the model is not an `ObservableModel`.
    design : {"natural", "shifted", "iid", "repeated"}, default="natural"
        How the sequences are drawn from the text; see `posprobe.make_stimulus`.
    n : int, default=40
        Number of items, at least 2.
    length : int or None, default=None
        Length of the longest sequence in tokens, a BOS included. None means 256, or as many as the
        model was made for where these are fewer.
    window : int, default=32
        Length in tokens of the window that the shifted design compares over positions.
    prefixes : tuple of int, optional
        Lengths in tokens of the prefixes ahead of the window, in increasing order. By default, a
        roughly geometric series from 1 to ``length - window``.
    bos : {"native", "force", "none"}, default="native"
        Whether a BOS leads each sequence: as the tokenizer does it, always, or never.
    text : None, Text, str, Path, or a sequence of these, optional
        Text to draw from, see `posprobe.stimuli.read_text`. By default, the Python language
        reference that comes with CPython. A string is the text itself, unless it names a bundled
        text or a data set; a file is ``Path(...)``.
    seed : int, default=0
        Seed of the stimulus and of random treatments of position 0.
    first_item : int, default=0
        Number of the first item. A capture of `n` items is extended by another file that starts at
        item `n`; `posprobe.store.JoinedStore` and `posprobe.analyze` read both as one.
    options : CaptureOptions, default=CaptureOptions()
        What to keep and what to change.
    consumers : sequence of Consumer, default=()
        Objects that receive quantities of every layer as they are computed.
    resume : bool, default=False
        Whether to continue an interrupted capture. The completed file is bit-identical to that of
        an uninterrupted capture.
    overwrite : bool, default=False
        Whether to replace an existing file.
    progress : bool or tqdm, default=True
        Whether to show a progress bar on standard error, or a bar to update, which counts tokens.
    **changes
        Single fields of `options`: ``position0="mean"``, ``offsets=(1, 2)``, ...

    Returns
    -------
    ActivationStore
        The completed capture, open for reading.

    Raises
    ------
    ModelError, StimulusError, StoreError
        If the model, the text or the file cannot be used; see `load_model`,
        `posprobe.make_stimulus` and `capture_stimulus`.
    """
    options = options.changed(**changes)
    check_place(path, resume=resume, overwrite=overwrite)
    words = read_text(text)
    if not isinstance(model, ObservableModel):
        model = load_model(model, tokenizer=tokenizer)
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
        first_item=first_item,
        past_training=options.past_training,
    )
    warn_of_length(model.name, length, stimulus.tokens.shape[1])
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
    length: int | None = None,
    bos: str = "native",
    past_training: bool = False,
    **options: Any,
) -> Stimulus:
    """Draw a stimulus by `make_stimulus` with a model's tokenizer and BOS.

    Parameters
    ----------
    model : ObservableModel
        Model whose tokenizer is used.
    text : None, Text, str, Path, or a sequence of these, optional
        Text to draw from, see `posprobe.stimuli.read_text`. By default, the Python language
        reference that comes with CPython. A string is the text itself, unless it names a bundled
        text or a data set; a file is ``Path(...)``.
    length : int or None, default=None
        As in `capture`.
    design, n, bos, **options
        As described in `posprobe.make_stimulus`.
    past_training : bool, default=False
        As in `CaptureOptions`.

    Returns
    -------
    Stimulus

    Raises
    ------
    ModelError
        If the model has no tokenizer.
    StimulusError
        If the model has fewer positions than `length`, or the text cannot provide the sequences
        that are asked for.
    """
    length = fitting_length(model, length, past_training)
    return make_stimulus(
        design,
        Corpus.of_text(read_text(text), model.tokenize),
        n=n,
        length=length,
        bos=bos,
        **model.first_tokens(bos),
        **options,
    )


@plain_torch()
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
        Model to run.
    stimulus : Stimulus
        Sequences to run, for example from `posprobe.make_stimulus`.
    path : str or Path
        File to write. Until it is complete it is called ``PATH.partial``.
    options : CaptureOptions, default=CaptureOptions()
        What to keep and what to change.
    consumers : sequence of Consumer, default=()
        Objects that receive quantities of every layer as they are computed, for statistics that
        need no stored activations. `residual_layers` and `residual_positions` apply to them too.
    resume : bool, default=False
        Whether to continue an interrupted capture. The completed file is bit-identical to that of
        an uninterrupted capture.
    overwrite : bool, default=False
        Whether to replace an existing file.
    progress : bool or tqdm, default=True
        Whether to show a progress bar on standard error, or a bar to update, which counts tokens.
    **changes
        Single fields of `options`: ``position0="mean"``, ``offsets=(1, 2)``, ...

    Returns
    -------
    ActivationStore
        The completed capture, open for reading.

    Raises
    ------
    StimulusError
        If the sequences are longer than the model was made for, a token has no embedding in the
        model, all items are the same, or the treatment of position 0 is unknown or impossible.
    ModelError
        If a layer's window is not the one that its configuration declares, the intervention
        names a head that the model does not have, or the model's variant is inert at this length.
    StoreError
        If the file cannot be written, already exists, or is not from the capture to resume; if it
        already holds sequences that the consumers have not seen; or if a value does not fit into
        the file, such as one beyond float16.

    Warns
    -----
    PosprobeWarning
        If items repeat others, token for token.

    Notes
    -----
    After an interruption or on a full disk, the capture can be resumed. After a refused value or
    window it cannot: the unfinished file is deleted, since the same capture would fail again.
    """
    consumed = {name for consumer in consumers for name in consumer.quantities}
    known = ActivationStore(path).header if resume and Path(path).exists() else None
    plan = plan_capture(model, stimulus, options.changed(**changes), consumed=consumed, known=known)
    warn_of_repeats(plan)
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
    """Run those batches of a plan that the file does not hold yet.

    Parameters
    ----------
    writer : StoreWriter
        Writer of a file with the plan's header. It writes in a separate thread.
    model : ObservableModel
        Model for which the plan was made.
    plan : CapturePlan
        Plan of the capture, or of a part of it.
    bar : tqdm
        Progress bar that counts tokens.
    consumers : sequence of Consumer, default=()
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
        """Pass on a copy of what the observer sees, since the model goes on using its tensor."""
        if name not in self.wanted:
            return
        if name == "residual":
            if layer not in (self.header.residual_layers or ()):
                return
            tensor = tensor[:, self.rows] if self.rows else tensor
        self.give(name, layer, torch.empty(tensor.shape).copy_(tensor).numpy())

    def give(self, name: str, layer: int, values: np.ndarray) -> None:
        """Pass on an array that will not be changed again."""
        if name in self.header.quantities:
            self.background.put(name, values, layer)
        for consumer in self.consumers:
            if name in consumer.quantities:
                consumer.consume(name, layer, self.sequences, values)


class FirstTokens:
    """The residual stream of first tokens that are run without the rest of their sequence.

    `ALONE` of them run in one pass, because a pass reads all weights however few tokens it has. The
    same tokens always run together, because the last bits depend on the number of rows.
    """

    def __init__(self, model: ObservableModel, plan: CapturePlan) -> None:
        self.model, self.plan = model, plan
        self.groups: dict[int, np.ndarray] = {}

    def of(self, batch: slice) -> np.ndarray:
        """Return the streams for the sequences of a batch, of shape (layer, sequence, width)."""
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
    """Yield a new progress bar and close it at the end, or yield the caller's and leave it open."""
    if not isinstance(progress, bool):
        yield progress
        return
    title = f"{plan.header.model} {plan.header.design}"
    with progress_bar(
        progress, desc=title, total=plan.n_tokens(), unit="token", unit_scale=True
    ) as bar:
        yield bar


def _check_windows(
    model: ObservableModel, observer: Observer, change: Intervention, length: int
) -> None:
    """Check that each layer really had the window that the file records."""
    for layer, native in enumerate(model.layer_windows):
        expected = effective_window(native, change, length)
        found = effective_window(observer.visibilities[layer].window, change, length)
        if found != expected:
            raise ModelError(
                f"model {model.name!r}: layer {layer} has a window of {found} tokens, its "
                f"configuration says {expected}"
            )
