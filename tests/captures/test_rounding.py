"""How far the numbers of a capture are rounded: measured once, kept in its file."""

import capture_child as child
import numpy as np
import pytest
import torch

from posprobe.captures import capture_stimulus
from posprobe.channels import channel_effects, score_shift
from posprobe.models import ObservableModel
from posprobe.store import HeldStore

DESIGNS = ["natural", "shifted", "repeated", "iid"]
NATS = ["normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body"]
EFFECTS = ["M", "R", "mismatch", "moved"]


def captured(path, model, design, **options):
    stimulus = child.stimulus(design, window=6, prefixes=(1, 3, 8, 18))
    return capture_stimulus(model, stimulus, path / "a.h5", progress=False, **options)


@pytest.mark.parametrize("design", DESIGNS)
def test_every_quantity_has_a_size_in_every_layer(design, take):
    store = take(child.stimulus(design))
    for name in NATS + EFFECTS:
        assert len(store.header.rounding[name]) == store.n_layers
        assert 0 <= store.rounding(name) < 1e-4
    for name in ("residual", "position0"):
        assert len(store.header.rounding[name]) == store.n_layers + 1
        assert store.rounding(name, 0) == 0  # both passes begin with the same embeddings
        assert 1e-9 < store.rounding(name, 3) < 1e-4
    assert store.header.rounding["sequences"] == ([0, 15] if design == "shifted" else [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("design", ["shifted", "repeated"])
def test_effects_miss_0_by_about_their_rounding(design, dtype, tmp_path):
    """What is 0 on paper is, in the file, of the size that was seen in a few sequences."""
    store = captured(tmp_path, child.model(dtype=dtype), design)
    if design == "repeated":
        effects = [channel_effects(store, layer) for layer in range(store.n_layers)]
        largest = max(np.abs(effect.residual).max() for effect in effects)
        assert 0.3 < largest / store.rounding("R") < 4
    else:
        effects = channel_effects(store, 0)
        rest = np.abs(effects.residual - effects.sink).max()
        assert rest < 4 * (store.rounding("R", 0) + store.rounding("M", 0))
        assert 0.3 < score_shift(store, 0).max() / store.rounding("moved", 0) < 4


@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_errors_of_effects_are_effects_of_errors(design, tmp_path):
    """The channels of exact values, by the analysis itself, against those of the capture."""
    model, names = child.model(dtype=torch.bfloat16), ("normalizer", "sink_score", "offset_score")
    names = (*names, "remasked_normalizer", "remasked_body")
    stimulus = child.stimulus(design, n=2, window=6, prefixes=(1, 18))
    rounded, exact = HeldStore(names), HeldStore(names)
    store = capture_stimulus(
        model, stimulus, tmp_path / "a.h5", progress=False, consumers=[rounded], batch_tokens=1
    )
    model64 = ObservableModel(model.model.double())
    capture_stimulus(model64, stimulus, tmp_path / "b.h5", progress=False, consumers=[exact])
    for layer in range(store.n_layers):
        for name, of in {"M": "mask", "R": "residual"}.items():
            pair = [getattr(channel_effects(s, layer), of)[0] for s in (rounded, exact)]
            found, expected = store.rounding(name, layer), np.abs(pair[0] - pair[1]).max()
            np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-4)


def test_the_same_capture_has_the_same_rounding(take):
    one, other = (take(child.stimulus()).header.rounding for _ in range(2))
    assert one == other


def test_a_finished_capture_is_not_measured_again(tmp_path, monkeypatch):
    model = child.model()
    store = capture_stimulus(model, path=tmp_path / "a.h5", **child.plan())
    monkeypatch.setattr("posprobe.captures.plan.measure_rounding", None)
    again = capture_stimulus(model, path=tmp_path / "a.h5", **child.plan())
    assert again.header == store.header


def test_parts_of_a_capture_have_the_rounding_of_the_whole(take):
    header = take(child.stimulus()).header
    assert header.with_sequences(2).rounding == header.rounding
    assert header.with_layer(1).rounding == {}


def test_quantities_that_are_left_out_have_no_rounding(take):
    store = take(child.stimulus(), quantities=("normalizer", "sink_score"))
    assert store.rounding("normalizer") > 0
    for name in ("offset_score", "remasked_normalizer", "R", "M", "moved"):
        assert store.rounding(name) is None


def test_rounding_that_cannot_be_measured_has_a_reason(take):
    model = child.model()
    model.blocks[1].register_buffer("codes", torch.zeros(3, dtype=torch.uint8))
    store = take(child.stimulus(), model=model)
    assert store.header.rounding == {"unknown": "its weights are quantised (uint8)"}
    assert store.rounding("R") is None


def test_learned_sinks_are_noted(take):
    assert take(child.stimulus(), model=child.model("gpt-oss", dtype=torch.float64)).learned_sinks
    assert take(child.stimulus()).learned_sinks == ()
