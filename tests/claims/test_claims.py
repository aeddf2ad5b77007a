"""Claims: every verdict on both sides of its bound, and a reason where there is none."""

import dataclasses
import json
import math
import shutil
from unittest import mock

import numpy as np
import pytest
import synthetic

from posprobe.analysis import Analysis, Files, analyze_files, n_units, sort_files, way_of_writing
from posprobe.claims import make_claims
from posprobe.claims.verdicts import found
from posprobe.intervals import Inference, Interval
from posprobe.store import ActivationStore

FIELDS = ["id", "statement", "estimate", "unit", "ci_low", "ci_high", "ci_level", "ci_method"]
FIELDS += ["n", "verdict", "p_value", "p_adjusted", "p_note", "verdict_adjusted", "family"]
FIELDS += ["reference", "protocol", "condition", "scope", "conditions"]
VERDICTS = {"supported", "contradicted", "inconclusive", "negligible", "not_applicable"}
ABOVE = {"probe_normalizer": 0, "probe_residual": 0, "sink_heads": 0}
ABOVE_TINY = {"residual_opened": "bos_repeated", "fingerprint_varies": "fingerprint_text"}
BELOW_TINY = {
    "mask_isolated": "repeated",
    "closed_system": "closure",
    "fingerprint_constant": "fingerprint_bos",
}
CHANNELS = {"position_in_attention": "V_T", "mask_channel": "V_M", "residual_channel": "V_R"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return synthetic.study_files(tmp_path_factory.mktemp("study"), np.random.default_rng(0))


@pytest.fixture(scope="module")
def analysis(stores):
    return analyze_files(sort_files(stores.values()))


@pytest.fixture
def claims(analysis):
    return by_id(analysis)


def by_id(analysis):
    claims = make_claims(analysis)
    named = {claim.id: claim for claim in claims}
    assert len(named) == len(claims)
    return named


def interval(estimate, low, high):
    return Interval(estimate, low, high, 0.95, "made up", "made up", 8)


def with_interval(analysis, name, low, high):
    made = interval(0.4 if low is None else (low + high) / 2, low, high)
    return by_id(dataclasses.replace(analysis, intervals=analysis.intervals | {name: made}))


def with_cells(analysis, name, where, **values):
    table = analysis.tables[name].copy().reset_index(drop=True)
    rows = np.logical_and.reduce([table[column] == value for column, value in where.items()])
    for column, value in values.items():
        table.loc[rows, column] = value
    return by_id(dataclasses.replace(analysis, tables=analysis.tables | {name: table}))


# --- what a claim is ---


def test_claims_have_the_fields_that_scripts_read(analysis):
    for claim in make_claims(analysis):
        plain = claim.asdict()
        assert list(plain) == FIELDS
        assert plain["verdict"] in VERDICTS
        assert plain["statement"].endswith(".")
        assert plain["protocol"]


def test_each_claim_names_the_condition_of_its_capture(claims, stores):
    condition = {"position0": "BOS", "text": "", "length": stores["shifted"].length}
    assert claims["mask_channel"].condition == {"design": "shifted"} | condition
    assert claims["residual_opened"].condition["design"] == "repeated"
    assert claims["probe_normalizer"].condition["design"] == "natural"
    assert claims["ntk_suppresses"].condition is None


def test_no_claim_is_decided_without_an_interval(analysis):
    for claim in make_claims(analysis):
        if claim.verdict in ("supported", "contradicted"):
            assert claim.ci_low <= claim.ci_high
            assert claim.ci_level == 0.95
            assert claim.n > 1
            assert claim.unit
        if claim.verdict == "not_applicable":
            assert claim.estimate is claim.ci_low is claim.n is None


def test_every_claim_names_the_level_of_its_limits(analysis, stores):
    unsure = analyze_files(sort_files(stores.values()), inference=Inference(level=0.5))
    named = by_id(unsure)
    for claim in make_claims(analysis):
        other = named[claim.id]
        assert (claim.ci_level, other.ci_level) in ((0.95, 0.5), (None, None)), claim.id
        if claim.ci_low is not None and claim.ci_high > claim.ci_low:
            assert other.ci_high - other.ci_low < claim.ci_high - claim.ci_low, claim.id


def test_claims_are_json_without_nan(analysis):
    text = json.dumps([claim.asdict() for claim in make_claims(analysis)], allow_nan=False)
    assert len(json.loads(text)) == len(make_claims(analysis))


def test_what_is_not_finite_becomes_null(claims):
    claim = dataclasses.replace(claims["mask_channel"], estimate=math.nan, ci_high=math.inf)
    assert claim.asdict()["estimate"] is None
    assert claim.asdict()["ci_high"] is None
    assert claim.asdict()["ci_low"] == claim.ci_low


def test_same_files_and_seed_same_claims(stores, analysis):
    again = make_claims(analyze_files(sort_files(reversed(list(stores.values())))))
    assert again == make_claims(analysis)


def test_the_same_claims_are_made_whatever_there_is(analysis, stores, claims):
    nothing = by_id(Analysis(Files(), {}, {}))
    assert list(nothing) == list(claims)
    assert {claim.verdict for claim in nothing.values()} == {"not_applicable"}
    natural = by_id(analyze_files(sort_files([stores["shifted"]])))
    assert list(natural) == list(claims)


def test_the_same_claims_are_made_without_layer_0(tmp_path, rng, claims):
    n, length = 14, 30
    z = np.log1p(np.arange(length))[None, None, :, None] + 0.1 * rng.normal(size=(2, n, length, 1))
    h0 = rng.normal(size=(3, n, 4))
    arrays = {
        "normalizer": z,
        "sink_score": z - 1,
        "residual": rng.normal(size=(2, n, length, 4)),
        "position0": h0,
        "position0_alone": h0,
    }
    store = synthetic.write(tmp_path / "a.h5", arrays, residual_layers=(1, 2))
    found = by_id(analyze_files(sort_files([store])))
    assert list(found) == list(claims)
    assert found["residual_at_layer_0"].verdict == "not_applicable"
    assert found["probe_normalizer"].verdict == "supported"


# --- verdicts of the files as they are ---


def test_verdicts_of_the_synthetic_study(claims):
    supported = {*CHANNELS, *ABOVE_TINY, *BELOW_TINY, "share_mask"}
    expected = dict.fromkeys(supported, "supported")
    expected |= {"probe_normalizer": "inconclusive"}  # 8 sequences are too few for limits
    expected |= {"channels_add": "contradicted", "share_residual": "contradicted"}
    expected |= {"bos_replacement": "contradicted"}  # .75 was put in
    assert {name: claims[name].verdict for name in expected} == expected
    assert claims["bos_replacement"].reference == 0.4
    assert claims["bos_replacement"].estimate == pytest.approx(0.75, abs=0.01)


def test_a_leak_into_position_0_contradicts_the_closed_system(tmp_path):
    stores = synthetic.study_files(tmp_path, np.random.default_rng(1), closed=False)
    found = by_id(analyze_files(sort_files([stores["natural"]])))
    assert found["closed_system"].verdict == "contradicted"
    assert found["closed_system"].estimate == pytest.approx(0.1 / 1.0, rel=0.1)


# --- the rules, on both sides ---


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, "supported"), (-0.2, -0.1, "contradicted"), (-0.1, 0.2, "inconclusive")],
)
def test_intervals_above_nothing(low, high, verdict, analysis):
    for name in ABOVE:
        assert with_interval(analysis, name, low, high)[name].verdict == verdict
    for name, column in (CHANNELS | {"channels_add": "C_MR"}).items():
        assert with_interval(analysis, column, low, high)[name].verdict == verdict
    for name in ("share_mask", "share_residual"):
        assert with_interval(analysis, name, low, high)[name].verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.03, "supported"), (1.1e-15, 1.2e-15, "negligible"), (-0.03, -0.01, "contradicted")],
)
def test_what_probes_read_is_more_than_rounding(low, high, verdict, analysis):
    for name in ("probe_normalizer", "probe_residual", "fixed_denominator"):
        claim = {"fixed_denominator": "normalizer_on_patterns"}.get(name, name)
        if name in analysis.intervals:
            assert with_interval(analysis, name, low, high)[claim].verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.02, 0.03, "supported"), (0.005, 0.03, "inconclusive"), (-0.2, -0.1, "contradicted")],
)
def test_effects_are_more_than_their_rounding(low, high, verdict, analysis, tmp_path):
    sizes = {"M": [0.1, 0.1], "R": [0.1, 0.1]}
    coarse = ActivationStore(shutil.copy(analysis.files.shifted.path, tmp_path / "coarse.h5"))
    coarse.header = dataclasses.replace(coarse.header, rounding=sizes)
    files = dataclasses.replace(analysis.files, shifted=coarse)
    coarsely = dataclasses.replace(analysis, files=files)
    for name, column in (CHANNELS | {"channels_add": "C_MR"}).items():
        scale = 4 if column == "V_T" else 1  # T has the rounding of M and of R
        found = with_interval(coarsely, column, scale * low, scale * high)
        assert found[name].verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "is_above"),
    [(1e-3, 1e-2, "supported"), (0, 1e-5, "contradicted"), (0, 1e-3, "inconclusive")],
)
def test_intervals_against_the_tolerance(low, high, is_above, analysis):
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    for name, key in ABOVE_TINY.items():
        assert with_interval(analysis, key, low, high)[name].verdict == is_above
    for name, key in BELOW_TINY.items():
        verdict = with_interval(analysis, key, low, high)[name].verdict
        assert verdict == opposite.get(is_above, is_above)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.03, 0.01, "supported"), (0.03, 0.2, "contradicted"), (0.0, 0.03, "inconclusive")],
)
def test_embeddings_tell_next_to_nothing(low, high, verdict, analysis):
    found = with_interval(analysis, "probe_residual_layer_0", low, high)
    assert found["residual_at_layer_0"].verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.3, 0.5, "supported"),
        (0.41, 0.45, "supported"),
        (0.65, 0.9, "contradicted"),
        (-0.9, -0.2, "contradicted"),
        (0.01, 0.9, "inconclusive"),
        (0.5, 0.9, "inconclusive"),
        (-0.1, 0.3, "inconclusive"),
        (None, None, "inconclusive"),
    ],
)
def test_fraction_removed_against_the_studys_value(low, high, verdict, analysis):
    claim = with_interval(analysis, "replacement", low, high)["bos_replacement"]
    assert claim.verdict == verdict
    assert claim.ci_method == "made up" + (": unbounded" if low is None else "")
    assert claim.ci_low == low


