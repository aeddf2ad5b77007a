"""Cost of observing: a forward pass with all that a capture records, against plain SDPA.

    python benchmarks/overhead.py [--quick] [--long] [--repeats 9] [--out FILE.md]

Time: the median, with its range, of the ratios of runs paired back to back in one process, in
alternating order, on the same weights and tokens, as many sequences to a pass as a capture takes.
"Recorded" makes every quantity of a default capture and lets it go; "written" puts them into a
file besides, and runs the first tokens alone, as a capture does. Memory: the peak of a fresh
process less what it held once the model was loaded and used; and, in brackets, the peak of the
whole process less the bytes of the weights. Before any of it, the observed log-normalizers are
compared with explicit softmax sums in float64, the last residual stream with that of the plain
run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from posprobe import observation
from posprobe.models import ATTENTION, load_model
from posprobe.observation import Observation, Observer
from posprobe.planning import BATCH_TOKENS, OFFSETS, QUANTITIES
from posprobe.stimuli import default_prefixes
from posprobe.store import Header, StoreWriter

WINDOW = 32
TIME_TARGET, MEMORY_TARGET = 1.15, 1.3


def draw(model, length):
    """Tokens of one pass of a default capture: (sequence, token)."""
    vocabulary = model.model.get_input_embeddings().num_embeddings
    shape = max(1, BATCH_TOKENS // length), length
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def default_observation(length):
    return Observation(length, OFFSETS, default_prefixes(length, WINDOW), WINDOW)


@torch.inference_mode()
def plain(model, ids):
    return model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def recorded(model, ids):
    model.run(ids, Observer(lambda *_: None, default_observation(ids.shape[1])))


def set_attention(model, name):
    model.model.set_attn_implementation(name)


class Written:
    """A file that takes one batch after another, and the passes that fill it."""

    def __init__(self, model, ids, n_batches, folder):
        batch, length = ids.shape
        n = batch * n_batches
        header = Header(
            model=model.name,
            design="natural",
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            width=model.width,
            n_sequences=n,
            length=length,
            n_queries=length,
            quantities=QUANTITIES,
            layer_window=(0,) * model.n_layers,
            offsets=OFFSETS,
            prefixes=default_prefixes(length, WINDOW),
            window=WINDOW,
        )
        index = {name: np.zeros(n, int) for name in header.index}
        index["tokens"] = ids.repeat(n_batches, 1).numpy()
        self.writer = StoreWriter.create(folder / f"{length}.h5", header, index)
        self.model, self.ids = model, ids

    def __call__(self):
        def emit(name, layer, tensor):
            self.writer.put(name, tensor.float().numpy(), layer)

        def emit_alone(name, layer, tensor):
            if name == "position0":
                emit("position0_alone", layer, tensor)

        self.model.run(self.ids, Observer(emit, default_observation(self.ids.shape[1])))
        self.model.run(self.ids[:, :1], Observer(emit_alone, Observation(1)))
        self.writer.advance(len(self.ids))


def explicit_error(query, key, normalizer, visibility, scoring):
    """Largest error, in nats, of some rows' normalizers against explicit sums in float64."""
    length = query.shape[2]
    rows = torch.linspace(0, length - 1, min(length, 9)).long()
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query[:, :, rows].double() @ key.transpose(-1, -2) * scoring.scaling
    hidden = ~visibility.mask(rows, torch.arange(length))
    exact = scores.masked_fill(hidden, -torch.inf).logsumexp(-1)
    return float((normalizer[:, :, rows] - exact).abs().max())


