"""Treatments of position 0: which token or embedding takes the place of the native one."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from posprobe.errors import StimulusError
from posprobe.models import ObservableModel, Observation, Observer
from posprobe.stimuli import Stimulus

__all__ = [
    "POSITION0",
    "check_treatment",
    "item_rng",
    "kept_at_position0",
    "replace_token",
    "replaced_embedding",
]

POSITION0 = {
    "native": "the token of the stimulus",
    "special": "another special token of the tokenizer",
    "content": "a random token of the text, drawn per item",
    "mean": "the mean of all token embeddings",
    "noise": "Gaussian noise with the norm of the native embedding, drawn per item",
    "zero": "a vector of zeros",
}


def check_treatment(position0: str) -> None:
    """Refuse an unknown treatment of position 0.

    Raises
    ------
    StimulusError
        If `position0` is not one of `POSITION0`.
    """
    if position0 not in POSITION0:
        raise StimulusError(
            f"position0 {position0!r} is unknown; use one of {', '.join(POSITION0)}"
        )


def replace_token(model: ObservableModel, stimulus: Stimulus, position0: str) -> Stimulus:
    """Put another token at position 0 if the treatment asks for one.

    Parameters
    ----------
    model : ObservableModel
        Model whose special tokens are used, or are left out of the choice.
    stimulus : Stimulus
        Sequences with their native first tokens.
    position0 : str
        One of `POSITION0`.

    Returns
    -------
    Stimulus
        A changed copy for ``"special"`` and ``"content"``; otherwise `stimulus` itself.

    Raises
    ------
    StimulusError
        If there is no other token to choose.
    """
    if position0 == "special":
        others = [
            next((t for t in model.special_ids if t != native), None)
            for native in stimulus.first_token
        ]
        if None in others:
            raise StimulusError(
                f"position0 'special': model {model.name!r} has no other special token"
            )
        chosen = np.array(others)
    elif position0 == "content":
        if stimulus.first_item:
            raise StimulusError(
                "position0 'content' draws from the text of all items of a file, so it cannot "
                f"start at item {stimulus.first_item}; capture all items into one file"
            )
        text = stimulus.tokens[stimulus.tokens >= 0]
        content = np.setdiff1d(text, model.special_ids)
        choices = [content[content != native] for native in stimulus.first_token]
        if not all(len(tokens) for tokens in choices):
            raise StimulusError("position0 'content': the text has no other token; pass more text")
        chosen = np.array(
            [item_rng(stimulus, i).choice(o) for i, o in zip(stimulus.item, choices, strict=True)]
        )
    else:
        return stimulus
    tokens = stimulus.tokens.copy()
    tokens[:, 0] = chosen
    return dataclasses.replace(stimulus, tokens=tokens)


def item_rng(stimulus: Stimulus, item: int) -> np.random.Generator:
    """Return the random generator of an item; all of its sequences get the same draw."""
    return np.random.default_rng([stimulus.seed, int(item), 1])


def replaced_embedding(
    model: ObservableModel, stimulus: Stimulus, batch: slice, position0: str
) -> Tensor | None:
    """Return the embeddings that replace those at position 0 of a batch.

    Parameters
    ----------
    model : ObservableModel
        Model whose embeddings are replaced.
    stimulus : Stimulus
        Sequences of the capture.
    batch : slice
        Numbers of the sequences of the batch.
    position0 : str
        One of `POSITION0`.

    Returns
    -------
    Tensor of shape (batch, width) or None
        None for the treatments that leave or replace the token itself.
    """
    if position0 not in ("zero", "mean", "noise"):
        return None
    first = torch.from_numpy(stimulus.tokens[batch, 0].astype(np.int64))
    native = model.embed(first).float().cpu()
    if position0 == "zero":
        return torch.zeros_like(native)
    if position0 == "mean":
        return model.mean_embedding.expand_as(native)
    draws = [item_rng(stimulus, i).standard_normal(native.shape[-1]) for i in stimulus.item[batch]]
    noise = torch.from_numpy(np.stack(draws)).to(native)
    return noise * (native.norm(dim=-1) / noise.norm(dim=-1)).unsqueeze(-1)


def kept_at_position0(model: ObservableModel, token: int) -> float:
    r"""Measure what stays in the residual stream at position 0 if its embedding is zero.

    .. math:: \lVert h_0(\mathrm{zero}) \rVert / \lVert h_0 \rVert

    That is what the model adds by itself before the first block, such as a learned position vector.

    Parameters
    ----------
    model : ObservableModel
        Model to run on one token.
    token : int
        Token at position 0.

    Returns
    -------
    float
        0 for models that add nothing, rounded to four digits.
    """
    seen: list[Tensor] = []

    def emit(name: str, layer: int, tensor: Tensor) -> None:
        if (name, layer) == ("position0", 0):
            seen.append(tensor.double().norm().cpu())

    tokens = torch.tensor([[token]])
    for embedding0 in (torch.zeros_like(model.embed(tokens)[:, 0]), None):
        model.run(tokens, Observer(emit, Observation(n_queries=1)), embedding0=embedding0)
    zero, native = map(float, seen)
    return float(f"{zero / native:.4g}") if native else 0.0