def test_one_item_with_a_residual_channel_is_not_averaged_away(analysis):
    cell = {"stimulus": "repeated"}
    assert with_cells(analysis, "repeated", cell)["mask_isolated"].verdict == "supported"
    claim = with_cells(analysis, "repeated", cell, residual=3e-4)["mask_isolated"]
    assert claim.verdict == "inconclusive"
    assert "in any item |R| is at most 0.0003" in claim.protocol


@pytest.mark.parametrize(
    ("claim", "interval", "bound"),
    [("layer_0_residual", "layer_0_rest", 1e-4), ("offsets_only", "scores_moved", 1e-3)],
)
@pytest.mark.parametrize(
    ("low", "high", "largest", "verdict"),
    [
        (0, 0.1, 0.9, "supported"),
        (0, 0.1, 1.1, "inconclusive"),
        (0.9, 1.1, 0.9, "inconclusive"),
        (2, 3, 4, "contradicted"),
    ],
)
def test_what_is_0_at_layer_0_is_so_everywhere(
    claim, interval, bound, low, high, largest, verdict, analysis
):
    table = analysis.tables["layer_0"].assign(largest=largest * bound)
    changed = dataclasses.replace(analysis, tables=analysis.tables | {"layer_0": table})
    found = with_interval(changed, interval, low * bound, high * bound)[claim]
    assert found.verdict == verdict
    assert f"at most {largest * bound:.3g} in any item" in found.protocol


