"""Claims, tables and pages of the committed reports follow from one another.

Nothing is recomputed from captures here. Where a claim's numbers stand in a table they are compared
with it, and its verdict is derived from its limits; columns that are functions of others are; means
over heads and layers are; and numbers that two reports share are equal. Not checked against
anything are the limits of means over layers whose replicates no table holds (probe_normalizer,
probe_residual, normalizer_on_patterns, sink_heads) and of the largest values over items
(mask_isolated, residual_opened, closed_system, fingerprints, mask_removed, window_closes_mask,
window_growth); the estimates of most of these are.
"""

import html

import committed
import numpy as np
import pandas as pd
import pytest

from posprobe.claims.verdicts import above, below
from posprobe.intervals import Interval
from posprobe.report.words import VERDICTS

ONE_MODEL = "01_two_channels"
COMPARISONS = [f"02_architectures/{name}" for name in ("family", "controls", "gemma", "variants")]
ALL = [ONE_MODEL, *COMPARISONS]
WITH_CONTRASTS = [report for report in COMPARISONS if not report.endswith("gemma")]
VARIANCES = ["V_T", "V_M", "V_R", "C_MR"]
NATIVE = {"stimulus": "shifted", "layer": "all"}

# claim: table, labels of its row, column (limits beside it)
ROWS = {
    "position_in_attention": ("channels", NATIVE, "V_T"),
    "mask_channel": ("channels", NATIVE, "V_M"),
    "residual_channel": ("channels", NATIVE, "V_R"),
    "channels_add": ("channels", NATIVE, "C_MR"),
    "share_mask": ("channels", NATIVE, "share_mask"),
    "share_residual": ("channels", NATIVE, "share_residual"),
    "residual_at_layer_0": (
        "probes",
        {"layer": 0, "features": "residual", "estimand": "fixed_probe"},
        "r2",
    ),
    "bos_replacement": ("replacement", {"primary": True}, "fraction_removed"),
    "layer_0_residual": ("layer_0", {"name": "layer_0_rest"}, "estimate"),
    "offsets_only": ("layer_0", {"name": "scores_moved"}, "estimate"),
    "sinks_write": ("sink_writing", {"quantity": "written", "heads": "ratio"}, "estimate"),
    "sinks_forward": (
        "cut_sink",
        {"heads": "some sink-reading", "measured": "heads left whole", "positions": "all"},
        "fraction_removed",
    ),
    "sinks_forward_specifically": (
        "cut_sink",
        {
            "heads": "some sink-reading minus random",
            "measured": "heads left whole",
            "positions": "all",
        },
        "fraction_removed",
    ),
    "sink_hidden_everywhere": (
        "cut_sink",
        {"heads": "all", "measured": "without key 0", "positions": "all"},
        "fraction_removed",
    ),
    "residual_behind_window": (
        "masks",
        {"positions": "behind the window", "quantity": "V_T"},
        "changed",
    ),
    "normalizer_without_mask": ("mask_probes", {"layer": 0}, "r2_masked"),
}
# claim: what its verdict follows from, and the bound
BELOW = {
    "mask_isolated": 1e-4,
    "closed_system": 1e-4,
    "fingerprint_constant": 1e-4,
    "layer_0_residual": 1e-4,
    "offsets_only": 1e-3,
    "mask_removed": 1e-4,
    "window_closes_mask": 1e-4,
    "residual_at_layer_0": 0.02,
    "normalizer_without_mask": 0.02,
}
ABOVE = {"residual_opened": 1e-4, "fingerprint_varies": 1e-4, "sinks_write": 1.0}


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


def limits(row, column):
    """The columns of a row's limits, named after the column or not."""
    named = f"{column}_low" in row
    return [row[f"{column}_{end}" if named else end] for end in ("low", "high")]


def interval(claim):
    values = (claim[key] for key in ("estimate", "ci_low", "ci_high", "ci_level", "ci_method"))
    return Interval(*values, claim["id"], claim["n"])


@pytest.mark.parametrize("name", ROWS)
def test_a_claim_has_the_numbers_of_its_row(name):
    table, labels, column = ROWS[name]
    row, claim = committed.row(ONE_MODEL, table, labels), committed.claims(ONE_MODEL)[name]
    close(
        [claim[key] for key in ("estimate", "ci_low", "ci_high")],
        [row[column], *limits(row, column)],
    )
    assert claim["n"] == row.get("n", claim["n"])


