"""posprobe beside its peers: same model, same tokens, the same quantities out.

    python benchmarks/peers.py [--lengths 256 512 ...] [--repeats 3] [--json FILE [--resume]]
    python benchmarks/peers.py --render FILE.json [--out FILE.md] [--figure STEM]

Quantities: the log-normalizer z and the attention to key 0 of each layer, head and query, and the
residual stream that enters each block, all held in memory at the end (or in a file). Every tool
runs in a fresh process for each length (`benchmarks/workers/peer.py`). Its first run is checked
against posprobe's values, measured for memory, and dropped for time. Then it takes turns with the
floor, a plain forward pass with fused attention, and the ratio is the median of paired runs.
Processor time is measured besides wall time: with one thread it is the wall time of a machine
without other load.

Memory is the peak of the process, in all and beyond what it held once its model was loaded and
used. A tool is not run where arithmetic says that it needs more memory than there is, or a run
more than --patience seconds; the result says so.

TransformerLens and nnsight need an environment of their own: it is made in build/peers from
requirements-peers.txt, or is that of the interpreter named by --python.
"""

import argparse
import collections
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
FLOOR = "plain"
TOOLS = {
    "plain": "plain SDPA (floor)",
    "posprobe": "posprobe, in memory",
    "posprobe-file": "posprobe, default capture to a file",
    "nnsight": "nnsight, reduced in the trace",
    "lens-hooks": "TransformerLens, run_with_hooks, reduced",
    "lens-cache": "TransformerLens, run_with_cache, filtered",
    "eager": "transformers eager, output_attentions",
}
ELSEWHERE = ("nnsight", "lens-hooks", "lens-cache")
KEEPS_PATTERNS = ("lens-cache", "eager")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
TOLERANCE = {"normalizer": 1e-4, "sink": 1e-4, "residual": 1e-4}
CLOCKS = ("wall", "processor")
GB = 1e9


def peer_python():
    """The interpreter of an environment with the peers, made if there is none."""
    python = ROOT / "build" / "peers" / "bin" / "python"
    requirements = HERE / "requirements-peers.txt"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    return python


def draw_tokens(name, lengths, folder):
    """Where the model lies, its shape, and a file with the tokens of each length.

    The tokens are the first of the two sequences that a capture of that length draws.
    """
    from posprobe.captures.run import draw
    from posprobe.models import load_model
    from posprobe.models.checkpoints import find_checkpoint

    location = find_checkpoint(name).location
    model = load_model(name)
    files = {}
    for length in lengths:
        files[length] = folder / f"tokens-{length}.npy"
        np.save(files[length], draw(model, n=2, length=length).tokens[:1])
    return location, (model.n_layers, model.n_heads), files


