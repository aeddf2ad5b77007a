import os

import hypothesis
import numpy as np
import pytest

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every run: a failure in continuous integration can be repeated at home.
hypothesis.settings.register_profile("posprobe", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("posprobe")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
