"""Files of isolations: recognised by their headers, turned into tables, and judged as claims."""

import dataclasses

import capture_child as child
import numpy as np
import pandas as pd
import pytest
import sinks
import synthetic
from limits import compare_limits, follows

from posprobe.analysis import (
    Analysis,
    Files,
    analyze_files,
    cut_key,
    possible_steps,
    sink_reading_heads,
    sort_files,
)
from posprobe.captures import QUANTITIES, capture_stimulus
from posprobe.claims.interventions import (
    denominator_claims,
    exact_claims,
    forwarding_claims,
    mask_claims,
)
from posprobe.errors import DesignError
from posprobe.intervals import Inference, Interval
from posprobe.models import Intervention
from posprobe.store import ActivationStore

PLAIN = {"causal": True, "cut_sink": None, "fixed_denominator": [], "window": None}


@pytest.fixture
def make(tmp_path):
    count = iter(range(100))

    def function(design="shifted", treatment="native", digest="w", **change):
        arrays = {"normalizer": np.zeros((1, 2, 4, 3))}
        return synthetic.write(
            tmp_path / f"{next(count)}.h5",
            arrays,
            design=design,
            position0_treatment=treatment,
            weights_digest=digest,
            interventions=[PLAIN | change],
        )

    return function


def test_interventions_are_recognised_in_any_order(make):
    base, natural, mean = make(), make("natural"), make(treatment="mean")
    cuts = [make(cut_sink="all"), make(cut_sink=[[0, 1]])]
    fixed = make(fixed_denominator=[[0, 0, 1.5]])
    for stores in ([base, *cuts, fixed, mean, natural], [fixed, mean, *cuts, natural, base]):
        files = sort_files(stores)
        expected = Files(natural, base, replaced=[mean], cut_sink=cuts, fixed_denominator=fixed)
        assert files == expected
        assert set(files.all()) == set(stores)


def test_a_change_that_all_files_share_belongs_to_the_model(make):
    shifted, natural = make(cut_sink="all"), make("natural", cut_sink="all")
    assert sort_files([shifted, natural]) == Files(natural, shifted)
    natural, shifted, narrow = make("natural", window=9), make(window=9), make(window=5)
    assert sort_files([narrow, natural, shifted]) == Files(natural, shifted, masks=[narrow])


def test_other_masks_are_recognised_in_both_designs(make):
    base, natural = make(), make("natural")
    masked = [make(window=5), make(causal=False), make("natural", causal=False)]
    files = sort_files([*masked, natural, base])
    assert files == Files(natural, base, masks=masked)
    assert files.intervened() == masked
    with pytest.raises(DesignError, match="both change attention in the same way; give one"):
        sort_files([base, *masked, make(causal=False)])


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (dict(temperature=[[0, 2.0]]), "differs from .* in interventions; analyze one model and"),
        (dict(window=9, cut_sink="all"), r"two ways at once \(cut_sink, window\), which no analys"),
        (dict(design="repeated", window=9), r"\(window\) in the repeated design .* no analysis"),
        (dict(cut_sink="all", digest="v"), "differs from .* in weights_digest"),
        (
            dict(cut_sink="all", fixed_denominator=[[0, 0, 1.0]]),
            "in two ways at once .* no analysis",
        ),
        (dict(design="natural", cut_sink="all"), r"\(cut_sink\) in the natural design .* no anal"),
        (dict(treatment="zero", cut_sink="all"), "with position 0 'zero', which no analysis uses"),
        (dict(), "are both shifted captures; give one"),
    ],
)
def test_files_that_answer_no_question(make, one, message):
    with pytest.raises(DesignError, match=message):
        sort_files([make(), make(**one)])


