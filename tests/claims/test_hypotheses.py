"""Claims on several models: verdicts from adjusted p-values, and from the weakest model."""

import dataclasses

import pytest
from lineups import family

from posprobe.claims import hypothesis_claims
from posprobe.comparison import compare_lineup, line_up


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return compare_lineup(line_up(family(tmp_path_factory.mktemp("family"), layers=2, seeds=2)))


def claims_of(comparison):
    return {claim.id: claim for claim in hypothesis_claims(comparison)}


@pytest.mark.parametrize(
    ("estimate", "p_value", "p_holm", "verdict"),
    [
        (0.3, 0.001, 0.005, "supported"),
        (-0.3, 0.001, 0.005, "contradicted"),
        (0.3, 0.02, 0.06, "inconclusive"),
        (-0.3, 0.02, 0.06, "inconclusive"),
    ],
)
def test_a_contrast_is_judged_by_its_adjusted_p_value(
    estimate, p_value, p_holm, verdict, comparison
):
    first, *others = comparison.contrasts["V_R"]
    limits = sorted((estimate / 2, estimate * 2))
    interval = dataclasses.replace(first.interval, estimate=estimate, low=limits[0], high=limits[1])
    one = dataclasses.replace(first, interval=interval, p_value=p_value, p_holm=p_holm)
    contrasts = comparison.contrasts | {"V_R": (one, *others)}
    claims = claims_of(dataclasses.replace(comparison, contrasts=contrasts))
    claim = claims["H1_trend_window_ntk_V_R"]
    own = "supported" if estimate > 0 else "contradicted"
    assert (claim.verdict, claim.verdict_adjusted) == (own, verdict)
    assert (claim.p_value, claim.p_adjusted) == (p_value, p_holm)


def test_a_channel_is_present_if_it_is_in_the_model_that_has_least_of_it(comparison):
    assert claims_of(comparison)["H3_residual_window"].verdict == "supported"
    table = comparison.tables["models"].copy()
    weak = table["model"] == "window-1"
    table.loc[weak, "V_R_low"] = -0.01
    low = dataclasses.replace(comparison.intervals["window-1", "V_R"], low=-0.01)
    changed = dataclasses.replace(
        comparison,
        tables=comparison.tables | {"models": table},
        intervals=comparison.intervals | {("window-1", "V_R"): low},
    )
    claim = claims_of(changed)["H3_residual_window"]
    assert claim.verdict == "inconclusive"
    assert claim.ci_low == -0.01
    assert "The interval is that of window-1" in claim.protocol
    assert claims_of(changed)["H3_mask_window"].verdict == "supported"


def test_presence_is_not_adjusted_since_all_models_must_have_it(comparison):
    row = comparison.tables["models"].set_index("model").loc["window-1"]
    interval = comparison.intervals["window-1", "V_R"]
    assert [interval.estimate, interval.low, interval.high] == row[
        ["V_R", "V_R_low", "V_R_high"]
    ].tolist()
    claim = claims_of(comparison)["H3_residual_window"]
    assert 0 < claim.p_value < 0.05
    assert claim.p_adjusted is None
    assert claim.p_note == "not adjusted: H3 needs all of its parts"


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (None, "Models are the unit, and each architecture has the spread of its own models."),
        ({"0": "*-0", "1": "*-1"}, "taken within each block, and blocks are the unit."),
    ],
)
def test_the_protocol_of_a_contrast_names_its_unit(blocks, said, tmp_path):
    lineup = line_up(family(tmp_path, layers=2, seeds=2), blocks=blocks)
    claim = claims_of(compare_lineup(lineup))["H1_trend_window_ntk_V_R"]
    assert said in claim.protocol
    assert claim.ci_method.endswith("over blocks" if blocks else "over models")