class Worker:
    """A tool in a process of its own, which observes when it is told to."""

    def __init__(self, tool, location, tokens, folder, options):
        self.tool = tool
        self.result = folder / f"{tool}.npz"
        python = options.python if tool in ELSEWHERE else sys.executable
        self.process = subprocess.Popen(
            [python, HERE / "workers" / "peer.py", tool, location, tokens, self.result],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "PYTHONPATH": "" if tool in ELSEWHERE else str(ROOT),
                "OMP_NUM_THREADS": str(options.threads),
                "MKL_NUM_THREADS": str(options.threads),
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
            },
        )
        self._read("READY")

    def __call__(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self._read("ANSWER "))

    def _read(self, start):
        for line in self.process.stdout:
            if line.startswith(start):
                return line.removeprefix(start)
        raise SystemExit(f"{self.tool} ended early, with status {self.process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def errors(result, reference):
    """Largest differences: z (nats), attention to key 0, residual stream (relative, by layer)."""
    with np.load(result) as found, np.load(reference) as expected:
        gap = {name: np.abs(found[name] - expected[name]).max() for name in ("normalizer", "sink")}
        norms = [np.linalg.norm(expected["residual"], axis=(1, 2))]
        norms.append(np.linalg.norm(found["residual"] - expected["residual"], axis=(1, 2)))
    gap["residual"] = (norms[1] / norms[0]).max()
    return {name: float(value) for name, value in gap.items()}


def patterns_bytes(tool, length, shape):
    """Of the float32 arrays head by query by key: those that a tool keeps, and four at work."""
    if tool == FLOOR or tool.startswith("posprobe"):
        return 0
    n_layers, n_heads = shape
    return 4 * n_heads * length**2 * (4 + n_layers * (tool in KEEPS_PATTERNS))


def available_bytes():
    line = next(
        x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable")
    )
    return int(line.split()[1]) * 1024


def refusal(tool, length, shape, before, patience):
    """Why a tool is not run at a length, from arithmetic, or None."""
    need = patterns_bytes(tool, length, shape)
    if need > available_bytes() - 2 * GB:
        return f"not run: needs {need / GB:.0f} GB for scores or patterns"
    measured = [row for row in before if row["tool"] == tool and "processor" in row]
    if measured:
        expected = measured[-1]["processor"] * (length / measured[-1]["length"]) ** 2
        if expected > patience:
            return f"not run: a pass would take up to {expected:.0f} s"
    return None


def paired(floor, worker, repeats):
    """Seconds of runs that take turns with the floor, in alternating order."""
    runs = {"floor": [], "tool": []}
    for repeat in range(repeats):
        for name in ("floor", "tool") if repeat % 2 else ("tool", "floor"):
            runs[name].append((floor if name == "floor" else worker)("run"))
    return runs


def memory(first):
    """Bytes of the first run: beyond the loaded model, and of the whole process."""
    return {name: first[name] for name in ("beyond", "peak")}


def summary(runs):
    """Medians of the paired ratios and of the seconds."""
    row = {"pairs": len(runs["tool"])}
    for clock in CLOCKS:
        mine, theirs = ([run[clock] for run in runs[name]] for name in ("tool", "floor"))
        row[clock] = statistics.median(mine)
        row[f"{clock}_ratio"] = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        row[f"{clock}_ratios"] = [a / b for a, b in zip(mine, theirs, strict=True)]
    return row


def measure(length, location, shape, tokens, folder, before, options):
    """Rows of one length: the floor, posprobe as reference, then everyone else."""
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(Worker(FLOOR, location, tokens, folder, options))
        first = floor("first")
        again = [floor("run") for _ in range(options.repeats)]
        row = {"tool": FLOOR, "length": length} | memory(first)
        yield row | {clock: statistics.median(run[clock] for run in again) for clock in CLOCKS}
        for tool in list(TOOLS)[1:]:
            row = {"tool": tool, "length": length}
            reason = refusal(tool, length, shape, before, options.patience)
            if reason is not None:
                yield row | {"status": reason}
                continue
            with Worker(tool, location, tokens, folder, options) as worker:
                first = worker("first")
                row["errors"] = gap = errors(worker.result, folder / "posprobe.npz")
                if not all(gap[name] <= TOLERANCE[name] for name in TOLERANCE):
                    raise SystemExit(f"{tool} and posprobe differ at T = {length}: {gap}")
                runs = paired(floor, worker, options.repeats)
            yield row | memory(first) | summary(runs)


def machine(options):
    """What the numbers were measured on."""
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    peers = {}
    for name in ("nnsight", "transformer-lens"):
        ask = f"from importlib.metadata import version; print(version({name!r}))"
        answer = subprocess.run([options.python, "-c", ask], check=True, capture_output=True)
        peers[name] = answer.stdout.decode().strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "python": platform.python_version(),
        "model": options.model,
        "versions": {name: version(name) for name in ("torch", "transformers")} | peers,
    }


def whole_lengths(path):
    """The rows of the lengths at which every tool was measured, or refused, before."""
    rows = json.loads(path.read_text())["rows"]
    count = collections.Counter(row["length"] for row in rows)
    return [row for row in rows if count[row["length"]] == len(TOOLS)]


