"""Cost of observing: a forward pass with all that a capture records, against plain SDPA.

    python benchmarks/overhead.py [--quick] [--lengths 512 2048] [--repeats 9] [--out FILE.md]
    python benchmarks/overhead.py --device cuda --model-dtype bfloat16       where there is a GPU

Time: the median, with its range, of the ratios of runs paired back to back in one process, in
alternating order, on the same weights and tokens, as many sequences to a pass as a capture takes.
With --clock processor, processor time of all threads instead, which other load on the machine
moves little; what overlaps is then counted in full.
"Recorded" makes every quantity of a default capture and lets it go; "written" puts them into a
file besides, in a thread of its own, and waits for it. "Part" is the time of each part of one
written pass over that of a plain one; the first tokens, which run alone, are in no written pass.
Memory: the peak of a fresh process less what it held once the model was loaded and used; and, in
brackets, the peak of the whole process less the bytes of the weights. Before any of it, the
observed log-normalizers are compared with explicit softmax sums in float64, the last residual
stream with that of the plain run. On a GPU every clock waits for it, and memory is not measured.
"""

import argparse
import contextlib
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

from posprobe.captures import OFFSETS, CaptureOptions
from posprobe.captures.plan import ALONE, BATCH_TOKENS, plan_capture
from posprobe.captures.run import FirstTokens, Stream
from posprobe.models import Observation, Observer, load_model, observation
from posprobe.models.proofs import ATTENTION
from posprobe.stimuli import make_stimulus
from posprobe.stimuli.stimulus import default_prefixes
from posprobe.store import BackgroundWriter, StoreWriter

WINDOW = 32
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PARTS = {"wall": time.perf_counter, "processor": time.thread_time}
TIME_TARGET, MEMORY_TARGET = 1.05, 1.3
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 5e-2}


