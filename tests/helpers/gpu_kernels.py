"""What torch's fused kernels return on a GPU, computed on the CPU by the explicit softmax.

The operations are torch's own, so its dispatcher checks how they are called. What they return has
the layout of the real kernels: `tests/models/test_kernels.py` compares it with the one that torch
itself states for tensors without data. That real kernels compute the same numbers is not shown.
"""

import contextlib

import torch

FLASH = "_flash_attention_forward"
EFFICIENT = "_efficient_attention_forward"
CUDNN = "_scaled_dot_product_cudnn_attention"


def explicit(query, key, value, scale, causal, left=None, right=None):
    """Attention of (batch, head, token, d), with keys from `left` before to `right` after seen."""
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("heads do not share keys here")
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    hidden = (j > i) if causal else torch.zeros_like(j > i)
    if left is not None:
        hidden |= i - j > left
    if right is not None:
        hidden |= j - i > right
    scores = scores.masked_fill(hidden, -torch.inf)
    output = scores.softmax(-1) @ value.double()
    return output.to(query.dtype), scores.logsumexp(-1).float()


def check(query, *dtypes):
    """Refuse what the real kernels refuse."""
    if query.dtype not in dtypes:
        raise RuntimeError(f"no kernel for {query.dtype}")
    if query.dtype.itemsize == 2 and query.shape[-1] % 8:
        raise RuntimeError("head dimension must be a multiple of 8")


class GpuKernels:
    """The three operations; `used` are the names of those that ran.

    Parameters
    ----------
    lies : dict of str to callable, optional
        By name of an operation, what is done to (output, log-sum-exp) before it is returned.
    half : tuple of dtype, optional
        The types that flash and cuDNN's attention take.
    """

    def __init__(self, lies=None, half=(torch.bfloat16, torch.float16)):
        self.lies = lies or {}
        self.half = half
        self.used = []

    def _computed(self, name, *case):
        self.used.append(name)
        output, lse = explicit(*case)
        return self.lies.get(name, lambda *found: found)(output, lse)

    def flash(
        self, query, key, value, cum_q, cum_k, max_q, max_k, dropout, causal, debug, *,
        scale=None, window_size_left=None, window_size_right=None, **_,
    ):  # fmt: skip
        check(query, *self.half)
        assert (cum_q, cum_k, max_q, max_k) == (None, None, query.shape[1], key.shape[1])
        assert (dropout, debug) == (0.0, False)
        heads = (x.transpose(1, 2) for x in (query, key, value))
        case = (*heads, scale, causal, window_size_left, window_size_right)
        output, lse = self._computed(FLASH, *case)
        seed = torch.empty(2, dtype=torch.uint64)
        return output.transpose(1, 2), lse, seed, torch.empty(0), torch.empty(0)

    def efficient(
        self, query, key, value, bias, cu_q, cu_k, max_q, max_k, dropout, mask, logsumexp=False, *,
        scale=None, seqlen_k=None, window_size=None,
    ):  # fmt: skip
        check(query, torch.float32, *self.half)
        assert (bias, cu_q, cu_k, max_q, max_k, dropout, seqlen_k) == (None,) * 5 + (0.0, None)
        assert mask or window_size is None
        left = None if window_size is None else window_size - 1
        heads = (x.transpose(1, 2) for x in (query, key, value))
        output, lse = self._computed(EFFICIENT, *heads, scale, bool(mask), left)
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
        lse = padded if logsumexp else lse[..., :0]
        number = torch.empty((), dtype=torch.long)
        return output.transpose(1, 2), lse, number, number, query.shape[1], key.shape[1]

    def cudnn(
        self, query, key, value, bias, logsumexp, dropout=0.0, causal=False, debug=False, *,
        scale=None,
    ):  # fmt: skip
        check(query, *self.half)
        assert (bias, logsumexp, dropout, debug) == (None, True, 0.0, False)
        output, lse = self._computed(CUDNN, query, key, value, scale, causal)
        number = torch.empty((), dtype=torch.long)
        sizes = query.shape[2], key.shape[2]
        none = torch.empty(0)
        return output, lse.unsqueeze(-1), none, none, *sizes, number, number, none


@contextlib.contextmanager
def installed(kernels):
    """Let torch run these kernels on CPU tensors within the context."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl(FLASH, kernels.flash, "CPU")
        library.impl(EFFICIENT, kernels.efficient, "CPU")
        library.impl(CUDNN, kernels.cudnn, "CPU")
        yield kernels
    finally:
        library._destroy()
