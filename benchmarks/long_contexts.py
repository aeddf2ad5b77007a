"""Memory of a capture against the length of its sequences, each in a fresh process.

    python benchmarks/long_contexts.py [--model smollm2] [--cases 2048 8192 8192:window(1024) ...]
                                       [--out FILE.md]

A case is a length, or a length and a variant. One sequence is captured with everything that a
default capture observes; of the residual stream the file keeps the last layer at every 64th
position. Memory is the peak of the whole process (ru_maxrss), with the weights and the libraries;
"above the loaded model" is the peak during the capture less what the process held before it, after
a short sequence had touched the weights. Seconds are of the capture alone, with what else ran.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = ["2048", "8192", "8192:window(1024)", "32768:yarn(4)"]
GIB = 2**30


def status(field):
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if field in line).split()[1]) * 1024


class EnoughError(Exception):
    """The blocks that were asked for have run."""


def stop_after(model, blocks):
    """Have the forward pass end behind a block: all blocks take the same memory, one by one."""

    def stop(*_):
        raise EnoughError

    if blocks is not None and blocks < model.n_layers:
        model.blocks[blocks - 1].register_forward_hook(stop)


def take(model, length, path):
    """Capture one sequence; seconds of it."""
    from tqdm import tqdm

    from posprobe.captures import CaptureOptions
    from posprobe.captures.plan import plan_capture
    from posprobe.captures.run import draw, fill
    from posprobe.store import StoreWriter

    kept = dict(residual_layers="last", residual_positions="all/64", past_training=True)
    plan = plan_capture(model, draw(model, n=2, length=length), CaptureOptions(**kept))
    plan = plan.part(slice(0, 1))
    start = time.perf_counter()
    with (
        contextlib.suppress(EnoughError),
        StoreWriter.create(path, plan.header, plan.index, overwrite=True) as writer,
    ):
        fill(writer, model, plan, tqdm(disable=True))
        writer.finish()
    return time.perf_counter() - start


def measure(name, case, blocks):
    """In a fresh process: what one case takes."""
    from posprobe.models import load_model

    length, _, variant = case.partition(":")
    model = load_model(name, variant=variant or "standard")
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        model.run(*warm_up())
        stop_after(model, blocks)
        before = status("VmRSS")
        spent = take(model, int(length), path)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([peak, peak - before, weights, spent, size]))


def warm_up():
    """Some tokens, and nobody who looks."""
    import torch

    from posprobe.models import Observer

    return torch.zeros(1, 64, dtype=torch.long), Observer()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--blocks", type=int, help="stop behind so many blocks, and say so")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.model, options.measure, options.blocks)
        return
    lines = [
        f"{options.model}, float32, {platform.machine()}, {os.cpu_count()} cores.\n",
        "| T | variant | peak of the process | above the loaded model | weights | seconds | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in options.cases:
        command = [sys.executable, __file__, "--model", options.model, "--measure", case]
        if options.blocks is not None:
            command += ["--blocks", str(options.blocks)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, above, weights, spent, size = json.loads(found.stdout)
        length, _, variant = case.partition(":")
        lines.append(
            f"| {int(length):,} | {variant or 'standard'} | {peak / GIB:.2f} GiB | "
            f"{above / GIB:.2f} GiB | {weights / GIB:.2f} GiB | {spent:,.0f}"
            f"{f', {options.blocks} blocks' if options.blocks else ''} | "
            f"{size / 2**20:,.0f} MiB |"
        )
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
