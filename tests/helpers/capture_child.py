"""A capture in a process of its own: `python capture_child.py PATH [KILL]`, to be resumed.

With a number KILL, the process kills itself in front of its KILL-th forward pass.
"""

import os
import signal
import sys

import numpy as np
import tiny
import torch

from posprobe.captures import capture_stimulus
from posprobe.models import ObservableModel
from posprobe.stimuli import make_stimulus

CORPUS = np.random.default_rng(0).integers(3, 97, 2000)


def model(family="llama", *, dtype=torch.float32, tokenizer=None, **changes):
    found = tiny.tiny_model(family, dtype=dtype, **changes)
    return ObservableModel(found, tokenizer, name=f"tiny-{family}")


def stimulus(design="shifted", **changes):
    values = dict(n=5, length=24, window=5, prefixes=(1, 3, 8, 19), seed=3)
    return make_stimulus(design, CORPUS, **values | changes)


def plan():
    return dict(stimulus=stimulus(), batch_tokens=50, resume=True, progress=False)


def main(path, kill=None):
    observable = model()
    run, calls = observable.run, iter(range(1_000_000))

    def dying(*args, **keywords):
        if next(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        run(*args, **keywords)

    observable.run = dying
    capture_stimulus(observable, path=path, **plan())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
