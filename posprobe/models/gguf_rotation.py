"""Carry a GGUF file's rotary embedding over into a configuration, and prove the result.

transformers' reader takes over the base at most. The scaling keys and the tensors of factors that a
file can also hold are expressed here in transformers' terms. The rotation of the resulting model is
then compared with that of llama.cpp, frequency by frequency.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from posprobe.errors import ModelError
from posprobe.models.gguf_header import Header
from posprobe.models.rotary import Rotation, rotations_under

__all__ = ["ROTATION_KEYS", "ROTATION_TENSORS", "carry_rotation", "prove_rotation"]

SCALING = "rope.scaling."
ROTATION_KEYS = frozenset({"rope.freq_base", "rope.freq_base_swa", "rope.scale_linear"}) | {
    *("rope.dimension_count", "rope.dimension_count_swa"),
    *(f"{SCALING}{name}" for name in ("type", "factor", "attn_factor", "original_context_length")),
    *(f"{SCALING}yarn_{name}" for name in ("beta_fast", "beta_slow", "ext_factor")),
}
ZERO_IS_ONE = (f"{SCALING}factor", "rope.scale_linear")
POSITIVE = (
    *ZERO_IS_ONE,
    *("rope.freq_base", "rope.freq_base_swa", f"{SCALING}attn_factor"),
    *(f"{SCALING}original_context_length", f"{SCALING}yarn_beta_fast", f"{SCALING}yarn_beta_slow"),
)
FREQUENCY_FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
ROTATION_TENSORS = (FREQUENCY_FACTORS, SHORT_FACTORS, LONG_FACTORS)
TYPES = ("none", "linear", "yarn", "longrope")
BASE = 10_000.0  # llama.cpp's default
BETA_FAST, BETA_SLOW = 32.0, 1.0  # also llama.cpp's defaults
# Parameters of Llama 3.1 and 3.2; their converter writes only the divisors that follow from them.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_LENGTH = 8192
# In transformers PARTIAL may rotate only a part of each head, and KNOWN_TO knows no other scalings.
PARTIAL = ("phi3",)
KNOWN_TO = {"phi3": ("default", "longrope"), "gemma3": ("default", "linear")}
# Architectures whose layers with a window have their own base and are never scaled.
NESTED = ("gemma3",)
FULL, SLIDING = "full_attention", "sliding_attention"
TOLERANCE = 1e-5  # relative; transformers computes frequencies in float32


def declared_rotations(header: Header) -> dict[str, Rotation]:
    """Compute the rotations that llama.cpp derives from a file.

    Pair k of the n rotated dimensions turns by

        w_k = base^(-2k/n) / f_k * (e_k + (1 - e_k) / s)

    radians per token. Here f_k is an element of the tensor of factors (1 if there is none), s is
    the scaling factor, and e_k is the share of the frequency that YaRN does not scale. This share
    is 1 for pairs that turn more than `yarn_beta_fast` times over the original length, 0 for pairs
    that turn less than `yarn_beta_slow` times, and linear in between; without YaRN it is 0 for all
    pairs. Cosines and sines are multiplied by `attn_factor`, and with YaRN also by 0.1 ln s + 1.

    Parameters
    ----------
    header : Header
        Header of the file.

    Returns
    -------
    dict of str to Rotation
        Rotation of each layer type, or of ``"all"`` layers if there is only one type.

    Raises
    ------
    ModelError
        If the number of factors is not the number of rotated pairs.

    References
    ----------
    ggml: ``ggml_rope_ext``, ``rope_yarn``; llama.cpp: ``llama_context``.
    """
    plain = _standard(header, header.number("rope.freq_base", BASE))
    factors = header.vector(FREQUENCY_FACTORS)
    factors = header.vector(SHORT_FACTORS) if factors is None else factors
    if factors is not None:
        if len(factors) != len(plain):
            raise ModelError(
                f"its rope factors have {len(factors)} elements for {len(plain)} rotated pairs"
            )
        plain = plain / factors
    scale, kept = _factor(header), _extrapolated(header)
    whole = Rotation(plain * (kept + (1 - kept) / scale), _attention_factor(header))
    if header.architecture not in NESTED:
        return {"all": whole}
    local = _standard(header, header.number("rope.freq_base_swa", BASE))
    return {FULL: whole, SLIDING: Rotation(local, 1.0)}


def carry_rotation(header: Header, config: Any) -> None:
    """Write a file's rotation into a configuration, in transformers' terms.

    Parameters
    ----------
    header : Header
        Header of the file.
    config : transformers configuration
        Configuration to change in place.

    Raises
    ------
    ModelError
        If the keys are invalid or contradict each other, or transformers cannot express the
        rotation; the message names the keys and tensors.
    """
    if getattr(config, "rope_parameters", None) is None:
        if found := _mentions(header):
            raise ModelError(f"it says {found}, but a {header.architecture} does not rotate")
        return
    _refuse_contradictions(header)
    rope = {"rope_theta": header.number("rope.freq_base", BASE), **_scaling(header)}
    if rope["rope_type"] not in KNOWN_TO.get(header.architecture, (rope["rope_type"],)):
        raise _inexpressible(header, f"no {rope['rope_type']} scaling")
    rotated = header.number("rope.dimension_count", header.head_size)
    if header.architecture in PARTIAL:
        rope["partial_rotary_factor"] = rotated / header.head_size
    if header.architecture not in NESTED:
        config.rope_parameters = rope
        return
    local = {"rope_type": "default", "rope_theta": header.number("rope.freq_base_swa", BASE)}
    config.rope_parameters = {FULL: rope, SLIDING: local}


def prove_rotation(header: Header, model: torch.nn.Module, config: Any) -> None:
    """Prove that a model made from a configuration rotates as its file says.

    Parameters
    ----------
    header : Header
        Header of the file.
    model : torch.nn.Module
        A model of the right class; its weights do not matter.
    config : transformers configuration
        Configuration to prove.

    Raises
    ------
    ModelError
        If a pair would turn differently; the message names the keys and tensors and the first such
        pair.
    """
    made = rotations_under(model, config)
    if not made:
        return  # `carry_rotation` has refused any file that asks for a rotation
    for kind, want in declared_rotations(header).items():
        got = made[kind]
        if len(got.frequencies) != len(want.frequencies):
            raise _inexpressible(
                header,
                f"{2 * len(got.frequencies)} rotated dimensions for {2 * len(want.frequencies)}",
            )
        wrong = ~np.isclose(got.frequencies, want.frequencies, rtol=TOLERANCE, atol=0)
        if wrong.any():
            pair = int(wrong.argmax())
            raise _inexpressible(
                header,
                f"pair {pair} would turn by {got.frequencies[pair]:.4g}, not by "
                f"{want.frequencies[pair]:.4g} radians per token",
            )
        if not math.isclose(got.factor, want.factor, rel_tol=TOLERANCE):
            raise _inexpressible(
                header, f"attention factor {got.factor:.4g}, not {want.factor:.4g}"
            )


def _standard(header: Header, base: float) -> np.ndarray:
    """Return the frequencies base^(-2k/n) of plain rotation, of shape (pair,)."""
    rotated = int(header.number("rope.dimension_count", header.head_size))
    return base ** (-np.arange(0, rotated, 2) / rotated)


def _kind(header: Header) -> str:
    """Return the type of scaling; llama.cpp takes a factor without a type as linear."""
    return str(header.values.get(f"{SCALING}type", "linear"))


def _factor(header: Header) -> float:
    if _kind(header) == "none":
        return 1.0
    legacy = header.number("rope.scale_linear", 1.0)
    return header.number(f"{SCALING}factor", legacy) or 1.0


def _original_length(header: Header) -> float:
    length = header.number("context_length", 0)
    return header.number(f"{SCALING}original_context_length", length)


def _attention_factor(header: Header) -> float:
    own = header.number(f"{SCALING}attn_factor", 1.0)
    return own * (0.1 * math.log(_factor(header)) + 1 if _kind(header) == "yarn" else 1.0)


def _extrapolated(header: Header) -> np.ndarray:
    """Return the share of each frequency that YaRN does not scale, of shape (pair,)."""
    base = header.number("rope.freq_base", BASE)
    rotated = int(header.number("rope.dimension_count", header.head_size))
    pairs = np.arange(rotated // 2)
    if _kind(header) != "yarn":
        return np.zeros(len(pairs))

    def dimension(turns: float) -> float:
        """Return the pair that turns this often over the original length."""
        return rotated * math.log(_original_length(header) / turns / math.tau) / 2 / math.log(base)

    low = max(0.0, math.floor(dimension(header.number(f"{SCALING}yarn_beta_fast", BETA_FAST))))
    high = dimension(header.number(f"{SCALING}yarn_beta_slow", BETA_SLOW))
    high = min(rotated - 1.0, math.ceil(high))
    return 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)


def _scaling(header: Header) -> dict[str, Any]:
    """Return the type of the rotation and its parameters, as transformers spells them."""
    factor, length = _factor(header), int(_original_length(header))
    short, long = header.vector(SHORT_FACTORS), header.vector(LONG_FACTORS)
    if short is not None and long is not None:
        return {
            "rope_type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "attention_factor": _attention_factor(header),
            "original_max_position_embeddings": length,
        }
    if _kind(header) == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": _attention_factor(header),
            "beta_fast": header.number(f"{SCALING}yarn_beta_fast", BETA_FAST),
            "beta_slow": header.number(f"{SCALING}yarn_beta_slow", BETA_SLOW),
            "original_max_position_embeddings": length,
        }
    if factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    factors = header.vector(FREQUENCY_FACTORS)
    found = None if factors is None else _as_llama3(header, factors)
    return found or {"rope_type": "default"}


def _as_llama3(header: Header, factors: np.ndarray) -> dict[str, Any] | None:
    """Return parameters of Llama 3's scaling that give these divisors, or None if none do.

    Pair k makes r_k = length w_k / 2 pi turns over the original length. Its divisor is 1 if
    r_k > 4, the factor if r_k < 1, and otherwise 1 / (t + (1 - t) / factor) with
    t = (r_k - 1) / (4 - 1).
    """
    plain = _standard(header, header.number("rope.freq_base", BASE))
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    if len(factors) != len(plain) or (factors <= 1).all():
        return None
    slowest = int(factors.argmax())
    for length in dict.fromkeys((LLAMA3_LENGTH, int(_original_length(header)))):
        kept = np.clip((length * plain / math.tau - low) / (high - low), 0, 1)
        remaining = 1 / factors[slowest] - kept[slowest]
        if remaining <= 0:
            continue
        factor = float((1 - kept[slowest]) / remaining)
        if np.allclose(1 / (kept + (1 - kept) / factor), factors, rtol=TOLERANCE):
            own = {"factor": factor, "original_max_position_embeddings": length}
            return {"rope_type": "llama3", **LLAMA3, **own}
    return None


def _refuse_contradictions(header: Header) -> None:
    """Refuse values that have no meaning, or whose meaning differs between llama.cpp releases."""
    kind = _kind(header)
    if kind not in TYPES:
        raise _inexpressible(header, f"no type {kind}")
    for key in POSITIVE:
        value = header.number(key, 1.0)
        off = value == 0 and key in ZERO_IS_ONE
        if not (off or 0 < value < math.inf):
            raise ModelError(f"{header.named(key)} is not a positive number; download it again")
    factors = [name for name in (SHORT_FACTORS, LONG_FACTORS) if name in header.tensors]
    if len(factors) == 1 or (kind == "longrope" and not factors):
        raise _inexpressible(header, "longrope needs both tensors of factors")
    # ext_factor says how much of YaRN's ramp is used: 1 with YaRN, 0 without, or a negative number,
    # which stands for these defaults
    extrapolation = header.number(f"{SCALING}yarn_ext_factor", -1.0)
    if extrapolation >= 0 and extrapolation != float(kind == "yarn"):
        raise _inexpressible(header, "no part of a ramp")
    same = {"rope.dimension_count_swa": "rope.dimension_count"}
    if header.architecture not in NESTED:
        same["rope.freq_base_swa"] = "rope.freq_base"
    for local, whole in same.items():
        if header.values.get(local, header.values.get(whole)) != header.values.get(whole):
            raise _inexpressible(header, "one rotation for all layers")


def _mentions(header: Header) -> str:
    """Name every key and tensor of a file that concerns rotation, as the file spells them."""
    keys = [key for key in header.values if key in ROTATION_KEYS]
    tensors = [name for name in ROTATION_TENSORS if name in header.tensors]
    return ", ".join([header.named(*keys)] * bool(keys) + tensors)


def _inexpressible(header: Header, reason: str) -> ModelError:
    return ModelError(
        f"transformers cannot rotate as it says ({_mentions(header)}): {reason}; give the model's "
        "folder with config.json instead"
    )