def test_pooled_items_count_as_the_units_that_they_are():
    for n, units in ((199, 199), (450, 200)):
        assert n_units(mock.Mock(n_items=n)) == units


def test_shares_that_are_undefined_are_not_printed(analysis):
    values = {"status": "undefined", "share_mask": np.nan, "share_residual": np.nan}
    found = with_cells(analysis, "channels", {"stimulus": "shifted"}, **values)
    for name in ("share_mask", "share_residual"):
        assert found[name].verdict == "not_applicable"
        assert "undefined" in found[name].protocol
        assert found[name].estimate is None


# --- what is lacking is named ---


def test_a_shifted_file_without_the_counterfactual_is_no_shifted_file(analysis):
    table = analysis.tables["channels"]
    tables = analysis.tables | {"channels": table[table["stimulus"] == "natural"]}
    found = by_id(dataclasses.replace(analysis, tables=tables))
    for name in (*CHANNELS, "channels_add", "share_mask", "share_residual"):
        assert "with all scores" in found[name].protocol


@pytest.mark.parametrize(
    ("roles", "lacking"),
    [
        (["natural"], {"mask_channel": "shifted design", "mask_isolated": "repeated design"}),
        (["shifted"], {"probe_normalizer": "natural design", "sink_heads": "natural"}),
        (["shifted", "content"], {"bos_replacement": "--position0 native and mean"}),
        (["natural", "mean"], {"bos_replacement": "shifted design"}),
    ],
)
def test_missing_files_are_named(roles, lacking, stores):
    found = by_id(analyze_files(sort_files(stores[role] for role in roles)))
    for name, reason in lacking.items():
        assert found[name].verdict == "not_applicable"
        assert reason in found[name].protocol


