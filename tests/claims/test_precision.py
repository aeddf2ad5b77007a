"""Identities are judged by the precision of the numbers: kept where rounding explains what is left,
contradicted where it does not, and not applicable where their premise fails."""

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
from store_files import forge

from posprobe.analysis import analyze_files, sort_files
from posprobe.captures import capture_stimulus
from posprobe.claims import make_claims
from posprobe.models import Intervention, ObservableModel
from posprobe.stimuli import make_stimulus
from posprobe.store import ActivationStore

PRECISIONS = [torch.float32, torch.bfloat16]
EXACT = ["mask_isolated", "layer_0_residual", "offsets_only", "fingerprint_constant"]
BOS = dict(bos="force", bos_id=1)


@pytest.fixture
def take(tmp_path):
    """Capture a tiny model in one of the designs."""

    def function(model, design, n=8, **drawn):
        stimulus = child.stimulus(design, n=n, **drawn)
        path = tmp_path / f"{design}{len(list(tmp_path.iterdir()))}.h5"
        return capture_stimulus(model, stimulus, path, progress=False)

    return function


def claims_of(*stores):
    return {claim.id: claim for claim in make_claims(analyze_files(sort_files(stores)))}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_identities_hold_in_every_precision(family, dtype, take):
    model = child.model(family, dtype=dtype)
    claims = claims_of(take(model, "shifted", **BOS), take(model, "repeated"))
    assert {name: claims[name].verdict for name in EXACT} == dict.fromkeys(EXACT, "supported")
    for name in EXACT[:3]:
        assert ("computed in bfloat16" in claims[name].protocol) == (dtype == torch.bfloat16)


def test_they_would_be_contradicted_by_limits_that_do_not_know_it(take):
    """The guard of the test above: what is left in bfloat16 is far above 1e-4."""
    model = child.model(dtype=torch.bfloat16)
    claims = claims_of(take(model, "shifted", **BOS), take(model, "repeated"))
    assert claims["mask_isolated"].ci_low > 1e-3
    assert claims["layer_0_residual"].ci_low > 1e-4


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_are_a_violation_in_every_precision(family, dtype, take):
    model = child.model(family, dtype=dtype)
    claims = claims_of(take(model, "shifted", **BOS), take(model, "repeated"))
    for name in ("mask_isolated", "layer_0_residual", "offsets_only"):
        assert claims[name].verdict == "contradicted"


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_planted_error_of_half_a_nat_is_found_in_every_precision(dtype, take):
    store = take(child.model(dtype=dtype), "repeated")
    assert claims_of(store)["mask_isolated"].verdict == "supported"

    def plant(file):
        file["offset_score"][1, :, 3 : 3 + store.window] += 0.5  # behind a prefix of 3 tokens

    store.close()
    forge(store.path, plant)
    assert claims_of(ActivationStore(store.path))["mask_isolated"].verdict == "contradicted"


def test_long_sequences_of_large_scores_are_judged_by_their_rounding(tmp_path):
    raw = tiny.tiny_model("llama", dtype=torch.float32, max_position_embeddings=4096)
    for block in raw.model.layers:
        block.self_attn.q_proj.weight.data *= 40
    stimulus = make_stimulus("repeated", child.CORPUS, n=6, length=1500, window=8, seed=0)
    store = capture_stimulus(ObservableModel(raw), stimulus, tmp_path / "a.h5", progress=False)
    claim = claims_of(store)["mask_isolated"]
    assert claim.ci_low > 1e-4
    assert claim.verdict == "supported"
    assert "computed in float32" in claim.protocol


def test_learned_sinks_break_the_premise_of_the_repeated_design(take):
    model = child.model("gpt-oss", dtype=torch.float32)
    stores = take(model, "repeated"), take(model, "repeated", **BOS)
    claims = claims_of(*stores)
    for name in ("mask_isolated", "residual_opened"):
        assert claims[name].verdict == "not_applicable"
        assert "a learned sink is in the denominators of 3 of 3 layers" in claims[name].protocol
    assert np.abs(analyze_files(sort_files(stores)).tables["repeated"]["residual"]).max() > 0.01


def test_position_0_is_open_without_a_causal_mask(tmp_path):
    store = capture_stimulus(
        child.model(),
        child.stimulus("natural", **BOS),
        tmp_path / "a.h5",
        progress=False,
        intervention=Intervention(causal=False),
    )
    claim = claims_of(store)["closed_system"]
    assert claim.verdict == "not_applicable"
    assert "without a causal mask, so position 0 sees the tokens after it" in claim.protocol
