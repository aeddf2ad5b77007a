"""A decoder-only language model that can be observed.

`posprobe.models.proofs` proves at once that the observed attention is the model's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from posprobe.errors import ModelError, as_html, fact_table
from posprobe.models.decoders import (
    check_state,
    check_weights,
    coarsest_dtype,
    find_blocks,
    size,
)
from posprobe.models.edits import StreamEdit, editing_blocks
from posprobe.models.interventions import Intervention
from posprobe.models.loading import quiet
from posprobe.models.memory import adapters_of, origin_of
from posprobe.models.observation import Observer, observing
from posprobe.models.offload import computing_devices, input_device, numbers_of
from posprobe.models.passes import borrowing, plain_torch, undisturbed
from posprobe.models.proofs import ATTENTION, prove_observable, random_tokens
from posprobe.models.rotary import differing_rotation
from posprobe.models.tokens import native_frame
from posprobe.models.variant_proofs import prove_variant, variant_evidence
from posprobe.models.variants import Variant, parse_variant
from posprobe.models.writing import find_gains

__all__ = ["ObservableModel"]

# Where a file says how far the model's frequencies are from those of its configuration.
OTHER_ROTATION = "posprobe_other_rotation"
# Where a file lists what was done to the residual stream.
STREAM_EDITS = "posprobe_stream_edits"


class ObservableModel:
    """A decoder whose attention posprobe computes and observes.

    `load_model` makes one from a name, or from a model that is in memory already.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model. Unless it is borrowed, it is put into evaluation mode, and its
        attention is replaced.
    tokenizer : transformers tokenizer or None, default=None
        Tokenizer of the model. None means that the model is run on token ids only.
    name : str, default=""
        Name of the model in files and reports, by default the name of its class.
    variant : Variant or None, default=None
        A change of attention at inference; see `posprobe.models.variants`. Changes of the rotary
        embedding must have been made in the configuration already. None means ``standard``.
    quantization : str, default="none"
        Quantisation of the checkpoint.
    borrowed : bool, default=False
        Whether the model belongs to the caller. Its attention, its mode and all other state is then
        changed for the time of a pass only, and its origin is recorded.
    loading : mapping of str to object, optional
        The arguments of `load_model` that give this model again; empty where there are none.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        The model itself.
    tokenizer : transformers tokenizer or None
        Its tokenizer.
    blocks : list of torch.nn.Module
        Its decoder blocks, in order.
    learned_sinks : tuple of int
        The layers with a learned logit in their denominators.
    gains : tuple of (float or None)
        Factor between each layer's attention and the residual stream; None where a norm or a gate
        is in between. See `posprobe.models.writing.find_gains`.

    Raises
    ------
    ModelError
        If the model cannot be observed; the message gives the reason.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: Any = None,
        *,
        name: str = "",
        variant: Variant | None = None,
        quantization: str = "none",
        borrowed: bool = False,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model if borrowed else model.eval()
        self.loading = dict(loading or {})
        self.borrowed = borrowed
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.variant = variant or parse_variant("standard")
        self.quantization = quantization
        self._lock = threading.RLock()
        self._digest: tuple[Any, str] | None = None
        self._mean: tuple[Any, Tensor] | None = None
        self._edits: tuple[StreamEdit, ...] = ()
        self._attention = self.config._attn_implementation
        self._proved: tuple[Any, ...] = ()
        self._proving = False
        self.gains: tuple[float | None, ...] = ()
        self.check()

    def check(self) -> None:
        """Prove the model again if it was changed since: other parts, types, devices or rotations.

        Raises
        ------
        ModelError
            If it can no longer be observed, with the reason.
        """
        with self._lock, plain_torch():
            state = _state(self.model)
            if state == self._proved:
                return
            with borrowing(self.model) if self.borrowed else contextlib.nullcontext():
                self._prove(state)

    def _prove(self, state: tuple[Any, ...]) -> None:
        """Prove the model, and note the state in which it was proved."""
        if self._proved and not self.borrowed:
            self.model.set_attn_implementation(self._attention)
        self._proved = state  # the proof itself makes passes
        self._proving = True
        try:
            for part in self.model.modules():
                if isinstance(part, transformers.PreTrainedModel):
                    part.config.return_dict = True  # models read outputs of their parts by name
            if not self.borrowed:
                self.model.requires_grad_(False)
            self.blocks = self._checked_blocks()
            self.learned_sinks = prove_observable(self)
            self.gains = find_gains(self, random_tokens(self)[:1, :4])
            prove_variant(self)
        except BaseException:
            self._proved = ()
            raise
        finally:
            self._proving = False

    def _checked_blocks(self) -> list[torch.nn.Module]:
        """Return the decoder blocks, or refuse a model that cannot be observed."""
        try:
            check_state(self.model)
            blocks = find_blocks(self.model)
            check_weights(self.model, blocks)
        except ModelError as error:
            raise ModelError(f"model {self.name!r}: {error}") from error
        return blocks

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.model.config.get_text_config()

    @property
    def origin(self) -> dict[str, Any]:
        """What is known of where a model in memory came from; empty for one that was loaded here.

        See `posprobe.models.memory.origin_of`.
        """
        return origin_of(self.model) if self.borrowed else {}

    def __repr__(self) -> str:
        """Name, class, size, type and position 0, in one line."""
        dtype = str(coarsest_dtype(self.model)).removeprefix("torch.")
        variant = "" if str(self.variant) == "standard" else f", {self.variant}"
        return (
            f"<ObservableModel {self.name}: {type(self.model).__name__}, {self.n_layers} layers of "
            f"{self.n_heads} heads, {dtype}{variant}, position 0: {self._position0()}>"
        )

    def _repr_html_(self) -> str:
        windows = {window for window in self.layer_windows if window is not None}
        facts = {
            "class": type(self.model).__name__,
            "layers": f"{self.n_layers} of {self.n_heads} heads, width {self.width}",
            "type": str(coarsest_dtype(self.model)).removeprefix("torch."),
            "device": input_device(self.model),
            "variant": self.variant,
            "quantization": self.quantization,
            "positions": self.max_length,
            "sliding windows": ", ".join(map(str, sorted(windows))) or "none",
            "position 0": self._position0(),
            "in memory": ", ".join(f"{k} {v}" for k, v in self.origin.items()) or "no",
        }
        return as_html(f"ObservableModel {self.name}", {"": fact_table(facts)})

    def _position0(self) -> str:
        """What the tokenizer puts at position 0, in words."""
        if self.tokenizer is None:
            return "unknown, no tokenizer"
        try:
            token = self.native_bos
        except ModelError:
            return "several tokens"
        return "a token of the text" if token is None else self.token_name(token)

    @property
    def n_layers(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """H, the number of query heads per layer."""
        return size(self.config, "num_attention_heads")

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return size(self.config, "hidden_size")

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer in tokens, by the configuration; None for full attention."""
        config = self.config
        window = getattr(config, "sliding_window", None)
        if window is None or getattr(config, "use_sliding_window", True) is False:
            return (None,) * self.n_layers
        types = getattr(config, "layer_types", None) or ["sliding_attention"] * self.n_layers
        return tuple(window if kind == "sliding_attention" else None for kind in types)

    @property
    def max_length(self) -> int | None:
        """The length, in tokens, for which the model was made; None if not in its configuration."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, or None if the tokenizer has none."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    @property
    def native_bos(self) -> int | None:
        """Id of the token that the tokenizer itself puts in front of every text, or None.

        Raises
        ------
        ModelError
            If the tokenizer puts several tokens in front, or any behind, since sequences without
            them would not be what the model is used on.
        """
        if self.tokenizer is None:
            return None
        frame = native_frame(self.tokenizer, self.name)
        if len(frame.before) > 1 or frame.after:
            added = self.tokenizer.convert_ids_to_tokens([*frame.before, *frame.after])
            raise ModelError(
                f"model {self.name!r}: its tokenizer puts {len(frame.before)} tokens in front of a "
                f"text and {len(frame.after)} behind it ({' '.join(added)}); at most one in front "
                "is supported, so choose bos 'force' or 'none'"
            )
        return frame.before[0] if frame.before else None

    def first_tokens(self, bos: str) -> dict[str, Any]:
        """Return the ids that may lead a sequence, as keywords of `posprobe.make_stimulus`.

        Parameters
        ----------
        bos : {"native", "force", "none"}
            Policy for the first token.

        Returns
        -------
        dict of str to (int or None)
            ``native_bos`` and ``bos_id``.

        Raises
        ------
        ModelError
            As in `native_bos`, if the policy is ``"native"``.
        """
        return {"native_bos": self.native_bos if bos == "native" else None, "bos_id": self.bos_id}

    @property
    def special_ids(self) -> list[int]:
        """Ids of all special tokens, in increasing order."""
        return [] if self.tokenizer is None else sorted(self.tokenizer.all_special_ids)

    def token_name(self, token: int) -> str:
        """Return a token, given by its id, as the tokenizer writes it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def tokenize(self, text: str) -> np.ndarray:
        """Tokenize a text without adding special tokens.

        Parameters
        ----------
        text : str
            The text.

        Returns
        -------
        ndarray of int32, shape (token,)
            Token ids.

        Raises
        ------
        ModelError
            If the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError(
                f"model {self.name!r} has no tokenizer; pass token ids, or give load_model a "
                "tokenizer (of a folder: put tokenizer.json and its other files beside the weights)"
            )
        with quiet():
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def effective_config(self) -> dict[str, Any]:
        """Return the configuration that the forward pass really uses, as plain values."""
        values = json.loads(self.config.to_json_string(use_diff=False))
        values.pop("_name_or_path", None)  # a path on this machine
        # the model may have been cast since its configuration was read
        values["dtype"] = str(coarsest_dtype(self.model)).removeprefix("torch.")
        if gap := differing_rotation(self.model, self.config):
            values[OTHER_ROTATION] = gap
        if self._edits:
            values[STREAM_EDITS] = [edit.describe() for edit in self._edits]
        return values

    def variant_evidence(self, length: int) -> dict[str, Any]:
        """Return what the variant changes in sequences of `length` tokens, as plain values.

        The values are described in `posprobe.models.variant_proofs.variant_evidence`.

        Raises
        ------
        ModelError
            If the variant changes nothing at this length.
        """
        return variant_evidence(self, length)

    def weights_digest(self) -> str:
        """Return the SHA-256 of the names and bytes of all weights, and of acting adapters.

        It covers edits of the stream too. It is kept until one of these changes.
        """
        weights = sorted(self.model.state_dict().items())
        adapters = sorted(adapters_of(self.model).items())
        edits = [edit.describe()["sha256"] for edit in self._edits]
        state = [adapters, edits, *((key, _version(tensor)) for key, tensor in weights)]
        if self._digest is not None and self._digest[0] == state:
            return self._digest[1]
        digest = hashlib.sha256()
        for adapter, factor in adapters:
            digest.update(f"{adapter} {factor:g};".encode())
        for key, tensor in weights:
            digest.update(key.encode())
            flat = numbers_of(self.model, key, tensor).detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        digest.update("".join(edits).encode())
        self._digest = state, digest.hexdigest()
        return self._digest[1]

    def free_memory(self) -> int | None:
        """Return the free bytes on the fullest of the model's GPUs, or None if it uses no GPU."""
        gpus = [device for device in computing_devices(self.model) if device.type == "cuda"]
        return min((torch.cuda.mem_get_info(gpu)[0] for gpu in gpus), default=None)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings of token ids.

        Parameters
        ----------
        tokens : Tensor of int, shape (...)
            Token ids.

        Returns
        -------
        Tensor, shape (..., width)
        """
        return self.model.get_input_embeddings()(tokens.to(input_device(self.model)))

    @property
    def mean_embedding(self) -> Tensor:
        """Mean input embedding over the vocabulary, as scaled by the model, of shape (width,)."""
        embeddings = self.model.get_input_embeddings()
        state = _version(embeddings.weight)
        if self._mean is None or self._mean[0] != state:
            with plain_torch(), torch.inference_mode():
                ids = torch.arange(embeddings.num_embeddings)
                sums = [self.embed(chunk).float().sum(0) for chunk in ids.split(8192)]
                self._mean = state, (torch.stack(sums).sum(0) / len(ids)).cpu()
        return self._mean[1]

    @contextlib.contextmanager
    def editing(self, *edits: StreamEdit) -> Iterator[None]:
        """Edit the residual stream in every pass within this context.

        Files that are captured in it record the edits, and have another digest of the weights.

        Parameters
        ----------
        *edits : StreamEdit
            Edits of the streams that enter different blocks.

        Raises
        ------
        ModelError
            If an edit is of another width or of a block that the model does not have, two are of
            one block, or the logits of a short input do not change although an edit is not empty.

        Examples
        --------
        ::

            eraser = fit_eraser(grams.grams[5])
            edit = StreamEdit(5, "position erased", eraser.mean, eraser.inward, eraser.outward)
            with model.editing(edit):
                posprobe.capture(model, "erased.h5", design="shifted")
        """
        for edit in edits:
            edit.check(self.n_layers, self.width)
        layers = [edit.layer for edit in edits]
        if twice := {layer for layer in layers if layers.count(layer) > 1}:
            raise ModelError(f"two edits of the stream that enters block {min(twice)}; give one")
        tokens = random_tokens(self)
        with self._lock:
            before, native = self._edits, self.logits(tokens)
            self._edits = edits
            try:
                with editing_blocks(self.blocks, edits):
                    self._prove_edits(tokens, native)
                    yield
            finally:
                self._edits = before

    def _prove_edits(self, tokens: Tensor, native: Tensor) -> None:
        """Show that edits reach the logits, unless they are empty."""
        changes = any(e.rank or (e.shift is not None and e.shift.any()) for e in self._edits)
        if changes and torch.equal(self.logits(tokens), native):
            raise ModelError(
                f"model {self.name!r}: edits of the stream that enters block "
                f"{self._edits[0].layer} do not reach the logits"
            )

    @contextlib.contextmanager
    def undisturbed(self, attention: str | None = ATTENTION) -> Iterator[None]:
        """Keep other threads and torch's global state from what runs in this context.

        Parameters
        ----------
        attention : str or None
            As in `posprobe.models.passes.undisturbed`.
        """
        lent = self.borrowed and not self._proving
        with (
            self._lock,
            borrowing(self.model, ATTENTION) if lent else contextlib.nullcontext(),
            undisturbed(self.model, self._lock, attention),
        ):
            yield

    @torch.inference_mode()
    def run(self, tokens: Tensor, observer: Observer, *, embedding0: Tensor | None = None) -> None:
        """Run one observed forward pass up to the last block, without forming logits.

        Parameters
        ----------
        tokens : Tensor of int, shape (batch, token)
            Token ids.
        observer : Observer
            Its `emit` receives the quantities of `posprobe.models.scores.observe_scores`, and also
            ``residual`` of shape (batch, query, width) and ``position0`` of shape (batch, width).
            These two are the streams that enter each block, and as layer `n_layers` those that
            leave the last one.
        embedding0 : Tensor, shape (batch, width), or None, default=None
            Embedding that replaces the input embedding at position 0.

        Raises
        ------
        ModelError
            If the model was changed since it was proved, or its blocks do not pass on one residual
            stream.
        """
        self.check()
        observer.gains = self.gains
        with (
            self.undisturbed(),
            observing(observer),
            self._residual_hooks(observer),
        ):
            inputs: dict[str, Tensor] = {"input_ids": tokens.to(input_device(self.model))}
            if embedding0 is not None:
                embedded = self.embed(tokens).clone()
                embedded[:, 0] = embedding0.to(embedded)
                inputs = {"inputs_embeds": embedded}
            self.model.base_model(**inputs, use_cache=False)

    @torch.inference_mode()
    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Compute the next-token logits.

        Parameters
        ----------
        tokens : Tensor of int, shape (batch, token)
            Token ids.
        observer : Observer or None, default=None
            The observer of this pass. With None, nothing is observed or changed.

        Returns
        -------
        Tensor, shape (batch, token, vocabulary)

        Raises
        ------
        ModelError
            If the model was changed since it was proved.
        """
        needed = None if observer is None else ATTENTION
        shown = contextlib.nullcontext() if observer is None else observing(observer)
        self.check()
        with self.undisturbed(needed), shown:
            return self.model(tokens.to(input_device(self.model)), use_cache=False).logits

    def intervention(self) -> Intervention:
        """Return the change of the attention that belongs to the variant."""
        return self.variant.intervention

    @contextlib.contextmanager
    def _residual_hooks(self, observer: Observer) -> Iterator[None]:
        """Emit the residual stream as it enters each block and as it leaves the last one."""
        emit, observation = observer.emit, observer.observation
        if emit is None or observation is None:
            yield
            return

        def record(layer: int, stream: Tensor) -> None:
            if stream.ndim != 3:
                raise ModelError(
                    f"blocks of {type(self.model).__name__} pass on tensors of shape "
                    f"{tuple(stream.shape)}, not one residual stream (batch, token, width)"
                )
            emit("position0", layer, stream[:, 0])
            emit("residual", layer, stream[:, stream.shape[1] - observation.n_queries :])

        def entering(layer: int) -> Callable[..., None]:
            return lambda _, args, kwargs: record(
                layer, args[0] if args else kwargs["hidden_states"]
            )

        def leaving(_module: object, _args: object, output: Any) -> None:
            record(self.n_layers, output[0] if isinstance(output, tuple) else output)

        hooks = [
            block.register_forward_pre_hook(entering(layer), with_kwargs=True)
            for layer, block in enumerate(self.blocks)
        ]
        hooks.append(self.blocks[-1].register_forward_hook(leaving))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _state(model: torch.nn.Module) -> tuple[Any, ...]:
    """What a proof holds for: the parts of a model, and types and devices of its numbers."""
    numbers = (*model.parameters(), *model.buffers())
    return (tuple(model.modules()), tuple((each.dtype, each.device) for each in numbers))


def _version(tensor: Tensor) -> tuple[Any, ...]:
    """What changes as soon as a tensor does; some do not count changes, or have no numbers."""
    changes = object() if tensor.is_inference() or tensor.is_meta else tensor._version
    return tensor.data_ptr(), tensor.dtype, changes