def test_every_verdict_on_one_model_follows_from_its_limits():
    for name, claim in committed.claims(ONE_MODEL).items():
        if claim["estimate"] is None:
            assert (claim["verdict"], claim["n"]) == ("not_applicable", None)
        elif name == "bos_replacement":  # within 0.2 of the study's 40%
            assert claim["reference"] == 0.4
            assert above(interval(claim), 0.2).verdict == claim["verdict"] == "contradicted"
        elif name in BELOW:
            assert claim["verdict"] == below(interval(claim), BELOW[name]).verdict, name
        else:
            assert claim["verdict"] == above(interval(claim), ABOVE.get(name, 0.0)).verdict, name


def test_claims_without_a_row_have_the_estimate_of_their_tables():
    claims = {name: claim["estimate"] for name, claim in committed.claims(ONE_MODEL).items()}
    probes = committed.table(ONE_MODEL, "probes")
    fixed = probes[probes["estimand"] == "fixed_probe"].groupby("features")["r2"].mean()
    close(claims["probe_normalizer"], fixed["normalizer"])
    close(claims["probe_residual"], fixed["residual"])
    patterns = committed.table(ONE_MODEL, "fixed_denominator")
    close(claims["normalizer_on_patterns"], patterns["difference"].mean())
    sinks = committed.table(ONE_MODEL, "sinks")
    close(claims["sink_heads"], (sinks["attention"] > 0.3).mean())
    largest = committed.table(ONE_MODEL, "fingerprint").groupby("stimulus")["spread"].max()
    close(claims["fingerprint_varies"], largest["many first tokens"])
    close(claims["fingerprint_constant"], largest["one first token"])
    close(claims["closed_system"], committed.table(ONE_MODEL, "closed_system")["difference"].max())
    repeated = committed.table(ONE_MODEL, "repeated").groupby("stimulus")["residual"].max()
    assert claims["mask_isolated"] <= repeated["repeated"] < 1e-4
    assert 1e-4 < claims["residual_opened"] <= repeated["bos_repeated"]
    masks = committed.table(ONE_MODEL, "masks").groupby("mask")["mismatch"].max()
    assert claims["mask_removed"] <= masks["no causal mask"] < 1e-4
    assert claims["window_closes_mask"] <= masks["window of 32 tokens"] < 1e-4


def test_window_growth_is_the_last_third_of_layers_less_the_first():
    table = committed.table(ONE_MODEL, "mask_layers")
    table = table[table["quantity"] == "V_R"].pivot(
        index="layer", columns="mask", values="estimate"
    )
    thirds = np.array_split(table.index, 3)
    growth = table.loc[thirds[-1]].mean() - table.loc[thirds[0]].mean()
    window = next(name for name in table.columns if name.startswith("window"))
    claim = committed.claims(ONE_MODEL)["window_growth"]
    close(claim["estimate"], growth[window] - growth["native"])


@pytest.mark.parametrize(
    ("report", "name"),
    [
        (ONE_MODEL, "channels"),
        (ONE_MODEL, "channels_by_layer"),
        (ONE_MODEL, "channels_by_head"),
        *((report, name) for report in COMPARISONS for name in ("models", "layers")),
        ("02_architectures/gemma", "layer_types"),
    ],
)
def test_the_channels_add_up_to_the_total(report, name):
    table = committed.table(report, name)
    close(table["V_T"], table["V_M"] + table["V_R"] + 2 * table["C_MR"])
    known = table[table["status"] == "ok"]
    close(known["share_mask"] + known["share_residual"], 1)
    close(known["share_mask"], (known["V_M"] + known["C_MR"]) / known["V_T"])
    assert table.loc[table["status"] == "undefined", "share_mask"].isna().all()
    opposed, reinforcing = table["C_MR_high"] < 0, table["C_MR_low"] > 0
    words = np.select([opposed, reinforcing], ["opposed", "reinforcing"], "not distinguishable")
    assert table["relation"].tolist() == words.tolist()