def test_two_files_that_answer_the_same_question(make):
    with pytest.raises(DesignError, match="both change attention in the same way; give one"):
        sort_files([make(), make(cut_sink=[[0, 1]]), make(cut_sink=[[0, 1]])])
    with pytest.raises(DesignError, match="both replace position 0 by 'mean'; give one"):
        sort_files([make(), make(treatment="mean"), make(treatment="mean")])
    two = [make(fixed_denominator=[[0, 0, c]]) for c in (1.0, 2.0)]
    with pytest.raises(DesignError, match=r"are both fixed_denominator captures and .*; give one"):
        sort_files([make(), *two])


# --- from files to tables, through a tiny model ---


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("isolation"), sinks.sink_model()
    forced = dict(bos="force", bos_id=sinks.FIRST)
    shifted = child.stimulus(n=6, **forced)
    fixed = tuple((0, head, 2.0) for head in range(4))
    plans = {
        "natural": (child.stimulus("natural", n=14, **forced), {}),
        "shifted": (shifted, {}),
        "zero": (shifted, {"position0": "zero"}),
        "sink": (shifted, {"intervention": Intervention(cut_sink=sinks.HEADS)}),
        "random": (shifted, {"intervention": Intervention(cut_sink=((0, 3), (1, 0)))}),
        "all": (shifted, {"intervention": Intervention(cut_sink="all")}),
        "fixed": (shifted, {"intervention": Intervention(fixed_denominator=fixed)}),
        "none": (shifted, {"intervention": Intervention(causal=False)}),
        "window": (shifted, {"intervention": Intervention(window=7)}),
        "natural_none": (
            child.stimulus("natural", n=14, **forced),
            {"intervention": Intervention(causal=False)},
        ),
    }
    kept = {"quantities": tuple(q for q in QUANTITIES if q != "residual"), "progress": False}
    for name, (stimulus, options) in plans.items():
        capture_stimulus(model, stimulus, folder / f"{name}.h5", **kept, **options)
    return {name: folder / f"{name}.h5" for name in plans}


def claims_of(analysis):
    return [
        claim
        for make in (exact_claims, forwarding_claims, denominator_claims, mask_claims)
        for claim in make(analysis)
    ]


def analysis_of(paths, *names, **inference):
    steps = []
    files = sort_files(ActivationStore(paths[name]) for name in names)
    analysis = analyze_files(files, inference=Inference(**inference), step=steps.append)
    assert len(steps) == len(possible_steps(files))
    return analysis


def test_all_tables_where_all_files_are(paths):
    analysis = analysis_of(paths, *paths)
    expected = {"sink_heads", "sink_writing", "fixed_denominator", "precision", "specification"}
    assert expected | {"cut_sink", "fixed_forward"} <= set(analysis.tables)
    assert sorted(sink_reading_heads(analysis.files.natural)) == sorted(sinks.HEADS)
    assert {"sink-reading", "random 1", "all"} <= set(analysis.tables["cut_sink"]["heads"])
    checks = analysis.tables["checks"].set_index("file")["heads_without_sink"]
    assert checks[["natural.h5", "sink.h5", "all.h5", "fixed.h5"]].tolist() == [0, 2, 12, 0]
    masks = analysis.tables["checks"].set_index("file")["mask"]
    assert masks[["none.h5", "window.h5", "natural_none.h5"]].tolist() == ["none", "causal", "none"]
    claims = {claim.id: claim for claim in claims_of(analysis)}
    assert all(claim.verdict != "not_applicable" for claim in claims.values())
    assert claims["mask_removed"].verdict == claims["window_closes_mask"].verdict == "supported"
    assert claims["layer_0_residual"].verdict == claims["offsets_only"].verdict == "supported"
    assert "no causal mask; positions: all" in claims["mask_removed"].protocol
    assert "positions: behind the window" in claims["residual_behind_window"].protocol
    assert "window of 7 tokens; positions: all" in claims["window_growth"].protocol
    assert "first 14 natural sequences" in claims["normalizer_without_mask"].protocol
    assert claims["sinks_write"].verdict == "supported"  # as the model was built


