"""Load a decoder-only language model that can be observed.

A model comes from a hub id, a local folder, a GGUF file or a bundled name. That its attention is
observed as it computes is proved at once, see `posprobe.models.proofs`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from posprobe.errors import ModelError
from posprobe.models.checkpoints import find_checkpoint
from posprobe.models.decoders import check_state, check_weights, find_blocks, size
from posprobe.models.interventions import Intervention
from posprobe.models.loading import (
    DTYPES,
    check_device,
    load_checkpoint,
    load_tokenizer,
    quiet,
    source,
)
from posprobe.models.observation import Observer, observing
from posprobe.models.passes import undisturbed
from posprobe.models.proofs import ATTENTION, prove_observable
from posprobe.models.tokens import native_frame
from posprobe.models.variant_proofs import prove_variant, variant_evidence
from posprobe.models.variants import Variant, parse_variant

__all__ = ["ObservableModel", "load_model"]


class ObservableModel:
    """A decoder whose attention is computed, and observed, by posprobe.

    Made by `load_model`; the constructor is for models that one has already.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model; it is put into evaluation mode and its attention is replaced.
    tokenizer : transformers tokenizer or None
        None: token ids only.
    name : str
        What files and reports call the model.
    variant : Variant or None
        A change of attention at inference, see `posprobe.models.variants` (None: standard); rotary
        changes must have been made in the configuration before.
    quantization : str
        Quantisation of the checkpoint, or "none".

    Raises
    ------
    ModelError
        If the model cannot be observed, with the reason.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: Any = None,
        *,
        name: str = "",
        variant: Variant | None = None,
        quantization: str = "none",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        for part in model.modules():
            if isinstance(part, transformers.PreTrainedModel):
                part.config.return_dict = True  # models take their parts' outputs by name
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.variant = variant or parse_variant("standard")
        self.quantization = quantization
        self._lock = threading.RLock()
        self.blocks = self._checked_blocks()
        self._digest: tuple[list[tuple[str, int, int]], str] | None = None
        prove_observable(self)
        prove_variant(self)

    def _checked_blocks(self) -> list[torch.nn.Module]:
        """The decoder blocks of a model that can be observed, or the reason why it cannot."""
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
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return size(self.config, "num_attention_heads")

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return size(self.config, "hidden_size")

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The sliding window that the configuration declares for each layer (None: full)."""
        config = self.config
        window = getattr(config, "sliding_window", None)
        if window is None or getattr(config, "use_sliding_window", True) is False:
            return (None,) * self.n_layers
        types = getattr(config, "layer_types", None) or ["sliding_attention"] * self.n_layers
        return tuple(window if kind == "sliding_attention" else None for kind in types)

    @property
    def max_length(self) -> int | None:
        """The longest sequence the model was made for, where its configuration says so."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, where the tokenizer has one."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    @property
    def native_bos(self) -> int | None:
        """The token that the tokenizer puts in front of every text by itself, or None.

        Raises
        ------
        ModelError
            If it puts several tokens in front, or any behind: a sequence without them would not be
            what the model is used on.
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
        """Tokens that may lead a sequence, by the names `posprobe.make_stimulus` has for them."""
        return {"native_bos": self.native_bos if bos == "native" else None, "bos_id": self.bos_id}

    @property
    def special_ids(self) -> list[int]:
        """Ids of all special tokens."""
        return [] if self.tokenizer is None else sorted(self.tokenizer.all_special_ids)

    def token_name(self, token: int) -> str:
        """A token as its tokenizer writes it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids of a text, without special tokens: (token,)."""
        if self.tokenizer is None:
            raise ModelError(f"model {self.name!r} has no tokenizer; pass token ids, not text")
        with quiet():
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def effective_config(self) -> dict[str, Any]:
        """The configuration that the forward pass really uses, as plain values."""
        values = json.loads(self.config.to_json_string(use_diff=False))
        values.pop("_name_or_path", None)  # where the files lie on this machine
        values["dtype"] = str(self.model.dtype).removeprefix("torch.")  # it may have been cast
        return values

    def variant_evidence(self, length: int) -> dict[str, Any]:
        """What the variant changes in sequences of `length` tokens, as plain values for the file.

        Raises
        ------
        ModelError
            If it changes nothing there; see `posprobe.models.variant_proofs.variant_evidence`.
        """
        return variant_evidence(self, length)

    def weights_digest(self) -> str:
        """SHA-256 over the names and bytes of all weights; made anew where one has changed."""
        weights = sorted(self.model.state_dict().items())
        state = [(key, tensor.data_ptr(), tensor._version) for key, tensor in weights]
        if self._digest is not None and self._digest[0] == state:
            return self._digest[1]
        digest = hashlib.sha256()
        for key, tensor in weights:
            digest.update(key.encode())
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
        self._digest = state, digest.hexdigest()
        return self._digest[1]

    def free_memory(self) -> int | None:
        """Bytes that are free on the fullest of the model's GPUs; None where it has none."""
        gpus = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        return min((torch.cuda.mem_get_info(gpu)[0] for gpu in gpus), default=None)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of token ids: (batch, token, width)."""
        return self.model.get_input_embeddings()(tokens.to(self.model.device))

    @functools.cached_property
    def mean_embedding(self) -> Tensor:
        """Mean input embedding over the vocabulary: (width,), as the model scales it."""
        ids = torch.arange(self.model.get_input_embeddings().num_embeddings)
        with torch.inference_mode():
            sums = [self.embed(chunk).float().sum(0) for chunk in ids.split(8192)]
            return (torch.stack(sums).sum(0) / len(ids)).cpu()

    @torch.inference_mode()
    def run(self, tokens: Tensor, observer: Observer, *, embedding0: Tensor | None = None) -> None:
        """One forward pass up to the last block, observed; no logits are formed.

        Parameters
        ----------
        tokens : Tensor of int, shape (batch, token)
        observer : Observer
            Its `emit` also receives `residual` (batch, query, width) and `position0`
            (batch, width), entering each block, and leaving the last one as layer `n_layers`.
        embedding0 : Tensor, shape (batch, width), or None
            Replaces the input embedding at position 0.
        """
        with (
            undisturbed(self.model, self._lock, ATTENTION),
            observing(observer),
            self._residual_hooks(observer),
        ):
            inputs: dict[str, Tensor] = {"input_ids": tokens.to(self.model.device)}
            if embedding0 is not None:
                embedded = self.embed(tokens).clone()
                embedded[:, 0] = embedding0.to(embedded)
                inputs = {"inputs_embeds": embedded}
            self.model.base_model(**inputs, use_cache=False)

    @torch.inference_mode()
    def logits(self, tokens: Tensor, observer: Observer | None = None) -> Tensor:
        """Next-token logits: (batch, token, vocabulary)."""
        needed = None if observer is None else ATTENTION
        shown = contextlib.nullcontext() if observer is None else observing(observer)
        with undisturbed(self.model, self._lock, needed), shown:
            return self.model(tokens.to(self.model.device), use_cache=False).logits

    def intervention(self) -> Intervention:
        """What the variant itself changes in the attention."""
        return self.variant.intervention

    @contextlib.contextmanager
    def _residual_hooks(self, observer: Observer) -> Iterator[None]:
        """Emit the residual stream as it enters each block and leaves the last."""
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


def load_model(
    name: str,
    *,
    variant: str = "standard",
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ObservableModel:
    """Load a model by hub id, local folder, GGUF file or bundled name, ready to be observed.

    Parameters
    ----------
    name : str
        A bundled name (``"smollm2"``, ``"gemma3"``, ``"zoo/rope-0"``), ``"org/model"``, a folder
        with config.json and weights, or a file ``.gguf`` (converted once into a cache).
    variant : str
        A change at inference: ``standard``, ``ntk(8)``, ``linear(8)``, ``yarn(8)``, ``llama3``,
        ``window(64)``, ``no_causal``; see `posprobe.models.variants`.
    dtype : {"float32", "float64", "bfloat16"}
        Type of weights and activations.
    device : str or None
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``"auto"`` spreads the layers over all GPUs there are.
        None: a GPU where there is one.
    revision : str or None
        Revision of a hub model.
    trust_remote_code : bool
        Whether code that comes with a hub model may run.

    Returns
    -------
    ObservableModel

    Raises
    ------
    ModelError
        If there is no such model, its files are incomplete, it cannot be observed, or the variant
        does not apply to it; or the device is not there, or too small for it.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    change = parse_variant(variant)
    with quiet():
        checkpoint = find_checkpoint(name)
        place = source(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        model = load_checkpoint(checkpoint, change, DTYPES[dtype], place, device)
        tokenizer = load_tokenizer(checkpoint, place)
    return ObservableModel(
        model,
        tokenizer,
        name=name,
        variant=change,
        quantization=checkpoint.quantization,
    )
