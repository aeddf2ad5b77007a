"""Attention by the fastest kernel that returns the log-sum-exp and is proved to return it right.

`KERNELS` lists the fused kernels of each kind of device, the preferred one first. Before a kernel
is used on a device, for a type, a width of heads and a kind of mask, it is compared with the
blockwise reference of `posprobe.models.attention`. One that is missing, raises an error, or
computes other numbers is named in a warning, and the next one takes its place, in the end the
reference itself.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from posprobe.errors import PosprobeWarning, in_short
from posprobe.models.attention import BLOCK, Scoring, Visibility, attend_blockwise

__all__ = ["KERNELS", "Kernel", "attend", "fused_kernel"]

Computed: TypeAlias = tuple[Tensor, Tensor]  # output and normalizer, as `attend` returns them

# One mask of each kind, on which kernels are proved.
CAUSAL, OPEN = Visibility(), Visibility(causal=False)
WINDOW, OPEN_WINDOW = Visibility(window=9), Visibility(causal=False, window=9)

HALF = (torch.bfloat16, torch.float16)
# Largest error of a log-sum-exp, absolute and relative. Kernels sum scores of every type in
# float32 or better, and for the types of 16 bits some take a coarser exponential.
TOLERANCE, TOLERANCE_OF_HALF = 1e-5, 1e-3
# Of an output, in steps of its type: weights and outputs are rounded to it.
STEPS = 2
PROOF_LENGTH = 140  # more than one block of a GPU's kernels, and not a multiple of 32


@dataclass(frozen=True)
class Kernel:
    """A fused kernel that returns the log-sum-exp.

    Parameters
    ----------
    name : str
        What messages call it.
    compute : callable
        Called with query, key, value, visibility and scaling; it returns the output and the
        normalizer as `attend` does.
    dtypes : tuple of torch.dtype
        Types that it was made for.
    masks : tuple of Visibility
        One mask of each kind that it can apply.
    """

    name: str
    compute: Callable[[Tensor, Tensor, Tensor, Visibility, float], Computed]
    dtypes: tuple[torch.dtype, ...]
    masks: tuple[Visibility, ...]


def _cpu(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scaling: float
) -> Computed:
    """The CPU's kernel; with a window, in blocks of queries."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if visibility.window is None:
        return kernel(query, key, value, 0.0, visibility.causal, scale=scaling)
    n_queries, n_keys = query.shape[2], key.shape[2]
    index = torch.arange(max(n_queries, n_keys), device=query.device)
    blocks = []
    for first in range(0, n_queries, BLOCK):
        rows = slice(first, min(first + BLOCK, n_queries))
        columns = slice(*visibility.key_range(rows.start, rows.stop, n_keys))
        visible = visibility.mask(index[rows], index[columns])
        bias = query.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        part = (query[:, :, rows], key[:, :, columns], value[:, :, columns])
        blocks.append(kernel(*part, 0.0, False, attn_mask=bias, scale=scaling))
    outputs, normalizers = zip(*blocks, strict=True)
    return torch.cat(outputs, 2), torch.cat(normalizers, 2)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scaling: float
) -> Computed:
    """Flash attention, which wants (batch, token, head, d) and counts a window on either side."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    reach = None if visibility.window is None else visibility.window - 1
    output, normalizer, *_ = torch.ops.aten._flash_attention_forward(
        *_by_token(query, key, value),
        *(None, None, n_queries, n_keys, 0.0, visibility.causal, False),
        scale=scaling,
        window_size_left=reach,
        window_size_right=0 if visibility.causal and reach is not None else reach,
    )
    return output.transpose(1, 2), normalizer


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scaling: float
) -> Computed:
    """Memory-efficient attention, whose log-sum-exps are padded to a multiple of 32."""
    output, normalizer, *_ = torch.ops.aten._efficient_attention_forward(
        *_by_token(query, key, value),
        *(None, None, None, None, None, 0.0, int(visibility.causal), True),
        scale=scaling,
        window_size=visibility.window,
    )
    return output.transpose(1, 2), normalizer[..., : query.shape[2]]


def _cudnn(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scaling: float
) -> Computed:
    """The attention of cuDNN, whose log-sum-exps have one more axis, of length 1."""
    output, normalizer, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(query, *_repeated(query, key, value), None, True, 0.0, visibility.causal),
        scale=scaling,
    )
    return output, normalizer.view(query.shape[:-1])


def _repeated(query: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
    """Keys and values once for each query head: not every kernel lets heads share them."""
    return tuple(each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in shared)


def _by_token(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value of every query head, of shape (batch, token, head, d)."""
    return tuple(each.transpose(1, 2) for each in (query, *_repeated(query, key, value)))


KERNELS = {
    "cpu": (
        Kernel(
            "torch's flash attention for CPUs",
            _cpu,
            (torch.float64, torch.float32, *HALF),
            (CAUSAL, OPEN, WINDOW, OPEN_WINDOW),
        ),
    ),
    "cuda": (
        Kernel("flash attention", _flash, HALF, (CAUSAL, OPEN, WINDOW, OPEN_WINDOW)),
        Kernel("cuDNN's attention", _cudnn, HALF, (CAUSAL, OPEN)),
        Kernel(
            "memory-efficient attention",
            _efficient,
            (torch.float32, *HALF),
            (CAUSAL, OPEN, WINDOW),
        ),
    ),
}


