"""Cost of an audit, part by part, beside the plain forward passes of the same tokens.

    python benchmarks/audit.py [--quick] [--model smollm2] [--n N] [--full] [--out FILE.md]
    taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/audit.py          on one core

One audit runs in this process, into a folder that is deleted; after each capture, the batches of
its plan run once more through the model's own attention (SDPA), unobserved. Every part has its
processor time (of all threads, which other load on the machine moves little), its wall time, and
both without the parts inside it. The start is that of a fresh interpreter that imports an audit;
"bootstrap" is the resampling of the two channels, whose tables are in "other tables". All of it
runs in one process, where it can be timed; `--jobs` divides the analysis among several.
"""

import argparse
import contextlib
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from import_time import seconds as fresh
from overhead import plain, set_attention

import posprobe
from posprobe.analysis import tables
from posprobe.captures import run
from posprobe.channels import decomposition, variances
from posprobe.models import observable
from posprobe.models.proofs import ATTENTION
from posprobe.report import study_page
from posprobe.workflows import analyze, audit

CAPTURE_TARGET = 1.10
ANALYSIS_TARGETS = "20 s and 1 GB"
QUICK = {"n": 8, "length": 64, "n_resamples": 100, "n_refits": 10}
ANALYSIS = ("probes", "bootstrap", "figures", "page", "other tables")
# What is timed: name of the part, and where its function is looked up.
PARTS = (
    ("loading", audit, "load_model"),
    ("proving", observable, "prove_observable"),
    ("proving", observable, "find_gains"),
    ("proving", observable, "prove_variant"),
    ("text and stimuli", audit, "read_text"),
    ("text and stimuli", audit.Corpus, "of_text"),
    ("text and stimuli", audit, "make_stimulus"),
    ("other tables", audit, "analyze"),
    ("probes", tables, "probe_layers"),
    ("bootstrap", variances, "resampled"),
    ("bootstrap", variances, "studentized_limits"),
    ("bootstrap", variances, "max_t"),
    ("bootstrap", decomposition, "studentized_means"),
    ("figures", study_page, "drawings"),
    ("page", analyze, "write_report"),
)


class Clock:
    """Processor and wall seconds of each part, without those of the parts inside it."""

    def __init__(self):
        self.spent = {}
        self.inner = [np.zeros(2)]

    @contextlib.contextmanager
    def __call__(self, name):
        self.inner.append(np.zeros(2))
        start = now()
        yield
        whole = now() - start
        self.spent[name] = self.spent.get(name, 0) + whole - self.inner.pop()
        self.inner[-1] += whole

    def timed(self, name, function):
        def wrapper(*args, **keywords):
            with self(name):
                return function(*args, **keywords)

        return wrapper


def now():
    return np.array([time.process_time(), time.perf_counter()])


class Captures:
    """Times each capture of an audit, its plan apart, and plain passes of the same tokens."""

    def __init__(self, clock):
        self.clock, self.plans, self.tokens = clock, [], {}
        self.capture, self.plan = audit.capture_stimulus, run.plan_capture

    def capture_stimulus(self, model, stimulus, path, *args, **keywords):
        with self.clock(f"capture: {path.name}"):
            store = self.capture(model, stimulus, path, *args, **keywords)
        self.tokens[path.name] = int(stimulus.lengths.sum())
        with self.plain_attention(model), self.clock(f"plain: {path.name}"):
            for batch in self.plans[-1].batches():
                length = int(stimulus.lengths[batch.start])
                tokens = stimulus.tokens[batch, :length].astype(np.int64)
                plain(model, torch.from_numpy(tokens).to(model.model.device))
        return store

    def plan_capture(self, *args, **keywords):
        with self.clock("planning and rounding"):
            self.plans.append(self.plan(*args, **keywords))
        return self.plans[-1]

    @contextlib.contextmanager
    def plain_attention(self, model):
        set_attention(model, "sdpa")
        try:
            yield
        finally:
            set_attention(model, ATTENTION)


def measure(name, folder, **options):
    """Seconds (processor, wall) of each part of one audit, and the tokens of each capture."""
    clock = Clock()
    captures = Captures(clock)
    clock.spent["start"] = np.array(fresh(["-c", "import posprobe.workflows.audit"])[::-1])
    with contextlib.ExitStack() as stack:
        for part, owner, function in PARTS:
            timed = clock.timed(part, getattr(owner, function))
            stack.enter_context(mock.patch.object(owner, function, timed))
        for owner, own in ((audit, "capture_stimulus"), (run, "plan_capture")):
            stack.enter_context(mock.patch.object(owner, own, getattr(captures, own)))
        with clock("the rest"):
            posprobe.audit(name, folder, progress=False, n_jobs=1, **options)
    return clock.spent, captures.tokens


def rows(spent, tokens):
    """Rows of the table: captures beside their plain passes, then sums against the targets."""
    names = [name for name in spent if ":" not in name]
    before = [name for name in names if name not in (*ANALYSIS, "the rest")]
    passes = sum(spent[f"plain: {name}"] for name in tokens)
    for name in before:
        yield row(name, spent[name], passes)
    for name, count in tokens.items():
        what = f"{name}, {count:,} tokens"
        yield row(what, spent[f"capture: {name}"], spent[f"plain: {name}"])
    captured = sum(spent[f"capture: {name}"] for name in tokens)
    started = sum(spent[name] for name in before)
    yield row("plain passes of all", passes, passes)
    yield row("all captures, by themselves", captured, passes)
    target = f"**all captures, with all above, at most {CAPTURE_TARGET}**"
    yield row(target, captured + started, passes)
    for name in ANALYSIS:
        yield row(f"analyze: {name}", spent[name], passes)
    yield row("**analyze, in all**", sum(spent[name] for name in ANALYSIS), passes)
    yield row("the rest", spent["the rest"], passes)


def row(name, seconds, passes):
    processor, wall = seconds
    return f"| {name} | {processor:.1f} | {wall:.1f} | {processor / passes[0]:.3f} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=None, help="sequences and windows; 40 and 32")
    parser.add_argument("--full", action="store_true", help="with all interventions")
    parser.add_argument(
        "--quick", action="store_true", help="a short run that only proves it works"
    )
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    sizes = QUICK if options.quick else {"n": options.n}
    with tempfile.TemporaryDirectory() as folder:
        spent, tokens = measure(options.model, folder, full=options.full, **sizes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = "\n".join(
        [
            f"{options.model}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{torch.get_num_threads()} threads; torch {torch.__version__}, "
            f"Python {platform.python_version()}; peak of the whole audit {peak:.2f} GiB.\n",
            "| part | processor s | wall s | of the plain passes |",
            "|---|---|---|---|",
            *rows(spent, tokens),
        ]
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
