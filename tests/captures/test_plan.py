"""What no capture can be made of is refused before anything is written."""

import capture_child as child
import numpy as np
import pytest
from stored import leftovers

from posprobe.captures import capture, capture_stimulus, fitting_length
from posprobe.errors import (
    ModelError,
    PosprobeError,
    PosprobeWarning,
    StimulusError,
    StoreError,
)
from posprobe.models import ObservableModel, load_model

TEXT = " ".join(f"word{n}" for n in np.random.default_rng(0).integers(0, 94, 700))


def test_sequences_longer_than_the_model_are_refused(take, tmp_path):
    stimulus = child.stimulus("natural", length=65, prefixes=None)
    with pytest.raises(StimulusError, match="length 65 exceeds the 64 positions that model 'tiny"):
        take(stimulus)
    assert leftovers(tmp_path) == []
    take(child.stimulus("natural", length=64, prefixes=None))


def test_a_length_that_nobody_chose_fits_the_model(take, llama, tmp_path):
    said = "sequences have 64 tokens instead of 256: model 'tiny.*' was made for no more"
    sizes = {"n": 2, "text": TEXT, "progress": False}
    with pytest.warns(PosprobeWarning, match=said):
        assert capture(llama, tmp_path / "a.h5", **sizes).length == 64
    assert capture(llama, tmp_path / "b.h5", length=64, **sizes).length == 64  # without a warning
    with pytest.raises(StimulusError, match="length 256 exceeds the 64 positions"):
        capture(llama, tmp_path / "c.h5", length=256, **sizes)


@pytest.mark.parametrize(("made_for", "taken"), [(300, 256), (200, 200), (None, 256)])
def test_the_usual_length_is_256(made_for, taken, llama, monkeypatch):
    monkeypatch.setattr(ObservableModel, "max_length", made_for)
    assert fitting_length(llama, None) == taken


def test_variants_of_a_model_get_the_same_length_so_they_can_be_compared():
    model = load_model("zoo/rope-0", variant="ntk(2)")
    assert fitting_length(model, None) == 128
    assert fitting_length(model, 256) == 256


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(quantities=("normaliser",)), "quantity 'normaliser' is unknown"),
        (
            dict(quantities=("normalizer", "offset_score"), offsets=()),
            "'offset_score', an axis of which",
        ),
        (dict(dtype="float8"), "'dtype' is 'float8': choose float32"),
        (dict(residual_layers=(0, 4)), "residual_layers"),
        (dict(residual_positions=(0, 5)), "residual_queries"),
        (dict(batch_tokens=0), "'batch_tokens' is 0"),
    ],
)
def test_contradictory_options_are_refused_before_anything_is_written(
    options, reason, take, tmp_path
):
    with pytest.raises(PosprobeError, match=reason):
        take(child.stimulus(), **options)
    assert leftovers(tmp_path) == []


def test_folder_that_cannot_be_written_is_refused(llama, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.h5", tmp_path / "nowhere" / "a.h5"):
        with pytest.raises(StoreError, match="cannot write the file") as error:
            capture_stimulus(llama, child.stimulus(), path, progress=False)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_existing_file_is_kept_unless_it_may_be_overwritten(llama, tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(llama, child.stimulus(), path, progress=False)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"a\.h5 exists: .*, or replace it with --overwrite"):
        capture_stimulus(llama, child.stimulus(seed=9), path, progress=False)
    with pytest.raises(StoreError, match=r"a\.h5 exists"):  # before the model is looked for
        capture(tmp_path / "no model", path)
    assert path.read_bytes() == before
    store = capture_stimulus(llama, child.stimulus(seed=9), path, progress=False, overwrite=True)
    assert store.header.seed == 9


def test_window_other_than_the_configured_one_is_refused(take, monkeypatch):
    model = child.model("mistral")
    monkeypatch.setattr(ObservableModel, "layer_windows", (9, None, 9))
    with pytest.raises(ModelError, match="layer 1 has a window of 9 tokens, its configuration"):
        take(child.stimulus(), model=model)
    monkeypatch.setattr(ObservableModel, "layer_windows", (9, 9, 8))
    with pytest.raises(ModelError, match="layer 2 has a window of 9 tokens, its configuration"):
        take(child.stimulus(), model=model)


def test_items_that_repeat_others_are_named(take):
    stimulus = child.stimulus("natural", n=6)
    stimulus.tokens[4] = stimulus.tokens[1]
    said = r"1 of 6 items repeats another token for token \(1 = 4\): intervals take them as"
    with pytest.warns(PosprobeWarning, match=said):
        store = take(stimulus)
    assert store.repeated_items == ((1, 4),)


def test_items_that_are_all_the_same_are_refused(take):
    stimulus = child.stimulus("natural", n=6)
    stimulus.tokens[:] = stimulus.tokens[0]
    with pytest.raises(StimulusError, match="all 6 items are the same tokens"):
        take(stimulus)
