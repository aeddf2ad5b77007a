"""A pass shows what was proved, whatever else the process does meanwhile."""

import threading

import capture_child as child
import numpy as np
import pytest
import stored
import tiny
import torch

from posprobe.captures import capture_stimulus
from posprobe.errors import ModelError
from posprobe.models import ObservableModel


def gpt2(**changes):
    model = tiny.tiny_model("gpt2", dtype=torch.float32, resid_pdrop=0.1, **changes)
    return ObservableModel(model, name="tiny")


def taken(model, path):
    options = dict(batch_tokens=50, progress=False)
    return stored.everything(capture_stimulus(model, child.stimulus(), path, **options))


def test_a_model_in_training_mode_is_evaluated_and_put_back(tmp_path):
    model = gpt2()
    expected = taken(model, tmp_path / "a.h5")
    model.model.train()
    stored.assert_same_bits(taken(model, tmp_path / "b.h5"), expected)
    assert model.model.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_of_the_caller_changes_nothing(dtype, tmp_path):
    model = gpt2()
    expected = taken(model, tmp_path / "a.h5")
    torch.set_default_dtype(dtype)
    try:
        found = taken(model, tmp_path / "b.h5")
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    stored.assert_same_bits(found, expected)


def test_autocast_of_the_caller_changes_nothing(tmp_path):
    model = gpt2()
    expected = taken(model, tmp_path / "a.h5")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = taken(model, tmp_path / "b.h5")
    stored.assert_same_bits(found, expected)


def test_attention_switched_back_is_refused(tmp_path):
    model = gpt2()
    model.model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="attention was switched to 'sdpa' after posprobe had"):
        taken(model, tmp_path / "a.h5")
    assert list(tmp_path.glob("*.h5")) == []


def test_a_cast_model_is_recorded_as_what_it_is():
    model = tiny.tiny_model("llama", dtype=torch.float32).to(torch.bfloat16)
    assert ObservableModel(model).effective_config()["dtype"] == "bfloat16"


def test_two_threads_capture_with_one_model(tmp_path):
    model = gpt2()
    expected = taken(model, tmp_path / "alone.h5")
    found = {}

    def work(name):
        found[name] = taken(model, tmp_path / f"{name}.h5")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list("abcd")
    for values in found.values():
        stored.assert_same_bits(values, expected)
    assert np.isfinite(expected["normalizer"]).all()
