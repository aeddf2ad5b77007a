"""What a capture costs: seconds and bytes per million tokens, per layer and head, by size of model.

    python benchmarks/costs.py [--measure MODEL | --seconds S] [--length T] [--teraflops F]

Bytes are exact: they are those of the header of a default capture of the natural design. Seconds
are measured for one model (--measure, a name that `posprobe.load_model` takes, of the first shape),
or given: planning, loading and digests left out, writing and syncing included. For the others they
are arithmetic: floating point operations of the blocks (2 per weight and token, 4 per head, key and
coordinate for the attention, causal, no logits) over a speed, that of the measurement and that of
--teraflops.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from posprobe.captures import OFFSETS, QUANTITIES, CaptureOptions
from posprobe.stimuli.stimulus import default_prefixes
from posprobe.store import Header

MILLION, WINDOW = 1_000_000, 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model."""

    name: str
    layers: int
    heads: int
    key_heads: int
    head_width: int
    width: int
    inner: int

    @property
    def weights(self):
        """Of the blocks' matrices."""
        attention = 2 * self.width * self.head_width * (self.heads + self.key_heads)
        return self.layers * (attention + 3 * self.width * self.inner)

    def operations(self, length):
        """Floating point operations per token: each query sees half the keys on average."""
        attended = 4 * self.layers * self.heads * self.head_width * (length + 1) / 2
        return 2 * self.weights + attended

    def header(self, length, n_sequences=1, **changes):
        """Header of a default capture."""
        values = dict(
            model=self.name,
            design="natural",
            n_layers=self.layers,
            n_heads=self.heads,
            width=self.width,
            n_sequences=n_sequences,
            length=length,
            n_queries=length,
            quantities=QUANTITIES,
            layer_window=(0,) * self.layers,
            offsets=OFFSETS,
            prefixes=default_prefixes(length, WINDOW),
            window=WINDOW,
        )
        return Header(**values | changes)

    def gigabytes(self, length, **changes):
        """Per million tokens."""
        header = self.header(length, **changes)
        total = sum(header.nbytes(name) for name in header.quantities)
        return total / length * MILLION / 1e9


SHAPES = (
    Shape("SmolLM2-135M", 30, 9, 3, 64, 576, 1536),
    Shape("Llama-3.2-1B", 16, 32, 8, 64, 2048, 8192),
    Shape("Llama-3.1-8B", 32, 32, 8, 128, 4096, 14336),
    Shape("Llama-3.1-70B", 80, 64, 8, 128, 8192, 28672),
)
SCORES = tuple(name for name in QUANTITIES if name != "residual")


def bytes_table(length):
    """Gigabytes per million tokens, exact; one layer's residual stream, and one head's scores."""
    lines = [
        "| model | layers x heads | default | float16 residual | 1 layer of residual | no residual "
        "| residual, per layer | scores, per layer and head |",
        "|---|" + "---|" * 7,
    ]
    for shape in SHAPES:
        residual = shape.gigabytes(length, quantities=("residual",)) / (shape.layers + 1)
        by_head = sum(
            shape.gigabytes(length, quantities=(name,))
            for name in SCORES
            if "position0" not in name
        ) / (shape.layers * shape.heads)
        cells = (
            shape.gigabytes(length),
            shape.gigabytes(length, dtype="float16"),
            shape.gigabytes(length, residual_layers=(0,)),
            shape.gigabytes(length, quantities=SCORES),
            residual,
        )
        text = " | ".join(f"{cell:,.1f}" for cell in cells)
        lines.append(f"| {shape.name} | {shape.layers} x {shape.heads} | {text} | {by_head:.3f} |")
    return "\n".join(lines)


def measured_seconds(name, length, n):
    """Seconds per million tokens of a default capture on this machine, and what was captured."""
    import torch
    from tqdm import tqdm

    from posprobe.captures.plan import plan_capture
    from posprobe.captures.run import draw, fill
    from posprobe.models import load_model
    from posprobe.store import StoreWriter

    model = load_model(name)
    elapsed = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (2, n):  # the first warms up
            planned = plan_capture(model, draw(model, n=count, length=length), CaptureOptions())
            start = time.perf_counter()
            path = Path(folder) / f"{len(elapsed)}.h5"
            with StoreWriter.create(path, planned.header, planned.index) as writer:
                fill(writer, model, planned, tqdm(disable=True))
                writer.finish()
            elapsed.append(time.perf_counter() - start)
    per_million = elapsed[-1] / (n * length) * MILLION
    threads = torch.get_num_threads()
    said = f"{name}, {n} sequences of {length} tokens, {threads} threads, torch {torch.__version__}"
    return per_million, said


def rounded(value):
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds_table(length, speeds):
    """Seconds per million tokens at each speed (name: operations per second), by arithmetic."""
    head = " | ".join(f"{name} | per layer | per head" for name in speeds)
    lines = [
        f"| model | weights of the blocks | TFLOP per 1,000 tokens | {head} |",
        "|---|" + "---|" * (2 + 3 * len(speeds)),
    ]
    for shape in SHAPES:
        operations = shape.operations(length)
        cells = []
        for speed in speeds.values():
            seconds = operations * MILLION / speed
            heads = shape.layers * shape.heads
            cells += [rounded(seconds / k) for k in (1, shape.layers, heads)]
        lines.append(
            f"| {shape.name} | {shape.weights / 1e9:.3g} G | {operations / 1e9:,.2f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", default="smollm2", help="a model of the first shape")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--n", type=int, default=6, help="sequences to measure on")
    parser.add_argument("--seconds", type=float, help="measured before, of the first shape")
    parser.add_argument(
        "--teraflops", type=float, default=100.0, help="of an accelerator, achieved"
    )
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.seconds is None:
        seconds, said = measured_seconds(options.measure, options.length, options.n)
    else:
        seconds, said = options.seconds, "as given"
    speed = SHAPES[0].operations(options.length) * MILLION / seconds
    speeds = {
        f"s at {speed / 1e9:,.0f} GFLOP/s": speed,
        f"s at {options.teraflops:,.0f} TFLOP/s": options.teraflops * 1e12,
    }
    text = "\n".join(
        [
            f"Measured: {seconds:,.0f} s per million tokens ({said}; {platform.machine()}, "
            f"{os.cpu_count()} cores), which is {speed / 1e9:,.0f} GFLOP/s.\n",
            f"GB per million tokens at T = {options.length:,}, exact:\n",
            bytes_table(options.length),
            "\nSeconds per million tokens, arithmetic from that speed, and from one of an "
            "accelerator that was not measured:\n",
            seconds_table(options.length, speeds),
            "",
        ]
    )
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