def draw(model, length):
    """Tokens of one pass of a default capture: (sequence, token)."""
    vocabulary = model.model.get_input_embeddings().num_embeddings
    shape = max(1, BATCH_TOKENS // length), length
    ids = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return ids.to(model.model.device)


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
    """A file that takes one batch after another, as a capture writes it, and waits for the last."""

    def __init__(self, model, ids, n_batches, folder):
        batch, length = ids.shape
        corpus = ids.repeat(n_batches + 2, 1).flatten().cpu().numpy()
        stimulus = make_stimulus(
            "natural", corpus, n=batch * n_batches, length=length, window=WINDOW
        )
        self.plan = plan_capture(model, stimulus, CaptureOptions(past_training=True))
        path = folder / f"{length}.h5"
        self.writer = StoreWriter.create(path, self.plan.header, self.plan.index, overwrite=True)
        self.background = BackgroundWriter(self.writer)
        self.stream = Stream(self.background, self.plan.header, ())
        self.alone = FirstTokens(model, self.plan)
        self.batches = self.plan.batches()
        self.model, self.ids = model, ids

    def __call__(self):
        batch = next(self.batches)
        self.stream.sequences = batch
        self.model.run(self.ids, Observer(self.stream.emit, self.plan.observation))
        for layer, values in enumerate(self.alone.of(batch)):
            self.stream.give("position0_alone", layer, values)
        self.background.advance(len(self.ids))
        self.background.flush()


def parts(model, ids, written, clock):
    """Seconds of each part of one written pass, and of a plain one: (dict, float)."""
    spent = {}

    def timed(name, function):
        def wrapper(*args, **keywords):
            # of this thread alone: what the other one does meanwhile is counted there
            start = PARTS[clock]()
            result = function(*args, **keywords)
            wait()
            spent[name] = spent.get(name, 0.0) + PARTS[clock]() - start
            return result

        return wrapper

    native, stream = torch.nn.functional.scaled_dot_product_attention, written.stream
    set_attention(model, "sdpa")
    with mock.patch.object(
        torch.nn.functional, "scaled_dot_product_attention", timed("native", native)
    ):
        whole = seconds(lambda: plain(model, ids), clock)
    set_attention(model, ATTENTION)
    names = {
        "attend": "kernel",
        "observe_scores": "scores and mask counterfactual",
    }
    with contextlib.ExitStack() as stack:
        for name, part in names.items():
            function = timed(part, getattr(observation, name))
            stack.enter_context(mock.patch.object(observation, name, function))
        give = timed("handing over", stream.give)
        emit = timed("copies and handing over", stream.emit)
        put = timed("checking and writing, in the other thread", written.writer.put)
        stack.enter_context(mock.patch.object(stream, "give", give))
        stack.enter_context(mock.patch.object(stream, "emit", emit))
        stack.enter_context(mock.patch.object(written.writer, "put", put))
        written.background.flush()
        written()
    written.alone.groups.clear()
    firsts = f"first tokens of {ALONE} sequences, once for all of their passes"
    n = min(ALONE, len(written.plan.firsts.tokens))
    timed(firsts.replace(str(ALONE), str(n)), written.alone.of)(slice(0, n))
    spent["kernel, less that of the plain pass"] = spent.pop("kernel") - spent.pop("native")
    spent.pop("handing over")
    return spent, whole


def explicit_error(query, key, normalizer, visibility, scoring):
    """Largest error, in nats, of some rows' normalizers against explicit sums in float64."""
    length = query.shape[2]
    rows = torch.linspace(0, length - 1, min(length, 9), device=query.device).long()
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query[:, :, rows].double() @ key.transpose(-1, -2) * scoring.scaling
    hidden = ~visibility.mask(rows, torch.arange(length, device=query.device))
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


def wait():
    """Until the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function, clock):
    start = CLOCKS[clock]()
    function()
    wait()
    return CLOCKS[clock]() - start


def paired(model, ids, observed, repeats, clock):
    """Ratios of each observed pass's time to the plain one's, and the plain one's median."""
    ratios, reference = {what: [] for what in observed}, []
    order = ["sdpa", *observed]
    for repeat in range(repeats + 1):
        times = {}
        for name in order if repeat % 2 else order[::-1]:
            set_attention(model, "sdpa" if name == "sdpa" else ATTENTION)
            times[name] = seconds(observed.get(name, lambda: plain(model, ids)), clock)
        if repeat:  # the first round warms up
            reference.append(times["sdpa"])
            for what in observed:
                ratios[what].append(times[what] / times["sdpa"])
    return {what: np.array(found) for what, found in ratios.items()}, float(np.median(reference))


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


def rows(model, length, repeats, folder, weighed, clock):
    """Table rows of one length, after the check that what is timed is right."""
    ids = draw(model, length)
    error, gap = check(model, ids)
    print(f"T = {length}: z within {error:.1e} nats, residual within {gap:.1e}", file=sys.stderr)
    limit = LARGEST_ERROR[str(model.model.dtype).removeprefix("torch.")]
    if not (error < limit and gap < limit):
        raise SystemExit(f"T = {length}: what is observed is wrong, so its cost is not measured")
    written = Written(model, ids, repeats + 2, folder)
    observed = {
        f"recorded, at most {TIME_TARGET}": lambda: recorded(model, ids),
        f"written, at most {TIME_TARGET}": written,
    }
    found, reference = paired(model, ids, observed, repeats, clock)
    for what, ratios in found.items():
        yield (
            f"| {length} | time, {what} | {np.median(ratios):.3f} | {ratios.min():.3f} to "
            f"{ratios.max():.3f} | {1e3 * reference:,.0f} ms for {len(ids)} sequences |"
        )
    spent, whole = parts(model, ids, written, clock)
    for what, time_ in sorted(spent.items(), key=lambda item: -item[1]):
        yield f"| {length} | part: {what} | {time_ / whole:.3f} | | {1e3 * whole:,.0f} ms |"
    if not weighed:
        return
    ours, theirs = (memory(model.name, name, length) for name in (ATTENTION, "sdpa"))
    ratio = ours / theirs
    yield (
        f"| {length} | memory, recorded, at most {MEMORY_TARGET} | {ratio[0]:.2f} ({ratio[1]:.2f}) "
        f"| | {theirs[0] / 2**20:,.0f} ({theirs[1] / 2**20:,.0f}) MiB |"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N")
    parser.add_argument("--model-dtype", choices=LARGEST_ERROR, default="float32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="a short run that only proves it works"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], metavar="T")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weigh:
        weigh(options.model, options.weigh[0], int(options.weigh[1]))
        return
    model = load_model(options.model, device=options.device, dtype=options.model_dtype)
    on_gpu = model.model.device.type == "cuda"
    machine = torch.cuda.get_device_name(model.model.device) if on_gpu else platform.machine()
    lengths = [128] if options.quick else options.lengths
    repeats = 2 if options.quick else options.repeats
    lines = []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    say(
        f"{options.model}, {options.model_dtype}, {machine}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; torch {torch.__version__}; "
        f"medians of {repeats} pairs; {options.clock} time.\n"
    )
    say("| T | what | ratio to plain SDPA | range | plain SDPA |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            weighed = not (options.no_memory or on_gpu)
            for line in rows(model, length, repeats, Path(folder), weighed, options.clock):
                say(line)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
