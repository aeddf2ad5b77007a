"""The tables of a comparison: models, architectures, variants, sinks."""

import numpy as np
import pytest
import synthetic
from limits import compare_limits, follows
from lineups import MASK, TRUTH, family, file_of, variants

from posprobe.analysis import check
from posprobe.channels import channel_effects, gather_variances
from posprobe.claims import answers, hypothesis_claims
from posprobe.comparison import VALUES, compare_lineup, line_up
from posprobe.intervals import Inference
from posprobe.store import ActivationStore

# --- models ---


def test_layers_are_reported_by_their_type(models, tmp_path):
    mixed = file_of(tmp_path / "b.h5", "tight-0", layer_window=(0, 3, 3))
    tables = compare_lineup(line_up([*models, mixed])).tables
    layers = tables["layers"].set_index("model").loc["tight-0"]
    assert layers["layer_type"].tolist() == ["full", "window(3)", "window(3)"]
    types = tables["layer_types"].set_index("layer_type")
    assert types["model"].tolist() == ["tight-0", "tight-0"]
    assert types["layers"].to_dict() == {"full": 1, "window(3)": 2}
    for value in ("V_T", "V_R"):
        means = layers.astype({value: float}).groupby("layer_type")[value].mean()
        np.testing.assert_allclose(types[value].astype(float), means[types.index])
    assert "layer_types" not in compare_lineup(line_up(models)).tables


def test_variances_are_those_of_the_files(comparison):
    table = comparison.tables["models"].set_index("model")
    for member in comparison.lineup.members:
        row = table.loc[member.name]
        assert row["V_T"] == pytest.approx(row["V_M"] + row["V_R"] + 2 * row["C_MR"])
        assert row["V_M"] == pytest.approx(np.var(MASK), rel=0.3)
        assert row["relative"] == pytest.approx(row["V_R"] / (row["V_R"] + row["V_M"]))
        assert row["relative_low"] < row["relative"] < row["relative_high"]
    layers = comparison.tables["layers"]
    means = layers.astype({"V_R": float}).groupby("model")["V_R"].mean()
    np.testing.assert_allclose(means[table.index], table["V_R"])


def test_items_in_common_are_compared_wherever_they_are_in_a_file(tmp_path):
    stores = family(tmp_path / "a", seeds=1)
    later = file_of(tmp_path / "b.h5", "late-0", first_item=3, n=6)
    table = compare_lineup(line_up([*stores, later])).tables["models"].set_index("model")
    for store, items in [*((store, slice(3, 8)) for store in stores), (later, slice(0, 5))]:
        layers = range(store.n_layers)
        effects = [channel_effects(store, k).take(np.arange(8)[items]) for k in layers]
        expected = gather_variances(effects).mean((0, 1)).estimate["V_R"].item()
        name = store.model.removeprefix("zoo/")
        assert table.loc[name, "V_R"] == pytest.approx(expected), name


def test_architectures_have_intervals_over_models_and_over_items(comparison):
    table = comparison.tables["architectures"].set_index(["architecture", "quantity"])
    models = comparison.tables["models"]
    for kind in TRUTH:
        row = table.loc[(kind, "V_R")]
        assert row["estimate"] == pytest.approx(
            models.loc[models["architecture"] == kind, "V_R"].mean()
        )
        assert row["low_models"] < row["estimate"] < row["high_models"]
        assert row["low_items"] < row["estimate"] < row["high_items"]
        assert row["method_models"] == "t(2) over models"
        shares = [table.loc[(kind, f"share_{c}"), "estimate"] for c in ("mask", "residual")]
        assert sum(shares) == pytest.approx(1)


def test_pooled_items_of_one_model_are_its_own(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, seeds=1)))
    table = found.tables["architectures"].set_index(["architecture", "quantity"])
    for _, row in found.tables["models"].iterrows():
        for name in ("V_T", "V_R", "share_mask"):
            both = table.loc[(row["architecture"], name)]
            assert both["low_items"] == pytest.approx(row[f"{name}_low"])
            assert both["high_items"] == pytest.approx(row[f"{name}_high"])
        assert table.loc[(slice(None), "V_R"), "low_models"].isna().all()


def test_the_order_that_was_put_in_is_found(comparison):
    assert comparison.found["V_R"].test.p_value < 0.01
    claims = {claim.id: claim for claim in hypothesis_claims(comparison)}
    assert claims["H1_step_rope_ntk_V_R"].verdict == "supported"
    assert claims["H1_step_window_rope_V_R"].verdict == "supported"
    assert claims["H2_slope_of_window_V_R"].verdict == "supported"
    assert claims["H2_slope_window_others_V_R"].verdict == "supported"
    found = answers(comparison, list(claims.values()))
    assert [a.verdict for a in found] == ["supported"] * 4
    assert [a.hypothesis for a in found] == ["H1", "H1", "H2", "H3"]