def check(model, ids):
    """Errors of the normalizers (nats) and of the last residual stream (relative)."""
    errors, streams = [], {}
    attend = observation.attend

    def spy(query, key, value, visibility, scoring):
        output, normalizer = attend(query, key, value, visibility, scoring)
        errors.append(explicit_error(query, key, normalizer, visibility, scoring))
        return output, normalizer

    def keep(name, layer, tensor):
        if (name, layer) == ("residual", model.n_layers):
            streams["observed"] = tensor.clone()

    hook = model.blocks[-1].register_forward_hook(
        lambda *args: streams.update(plain=args[2][0] if isinstance(args[2], tuple) else args[2])
    )
    set_attention(model, "sdpa")
    plain(model, ids)
    hook.remove()
    set_attention(model, ATTENTION)
    with mock.patch.object(observation, "attend", spy):
        model.run(ids, Observer(keep, Observation(ids.shape[1])))
    if len(errors) != model.n_layers:
        raise SystemExit(f"{len(errors)} layers were checked of {model.n_layers}")
    gap = (streams["observed"] - streams["plain"]).norm() / streams["plain"].norm()
    return max(errors), float(gap)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired(model, ids, observed, repeats):
    """Ratios of the observed pass's time to the plain one's, and the plain one's median."""
    ratios, reference = [], []
    for repeat in range(repeats + 1):
        times = {}
        for name in ("sdpa", ATTENTION) if repeat % 2 else (ATTENTION, "sdpa"):
            set_attention(model, name)
            times[name] = seconds((lambda: plain(model, ids)) if name == "sdpa" else observed)
        if repeat:  # the first pair warms up
            ratios.append(times[ATTENTION] / times["sdpa"])
            reference.append(times["sdpa"])
    return np.array(ratios), float(np.median(reference))


def resident(field):
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
    return int(line.split()[1]) * 1024


def weigh(name, attention, length):
    """In a fresh process: bytes above those held before, and of the process less the weights."""
    model = load_model(name)
    ids = draw(model, length)
    set_attention(model, attention)

    def run(ids):
        return plain(model, ids) if attention == "sdpa" else recorded(model, ids)

    # touches the weights; the counterfactual needs a window and two prefixes
    run(ids[:1, : WINDOW + 2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run(ids)
    peak = resident("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    print(json.dumps([peak - before, peak - weights]))


def memory(name, attention, length):
    """Median bytes of three fresh processes."""
    command = [sys.executable, __file__, "--model", name, "--weigh", attention, str(length)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return np.median(runs, axis=0)


def rows(model, length, repeats, folder):
    """Table rows of one length, after the check that what is timed is right."""
    ids = draw(model, length)
    error, gap = check(model, ids)
    print(f"T = {length}: z within {error:.1e} nats, residual within {gap:.1e}", file=sys.stderr)
    if not (error < 1e-4 and gap < 1e-4):
        raise SystemExit(f"T = {length}: what is observed is wrong, so its cost is not measured")
    observed = {
        f"recorded, at most {TIME_TARGET}": lambda: recorded(model, ids),
        "written": Written(model, ids, repeats + 1, folder),
    }
    for what, function in observed.items():
        ratios, reference = paired(model, ids, function, repeats)
        yield (
            f"| {length} | time, {what} | {np.median(ratios):.2f} | {ratios.min():.2f} to "
            f"{ratios.max():.2f} | {1e3 * reference:,.0f} ms for {len(ids)} sequences |"
        )
    ours, theirs = (memory(model.name, name, length) for name in (ATTENTION, "sdpa"))
    ratio = ours / theirs
    yield (
        f"| {length} | memory, recorded, at most {MEMORY_TARGET} | {ratio[0]:.2f} ({ratio[1]:.2f}) "
        f"| | {theirs[0] / 2**20:,.0f} ({theirs[1] / 2**20:,.0f}) MiB |"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="a short run that only proves it works"
    )
    parser.add_argument("--long", action="store_true", help="8,192 tokens, too")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weigh:
        weigh(options.model, options.weigh[0], int(options.weigh[1]))
        return
    model = load_model(options.model)
    lengths = [128] if options.quick else [512, 2048] + [8192] * options.long
    repeats = 2 if options.quick else options.repeats
    lines = [
        f"{options.model}, float32, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; torch {torch.__version__}; "
        f"medians of {repeats} pairs.\n",
        "| T | what | ratio to plain SDPA | range | plain SDPA |\n|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            lines += rows(model, length, repeats, Path(folder))
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
