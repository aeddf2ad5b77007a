"""`posprobe rerun`: repeat a capture from what its file records, and compare the two."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from posprobe.captures import CaptureOptions, capture_stimulus, draw
from posprobe.errors import StimulusError, StoreError
from posprobe.models import ObservableModel, load_model
from posprobe.stimuli import Stimulus, Text, TextSource, read_text, text_source
from posprobe.store import ActivationStore, difference

__all__ = ["Rerun", "rerun"]


@dataclass(frozen=True)
class Rerun:
    """A repeated capture, compared with the first.

    Attributes
    ----------
    path : Path
        The new file.
    attribute : str or None
        The first attribute that differs; None if none does.
    part : str or None
        The first part of the data that differs; None if the data are the same.
    """

    path: Path
    attribute: str | None = None
    part: str | None = None

    def in_words(self) -> str:
        """Say in one line whether the two are the same.

        Examples
        --------
        >>> Rerun(Path("a.h5")).in_words()
        'same bytes'
        >>> Rerun(Path("a.h5"), attribute="attribute 'seed' is 1 in the file, 0 now").in_words()
        "same data; attribute 'seed' is 1 in the file, 0 now"
        """
        if self.part is None:
            return f"same data; {self.attribute}" if self.attribute else "same bytes"
        why = self.attribute or "another machine or number of threads rounds differently"
        return f"other data, first in {self.part}; {why}"


def rerun(
    file: str | Path,
    path: str | Path,
    *,
    model: str | None = None,
    text: TextSource = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Rerun:
    """Repeat a capture from what its file records.

    The same machine, libraries and number of threads give the same bytes.

    Parameters
    ----------
    file : str or Path
        A complete capture.
    path : str or Path
        The file to write.
    model : str or None
        Where the model is now (None: as recorded).
    text : None, Text, str, Path, or a sequence of these
        Where the text is now (None: as recorded, and files in the working directory).
    resume, overwrite, progress : bool
        As in `posprobe.capture`.

    Returns
    -------
    Rerun

    Raises
    ------
    StoreError
        If the file does not record how it was made, its model was in memory or ran code of its
        own, or its weights or its tokens are others now.
    StimulusError
        If its text is not there, or has changed.
    ModelError
        If its model cannot be loaded.
    """
    with ActivationStore(file) as store:
        loading = _loading(store)
        words = _text(store, text)
        if model is not None:
            loading |= {"model": model, "name": store.model}
        loaded = load_model(loading.pop("model"), **loading)
        digest = loaded.weights_digest()
        _refuse_change(store, f"model {store.model!r}", store.header.weights_digest, digest)
        stimulus, options = _repeated(store, loaded, words)
        given: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "progress": progress}
        with capture_stimulus(loaded, stimulus, path, options, **given) as new:
            return _compared(store, new)


def _loading(store: ActivationStore) -> dict[str, Any]:
    """The arguments that load the model of a file."""
    recorded = store.header.options
    if not recorded:
        raise StoreError(
            f"{store.path} does not record how it was captured, as files of earlier releases: "
            "capture it again"
        )
    loading = dict(recorded.get("model", {}))
    loading.pop("asked_revision", None)  # a branch or tag, of which the revision is the commit
    if "model" not in loading:
        raise StoreError(
            f"{store.path}: its model {store.model!r} was in memory, which no file records: "
            "capture it again from Python"
        )
    if loading.get("trust_remote_code"):
        raise StoreError(
            f"{store.path}: its model {store.model!r} ran code of its own, which a file cannot ask "
            "for: capture it again from Python"
        )
    return loading


def _text(store: ActivationStore, text: TextSource) -> Text:
    """The text of a file, read again and compared with its digest."""
    known = store.header.stimulus.get("text", {})
    if text is None:
        if not known.get("given"):
            raise StimulusError(
                f"{store.path}: its text {store.header.stimulus.get('corpus', '')!r} was given in "
                "Python, and only its digest is known: say where it is with --text (in Python: "
                "text=)"
            )
        text = [text_source(each) for each in known["given"]]
    fields = {"field": known.get("field"), "characters": known.get("limit")}
    try:
        words = read_text(text, **fields)
    except StimulusError as error:
        raise StimulusError(
            f"{store.path}: its text cannot be read again ({error}); --text says where it is now"
        ) from error
    words = words.shuffle() if known.get("shuffled") else words
    _refuse_change(store, f"text {words.name!r}", known.get("sha256"), words.digest)
    return words


def _repeated(
    store: ActivationStore, model: ObservableModel, text: Text
) -> tuple[Stimulus, CaptureOptions]:
    """The stimulus of a file drawn again, and its options."""
    known = store.header.stimulus
    missing = [n for n in ("design", "n_items", "length", "window", "bos") if n not in known]
    if missing:
        raise StoreError(
            f"{store.path}: its attribute 'stimulus' has no {missing[0]!r}, so it cannot be drawn "
            "again"
        )
    options = CaptureOptions.from_description(store.header.options.get("capture", {}))
    stimulus = draw(
        model,
        text,
        design=known["design"],
        n=known["n_items"],
        length=known["length"],
        window=known["window"],
        prefixes=known.get("prefixes"),
        bos=known["bos"],
        seed=store.header.seed,
        first_item=known.get("first_item", 0),
        past_training=options.past_training,
    )
    stimulus = replace(stimulus, precision=known.get("precision", {}))
    later = slice(1, None)  # the file has what a treatment puts at position 0
    if not np.array_equal(stimulus.tokens[:, later], store.tokens[:, later]):
        raise StoreError(
            f"{store.path} cannot be repeated: the tokens drawn now are others; its tokenizer or "
            "the rule of drawing has changed"
        )
    return stimulus, options


def _refuse_change(store: ActivationStore, what: str, then: Any, now: str) -> None:
    """Refuse to repeat a capture of something that has changed, as its digest shows."""
    if then != now:
        raise StoreError(
            f"{store.path} cannot be repeated: {what} has changed (its digest was "
            f"{str(then)[:12]}, and is {now[:12]} now)"
        )


def _compared(store: ActivationStore, new: ActivationStore) -> Rerun:
    """Compare a file with its repetition."""
    if filecmp.cmp(store.path, new.path, shallow=False):
        return Rerun(new.path)
    attribute = difference(store.header.attributes(), new.header.attributes())
    if store.header.parts() != new.header.parts():
        return Rerun(new.path, attribute, "its parts")
    differs = np.flatnonzero(store.read("digest")[1:] != new.read("digest")[1:])
    if not len(differs):
        return Rerun(new.path, attribute)
    name, layer = store.header.parts()[differs[0]]
    return Rerun(new.path, attribute, name if layer is None else f"{name}, layer {layer}")
