"""Two processes that work for a minute: prints their ids, and is stopped by a test meanwhile."""

import os
import signal
import sys
import time
import warnings

from posprobe.errors import stoppable
from posprobe.intervals import in_processes


def work(seconds):
    time.sleep(seconds)
    return os.getpid()


def power(base, exponent):
    return base**exponent


def warn(number):
    warnings.warn(f"number {number}", UserWarning, stacklevel=1)
    return number


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    first = set()
    for pid in in_processes(work, [(0.3,)] * 8 + [(60,)] * 4, n_jobs=2):
        first.add(pid)
        if len(first) == 2:
            print(*first, flush=True)


if __name__ == "__main__":
    try:
        with stoppable():
            main()
    except KeyboardInterrupt as error:
        sys.exit(128 + error.number)
