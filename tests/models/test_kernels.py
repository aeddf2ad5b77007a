"""Which kernel computes attention: one that is proved, or the next, and what is said of the rest.

GPU kernels are those of `gpu_kernels`, which have the real ones' layout and run on the CPU.
"""

import contextlib
import dataclasses
import math
import re

import gpu_kernels
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posprobe.errors import PosprobeWarning
from posprobe.models import kernels
from posprobe.models.attention import Scoring, Visibility, attend_blockwise
from posprobe.models.kernels import CAUSAL, OPEN, OPEN_WINDOW, WINDOW, attend, fused_kernel

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)
(ON_CPU,) = kernels.KERNELS["cpu"]
FLASH, CUDNN, EFFICIENT = kernels.KERNELS["cuda"]
OPERATION = {
    FLASH: gpu_kernels.FLASH,
    CUDNN: gpu_kernels.CUDNN,
    EFFICIENT: gpu_kernels.EFFICIENT,
}


@pytest.fixture(autouse=True)
def fresh_proofs():
    fused_kernel.cache_clear()
    yield
    fused_kernel.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Give the CPU kernels of a GPU in place of its own; a call says which, and what they do."""
    with contextlib.ExitStack() as stack:

        def install(*table, kind=gpu_kernels.GpuKernels, **changes):
            monkeypatch.setitem(kernels.KERNELS, "cpu", table or (FLASH, CUDNN, EFFICIENT))
            return stack.enter_context(gpu_kernels.installed(kind(**changes)))

        yield install


def draw(length=70, *, dtype=torch.bfloat16, width=16, groups=2):
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, width) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def assert_like_reference(*case, tolerance):
    for got, wanted in zip(attend(*case), attend_blockwise(*case), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        torch.testing.assert_close(got.double(), wanted.double(), atol=tolerance, rtol=tolerance)


def chosen(dtype=torch.bfloat16, mask=CAUSAL, width=16):
    return fused_kernel(CPU, dtype, width, mask)


# --- each kernel of the table ---


class Layouts(TorchDispatchMode):
    """Compares what the stand-ins return with what torch states for tensors without data."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        name = operation._schema.name.removeprefix("aten::")
        if name in OPERATION.values():
            bare = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in args]
            for got, stated in zip(made[:2], operation(*bare, **kwargs)[:2], strict=True):
                assert (got.shape, got.dtype) == (stated.shape, stated.dtype), name
            self.seen.add(name)
        return made


def test_stand_ins_have_the_layout_that_torch_states(gpu):
    gpu()
    with Layouts() as layouts:
        for kernel in OPERATION:
            for length in (1, 32, 70):
                kernel.compute(*draw(length), CAUSAL, 0.3)
    assert layouts.seen == {*OPERATION.values()}


MADE_FOR = [(kernel, dtype) for kernel in OPERATION for dtype in kernel.dtypes]


@pytest.mark.parametrize(("kernel", "dtype"), MADE_FOR)
def test_each_kernel_gives_the_numbers_of_the_reference(kernel, dtype, gpu):
    found = gpu(kernel)
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    sink = torch.tensor([-3.0, 0.0, 2.0, 30.0]).to(dtype)
    plain, learned = Scoring(0.3), Scoring(0.3, sink_logit=sink)
    for mask in kernel.masks:
        assert chosen(dtype, mask) is kernel
        for window in (None,) if mask.window is None else (1, 2, 9, 31, 32, 69, 70, 500):
            for length, groups in [(1, 2), (2, 4), (70, 2), (96, 1)]:
                case = (*draw(length, dtype=dtype, groups=groups), Visibility(mask.causal, window))
                assert_like_reference(*case, plain, tolerance=tolerance)
                normalizer = learned.with_sink_logit(attend(*case, plain)[1])
                assert torch.equal(attend(*case, learned)[1], normalizer)
    assert {*found.used} == {OPERATION[kernel]}


@pytest.mark.parametrize(
    ("dtype", "mask", "kernel"),
    [
        *[(dtype, mask, FLASH) for dtype in HALF for mask in FLASH.masks],
        *[(torch.float32, mask, EFFICIENT) for mask in EFFICIENT.masks],
        (torch.float32, OPEN_WINDOW, None),
        *[(torch.float64, mask, None) for mask in FLASH.masks],
    ],
)
def test_the_first_kernel_that_was_made_for_it_is_chosen_without_a_word(dtype, mask, kernel, gpu):
    gpu()
    assert chosen(dtype, mask) is kernel


@pytest.mark.parametrize("dtype", ON_CPU.dtypes)
@pytest.mark.parametrize("width", [8, 20, 64, 256])
def test_the_kernel_of_the_cpu_is_proved(dtype, width):
    for mask in (CAUSAL, OPEN, WINDOW, OPEN_WINDOW):
        assert fused_kernel(CPU, dtype, width, mask) is ON_CPU


def test_other_devices_have_no_kernels():
    assert fused_kernel(torch.device("meta"), torch.float32, 16, CAUSAL) is None


def test_softcaps_and_values_of_another_width_take_the_blockwise_path(gpu):
    found = gpu()
    query, key, value = draw()
    attend(query, key, value, CAUSAL, Scoring(0.3, softcap=2.0))
    attend(query, key, value[..., :8], CAUSAL, Scoring(0.3))
    assert found.used == []