def test_every_limit_follows_the_level(paths):
    levels = 0.3, 0.1  # ratios of six items have no limits at higher ones
    sure, unsure = (analysis_of(paths, *paths, level=level) for level in levels)
    compared, wrong = compare_limits(sure.tables, unsure.tables)
    assert not wrong
    tables = {"cut_sink", "sink_heads", "sink_writing", "fixed_denominator", "fixed_forward"}
    tables |= {"precision", "specification", "masks", "mask_layers", "mask_probes"}
    assert tables <= {name.partition(".")[0] for name in compared}
    for name, interval in sure.intervals.items():
        assert follows(interval, unsure.intervals[name], levels), name
    assert {claim.ci_level for claim in claims_of(unsure)} == {0.1}


@pytest.mark.parametrize(
    ("names", "tables"),
    [
        (["natural"], {"sink_heads", "sink_writing", "fixed_denominator"}),
        (["shifted"], set()),
        (["shifted", "zero"], {"specification"}),
        (["shifted", "all"], {"cut_sink"}),
        (["shifted", "fixed"], {"fixed_forward"}),
        (["shifted", "none"], {"masks", "mask_layers"}),
        (
            ["natural", "natural_none"],
            {"sink_heads", "sink_writing", "fixed_denominator", "mask_probes"},
        ),
        (["all"], set()),
    ],
)
def test_what_the_files_allow(paths, names, tables):
    every = {"sink_heads", "sink_writing", "fixed_denominator", "precision", "specification"}
    every |= {"cut_sink", "fixed_forward", "masks", "mask_layers", "mask_probes"}
    analysis = analysis_of(paths, *names)
    assert every & set(analysis.tables) == tables
    assert len(claims_of(analysis)) == 12


# --- verdicts ---


def made_up(paths, **tables):
    stores = {k: ActivationStore(paths[k]) for k in ("natural", "shifted")}
    intervals = {"fixed_denominator": tables.pop("patterns")} if "patterns" in tables else {}
    for _, row in tables.get("cut_sink", pd.DataFrame()).iterrows():
        interval = Interval.of_row(row, "fraction_removed", level=0.95, method="fieller", n=6)
        intervals[cut_key(row["heads"], row["measured"])] = interval
    if "sink_writing" in tables:
        row = tables["sink_writing"].iloc[-1]
        interval = Interval.of_row(row, "estimate", level=0.95, method="fieller", n=4)
        intervals["sink_writing"] = interval
    return Analysis(Files(**stores), tables, intervals)


def judged(paths, **tables):
    analysis = made_up(paths, **tables)
    return {claim.id: claim for claim in claims_of(analysis)}


def cut_row(heads, measured, estimate, low, high):
    row = dict(heads=heads, measured=measured, positions="all", fraction_removed=estimate)
    row |= dict(low=low, high=high, n=6, n_heads_cut=2, n_heads_measured=8, attention_left=1e-8)
    row["V_R_native"] = 0.2
    return row


def cut_rows(low, high):
    whole, without = "heads left whole", "without key 0"
    return pd.DataFrame(
        [
            cut_row("sink-reading", whole, 0.3, low, high),
            cut_row("sink-reading minus random", whole, 0.3, low, high),
            cut_row("sink-reading", without, 9.0, 8.0, 10.0),
            cut_row("all", without, 0.3, low, high),
        ]
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.5, "supported"),
        (-0.1, 0.5, "inconclusive"),
        (-0.5, -0.1, "contradicted"),
        (np.nan, np.nan, "inconclusive"),
    ],
)
def test_verdicts_come_from_intervals_alone(paths, low, high, verdict):
    found = judged(paths, cut_sink=cut_rows(low, high))
    for name in ("sinks_forward", "sinks_forward_specifically", "sink_hidden_everywhere"):
        assert found[name].verdict == verdict
        assert found[name].estimate == 0.3
        assert found[name].ci_low == (None if np.isnan(low) else low)
    assert "without key 0, 9.0 [8.0, 10.0]" in found["sinks_forward"].protocol
    unbounded = "fieller: unbounded" if np.isnan(low) else "fieller"
    assert found["sinks_forward"].ci_method == unbounded


