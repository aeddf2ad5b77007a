"""A pass shows what was proved, whatever else the process does meanwhile."""

import contextlib
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
from posprobe.store import ActivationStore


def gpt2(**changes):
    model = tiny.tiny_model("gpt2", dtype=torch.float32, resid_pdrop=0.1, **changes)
    return ObservableModel(model, name="tiny")


def taken(model, path, **changes):
    options = dict(batch_tokens=50, progress=False) | changes
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


def llama(**changes):
    return ObservableModel(tiny.tiny_model("llama", dtype=torch.float32, **changes), name="tiny")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_cast_after_wrapping_is_recorded_as_what_it_is(dtype, tmp_path):
    model, path = gpt2(), tmp_path / "a.h5"
    model.model.to(dtype)
    capture_stimulus(model, child.stimulus(), path, progress=False).close()
    with ActivationStore(path) as store:
        assert store.header.config["dtype"] == str(dtype).removeprefix("torch.")
        assert "posprobe_other_rotation" not in store.header.config


def test_a_model_of_several_types_is_recorded_as_the_coarsest():
    model = llama()
    model.model.get_input_embeddings().bfloat16()
    model.check()
    assert model.effective_config()["dtype"] == "bfloat16"


def test_a_model_cast_in_part_is_refused(tmp_path):
    model = gpt2()
    model.blocks[1].bfloat16()
    with pytest.raises(ModelError, match=r"does not run .* of 2 types \(bfloat16, float32\)"):
        taken(model, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_lost_a_block_is_refused(tmp_path):
    model = llama()
    del model.model.model.layers[2]
    with pytest.raises(ModelError, match="has no list of 3 blocks"):
        taken(model, tmp_path / "a.h5")


def test_rotations_that_a_cast_rounded_are_recorded():
    assert "posprobe_other_rotation" not in llama().effective_config()
    model = llama()
    model.model.half().float()
    model.check()
    assert 1e-5 < model.effective_config()["posprobe_other_rotation"] < 1e-3


def test_rotations_that_the_configuration_does_not_name_are_recorded():
    model = llama()
    model.config.rope_parameters["rope_theta"] *= 100
    assert model.effective_config()["posprobe_other_rotation"] > 1


def test_a_model_is_not_proved_again_without_need(monkeypatch, tmp_path):
    model = gpt2()
    monkeypatch.setattr("posprobe.models.observable.prove_observable", None)
    taken(model, tmp_path / "a.h5")


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def coarse_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "state",
    [lambda: default_device("meta"), coarse_products, torch.inference_mode, torch.no_grad],
    ids=["device", "products", "inference", "grad"],
)
def test_other_state_of_the_caller_changes_nothing(state, tmp_path):
    expected = taken(gpt2(), tmp_path / "a.h5", position0="mean")
    inner = gpt2().model
    inner.set_attn_implementation("sdpa")
    with state():
        model = ObservableModel(inner, name="tiny")
        found = taken(model, tmp_path / "b.h5", position0="mean")
    stored.assert_same_bits(found, expected)


def test_the_mean_embedding_follows_the_embeddings():
    model = llama()
    before = model.mean_embedding
    with torch.no_grad():
        model.model.get_input_embeddings().weight.add_(1)
    torch.testing.assert_close(model.mean_embedding, before + 1)


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