def test_a_window_that_hides_nothing_is_none(gpu):
    found = gpu(CUDNN)
    attend(*draw(), Visibility(window=69), Scoring(0.3))
    assert found.used == []
    attend(*draw(), Visibility(window=70), Scoring(0.3))
    assert {*found.used} == {gpu_kernels.CUDNN}


# --- kernels that are wrong, missing, or do not run ---

LIES = {
    "log-sum-exp by ln 2": (lambda o, z: (o, z + math.log(2)), "a wrong log-sum-exp (by "),
    "log-sum-exp in bits": (lambda o, z: (o, z / math.log(2)), "a wrong log-sum-exp (by "),
    "log-sum-exp by 1%": (lambda o, z: (o, z * 1.01), "a wrong log-sum-exp (by "),
    "output by 4%": (lambda o, z: (o * 1.04, z), "a wrong output (by "),
    "output of other queries": (lambda o, z: (o.roll(1, 2), z), "a wrong output (by "),
    "heads in turn": (lambda o, z: (o[:, [0, 2, 1, 3]], z[:, [0, 2, 1, 3]]), "a wrong output (by "),
    "NaN": (lambda o, z: (o * torch.nan, z), "a wrong output (by nan)"),
    "log-sum-exp in half": (lambda o, z: (o, z.to(o.dtype)), "log-sum-exp of shape (2, 4, 140) in"),
    "one query less": (lambda o, z: (o[:, :, 1:], z), "output of shape (2, 4, 139, 16)"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("dtype", HALF)
def test_a_wrong_kernel_is_named_and_the_next_one_taken(lie, dtype, gpu):
    change, words = LIES[lie]
    found = gpu(lies={gpu_kernels.FLASH: change})
    said = f"attention on cpu, {str(dtype)[6:]} heads of 16 dimensions: flash attention returns "
    with pytest.warns(PosprobeWarning, match=re.escape(said)) as seen:
        assert_like_reference(*draw(dtype=dtype), CAUSAL, Scoring(0.3), tolerance=2e-2)
    (warned,) = seen
    assert words in str(warned.message)
    assert str(warned.message).endswith("; cuDNN's attention is used instead")
    assert found.used == [gpu_kernels.FLASH, gpu_kernels.CUDNN, gpu_kernels.CUDNN]


def test_a_lie_that_shows_in_windows_alone_is_found_there(gpu):
    class OffByOne(gpu_kernels.GpuKernels):
        def flash(self, *args, window_size_left=None, **keywords):
            left = None if window_size_left is None else window_size_left + 1
            return super().flash(*args, window_size_left=left, **keywords)

    gpu(kind=OffByOne)
    assert chosen(mask=CAUSAL) is FLASH
    with pytest.warns(PosprobeWarning, match="flash attention returns a wrong output"):
        assert chosen(mask=WINDOW) is EFFICIENT


def test_when_no_kernel_is_left_the_blockwise_path_computes(gpu):
    halved = {name: lambda o, z: (o / 2, z) for name in OPERATION.values()}
    gpu(lies=halved)
    words = "flash .*, cuDNN.*, memory.* wrong output .*; the slower blockwise path is used instead"
    case = (*draw(), CAUSAL, Scoring(0.3))
    with pytest.warns(PosprobeWarning, match=words):
        found = attend(*case)
    for got, wanted in zip(found, attend_blockwise(*case), strict=True):
        assert torch.equal(got, wanted)
    attend(*case)  # said once


def test_missing_operations_are_named(monkeypatch):
    monkeypatch.setitem(kernels.KERNELS, "cpu", (FLASH, CUDNN, EFFICIENT))
    with pytest.warns(PosprobeWarning, match="flash attention does not run .NotImplementedError"):
        assert chosen() is None  # torch has them for GPUs only


def test_operations_that_torch_lost_are_named(monkeypatch):
    def lost(*_):
        return torch.ops.aten._attention_of_another_version

    monkeypatch.setitem(kernels.KERNELS, "cpu", (dataclasses.replace(FLASH, compute=lost), ON_CPU))
    words = "does not run .AttributeError: .*; torch's flash attention for CPUs is used instead"
    with pytest.warns(PosprobeWarning, match=words):
        assert chosen() is ON_CPU


def test_heads_of_a_width_that_no_kernel_takes_are_named(gpu):
    gpu()
    words = "heads of 20 dimensions: flash attention does not run .RuntimeError: head dimension"
    with pytest.warns(PosprobeWarning, match=words):
        assert_like_reference(*draw(width=20), CAUSAL, Scoring(0.3), tolerance=0)


def test_a_proved_kernel_that_fails_later_is_named(gpu):
    def fail(output, lse):
        if output.shape[2] > kernels.PROOF_LENGTH:
            raise RuntimeError("too many\nblocks")
        return output, lse

    gpu(lies={gpu_kernels.FLASH: fail})
    assert_like_reference(*draw(), CAUSAL, Scoring(0.3), tolerance=2e-2)
    words = r"flash attention failed on \(2, 4, 200, 16\) \(RuntimeError: too many blocks\); the sl"
    with pytest.warns(PosprobeWarning, match=words):
        assert_like_reference(*draw(200), CAUSAL, Scoring(0.3), tolerance=0)


def test_memory_that_runs_out_is_no_fault_of_the_kernel(gpu):
    def fail(output, lse):
        if output.shape[2] > kernels.PROOF_LENGTH:
            raise torch.OutOfMemoryError("no memory left")
        return output, lse

    gpu(lies={gpu_kernels.FLASH: fail})
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        attend(*draw(200), CAUSAL, Scoring(0.3))
