"""Peak memory of a capture against the size of the weights, whole and offloaded to disk.

    python benchmarks/larger_models.py [--layers 24] [--width 1024] [--length 512] [--out FILE.md]

A random Llama in float32 is saved, then loaded and captured in fresh processes: whole on the CPU,
and with device "auto" while accelerate is told that the CPU has room for a part of the weights. Two
sequences are captured with everything that a default capture observes; of the residual stream the
file keeps the last layer at every 64th position. The peak is that of the process (VmHWM) less what
it held with all libraries loaded, and includes pages of the weights' file that it has mapped.
"""

import argparse
import functools
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from long_contexts import GIB, status

SHARES = ["1", "0.5", "0"]


class Highest(threading.Thread):
    """The highest value of a field of the process's status."""

    def __init__(self, field):
        super().__init__(daemon=True)
        self.field, self.value = field, 0

    def run(self):
        while True:
            self.value = max(self.value, status(self.field))
            time.sleep(0.02)


def build(folder, layers, width):
    """Save a random model."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 512,
        vocab_size=32_000,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="500MB")
    print(sum(weight.nbytes for weight in model.parameters()))


def measure(folder, share, length):
    """In a fresh process: peak, seconds of loading and of the capture, with a share of memory."""
    import numpy as np
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    from posprobe.captures import capture_stimulus
    from posprobe.models import load_model
    from posprobe.stimuli import make_stimulus

    before, anonymous = status("VmRSS"), status("RssAnon")
    highest = Highest("RssAnon")
    highest.start()
    if share is not None:
        plain = transformers.AutoModelForCausalLM.from_pretrained
        given = functools.partial(plain, max_memory={"cpu": share})
        transformers.AutoModelForCausalLM.from_pretrained = given
    start = time.perf_counter()
    model = load_model(folder, device="cpu" if share is None else "auto")
    loading = time.perf_counter() - start
    tokens = np.random.default_rng(0).integers(3, 32_000, 4 * length)
    stimulus = make_stimulus("iid", tokens, n=2, length=length)
    kept = dict(residual_layers="last", residual_positions="all/64", batch_tokens=length)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "a.h5"
        capture_stimulus(model, stimulus, path, progress=False, **kept).close()
    spent = time.perf_counter() - start
    away = sum(weight.nbytes for weight in model.model.parameters() if weight.is_meta)
    found = [status("VmHWM") - before, highest.value - anonymous, away, loading, spent]
    print(json.dumps(found))


def run(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--shares", nargs="+", default=SHARES, help="of the weights, in memory")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(options.build, options.layers, options.width)
        return
    if options.measure:
        measure(options.measure, options.bytes, options.length)
        return
    lines = [
        f"{options.layers} layers of width {options.width}, float32, T = {options.length}, "
        f"{platform.machine()}.\n",
        "| weights in memory | weights on disk | peak above the libraries | of the weights | "
        "without mapped files | loading, s | capture, s |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        shape = ["--layers", options.layers, "--width", options.width]
        weights = run("--build", folder, *shape)
        for share in options.shares:
            limit = [] if share == "1" else ["--bytes", int(float(share) * weights)]
            given = ["--length", options.length, *limit]
            peak, anonymous, away, loading, spent = run("--measure", folder, *given)
            lines.append(
                f"| {(weights - away) / GIB:.2f} GiB | {away / GIB:.2f} GiB | {peak / GIB:.2f} GiB "
                f"| {peak / weights:.2f} | {anonymous / GIB:.2f} GiB | {loading:,.0f} | "
                f"{spent:,.0f} |"
            )
            print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
