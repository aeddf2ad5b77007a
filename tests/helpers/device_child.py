"""Captures on emulated accelerators, in a process: `python device_child.py OUT FOLDER...`.

Of each folder's model, on one device and over two, blockwise and by a GPU's kernels, into OUT.
Prints what mixed operands raise, and which kernels ran for which model.
"""

import dataclasses
import sys
import warnings
from pathlib import Path

import accelerate
import capture_child as child
import emulated
import gpu_kernels
import torch
import transformers

from posprobe.captures import capture_stimulus
from posprobe.errors import PosprobeWarning
from posprobe.models import Intervention, ObservableModel
from posprobe.models.kernels import KERNELS, fused_kernel

CASES = {
    "plain": {},
    "mean": dict(position0="mean"),
    "cut": dict(intervention=Intervention(cut_sink=((0, 1), (1, 0), (1, 2), (2, 3)))),
    "fixed": dict(intervention=Intervention(fixed_denominator=((0, 1, 2.0), (1, 2, 2.0)))),
    "open": dict(intervention=Intervention(causal=False)),
}

FLASH, CUDNN, EFFICIENT = KERNELS["cuda"]
FUSED = {"llama": CUDNN, "mistral": EFFICIENT, "nope": FLASH}  # gemma2 has a soft-cap


def observable(folder, *places):
    """A model on a device, or its first block and all else on one and the other blocks on another.

    Without a place: on the CPU.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if len(places) > 1:
        near, far = places
        rest = [name for name, _ in model.model.named_children() if name != "layers"]
        where = {"lm_head": near} | {f"model.{name}": near for name in rest}
        blocks = range(len(model.model.layers))
        where |= {f"model.layers.{block}": far if block else near for block in blocks}
        model = accelerate.dispatch_model(model, where)
    elif places:
        model = model.to(*places)
    return ObservableModel(model, name="tiny")


def take(model, out, name):
    """Every case of a model, into files of their own; a pass for each of two prefix lengths."""
    stimulus = child.stimulus(n=3, prefixes=(1, 19))
    for case, changes in CASES.items():
        path = Path(out) / f"{name}-{case}.h5"
        capture_stimulus(model, stimulus, path, progress=False, **changes).close()


def take_fused(folder, out):
    """Captures by one of a GPU's kernels, made for float32 here; the device has no other."""
    name = Path(folder).name
    KERNELS["emulated"] = (dataclasses.replace(FUSED[name], dtypes=(torch.float32,)),)
    fused_kernel.cache_clear()
    with gpu_kernels.installed(gpu_kernels.GpuKernels(half=(torch.float32,))) as kernels:
        take(observable(folder, "emulated:0", "emulated:1"), out, f"{name}-fused")
    print(name, *sorted({*kernels.used}))


def main(out, *folders):
    warnings.simplefilter("error", PosprobeWarning)
    libraries = emulated.register()
    try:
        torch.ones(2, device="emulated:1") + torch.ones(2, device="emulated:0")
    except RuntimeError as error:
        print(error)
    for folder in folders:
        name = Path(folder).name
        take(observable(folder, "emulated:1"), out, f"{name}-one")
        take(observable(folder, "emulated:0", "emulated:1"), out, f"{name}-two")
    for folder in folders:
        if Path(folder).name in FUSED:
            take_fused(folder, out)
    del libraries


if __name__ == "__main__":
    main(*sys.argv[1:])