def gather(options):
    """Measure all lengths; the file is written after each row."""
    rows = whole_lengths(options.json) if options.resume else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        location, shape, tokens = draw_tokens(options.model, options.lengths, folder)
        result = {"machine": machine(options), "shape": shape, "rows": rows}
        for length in sorted(set(options.lengths) - {row["length"] for row in rows}):
            for row in measure(
                length, location, shape, tokens[length], folder, list(rows), options
            ):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result):
    """The Markdown table, ratios first."""
    facts = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    yield (
        f"{facts['model']}, float32, one sequence; {facts['cpu']}, {facts['cores']} cores, "
        f"{facts['threads']} thread(s); {versions}; {facts['date']}.\n"
    )
    yield (
        "| T | tool | time, of the floor | range | wall time, of the floor | processor time | "
        "memory beyond the model | peak in all |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in result["rows"]:
        cells = [f"{row['length']:,}", TOOLS[row["tool"]]]
        if "status" in row:
            yield f"| {' | '.join([*cells, row['status']])} | | | | | |"
            continue
        cells += ratios(row)
        cells.append(f"{row['processor']:.1f} s")
        cells += [f"{row['beyond'] / GB:.2f} GB", f"{row['peak'] / GB:.1f} GB"]
        yield f"| {' | '.join(cells)} |"


def ratios(row):
    """Time as a multiple of the floor's: processor time with its range, and wall time."""
    if row["tool"] == FLOOR:
        return ["1", "", "1"]
    runs = row["processor_ratios"]
    middle = f"{min(runs):.2f} to {max(runs):.2f}" if len(runs) > 1 else "one pair"
    return [f"{row['processor_ratio']:.2f}", middle, f"{row['wall_ratio']:.2f}"]


def spread(heights, gap):
    """Heights moved apart until neighbours are `gap` from each other, in their order."""
    order = np.argsort(heights)
    placed = np.array(heights, float)[order]
    for _ in range(200):
        overlap = np.maximum(gap - np.diff(placed), 0) / 2
        placed[:-1] -= overlap
        placed[1:] += overlap
    return placed[np.argsort(order)]


def label(ax, ends, right):
    """Name each line at the right margin, with a leader to where it ends."""
    low, high = np.log(ax.get_ylim())
    heights = [(np.log(y) - low) / (high - low) for _, y, _, _ in ends]
    for (x, y, name, colour), height in zip(ends, spread(heights, 0.055), strict=True):
        place = np.exp(low + height * (high - low))
        ax.plot([x, right], [y, place], ":", color=colour, lw=0.8)
        ax.text(right * 1.05, place, name, color=colour, fontsize=7.5, va="center")


def draw_figure(result, stem):
    """Time and memory against T, log-log, every line named beside its end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "posprobe"
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    quantities = (
        ("processor", 1, "Processor time of one pass (s)"),
        ("beyond", GB, "Peak memory beyond the model (GB)"),
    )
    ticks = sorted({row["length"] for row in result["rows"]})
    for ax, (quantity, unit, title) in zip(figure.subplots(1, 2), quantities, strict=True):
        ends = []
        for number, tool in enumerate(TOOLS):
            rows = [r for r in result["rows"] if r["tool"] == tool and quantity in r]
            x, y = [r["length"] for r in rows], [r[quantity] / unit for r in rows]
            colour = "black" if tool == FLOOR else f"C{number - 1}"
            ax.plot(x, y, "o-", color=colour, ms=3.5, lw=2.2 if tool.startswith("pos") else 1.2)
            ends.append((x[-1], y[-1], TOOLS[tool].partition(" (")[0], colour))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(ax.get_ylim())
        label(ax, ends, ticks[-1] * 1.3)
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        ax.set_xlim(ticks[0] * 0.9, ticks[-1] * (ticks[-1] / ticks[0]) ** 0.75)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines["bottom"].set_bounds(ticks[0], ticks[-1])
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("Tokens", loc="left")
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patience", type=float, default=120)
    parser.add_argument("--python", type=Path, help="an interpreter that has the peers")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "peers.json")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file holds")
    parser.add_argument("--render", type=Path, help="results to draw instead of measuring")
    parser.add_argument("--out", type=Path, default=None, help="the table, as Markdown")
    parser.add_argument("--figure", type=Path, help="where to put the figure, without suffix")
    options = parser.parse_args()
    if options.render is None:
        options.python = options.python or peer_python()
        result = gather(options)
    else:
        result = json.loads(options.render.read_text())
    text = "\n".join(table(result))
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    if options.figure is not None:
        draw_figure(result, options.figure)


if __name__ == "__main__":
    main()