def attend(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring
) -> Computed:
    """Compute the attention output and its log-normalizer without a T x T array.

    Parameters
    ----------
    query : Tensor, shape (batch, head, query, d)
        Queries, after rotary embedding and QK-norm.
    key, value : Tensor, shape (batch, key-value head, key, d)
        Keys and values.
    visibility : Visibility
        Keys that each query may attend to.
    scoring : Scoring
        How queries and keys become scores.

    Returns
    -------
    output : Tensor, shape (batch, head, query, d)
        Weighted sums of the values.
    normalizer : Tensor, shape (batch, head, query)
        Logarithm of each softmax denominator, in nats; float64 if the query is, else float32.

    Warns
    -----
    PosprobeWarning
        If a kernel that was made for this cannot be used; see `fused_kernel`.

    Examples
    --------
    >>> import torch
    >>> from posprobe.models.attention import Scoring, Visibility
    >>> from posprobe.models.kernels import attend
    >>> query = key = torch.zeros(1, 1, 4, 8)
    >>> output, normalizer = attend(query, key, key, Visibility(), Scoring(1.0))
    >>> [round(n, 4) for n in normalizer.exp().flatten().tolist()]  # the number of visible keys
    [1.0, 2.0, 3.0, 4.0]
    """
    if visibility.window is not None and visibility.window >= key.shape[2]:
        visibility = Visibility(visibility.causal)  # it hides nothing
    found = _attend_fused(query, key, value, visibility, scoring)
    if found is None:
        found = attend_blockwise(query, key, value, visibility, scoring)
    output, normalizer = found
    if scoring.sink_logit is not None:
        whole = scoring.with_sink_logit(normalizer)
        output = output * (normalizer - whole).exp().unsqueeze(-1).to(output.dtype)
        normalizer = whole
    return output, normalizer


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring
) -> Computed | None:
    """Compute `attend` by a fused kernel, without the learned logit; None if no kernel can."""
    width = query.shape[-1]
    if scoring.softcap is not None or width != value.shape[-1]:
        return None
    mask = Visibility(visibility.causal, visibility.window and WINDOW.window)
    kernel = fused_kernel(query.device, query.dtype, width, mask)
    if kernel is None:
        return None
    try:
        return kernel.compute(query, key, value, visibility, scoring.scaling)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        failed = f"{kernel.name} failed on {tuple(query.shape)} ({in_short(error)})"
        _warn(query.device, query.dtype, width, failed, None)
    return None


@functools.cache
def fused_kernel(
    device: torch.device, dtype: torch.dtype, width: int, mask: Visibility
) -> Kernel | None:
    """Return the first kernel that was made for this and agrees with the blockwise reference.

    Parameters
    ----------
    device : torch.device
        Where it is to run.
    dtype : torch.dtype
        Type of queries, keys and values.
    width : int
        Number d of dimensions of a head.
    mask : Visibility
        A mask of the kind that it is to apply.

    Returns
    -------
    Kernel or None
        None means the blockwise reference.

    Warns
    -----
    PosprobeWarning
        If a kernel that was made for this is missing, raises an error, or is wrong; it says why,
        and what is used instead.
    """
    made_for_this = [
        kernel
        for kernel in KERNELS.get(device.type, ())
        if dtype in kernel.dtypes and mask in kernel.masks
    ]
    objections = []
    for kernel in made_for_this:
        objection = _objection(kernel, device, dtype, width, mask)
        if objection is None:
            break
        objections.append(f"{kernel.name} {objection}")
    else:
        kernel = None
    if objections:
        _warn(device, dtype, width, ", ".join(objections), kernel)
    return kernel


def _objection(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int, mask: Visibility
) -> str | None:
    """Say why a kernel cannot be used; None if it agrees with the blockwise reference."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, PROOF_LENGTH, width) for heads in (4, 2, 2)]
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    scaling = 1.2 * width**-0.5
    try:
        found = kernel.compute(query, key, value, mask, scaling)
    except Exception as error:  # whatever a missing or unfit kernel raises
        return f"does not run ({in_short(error)})"
    expected = attend_blockwise(query, key, value, mask, Scoring(scaling))
    half = dtype in HALF
    tolerances = {
        "output": max(TOLERANCE, STEPS * torch.finfo(dtype).eps),
        "log-sum-exp": TOLERANCE_OF_HALF if half else TOLERANCE,
    }
    for (what, tolerance), got, wanted in zip(tolerances.items(), found, expected, strict=True):
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            return f"returns {what} of shape {tuple(got.shape)} in {_plain(got.dtype)}"
        gap = float(((got.double() - wanted.double()).abs() / (1 + wanted.double().abs())).max())
        if not gap <= tolerance:
            return f"returns a wrong {what} (by {gap:.1e})"
    return None


def _warn(
    device: torch.device, dtype: torch.dtype, width: int, objections: str, instead: Kernel | None
) -> None:
    used = "the slower blockwise path" if instead is None else instead.name
    warnings.warn(
        f"attention on {device}, {_plain(dtype)} heads of {width} dimensions: {objections}; "
        f"{used} is used instead",
        PosprobeWarning,
        stacklevel=2,
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