def test_the_reverse_order_contradicts(tmp_path):
    truth = {"ntk": (1.0, 0.0), "rope": (0.7, 0.5), "window": (0.4, -0.4)}
    found = compare_lineup(line_up(family(tmp_path, truth=truth)))
    verdicts = {a.value: a.verdict for a in answers(found, hypothesis_claims(found))}
    assert verdicts == {
        "V_R": "contradicted", "V_R/(V_R + V_M)": "contradicted", "V_M and V_R": "supported",
    }  # fmt: skip


def test_secondary_tests_are_adjusted_and_one_is_primary(comparison):
    tests = comparison.tables["tests"]
    (primary,) = tests.index[tests["primary"]]
    assert (tests.loc[primary, "value"], tests.loc[primary, "response"]) == ("V_R", "intercept")
    secondary = tests[~tests["check"] & ~tests["primary"]]
    assert len(secondary) == 5  # slopes of V_R and V_T, means of the other three values
    assert (secondary["p_holm"] >= secondary["p_value"]).all()
    assert tests.loc[tests["check"], "p_holm"].isna().all()
    assert np.isnan(tests.loc[primary, "p_holm"])
    assert set(tests["value"]) == set(VALUES)


def test_the_mixed_model_tests_every_value_that_has_layers(comparison):
    found = {value: (one.mixed, one.test.method) for value, one in comparison.found.items()}
    for value in ("V_R", "V_T"):
        assert (found[value][0].status, found[value][1]) == ("ok", "mixed model F")
    assert (found["V_M"][0].status, found["V_M"][1]) == ("failed", "two-stage F")  # flat over depth
    assert found["relative"] == (None, "two-stage F")  # one number for each model
    assert set(comparison.tables["residuals"]["value"]) == {"V_R"}


def test_unbalanced_designs_are_tested_and_noted(tmp_path):
    seeds = {"ntk": 3, "rope": 2, "window": 1}
    found = compare_lineup(line_up(family(tmp_path, seeds=seeds)))
    test = found.found["V_R"].test
    assert (test.df_between, test.df_within) == (2, pytest.approx(3))
    notes = " ".join(found.found["V_R"].notes)
    assert "one model only of window" in notes
    assert "unequal numbers of models" in notes


def test_one_model_of_each_is_described_and_not_tested(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, seeds=1)))
    assert found.found["V_R"].status == "refused"
    assert "one model per architecture" in found.found["V_R"].reason
    claims = hypothesis_claims(found)
    verdicts = [a.verdict for a in answers(found, claims)]
    assert verdicts == ["not_applicable"] * 3 + ["supported"]
    assert "tests" not in found.tables
    assert len(found.tables["layers"]) == 9


def test_one_architecture_is_described_and_not_tested(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, truth={"rope": TRUTH["rope"]})))
    assert found.found["V_R"].reason.startswith("one architecture ('rope'): there is nothing")
    claims = hypothesis_claims(found)
    assert claims[0].protocol == "needs files of ntk, of window, and of standard (or rope)"
    assert [a.verdict for a in answers(found, claims)][-1] == "supported"


def test_one_layer_and_one_head_have_no_slope(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, layers=1, heads=1)))
    assert found.found["V_R"].slope_test is None
    assert "one layer per model" in " ".join(found.found["V_R"].notes)
    (claim,) = [c for c in hypothesis_claims(found) if c.id.startswith("H2")]
    assert claim.verdict == "not_applicable"
    assert claim.protocol == "one layer was measured: no slope over depth"


def test_models_that_are_copies_of_one_are_no_sample(tmp_path):
    stores = [
        file_of(tmp_path / f"{kind}-{k}.h5", f"{kind}-{k}", size=size)
        for kind, size in (("ntk", 0.4), ("rope", 0.6), ("window", 0.8))
        for k in range(2)
    ]
    found = compare_lineup(line_up(stores))
    assert "agree to rounding" in found.found["V_R"].reason
    assert all(c.verdict == "not_applicable" for c in hypothesis_claims(found) if "H1" in c.id)


