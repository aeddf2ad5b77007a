"""Time to `import posprobe` and to answer `posprobe --help`, against `import sklearn`.

    python benchmarks/import_time.py [--repeats 15] [--out FILE.md]

Every run is a fresh process. The commands take turns, in an order that is reversed every round, so
that the load of the machine falls on all alike; the first round, which fills the disk cache, is
dropped. Printed are ratios of medians, in wall time and in processor time.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

REFERENCE = "import sklearn"
COMMANDS = {
    REFERENCE: ["-c", "import sklearn"],
    "import posprobe": ["-c", "import posprobe"],
    "posprobe --help": [
        "-c",
        "from posprobe.cli import main; main(prog_name='posprobe')",
        "--help",
    ],
    "python alone": ["-c", "pass"],
}
TARGET = 0.5


def seconds(arguments):
    """Wall and processor seconds of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used


def measure(repeats):
    """Medians over interleaved runs: command -> (wall, processor) seconds."""
    runs = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name in list(COMMANDS)[:: 1 if repeat % 2 else -1]:
            measured = seconds(COMMANDS[name])
            if repeat:
                runs[name].append(measured)
    return {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in runs.items()
    }


def table(medians, repeats):
    """The Markdown table, ratios first."""
    yield (
        f"Medians of {repeats} interleaved runs; {platform.machine()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, scikit-learn {version('scikit-learn')}.\n"
    )
    yield f"| command | of `{REFERENCE}`, wall time | processor time | wall time |"
    yield "|---|---|---|---|"
    reference = medians[REFERENCE]
    for name, (wall, used) in medians.items():
        ratios = f"{wall / reference[0]:.3f} | {used / reference[1]:.3f}"
        yield f"| `{name}` | {ratios} | {1e3 * wall:,.0f} ms |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    medians = measure(options.repeats)
    text = "\n".join(table(medians, options.repeats))
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    slow = [
        name
        for name in ("import posprobe", "posprobe --help")
        if medians[name][0] >= TARGET * medians[REFERENCE][0]
    ]
    if slow:
        raise SystemExit(f"{' and '.join(slow)}: not under {TARGET} of `{REFERENCE}`")


if __name__ == "__main__":
    main()
