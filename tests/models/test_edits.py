"""Edits of the residual stream: where they act, what is exact, what is refused."""

import dataclasses

import capture_child as child
import numpy as np
import pytest
import torch

from posprobe.captures import capture_stimulus
from posprobe.errors import ModelError
from posprobe.models import Observation, Observer, StreamEdit
from posprobe.probes import GramAccumulator, features, fit_eraser
from posprobe.store import ActivationStore

WIDTH = 32


def edit(rng, layer=1, rank=2, **changes):
    mean, inward, outward = (
        rng.normal(size=shape) for shape in ((WIDTH,), (WIDTH, rank), (rank, WIDTH))
    )
    return dataclasses.replace(StreamEdit(layer, "test", mean, inward, outward), **changes)


def streams(model):
    tokens = torch.arange(3, 15)[None]
    seen = {}

    def emit(name, layer, tensor):
        if name == "residual":
            seen[layer] = tensor[0].double().numpy().copy()

    model.run(tokens, Observer(emit, Observation(n_queries=tokens.shape[1])))
    return seen


@pytest.fixture
def model():
    return child.model(dtype=torch.float64)


def test_an_edit_is_what_its_equation_says_from_its_block_on(model, rng):
    native = streams(model)
    change = edit(rng, shift=rng.normal(size=WIDTH))
    with model.editing(change):
        edited = streams(model)
    np.testing.assert_array_equal(edited[0], native[0])
    later = native[1][1:]
    size = np.sqrt((later**2).mean(-1, keepdims=True))
    moved = change.shift - (later / size - change.mean) @ change.inward @ change.outward
    np.testing.assert_allclose(edited[1][1:], later + size * moved, atol=1e-10)
    assert np.abs(edited[2][1:] - native[2][1:]).max() > 1e-3
    for layer in range(4):
        np.testing.assert_allclose(edited[layer][0], native[layer][0], atol=1e-12)  # position 0


def test_the_model_is_as_before_when_the_context_ends(model, rng):
    native, digest = streams(model), model.weights_digest()
    with model.editing(edit(rng)):
        assert model.weights_digest() != digest
    with pytest.raises(ZeroDivisionError), model.editing(edit(rng)):
        1 / 0  # noqa: B018
    assert model.weights_digest() == digest
    for layer, stream in streams(model).items():
        np.testing.assert_array_equal(stream, native[layer])


@pytest.mark.parametrize("shift", [None, np.zeros(WIDTH)])
def test_erasing_nothing_and_steering_by_0_change_no_bit(shift):
    model = child.model()
    native = streams(model)
    with model.editing(StreamEdit(1, "nothing", np.zeros(WIDTH), shift=shift)):
        for layer, stream in streams(model).items():
            np.testing.assert_array_equal(stream, native[layer])


def test_a_file_records_its_edits_and_is_not_the_native_models(rng, tmp_path):
    model = child.model()
    options = dict(quantities=("normalizer",), progress=False)
    capture_stimulus(model, child.stimulus(), tmp_path / "a.h5", **options)
    change = edit(rng)
    with model.editing(change):
        capture_stimulus(model, child.stimulus(), tmp_path / "b.h5", **options)
    native, edited = (ActivationStore(tmp_path / name).header for name in ("a.h5", "b.h5"))
    assert edited.config["posprobe_stream_edits"] == [change.describe()]
    assert "posprobe_stream_edits" not in native.config
    assert edited.weights_digest != native.weights_digest
    assert "stream changes between blocks 0 and 1" in edited.rounding["unknown"]


def test_position_erased_from_the_stream_has_an_r2_of_0_on_the_fitting_data(tmp_path):
    model = child.model(dtype=torch.float64)
    stimulus = child.stimulus("natural", n=12)
    grams = GramAccumulator("residual", layers=[1])
    native = capture_stimulus(model, stimulus, tmp_path / "a.h5", consumers=[grams], progress=False)
    eraser = fit_eraser(grams.grams[1])
    change = StreamEdit(1, "position", eraser.mean, eraser.inward, eraser.outward)
    with model.editing(change):
        erased = capture_stimulus(model, stimulus, tmp_path / "b.h5", progress=False)
    X, y, _, _ = features(native, 1, "residual")
    scale = np.sqrt((native.residual(1)[:, 1:].astype(float) ** 2).mean(-1, keepdims=True))
    found = (erased.residual(1)[:, 1:] / scale).reshape(len(y), -1)
    np.testing.assert_allclose(found, eraser(X), atol=1e-5)
    centred = y - y.mean()
    assert np.abs(centred @ X).max() / len(y) > 1e-2
    assert np.abs(centred @ found).max() / len(y) < 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(layer=0),
            "the stream that enters block 0 cannot be edited; give a block from 1 to 2",
        ),
        (dict(layer=3), "block 3 cannot be edited"),
        (dict(mean=np.zeros(5)), r"mean has shape \(5,\), expected \(32,\); fit it on a capture"),
        (dict(inward=np.zeros((5, 2))), r"inward has shape \(5, 2\), expected \(32, 2\)"),
        (dict(inward=None), "give inward and outward together"),
        (dict(shift=np.zeros(31)), r"shift has shape \(31,\), expected \(32,\)"),
    ],
)
def test_edits_that_do_not_fit_are_refused(model, rng, changes, said):
    with pytest.raises(ModelError, match=said), model.editing(edit(rng, **changes)):
        pytest.fail("edited")


def test_two_edits_of_one_block_are_refused(model, rng):
    said = "two edits of the stream that enters block 1"
    with pytest.raises(ModelError, match=said), model.editing(edit(rng), edit(rng)):
        pytest.fail("edited")


def test_an_edit_that_does_not_reach_the_logits_is_refused(model, rng, monkeypatch):
    monkeypatch.setattr(StreamEdit, "change", lambda self, stream: stream)
    said = "edits of the stream that enters block 1 do not reach"
    with pytest.raises(ModelError, match=said), model.editing(edit(rng)):
        pytest.fail("edited")