@pytest.mark.parametrize("size", [0.0, 1.0], ids=["no effect", "noise below 0"])
def test_a_ratio_that_is_not_defined_is_not_compared(size, tmp_path):
    silent = []
    for k in (0, 4):  # seeds whose estimates are below 0
        mask, residual = size * np.random.default_rng(k).normal(size=(2, 8, 3))
        mask[:, -1] = residual[:, -1] = 0
        fields = dict(weights_digest=f"n{k}", model=f"none-{k}")
        path = tmp_path / f"none-{k}.h5"
        silent.append(
            synthetic.effect_store(path, mask, residual, prefixes=(1, 4, 7), fields=fields)
        )
    found = compare_lineup(line_up([*family(tmp_path, seeds=2, layers=1, heads=1), *silent]))
    table = found.tables["models"].set_index("architecture")
    assert (table.loc["none", ["V_R", "V_M"]].sum(axis=1) <= 0).all()
    assert "relative" not in found.found
    reasons = {c.id: c.protocol for c in hypothesis_claims(found)}
    assert reasons["H1_relative"] == "undefined: V_R + V_M is not above 0 in every model"


# --- variants of one checkpoint ---


def test_variants_are_compared_over_items_and_test_no_architecture(paired):
    assert paired.found == {}
    assert "tests" not in paired.tables
    table = paired.tables["differences"].set_index(["value", "contrast"])
    models = paired.tables["models"].set_index("architecture")
    row = table.loc[("V_R", "window(3) - standard")]
    assert row["estimate"] == pytest.approx(
        models.loc["window(3)", "V_R"] - models.loc["standard", "V_R"]
    )
    assert row["low"] < row["estimate"] < row["high"]
    assert row["method"] == "bootstrap of items, t(7)"
    assert row["p_holm"] >= row["p_value"]
    verdicts = [a.verdict for a in answers(paired, hypothesis_claims(paired))]
    assert verdicts == ["supported"] * 4


def test_pairing_cancels_what_items_share(paired):
    models = paired.tables["models"].set_index("architecture")
    table = paired.tables["differences"].set_index(["value", "contrast"])
    row = table.loc[("V_M", "ntk(8) - standard")]
    alone = models.loc["standard", "V_M_high"] - models.loc["standard", "V_M_low"]
    assert row["high"] - row["low"] < alone / 2


def test_variants_without_those_of_the_study_are_described(tmp_path):
    truth = {"standard": (0.5, 0.0), "linear(8)": (0.4, 0.0), "no_causal": (0.4, 0.0)}
    found = compare_lineup(line_up(variants(tmp_path, truth)))
    claims = hypothesis_claims(found)
    assert {c.id for c in claims if c.id.startswith("H3")} == {
        f"H3_{channel}_{name}" for channel in ("mask", "residual")
        for name in ("standard", "linear_8")
    }  # fmt: skip
    assert [a.verdict for a in answers(found, claims)] == ["not_applicable"] * 3 + ["supported"]


# --- what stands beside ---


def test_sinks_and_replacements_of_every_model(tmp_path):
    rng = np.random.default_rng(0)
    stores = []
    for name in ("rope-0", "rope-1"):
        files = synthetic.study_files(tmp_path / name, rng, weights_digest=name, model=name)
        stores += [files[role] for role in ("natural", "shifted", "mean")]
    found = compare_lineup(line_up(stores))
    sinks = found.tables["sinks"].set_index("model")
    assert list(sinks.index) == ["rope-0", "rope-1"]
    assert (sinks["queries"] == 23).all()
    np.testing.assert_allclose(sinks["even"], np.mean(1 / np.arange(2, 25)))
    store = ActivationStore(tmp_path / "rope-0" / "natural.h5")
    layer, head = (int(k) for k in sinks.loc["rope-0", "strongest"].split(":"))
    scores = store.read("sink_score", layer)[:, 1:, head] - store.normalizer(layer)[:, 1:, head]
    assert sinks.loc["rope-0", "attention"] == pytest.approx(np.exp(scores).mean(), rel=0.5)
    removed = found.tables["replacement"].query("primary").set_index("model")
    assert removed.loc["rope-1", "fraction_removed"] == pytest.approx(0.75)


def test_checks_are_those_of_each_model_also_where_layers_rotate_differently(tmp_path):
    nested = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    stores = family(tmp_path, seeds=1, config={"rope_parameters": nested})
    table = compare_lineup(line_up(stores)).tables["checks"]
    for store in stores:
        expected = check(store)
        assert expected["rope"] == "full attention: linear; sliding attention: default"
        (row,) = table[table["model"] == store.model.removeprefix("zoo/")].to_dict("records")
        assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("kind", ["comparison", "paired"])
def test_every_limit_follows_the_level(kind, request):
    sure = request.getfixturevalue(kind)
    unsure = compare_lineup(sure.lineup, inference=Inference(level=0.5))
    compared, wrong = compare_limits(sure.tables, unsure.tables)
    assert not wrong
    assert {"models.V_R_low", "models.relative_low", "layers.V_M_low"} <= compared
    for value, contrasts in sure.contrasts.items():
        for one, other in zip(contrasts, unsure.contrasts[value], strict=True):
            assert follows(one.interval, other.interval), one.contrast.name