def test_layers_are_means_over_heads_and_the_whole_over_layers():
    heads, layers, whole = (
        committed.table(ONE_MODEL, name).set_index("stimulus")[["layer", *VARIANCES]]
        for name in ("channels_by_head", "channels_by_layer", "channels")
    )
    for stimulus in ("shifted", "natural"):
        found = heads.loc[stimulus].groupby("layer").mean()
        close(found, layers.loc[stimulus].set_index("layer"))
        close(found.mean(), whole.loc[stimulus, VARIANCES].astype(float))
    positions = committed.table(ONE_MODEL, "position_effects")
    positions = positions[positions["stimulus"] == "shifted"]
    every = positions["layer"] == "all"
    means = positions[~every].groupby("position")[["T", "M", "R", "S"]].mean()
    close(means, positions[every].set_index("position")[["T", "M", "R", "S"]])
    close(positions["T"], positions["M"] + positions["R"])


@pytest.mark.parametrize(
    ("name", "native", "changed"),
    [
        ("replacement", "V_R_native", "V_R_replaced"),
        ("cut_sink", "V_R_native", "V_R_cut"),
        ("fixed_forward", "V_R_native", "V_R_fixed"),
        ("masks", "native", "changed"),
    ],
)
def test_a_fraction_removed_is_what_is_missing_of_the_native(name, native, changed):
    table = committed.table(ONE_MODEL, name).dropna(subset=[changed])
    close(table["fraction_removed"], 1 - table[changed] / table[native])


def test_the_specification_curve_has_the_replacement_in_it():
    columns = ["treatment", "positions", "up_to", "fraction_removed", "low", "high", "n"]
    curve, table = (committed.table(ONE_MODEL, name) for name in ("specification", "replacement"))
    curve = curve[(curve["metric"] == "V_R") & (curve["layers"] == "all")]
    curve = curve[(curve["offsets"] == "all") & curve["positions"].isin(["early", "all"])]
    both = [part[columns].set_index(columns[:3]).sort_index() for part in (curve, table)]
    pd.testing.assert_frame_equal(*both, rtol=1e-9)
    assert committed.table(ONE_MODEL, "specification")["primary"].sum() == 1


def test_differences_and_ratios_of_columns():
    patterns = committed.table(ONE_MODEL, "fixed_denominator")
    close(patterns["difference"], patterns["r2_attention"] - patterns["r2_scores"])
    precision = committed.table(ONE_MODEL, "precision")
    close(precision["ratio"], precision["se_natural"] / precision["se_shifted"])
    written = committed.table(ONE_MODEL, "sink_writing").set_index(["quantity", "heads"])[
        "estimate"
    ]
    for quantity in written.index.unique("quantity"):
        ratio = written[quantity, "sink-reading"] / written[quantity, "other"]
        close(written[quantity, "ratio"], ratio)
    heads = committed.table(ONE_MODEL, "sink_heads")
    assert (heads["sink_reading"] == (heads["rate_chosen"] > 0.5)).all()


