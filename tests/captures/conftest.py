"""Captures of tiny models."""

import capture_child as child
import pytest
from stored import make_tokenizer

from posprobe.captures import capture_stimulus


@pytest.fixture(scope="module")
def llama():
    return child.model(tokenizer=make_tokenizer())


@pytest.fixture
def take(tmp_path, llama):
    """Capture into a new file, without a bar."""
    count = iter(range(100))

    def function(stimulus, *, model=llama, **options):
        path = tmp_path / f"{next(count)}.h5"
        return capture_stimulus(model, stimulus, path, **{"progress": False} | options)

    return function