def test_fingerprints_need_the_right_first_tokens(stores, analysis):
    same = stores["natural"].tokens.copy()
    stores["natural"].tokens[:, 0] = 1
    try:
        found = by_id(analysis)
    finally:
        stores["natural"].tokens[:] = same
    assert found["fingerprint_varies"].verdict == "not_applicable"
    assert "different tokens (--bos none)" in found["fingerprint_varies"].protocol


def test_architectures_are_not_tested_on_one_model(claims):
    for name in ("both_in_all", "ntk_suppresses", "window_accumulates", "standard_between"):
        assert claims[name].verdict == "not_applicable"
        assert "one model cannot test a claim about architectures" in claims[name].protocol


@pytest.mark.parametrize(("bos", "said"), [(0, "token 1 (BOS)"), (None, "token 1 at position 0")])
def test_a_forced_bos_is_named(bos, said, rng, tmp_path):
    effect = np.linspace(1, 0, 4) + 0.1 * rng.normal(size=(4, 4))
    fields = {"stimulus": {"bos_token": bos}, "arrays": {"position0": np.ones((2, 16, 3))}}
    store = synthetic.effect_store(tmp_path / "a.h5", effect, effect, fields=fields)
    found = by_id(analyze_files(sort_files([store])))
    assert said in found["mask_channel"].protocol


# --- the smallest effect worth a sentence ---


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (0.9e-6, 1.1e-6, 0.0, "negligible"),  # clearly above 0, and nothing to speak of
        (-0.5e-4, 0.9e-4, 0.0, "negligible"),
        (-0.5e-4, 1.1e-4, 0.0, "inconclusive"),
        (0.5e-4, 1.1e-4, 0.0, "supported"),
        (0.5e-4, 1.1e-4, 0.6e-4, "inconclusive"),  # rounding alone may make as much
        (-2e-4, -0.5e-4, 0.0, "contradicted"),
        (None, None, 0.0, "inconclusive"),
    ],
)
def test_effects_too_small_to_speak_of_have_a_verdict_of_their_own(low, high, floor, verdict):
    estimate = 0.0 if low is None else (low + high) / 2
    interval = Interval(estimate, low, high, 0.95, "t", "V_R", 30)
    assert found(interval, "nats^2", floor).verdict == verdict


def test_no_sink_at_all_is_negligible_rather_than_undecided():
    judged = found(Interval(0.0, 0.0, 0.0, 0.95, "t", "share of heads", 30), "1")
    assert judged == ("negligible", None, "the same in all units")


def test_what_a_replacement_leaves_at_position_0_is_in_its_protocol(tmp_path, rng):
    config = {"posprobe_kept_at_position0": 0.25}
    stores = synthetic.study_files(tmp_path, rng, config=config)
    claims = by_id(analyze_files(sort_files(stores.values())))
    said = "learned position vector, which the replacement leaves there: its norm is 0.25 of"
    assert said in claims["bos_replacement"].protocol


def test_a_norm_or_factor_behind_attention_is_in_the_protocol(tmp_path, rng):
    config = {"posprobe_attention_gain": [0.5, None]}
    stores = synthetic.study_files(tmp_path, rng, config=config)
    analysis = analyze_files(sort_files(stores.values()))
    natural = analysis.files.natural
    assert "In 1 of 2 layers a norm or a gate lies between" in way_of_writing(natural)
    assert "scales what attention writes (0.5), which is counted" in way_of_writing(natural)
