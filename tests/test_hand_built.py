"""Models built so that one channel alone is open: the split must find the shares they have."""

from unittest import mock

import capture_child as child
import numpy as np
import pytest
import tiny
import torch

import posprobe.models
from posprobe.captures import capture_stimulus
from posprobe.effects import channel_effects
from posprobe.models import ATTENTION, ObservableModel


def observable(model):
    """Observe a model whose scores move nothing, which the proof at load would refuse."""
    with mock.patch.object(
        posprobe.models,
        "prove_observable",
        lambda built: built.model.set_attn_implementation(ATTENTION),
    ):
        return ObservableModel(model, name="hand-built")


def split(model, tmp_path, **changes):
    stimulus = child.stimulus(n=24, length=40, window=8, **changes)
    return capture_stimulus(
        model, stimulus, tmp_path / "a.h5", offsets=(1, 2), progress=False, dtype="float32"
    )


def test_normalizer_only(tmp_path):
    """Scores of 0: a row's weights are 1 / (number of keys), whatever the residual stream."""
    model = tiny.tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.zero_()
    store = split(observable(model), tmp_path, prefixes=(1, 4, 12, 32))
    for layer in range(store.n_layers):
        effects = channel_effects(store, layer)
        assert np.abs(effects.residual).max() < 1e-5
        rows = np.arange(1, 8)
        keys = np.add.outer([1, 4, 12, 32], rows + 1)
        expected = -np.log(keys / keys[-1]).mean(1)
        np.testing.assert_allclose(effects.mask[0, :, 0, 0], expected, atol=1e-5)
        found = effects.variances()
        assert (found["V_M"] + found["C_MR"]) / found["V_T"] == pytest.approx(1, abs=1e-4)
        assert (found["V_R"] + found["C_MR"]) / found["V_T"] == pytest.approx(0, abs=1e-4)


def test_residual_only(tmp_path):
    """Behind a window shorter than every position the mask is the same at all of them."""
    types = ["full_attention", "sliding_attention", "full_attention"]
    built = tiny.tiny_model("gemma3", dtype=torch.float32, layer_types=types, sliding_window=4)
    store = split(ObservableModel(built, name="hand-built"), tmp_path, prefixes=(5, 12, 32))
    windowed, full = (channel_effects(store, layer) for layer in (1, 2))
    assert np.abs(windowed.mask).max() < 1e-5
    assert np.abs(windowed.residual).max() > 0.01
    np.testing.assert_allclose(windowed.total, windowed.residual, atol=1e-5)
    assert np.abs(full.mask).max() > 0.1
    found = windowed.variances()
    assert (found["V_R"] + found["C_MR"]) / found["V_T"] == pytest.approx(1, abs=0.02)
