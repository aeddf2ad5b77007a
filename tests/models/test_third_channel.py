"""Scores that move with position by themselves: a third channel is named, never read as R."""

import capture_child as child
import numpy as np
import pytest
import tiny
import torch

from posprobe.analysis import analyze_files, sort_files
from posprobe.captures import capture_stimulus
from posprobe.channels import decompose
from posprobe.claims import make_claims
from posprobe.errors import DesignError
from posprobe.models import ObservableModel, own_position
from posprobe.stimuli import make_stimulus

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 20,
    "factor": 4.0,
}
PHI3 = dict(
    rope_parameters=LONGROPE,
    max_position_embeddings=80,
    original_max_position_embeddings=20,
)


def observable(family, **changes):
    return ObservableModel(tiny.tiny_model(family, dtype=torch.float32, **changes), name=family)


def moves(model, shortest, longest):
    return own_position(model, 7, shortest=shortest, longest=longest)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize(("shortest", "longest"), [(3, 60), (30, 60), (60, 60)])
def test_families_that_know_offsets_only_have_two_channels(family, shortest, longest):
    assert moves(observable(family), shortest, longest) is None


@pytest.mark.parametrize(
    ("shortest", "longest", "third"),
    [(12, 40, True), (12, 19, False), (30, 60, False), (40, 40, False)],
)
def test_longrope_moves_scores_across_its_switch_only(shortest, longest, third):
    found = moves(observable("phi3", **PHI3), shortest, longest)
    assert (found is not None) == third
    if found is not None:
        assert found["layer"] == 0
        assert found["change"] > 0.1


@pytest.mark.parametrize(("shortest", "longest"), [(20, 60), (60, 60)])
def test_a_temperature_that_grows_with_position_moves_scores(shortest, longest):
    tuned = observable("llama4", attn_temperature_tuning=True, floor_scale=8, attn_scale=0.5)
    found = moves(tuned, shortest, longest)
    assert found["layer"] == 0
    assert found["change"] > 0.1
    assert moves(observable("llama4", attn_temperature_tuning=False), shortest, longest) is None


def test_the_split_is_refused_and_the_report_says_why(tmp_path):
    model = observable("phi3", **PHI3)
    stimulus = make_stimulus(
        "shifted", child.CORPUS, n=5, length=48, window=8, prefixes=(4, 9, 40), seed=3
    )
    store = capture_stimulus(model, stimulus, tmp_path / "shifted.h5", progress=False)
    assert store.own_position["layer"] == 0
    with pytest.raises(DesignError, match=r"shifted\.h5 cannot be split into two channels: scores"):
        decompose(store)
    analysis = analyze_files(sort_files([store]))
    assert "channels" not in analysis.tables
    assert analysis.tables["checks"]["third_channel"].item().startswith("from layer 0, ")
    claims = {claim.id: claim for claim in make_claims(analysis)}
    for name in ("residual_channel", "share_residual", "layer_0_residual", "offsets_only"):
        assert claims[name].verdict == "not_applicable"
        assert "third channel" in claims[name].protocol


def test_a_third_channel_is_what_layer_0_shows(tmp_path):
    """Without the refusal, R - S at layer 0 would be the third channel: what moved the scores."""
    model = observable("phi3", **PHI3)
    stimulus = make_stimulus(
        "shifted", child.CORPUS, n=5, length=48, window=8, prefixes=(4, 9, 40), seed=3
    )
    store = capture_stimulus(model, stimulus, tmp_path / "shifted.h5", progress=False)
    scores = store.read("offset_score", 0)[:, 2:, :, :2]  # offsets 1 and 2, keys inside the window
    by_prefix = [scores[store.prefix_length == p] for p in store.prefixes]
    short, middle, late = by_prefix  # sequences of 12, 17 and 48 tokens; the switch is at 20
    assert np.nanmax(np.abs(short - late)) > 0.1
    assert np.nanmax(np.abs(short - middle)) < 1e-4