def test_the_family_is_measured_alike_with_and_without_its_controls():
    for name in ("models", "layers"):
        family, controls = (committed.table(report, name) for report in COMPARISONS[:2])
        controls = controls[controls["model"].isin(family["model"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(family, controls, rtol=1e-9)


@pytest.mark.parametrize("report", COMPARISONS)
def test_models_are_means_over_layers_and_architectures_over_models(report):
    layers, models = (committed.table(report, name) for name in ("layers", "models"))
    found = layers.groupby("model")[VARIANCES].mean()
    models = models.set_index("model")
    close(found.loc[models.index], models[VARIANCES])
    close(models["relative"], models["V_R"] / (models["V_R"] + models["V_M"]))
    architectures = committed.table(report, "architectures").pivot(
        index="architecture", columns="quantity", values="estimate"
    )
    means = models.groupby("architecture")[VARIANCES].mean()
    close(means, architectures.loc[means.index, VARIANCES])
    shares = (means["V_M"] + means["C_MR"]) / means["V_T"]
    known = architectures["share_mask"].dropna()
    close(known, shares[known.index])


def test_differences_between_variants_are_those_of_their_estimates():
    report = "02_architectures/variants"
    labels = ["value", "response", "contrast"]
    estimates = committed.table(report, "estimates").set_index(labels).sort_index()
    differences = committed.table(report, "differences")
    for _, row in differences.iterrows():
        one, other = row["contrast"].split(" - ")
        level = estimates.loc[row["value"], row["response"]]["estimate"]
        close(row["estimate"], level[one] - level[other])
    models = committed.table(report, "models").set_index("architecture")
    means = estimates.loc["V_R", "intercept"]["estimate"]
    close(means, models.loc[means.index, "V_R"])


@pytest.mark.parametrize("report", WITH_CONTRASTS)
def test_p_values_are_adjusted_by_holm(report):
    for _, table in committed.table(report, "contrasts").groupby("value"):
        ordered = table["p_value"].sort_values()
        factors = np.arange(len(ordered), 0, -1)
        adjusted = np.minimum(1, np.maximum.accumulate(factors * ordered))
        close(table["p_holm"].loc[ordered.index], adjusted)


@pytest.mark.parametrize("report", WITH_CONTRASTS)
def test_claims_on_contrasts_have_the_numbers_of_their_row(report):
    contrasts = committed.table(report, "contrasts")
    claims = [c for name, c in committed.claims(report).items() if name[:2] in ("H1", "H2")]
    assert len(claims) == len(contrasts[contrasts["value"].isin(["V_R", "relative"])])
    for claim in claims:
        same = np.isclose(contrasts["estimate"], claim["estimate"], rtol=1e-12)
        value = "V_R" if claim["id"].endswith("_V_R") else "relative"
        (row,) = contrasts[same & (contrasts["value"] == value)].to_dict("records")
        close([claim["ci_low"], claim["ci_high"]], [row["low"], row["high"]])
        sign = "supported" if row["estimate"] > 0 else "contradicted"
        assert committed.counted(claim) == (sign if row["p_holm"] < 0.05 else "inconclusive")


@pytest.mark.parametrize("report", COMPARISONS)
def test_claims_on_presence_have_the_numbers_of_the_model_with_the_lowest_limit(report):
    models = committed.table(report, "models")
    claims = [c for name, c in committed.claims(report).items() if name.startswith("H3")]
    assert claims
    for claim in claims:
        architecture = claim["statement"].split(" is present under ")[1].split(" (V_")[0]
        column = "V_M" if "mask channel" in claim["statement"] else "V_R"
        of_it = models[models["architecture"] == architecture]
        row = of_it.loc[of_it[f"{column}_low"].idxmin()]
        close([claim["estimate"], claim["ci_low"]], [row[column], row[f"{column}_low"]])
        assert claim["verdict"] == above(interval(claim), 0.0).verdict


@pytest.mark.parametrize("report", COMPARISONS)
def test_the_answers_follow_from_the_claims(report):
    claims = committed.claims(report)
    for answer in committed.comparison(report)["answers"]:
        ending = {"V_R": "V_R", "V_R/(V_R + V_M)": "relative", "V_M and V_R": ""}[answer["value"]]
        parts = {
            committed.counted(claim)
            for name, claim in claims.items()
            if name.startswith(answer["hypothesis"]) and name.endswith(ending)
            if "_trend_" not in name or answer["hypothesis"] != "H1"
        }
        if "contradicted" in parts or parts in ({"supported"}, {"not_applicable"}):
            expected = "contradicted" if "contradicted" in parts else parts.pop()
            assert answer["verdict"] == expected
        else:
            assert answer["verdict"] == "inconclusive"


@pytest.mark.parametrize("report", ["02_architectures/family", "02_architectures/controls"])
def test_the_tests_on_the_page_are_those_of_the_table(report):
    said = pd.DataFrame(committed.comparison(report)["tests"])
    table = committed.table(report, "tests")
    pd.testing.assert_frame_equal(said, table, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize("report", ALL)
def test_the_page_says_every_claim_with_its_verdict(report):
    page = (committed.REPORTS / report / "report.html").read_text(encoding="utf-8")
    for name, claim in committed.claims(report).items():
        _, found, rest = page.partition(f'<tr id="claim-{name}">')
        assert found, name
        row = html.unescape(rest[: rest.index("</tr>")])
        assert claim["statement"] in row
        verdict = committed.counted(claim)
        assert f'<span class="verdict {verdict}">{VERDICTS[verdict]}</span>' in row
