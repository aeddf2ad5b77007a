"""Several models from their files: what is compared with what, what is found, what is refused."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import synthetic
from click.testing import CliRunner
from lineups import MASK, TRUTH, family, file_of, variants

from posprobe.channels import Variances
from posprobe.claims import answers, hypothesis_claims
from posprobe.cli import main
from posprobe.comparison import VALUES, compare_lineup, line_up
from posprobe.comparison.tables import share_rows
from posprobe.errors import DesignError, StoreError
from posprobe.figures import COMPARISON_PANELS, draw
from posprobe.store import ActivationStore
from posprobe.workflows.compare import compare


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def comparison(models):
    return compare_lineup(line_up(models))


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    return compare_lineup(line_up(variants(tmp_path_factory.mktemp("variants"))))


def refuses(said, stores, **options):
    with pytest.raises(DesignError, match=said) as error:
        line_up(stores, **options)
    assert "\n" not in str(error.value)


# --- who is who ---


def test_models_are_sorted_by_architecture_in_any_order_of_files(models):
    there, back = line_up(models), line_up(models[::-1])
    assert there.architectures == back.architectures
    assert list(there.architectures) == ["ntk", "rope", "window"]
    assert there.architectures["rope"] == ["rope-0", "rope-1", "rope-2"]
    assert not there.paired
    assert there.notes == ()


def test_architectures_may_be_said(models):
    lineup = line_up(models, architectures={"rotary": "*rope-*", "rest": "*[tw]-[0-9]"} | {
        "rest": "zoo/[nw]*"})  # fmt: skip
    assert list(lineup.architectures) == ["rest", "rotary"]
    assert len(lineup.architectures["rest"]) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"cut_sink": "all"},
        {"fixed_denominator": [[0, 0, 2.0]]},
        {"temperature": [[0, 0.5]]},
        {"window": 3},
        {"causal": False},
    ],
)
def test_a_change_of_attention_is_no_architecture(change, tmp_path):
    files = family(tmp_path, seeds=2, interventions=[{"causal": True, "cut_sink": None} | change])
    refuses(f"under an intervention \\({min(change)}\\), which does not define", files)


def test_natural_captures_of_other_lengths_are_refused(models, tmp_path):
    def natural(name, length, **fields):
        path = tmp_path / name / f"{length}.h5"
        path.parent.mkdir()
        header = dict(model=f"zoo/{name}", weights_digest=name, **fields)
        return synthetic.write(path, {"normalizer": np.zeros((3, 6, length, 2))}, **header)

    pair = [natural("rope-0", 8), natural("rope-1", 6)]
    refuses("has sequences of 6 tokens and rope-0/8.h5 of 8: make all natural", [*models, *pair])


def test_naturals_with_and_without_a_bos_are_noted(models, tmp_path):
    def natural(name, bos):
        path = tmp_path / name / "natural.h5"
        path.parent.mkdir()
        header = dict(model=f"zoo/{name}", weights_digest=name, stimulus={"bos_token": bos})
        return synthetic.write(path, {"normalizer": np.zeros((3, 6, 8, 2))}, **header)

    mixed = line_up([*models, natural("rope-0", None), natural("rope-1", 1)])
    assert any("natural captures of rope-0 begin with text" in note for note in mixed.notes)


def test_models_without_a_causal_mask_have_no_part_in_what_needs_one(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, seeds=2, variant="no_causal")))
    assert not [c for c in hypothesis_claims(found) if c.statement.startswith("H3: the")]
    said = [note for note in found.lineup.notes if "without a causal mask" in note]
    assert len(said) == 1
    assert "rope-0 [no_causal]" in said[0]


def test_shares_of_a_total_that_may_be_zero_are_not_shown():
    def part(total, mask, residual, interplay):
        names = ("V_T", "V_M", "V_R", "C_MR")
        values = (total, mask, residual, interplay)
        found = {k: np.array([[v]]) for k, v in zip(names, values, strict=True)}
        return Variances(found, {}, {})

    apart = [part(0.06, 0.03, 0.01, 0.01), part(-0.05, 0.01, 0.02, -0.04)]
    assert np.isnan([row["estimate"] for row in share_rows(apart, None, 0.95)]).all()
    alike = [part(0.06, 0.03, 0.01, 0.01), part(0.05, 0.03, 0.0, 0.01)] * 2
    rows = share_rows(alike, None, 0.95)
    assert [row["estimate"] for row in rows] == pytest.approx([8 / 11, 3 / 11])
    assert all(row["low_models"] < row["estimate"] < row["high_models"] for row in rows)


def test_an_architecture_is_given_once(models, tmp_path):
    twice = ["--architecture", "a=*0*", "--architecture", "a=*1*"]
    files = [str(store.path) for store in models]
    done = CliRunner().invoke(main, ["compare", "-o", str(tmp_path / "out"), *twice, *files])
    assert done.exit_code != 0
    assert "a is given twice: write one PATTERN" in done.output


def test_a_model_without_an_architecture_is_refused(models):
    said = r"model 'rope-0' \(rope-0/shifted\.h5\) matches no --architecture: give each model one"
    refuses(said, models[3:], architectures={"w": "*window*"})
    refuses(r"matches a and b: give", models, architectures={"a": "*", "b": "*ntk*"})


def test_names_are_as_long_as_they_must_be(tmp_path):
    stores = [
        file_of(tmp_path / f"{k}.h5", k, model=f"{k}/model-0", weights_digest=k) for k in "ab"
    ]
    assert [m.name for m in line_up(stores).members] == ["a/model-0", "b/model-0"]
    assert list(line_up(stores).architectures) == ["model"]


def test_a_variant_of_every_model_belongs_to_the_architecture(tmp_path):
    stores = [
        file_of(tmp_path / f"{k}.h5", f"rope-{k}", variant=variant)
        for k, variant in enumerate(["standard", "ntk(8)"])
    ]
    lineup = line_up(stores)
    assert lineup.architectures == {"rope": ["rope-0"], "rope [ntk(8)]": ["rope-1 [ntk(8)]"]}


def test_variants_of_one_checkpoint_are_paired_and_the_standard_one_is_first(tmp_path):
    lineup = line_up(variants(tmp_path)[::-1])
    assert lineup.paired
    assert [m.architecture for m in lineup.members] == ["standard", "ntk(8)", "window(3)"]


def test_variants_take_no_other_architecture(tmp_path):
    refuses("all files are of one model's weights", variants(tmp_path), architectures={"a": "*"})


# --- what is refused, what is handled ---


def test_one_model_is_no_comparison(models):
    refuses("the files are of 1 model .* needs two; for one model use: posprobe an", models[:1])
    refuses("the files are of 0 model", [])


def test_refuses_a_model_given_twice(models, tmp_path):
    twin = file_of(tmp_path / "copy" / "shifted.h5", "rope-0")
    said = r"model 'rope-0' is given twice \(rope-0/shifted\.h5, copy/shifted\.h5\): give each of"
    refuses(said, [*models, twin])


@pytest.mark.parametrize("variant", ["standard", "ntk(8)"])
def test_refuses_two_models_of_one_name(models, tmp_path, variant):
    twin = file_of(tmp_path / "b.h5", "rope-0", weights_digest="other", variant=variant)
    said = "two sets of weights named 'zoo/rope-0': capture a model with one --model-dt"
    refuses(said, [*models, twin])


def test_refuses_weights_that_some_models_share(models, tmp_path):
    twin = file_of(tmp_path / "b.h5", "rope-0", variant="ntk(8)")
    said = r"model 'zoo/rope-0' is given as standard and ntk\(8\) together with other models, so"
    refuses(said, [*models, twin])


def test_refuses_a_model_without_a_shifted_capture(models, tmp_path):
    arrays = {"normalizer": np.zeros((1, 2, 3, 1))}
    store = synthetic.write(tmp_path / "natural.h5", arrays, weights_digest="x", model="zoo/ntk-9")
    refuses("model 'ntk-9' has no shifted capture among its files", [*models, store])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            dict(prefixes=(1, 5, 9)),
            "has prefixes 1, 5, 9 and ntk-0/shifted.h5 1, 4, 7: capture all",
        ),
        (dict(offsets=(2,)), "has offsets 2 and ntk-0/shifted.h5 1: capture all models with the"),
        (dict(stimulus={"bos_token": None}), "has text at position 0 and ntk-0/shifted.h5 a BOS"),
        (dict(first_item=6), "the models have 2 items in common, and intervals need 3"),
    ],
    ids=["prefixes", "offsets", "first token", "items"],
)
def test_refuses_files_of_different_designs(fields, said, models, tmp_path):
    refuses(re.escape(said), [*models, file_of(tmp_path / "b.h5", "rope-9", **fields)])


def test_different_tokens_are_refused_unless_allowed(models, tmp_path):
    tokens = synthetic.shifted_index(8, (1, 4, 7), 4)["tokens"] * 2
    other = file_of(tmp_path / "b.h5", "gemma", index={"tokens": tokens})
    said = r"/b\.h5 and gemma.*|/shifted\.h5 and .*/b\.h5 contain different tokens: use one text"
    refuses(said, [*models, other])
    lineup = line_up([*models, other], different_tokens=True)
    assert not lineup.same_tokens
    assert "models saw different tokens" in lineup.notes[0]
    table = compare_lineup(lineup).tables["architectures"].set_index(["architecture", "quantity"])
    assert np.isnan(table.loc[("rope", "V_R"), "low_items"])  # items of several texts are no sample
    assert table.loc[("gemma", "V_R"), "low_items"] > 0


def test_unequal_numbers_of_items_use_those_in_common(models, tmp_path):
    lineup = line_up([*models[:8], file_of(tmp_path / "b.h5", "window-2", n=6)])
    assert lineup.items.tolist() == list(range(6))
    assert lineup.notes == ("files hold 6 to 8 items: the 6 common to all are used",)
    assert (compare_lineup(lineup).tables["models"]["items"] == 6).all()


def test_a_window_that_hides_offsets_or_key_0_is_noted(models, tmp_path):
    hidden = file_of(tmp_path / "b.h5", "tight-0", layer_window=(0, 1, 0))
    notes = line_up([*models, hidden]).notes
    assert "tight-0: its window of 1 tokens hides some of the offsets 1" in notes[0]
    assert notes[1].startswith("late queries of tight do not see key 0 behind a window")


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
        assert row["method_models"] == "pooled t(6) over models"
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
    secondary = tests[(tests["method"] == "two-stage F") & ~tests["primary"]]
    assert (secondary["p_holm"] >= secondary["p_value"]).all()
    assert np.isnan(tests.loc[primary, "p_holm"])
    assert set(tests["value"]) == set(VALUES)


def test_a_mixed_model_stands_beside_with_its_status(comparison):
    assert comparison.found["V_R"].mixed.status in {"ok", "singular", "not_identified", "failed"}
    assert comparison.found["relative"].mixed is None


def test_unbalanced_designs_are_tested_and_noted(tmp_path):
    seeds = {"ntk": 3, "rope": 2, "window": 1}
    found = compare_lineup(line_up(family(tmp_path, seeds=seeds)))
    test = found.found["V_R"].test
    assert (test.df_between, test.df_within) == (2, 3)
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


# --- what is drawn ---


@pytest.mark.parametrize("name", COMPARISON_PANELS)
def test_every_panel_says_what_it_asks_and_names_its_axes(name, comparison):
    (ax,) = draw(name, comparison.tables).axes
    assert len(ax.figure.get_suptitle()) > 10
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    assert "interval" in COMPARISON_PANELS[name].caption.format(level="95%")


def test_thin_lines_are_models_and_the_thick_one_is_their_mean(comparison):
    (ax,) = draw("depth_V_R", comparison.tables).axes
    thick = {line.get_label(): line for line in ax.get_lines() if line.get_linewidth() > 2}
    thin = [line for line in ax.get_lines() if line.get_linewidth() < 0.7 + 1e-9][:9]
    assert set(thick) == {f"{kind} (3 models)" for kind in TRUTH}
    table = comparison.tables["layers"].astype({"V_R": float})
    means = table.groupby(["architecture", "layer"])["V_R"].mean()
    np.testing.assert_allclose(thick["window (3 models)"].get_ydata(), means["window"])
    own = table[table["model"] == "ntk-1"]["V_R"]
    assert any(np.array_equal(line.get_ydata(), own) for line in thin)
    assert not ax.collections  # no band where models are the spread


def test_a_single_model_has_a_band_over_items(paired):
    (ax,) = draw("depth_V_M", paired.tables).axes
    assert len(ax.collections) == 3


def test_models_of_other_depth_are_read_between_layers(models, tmp_path):
    deeper = file_of(tmp_path / "b.h5", "window-9", layers=5, size=1.0, growth=0.6)
    found = compare_lineup(line_up([*models, deeper]))
    (ax,) = draw("depth_V_R", found.tables).axes
    thick = {line.get_label(): line for line in ax.get_lines()}["window (4 models)"]
    np.testing.assert_allclose(thick.get_xdata(), [0, 0.5, 1])


# --- the folder and the command line ---


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_folder_with_page_tables_and_figures(models, tmp_path):
    found = invoke("compare", *[s.path for s in models], "-o", tmp_path / "out", "--quiet")
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{tmp_path / 'out' / 'report.html'}\n"
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    wanted = {"architectures", "models", "layers", "tests", "contrasts", "estimates", "checks"}
    assert {f"tables/{name}.csv" for name in wanted} <= names
    assert {"figures/balance.svg", "figures/depth_V_R.svg", "comparison.json"} <= names
    plain = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert plain["architectures"]["ntk"] == ["ntk-0", "ntk-1", "ntk-2"]
    assert plain["status"]["V_R"] == "tested"
    assert plain["mixed_model"]["V_R"]["status"]
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("two-stage F", "H1", "Planned contrasts", "9 models by architecture", "F(2, 6)"):
        assert words in page
    assert page.count("<svg") == 5
    assert "object at" not in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_the_same_files_give_the_same_bytes_in_any_order(models, tmp_path):
    paths = [store.path for store in models]
    pages = [
        compare(order, tmp_path / name, progress=False).read_bytes()
        for name, order in (("a", paths), ("b", paths[::-1]))
    ]
    assert pages[0] == pages[1]


def test_a_comparison_of_variants_says_so(tmp_path):
    paths = [store.path for store in variants(tmp_path)]
    page = compare(paths, tmp_path / "out", progress=False).read_text()
    assert "3 variants of one checkpoint" in page
    assert "do not test architectures" in page
    assert "Tests of architecture" not in page
    assert len(pd.read_csv(tmp_path / "out" / "tables" / "contrasts.csv")) == 5 + 3 + 5 + 5


def test_the_command_line_says_what_is_wrong_in_one_line(models, tmp_path):
    paths = [store.path for store in models]
    found = invoke("compare", paths[0], paths[0], "-o", tmp_path / "out")
    assert found.exit_code == 2
    assert re.fullmatch(r"posprobe: file .*ntk-0/shifted\.h5 is given twice: .*\n", found.stderr)
    found = invoke("compare", *paths, "-o", tmp_path / "out", "--architecture", "rope")
    assert found.exit_code == 2
    assert "write NAME=PATTERN" in found.stderr
    found = invoke("compare", *paths, "-o", tmp_path / "out", "--architecture", "all=*", "--quiet")
    assert found.exit_code == 0
    assert "one architecture" in (tmp_path / "out" / "report.html").read_text()


def test_an_incomplete_file_is_refused(models, tmp_path):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(models[0].path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"broken\.h5"):
        compare([models[1].path, broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
