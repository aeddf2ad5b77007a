"""Manipulation checks: what each file says about the model, the mask and the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posprobe.channels import cut_heads
from posprobe.errors import shown
from posprobe.store import ActivationStore

__all__ = ["check"]


def check(store: ActivationStore) -> dict[str, Any]:
    """Return the manipulation checks of one file, as one row of a table.

    Parameters
    ----------
    store : ActivationStore
        Any capture.

    Returns
    -------
    dict of str to object
        Numbers and words by column: the file, its design, variant, treatment of position 0 and
        interventions, its numbers of sequences, items and tokens, its first and special tokens,
        its mask and its rotary embedding.
    """
    header = store.header
    first = np.unique(store.tokens[:, 0])
    windows = [w for w in header.layer_window if w]
    return {
        "file": shown(store.path.name),
        "design": store.design,
        "variant": header.variant,
        "position0": header.position0_treatment,
        "heads_without_sink": sum(
            int(cut_heads(store, layer).sum()) for layer in range(store.n_layers)
        ),
        "sequences": store.n_sequences,
        "items": store.n_items,
        "tokens": store.length,
        "first_token": str(first[0]) if len(first) == 1 else f"{len(first)} different",
        "special_tokens": _special_tokens(store),
        "mask": "none" if any(c.get("causal") is False for c in header.interventions) else "causal",
        "windowed_layers": f"{len(windows)} of {store.n_layers}",
        "computed_in": store.compute_type,
        "rounding": store.rounding_in_words(),
        "third_channel": _third_channel(store),
        "rope": _rotations(header.config, "rope_type"),
        "rope_theta": _rotations(header.config, "rope_theta"),
    }


def _special_tokens(store: ActivationStore) -> str:
    """List the special tokens in the text, with their counts."""
    found = store.header.stimulus.get("special_tokens") or {}
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"


def _third_channel(store: ActivationStore) -> str:
    """Say how far scores move with position by themselves, which neither channel explains."""
    own = store.own_position
    return "none" if own is None else f"from layer {own['layer']}, {own['change']:.3g} nats"


def _rotations(config: Mapping[str, Any], name: str) -> str:
    """Show one parameter of the rotary embedding, by type of layer if these differ (Gemma 3)."""
    rope = config.get("rope_parameters") or {}
    if not any(isinstance(value, dict) for value in rope.values()):
        return _plain(rope.get(name, "none"))
    nested = {kind: v for kind, v in rope.items() if isinstance(v, dict)}
    values = {kind: _plain(v.get(name, "none")) for kind, v in nested.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{kind.replace('_', ' ')}: {value}" for kind, value in values.items())


def _plain(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)
