import os

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")  # an analysis stays in the process of its test
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are divided among the workers already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal

import hypothesis
import numpy as np
import pytest

# The same examples on every run: a failure in continuous integration can be repeated at home.
hypothesis.settings.register_profile("posprobe", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("posprobe")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def signals():
    """Signals as a terminal's foreground process has them, wherever the tests run."""
    fresh = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL}
    fresh |= {"SIGHUP": signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}
    before = {name: signal.signal(getattr(signal, name), to) for name, to in fresh.items()}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)
