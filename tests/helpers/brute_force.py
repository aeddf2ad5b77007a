"""Attention by brute force in float64: every score of every pair, from the model's q and k."""

import contextlib
from typing import NamedTuple

import numpy as np
import tiny
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "brute"


class Layer(NamedTuple):
    """Scores (head, query, key), visible keys (head, query, key) and learned logits (head,)."""

    scores: np.ndarray
    visible: np.ndarray
    sink: np.ndarray | None

    def normalizer(self, shown=None):
        """z over the visible keys, or over those in `shown`: (head, query)."""
        shown = self.visible if shown is None else shown
        z = np.logaddexp.reduce(np.where(shown, self.scores, -np.inf), -1)
        return z if self.sink is None else np.logaddexp(z, self.sink[:, None])

    def weights(self):
        """Attention: (head, query, key)."""
        return np.where(self.visible, np.exp(self.scores - self.normalizer()[..., None]), 0.0)


def everything(**keywords):
    return sdpa_mask(
        **keywords | dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    )


@contextlib.contextmanager
def recording(model):
    """Compute attention by the sum itself; yields {layer: Layer} of the first row of a batch."""
    seen = {}

    def attention(
        module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **_
    ):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query.double() @ key.double().transpose(-1, -2) * factor
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        masked = scores.masked_fill(~attention_mask, -torch.inf)
        z = masked.logsumexp(-1, keepdim=True)
        if s_aux is not None:
            z = torch.logaddexp(z, s_aux.double().view(1, -1, 1, 1))
        visible = attention_mask.expand_as(scores)[0].numpy()
        sink = None if s_aux is None else s_aux.double().numpy()
        seen[int(module.layer_idx)] = Layer(scores[0].numpy(), visible, sink)
        weights = (masked - z).exp()
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, everything)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with torch.inference_mode():
            yield seen
    finally:
        model.set_attn_implementation(before)


def all_layers(model, tokens):
    """Brute force over one sequence of token ids: {layer: Layer}."""
    with recording(model) as seen:
        model(torch.as_tensor(tokens, dtype=torch.long)[None], use_cache=False)
    return seen


def distance_from_eager(model, tokens):
    """How far logits and weights of brute force are from those of the model's eager attention.

    The only thing that shows whether brute force computes what the model does. Weights are compared
    among real keys, since some models leave a learned logit out of those that they return.
    """
    ids = torch.as_tensor(tokens, dtype=torch.long)[None]
    model.set_attn_implementation("eager")
    with tiny.exact_softmax(), torch.inference_mode():
        eager = model(ids, use_cache=False, output_attentions=True)
    with recording(model) as seen:
        logits = model(ids, use_cache=False).logits
    gaps = [float((logits - eager.logits).abs().max() / eager.logits.abs().max())]
    for layer, weights in enumerate(eager.attentions or ()):
        if layer in seen and weights is not None and weights.ndim == 4:
            returned = weights[0].double().numpy()
            expected = seen[layer]._replace(sink=None).weights()
            gaps.append(np.abs(returned / returned.sum(-1, keepdims=True) - expected).max())
    return max(gaps)


class Errors(dict):
    """The largest error of each quantity, in nats."""

    def add(self, name, found, expected):
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), name
        error = np.nanmax(np.abs(found - expected), initial=0.0)
        self[name] = max(self.get(name, 0.0), float(error))


def stored_errors(store, layers_of, errors):
    """Add how far stored scores and normalizers are from brute force.

    `layers_of[n]` are the layers of sequence n, as `all_layers` gives them.
    """
    for layer in range(store.n_layers):
        for n, layers in enumerate(layers_of):
            found, rows = layers[layer], store.positions[n]
            scores = found.scores[:, rows]
            errors.add("normalizer", store.normalizer(layer)[n], found.normalizer()[:, rows].T)
            errors.add("sink_score", store.read("sink_score", layer)[n], scores[..., 0].T)
            for d, offset in enumerate(store.offsets):
                keys = rows - offset
                expected = scores[:, range(len(rows)), np.maximum(keys, 0)].T
                expected = np.where(keys[:, None] < 0, np.nan, expected)
                errors.add("offset_score", store.read("offset_score", layer)[n, ..., d], expected)


def effects(store, layers_of, layer):
    """T, M and R by their definitions: (item, prefix, head, offset)."""
    prefixes, window = store.prefixes, store.window
    place = {
        (item, prefix): n
        for n, (item, prefix) in enumerate(zip(store.item, store.prefix_length, strict=True))
    }
    parts = []
    for item in np.unique(store.item):
        late = layers_of[place[item, prefixes[-1]]][layer]
        weights, masks = [], []
        for prefix in prefixes:
            own = layers_of[place[item, prefix]][layer]
            weights.append(_weights(own, prefix, store))
            shown = _shown(late, prefix, prefixes[-1])
            masks.append(-late.normalizer(shown)[:, -window:])
        weights, masks = np.array(weights), np.array(masks)
        total, mask = weights - weights[-1], masks - masks[-1]
        kept = _kept(late, store)
        mean = [
            (total[:, :, offset:, d].mean(2), mask[:, :, offset:].mean(2)) for d, offset in kept
        ]
        parts.append([np.stack(each, -1) for each in zip(*mean, strict=True)])
    total, mask = (np.stack(each) for each in zip(*parts, strict=True))
    return {"total": total, "mask": mask, "residual": total - mask}


def _kept(late, store):
    """Numbers and offsets of those whose key every row of the window sees, when it is inside."""
    last = late.visible[0, -1]
    return [
        (d, offset)
        for d, offset in enumerate(store.offsets)
        if offset < store.window and last[len(last) - 1 - offset]
    ]


def _weights(own, prefix, store):
    """Log weights of the window's rows at each offset: (head, row, offset)."""
    rows = prefix + np.arange(store.window)
    keys = np.maximum(rows[:, None] - np.array(store.offsets), 0)
    scores = own.scores[:, rows[:, None], keys]
    return scores - own.normalizer()[:, rows, None]


def _shown(late, prefix, own_prefix):
    """Keys that stand, in the late rows, for those seen behind a shorter prefix: (head, row, key).

    Behind p tokens row r sees itself and the p + r - 1 keys before it, as far as its window
    reaches, and key 0, whose place the late row's own key 0 takes.
    """
    length = late.scores.shape[-1]
    query, key = np.arange(length)[:, None], np.arange(length)
    ahead = prefix + query - own_prefix
    reach = late.visible[0, -1].sum()
    nearest = late.visible & (query - key < ahead)
    return nearest | ((key == 0) & (ahead < (reach if reach < length else np.inf)))
