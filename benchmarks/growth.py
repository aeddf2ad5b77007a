"""Memory against the number of sequences: capture, shards, and statistics, each in fresh processes.

    python benchmarks/growth.py [--sequences 64 256 1024] [--rows FILE.json] [--out FILE.md]
                                [--figure FILE.svg]

The model is small and random (4 layers of width 128, 8 heads), the sequences have 128 tokens.
"Peak" is the largest resident memory of the process less what it held before the step, that is
after imports and, for a capture, after the model had run once. A file that is read is mapped, and
its pages count as resident although the system can drop them at any moment; "own" leaves them out:
it is the largest anonymous memory, sampled every 5 ms. Files lie in a temporary folder.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

LENGTH, LAYER = 128, 2
MIB = 2**20


def resident(field="RssAnon"):
    """Bytes of this process, by the name of a line of /proc/self/status."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


class Peak:
    """Largest growth of memory within a block, in bytes: of all, and of what no file backs."""

    def __enter__(self):
        self.done = threading.Event()
        self.before, self.own_before = resident("VmRSS"), resident()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self.highest = self.own_before
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self):
        while not self.done.wait(0.005):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.all = resident("VmHWM") - self.before
        self.own = max(self.highest, resident()) - self.own_before


def make_model(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def plan(folder, n):
    from posprobe.captures import CaptureOptions
    from posprobe.captures.plan import plan_capture
    from posprobe.models import load_model
    from posprobe.stimuli import make_stimulus

    model = load_model(str(folder / "model"))
    corpus = np.random.default_rng(0).integers(0, 512, n * LENGTH + 1)
    return model, plan_capture(
        model, make_stimulus("natural", corpus, n=n, length=LENGTH), CaptureOptions()
    )


def capture(folder, n):
    """One capture, from the plan to the complete file."""
    from tqdm import tqdm

    from posprobe.captures.run import fill
    from posprobe.store import StoreWriter

    for count in (16, n):  # the first warms up
        model, planned = plan(folder, count)
        with (
            Peak() as peak,
            StoreWriter.create(
                folder / f"{n}.h5", planned.header, planned.index, overwrite=True
            ) as writer,
        ):
            fill(writer, model, planned, tqdm(disable=True))
            writer.finish()
    return peak


def merge(folder, n):
    """Shards of 16 sequences into one file, as a distributed capture does."""
    from posprobe.store import ActivationStore, ShardFolder, StoreWriter, write_shard

    source = ActivationStore(folder / f"{n}.h5")
    header, path = source.header, folder / "merged.h5"
    index = {name: source.read(name) for name in header.index}
    shards = ShardFolder(path)
    shards.open(resume=False, overwrite=False)
    parts = [slice(s, s + 16) for s in range(0, n, 16)]
    rows = {p.start: {k: v[p] for k, v in index.items()} for p in parts}
    for part in parts:
        with write_shard(shards.path(part), header.with_sequences(16), rows[part.start]) as writer:
            for name in header.quantities:
                writer.put(name, source.read(name)[:, part])
            writer.advance(16)
    with Peak() as peak, StoreWriter.create(path, header, index) as writer:
        for part in parts:
            shards.merge(writer, part, rows[part.start])
        writer.finish()
    shards.remove()
    path.unlink()
    return peak


def stream(folder, n):
    """One layer as blocks of 16 sequences, summed into one Gram for each of five folds."""
    from posprobe.probes import ClusterGram
    from posprobe.store import ActivationStore

    store = ActivationStore(folder / f"{n}.h5")

    def blocks():
        for sequences, block in store.blocks("residual", LAYER, 16):
            for s, rows in zip(range(sequences.start, sequences.stop), block, strict=True):
                yield rows, store.positions[s].astype(float), s % 5

    with Peak() as peak:
        ClusterGram.from_blocks(blocks())
    return peak


def probe(folder, n):
    """`posprobe analyze`'s probes of one layer, intervals by refitting included."""
    from posprobe.analysis.probes import probe_layers
    from posprobe.intervals import Inference
    from posprobe.store import ActivationStore

    store = ActivationStore(folder / f"{n}.h5")
    with Peak() as peak:
        probe_layers(store, layers=[LAYER], refit_layers=[LAYER], inference=Inference(n_jobs=1))
    return peak


def channels(folder, n):
    """`posprobe.decompose`: the position effects of all layers, with intervals."""
    from posprobe.channels import decompose
    from posprobe.store import ActivationStore

    store = ActivationStore(folder / f"{n}.h5")
    with Peak() as peak:
        decompose(store)
    return peak


STEPS = {step.__name__: step for step in (capture, merge, stream, probe, channels)}


def in_a_fresh_process(name, folder, n):
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--n", str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(counts):
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        for n in counts:
            for step in STEPS:
                found = in_a_fresh_process(step, folder, n)
                rows.append({"step": step, "n": n, **found})
                print(rows[-1], file=sys.stderr)
            size = (folder / f"{n}.h5").stat().st_size
            rows.append({"step": "file", "n": n, "all": size, "own": size})
            (folder / f"{n}.h5").unlink()
    return rows


def table(rows, counts):
    """Memory of every step by number of sequences, and what one more sequence costs."""
    head = " | ".join(f"{n:,}" for n in counts)
    lines = [
        f"| MiB, at so many sequences | {head} | growth over {counts[-1] // counts[0]}x | "
        f"bytes per sequence | own, {counts[-1]:,} |",
        "|---|" + "---|" * (len(counts) + 3),
    ]
    for step in ("file", *STEPS):
        found = [row for row in rows if row["step"] == step]
        sizes = [row["all"] for row in found]
        slope = (sizes[-1] - sizes[0]) / (counts[-1] - counts[0])
        cells = " | ".join(f"{size / MIB:,.1f}" for size in sizes)
        lines.append(
            f"| {step} | {cells} | {sizes[-1] / sizes[0]:.2f} | {slope:,.0f} | "
            f"{found[-1]['own'] / MIB:,.1f} |"
        )
    return "\n".join(lines)


def draw(rows, path):
    """Memory against sequences, both logarithmic, with the file as what grows in proportion."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from posprobe.figures import to_svg
    from posprobe.figures.style import BOTH, MASK, OTHER, RESIDUAL, SINK, STYLE, TOTAL, legend_below

    colours = dict(zip(("file", *STEPS), (OTHER, MASK, BOTH, RESIDUAL, SINK, TOTAL), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        ax = figure.subplots()
        for step, colour in colours.items():
            found = [row for row in rows if row["step"] == step]
            style = "--" if step == "file" else "-"
            x, y = [row["n"] for row in found], [row["all"] / MIB for row in found]
            ax.loglog(x, y, style, marker="o", ms=4, color=colour, label=step)
        counts = sorted({row["n"] for row in rows})
        ax.set_xticks(counts, [f"{n:,}" for n in counts])
        ax.minorticks_off()
        ax.set_xlabel("sequences")
        ax.set_ylabel("peak memory of the step (MiB)")
        legend_below(ax, ncols=3)
    path.write_text(to_svg(figure, "growth"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--rows", type=Path, help="JSON of an earlier run, to be added to")
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--n", type=int)
    options = parser.parse_args()
    if options.step:
        peak = STEPS[options.step](options.folder, options.n)
        print(json.dumps({"all": peak.all, "own": peak.own}))
        return
    rows = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else []
    rows = sorted(rows + measure(options.sequences), key=lambda row: row["n"])
    if options.rows:
        options.rows.write_text(json.dumps(rows))
    text = (
        table(rows, sorted({row["n"] for row in rows}))
        + f"\n\n{platform.machine()}, {platform.system()}.\n"
    )
    if options.figure:
        draw(rows, options.figure)
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