@pytest.mark.parametrize(
    ("own", "difference", "verdict"),
    [
        ((0.1, 0.5), (0.1, 0.5), "supported"),
        ((-0.3, 0.1), (0.4, 1.2), "inconclusive"),  # random cuts raised it, these did nothing
        ((-0.5, -0.1), (0.4, 1.2), "contradicted"),
        ((0.1, 0.5), (-0.2, 0.2), "inconclusive"),
        ((0.1, 0.5), (-0.4, -0.2), "contradicted"),
    ],
)
def test_more_than_random_is_not_enough_where_nothing_dies(paths, own, difference, verdict):
    table = cut_rows(*own)
    table.loc[1, ["low", "high"]] = difference
    assert judged(paths, cut_sink=table)["sinks_forward_specifically"].verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.2, 3, "supported"), (0.8, 3, "inconclusive"), (0.1, 0.8, "contradicted")],
)
def test_writing_is_judged_by_the_ratio_to_1(paths, low, high, verdict):
    rows = [dict(quantity="written", heads=h, n_heads=3, n=4) for h in ("sink-reading", "other")]
    ratio = dict(
        quantity="written", heads="ratio", n_heads=6, estimate=1.5, low=low, high=high, n=4
    )
    found = judged(paths, sink_writing=pd.DataFrame([*rows, ratio]))
    assert found["sinks_write"].verdict == verdict


def test_a_claim_of_two_parts_has_the_larger_p_value(paths):
    """Forwarding specifically is removing some, and more than random heads do."""
    p_values = {"sink-reading": 0.01, "sink-reading minus random": 0.001}
    table = cut_rows(0.1, 0.5)
    analysis = made_up(paths, cut_sink=table)
    for heads, p_value in p_values.items():
        key = cut_key(heads, "heads left whole")
        tested = dataclasses.replace(analysis.intervals[key], test=lambda _, p=p_value: p)
        analysis.intervals[key] = tested
    found = {claim.id: claim for claim in forwarding_claims(analysis)}
    assert found["sinks_forward"].p_value == 0.01
    assert found["sinks_forward_specifically"].p_value == 0.01
    lone = dataclasses.replace(tested, low=-0.1)
    analysis.intervals[cut_key("sink-reading minus random", "heads left whole")] = lone
    found = {claim.id: claim for claim in forwarding_claims(analysis)}
    assert found["sinks_forward_specifically"].p_value == 0.001


def test_where_there_is_no_residual_channel_nothing_can_be_removed(paths):
    table = cut_rows(0.1, 0.5).assign(V_R_native=1e-6)
    found = judged(paths, cut_sink=table)
    for name in ("sinks_forward", "sinks_forward_specifically", "sink_hidden_everywhere"):
        assert found[name].verdict == "not_applicable"
        assert found[name].protocol.startswith("nothing to remove: natively V_R is 1.0e-06 nats^2")


def test_patterns_say_how_many_layers_stand_after_adjustment(paths):
    table = pd.DataFrame({"difference": [0.5, -0.2, 0.4], "p_adjusted": [0.01, 0.02, 0.2]})
    interval = Interval(0.2, 0.1, 0.3, 0.95, "percentile", "difference", 8)
    found = judged(paths, fixed_denominator=table, patterns=interval)["normalizer_on_patterns"]
    assert found.verdict == "supported"
    assert "P is above P_fix in 1 of 3 layers and below in 1" in found.protocol


def test_claims_say_what_they_lack(paths):
    for claim in judged(paths).values():
        assert claim.verdict == "not_applicable"
        assert claim.protocol.startswith("needs")
    table = cut_rows(0.1, 0.5)
    found = judged(paths, cut_sink=table[table["heads"] == "all"])
    assert found["sinks_forward"].protocol.startswith("no such heads were cut")
    assert found["sink_hidden_everywhere"].verdict == "supported"
