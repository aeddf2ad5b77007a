"""One model in several conditions: which is the main one, and what differs from it."""

import itertools

import numpy as np
import pytest
import synthetic
from scipy import stats

from posprobe.analysis import Condition, analyze_files, condition_of, sort_files
from posprobe.claims import make_claims
from posprobe.intervals import Inference

PREFIXES, WINDOW, N = (1, 6, 12, 20), 4, 8
FEW = Inference(n_resamples=400)
MASK, RESIDUAL = np.linspace(1, 0, 4), np.linspace(-0.5, 0, 4)


@pytest.fixture
def make(tmp_path):
    count = itertools.count()

    def function(
        bos="native", text="prose", *, residual=RESIDUAL, treatment="native", seed=0, shuffled=False
    ):
        rng = np.random.default_rng(seed)
        m, r = (x + 0.05 * rng.normal(size=(N, 4)) for x in (MASK, residual))
        h0 = np.ones((2, len(PREFIXES) * N, 4))
        arrays = synthetic.effect_arrays(m, r, window=WINDOW)
        index = synthetic.shifted_index(N, PREFIXES, WINDOW)
        token = {"native": None, "force": 1}[bos]
        return synthetic.write(
            tmp_path / f"{next(count)}.h5",
            arrays | {"position0": h0, "position0_alone": h0},
            index=index,
            weights_digest="abc",
            design="shifted",
            length=24,
            prefixes=PREFIXES,
            window=WINDOW,
            offsets=(1,),
            position0_treatment=treatment,
            stimulus={"bos": bos, "bos_token": token, "corpus": text}
            | {"text": {"shuffled": shuffled}},
        )

    return function


def test_the_native_condition_is_the_main_one_in_any_order(make):
    native, forced, code = make(), make("force"), make("force", "code")
    for order in itertools.permutations((native, forced, code)):
        files = sort_files(order)
        assert files.shifted is native
        assert files.native
        assert [one.shifted for one in files.conditions] == [forced, code]
        assert not any(one.native for one in files.conditions)
        assert set(files.all()) == set(order)


def test_among_native_conditions_the_natural_capture_decides(make, tmp_path):
    prose, code = make(), make(text="code")
    natural = synthetic.write(
        tmp_path / "natural.h5",
        {"normalizer": np.zeros((1, 2, 24, 1))},
        weights_digest="abc",
        stimulus={"bos": "native", "bos_token": None, "corpus": "prose"},
    )
    assert sort_files([code, natural, prose]).shifted is prose
    assert condition_of(natural) == Condition("text", "prose", 24)


def test_one_condition_makes_no_table_of_conditions(make):
    analysis = analyze_files(sort_files([make("force")]), inference=FEW)
    assert "conditions" not in analysis.tables
    assert all(not claim.conditions for claim in make_claims(analysis))


def test_a_planted_change_of_sign_is_seen_with_its_paired_difference(make):
    stores = [make(), make("force", residual=-RESIDUAL)]
    analysis = analyze_files(sort_files(stores), inference=FEW)
    table = analysis.tables["conditions"].set_index("condition")
    assert list(table.index) == ["text at position 0", "BOS at position 0"]
    assert list(table["relation"]) == ["opposed", "reinforcing"]
    (row,) = analysis.tables["condition_differences"].to_dict("records")
    assert row["contrast"] == "BOS - text"
    # C of M and R: linear in p, so the covariance of two such lines, here -.5 and +.5 times Var(M)
    spread = np.var(MASK)
    assert row["C_MR"] == pytest.approx(spread, abs=0.03)
    assert row["C_MR_low"] < spread < row["C_MR_high"]
    claim = next(c for c in make_claims(analysis) if c.id == "channels_add")
    assert claim.verdict == "contradicted"
    said = "contradicted in 1 of 2 conditions; supported with BOS at position 0"
    assert claim.scope == said
    assert [one["verdict"] for one in claim.conditions] == ["contradicted", "supported"]


def test_a_difference_pairs_items_so_what_they_share_does_not_widen_it(make):
    same = [make(seed=1), make("force", seed=1)]
    table = analyze_files(sort_files(same), inference=FEW).tables["condition_differences"]
    assert float(table["V_M"].iloc[0]) == 0
    assert float(table["V_M_high"].iloc[0] - table["V_M_low"].iloc[0]) == 0


def test_the_claim_on_replacement_is_judged_in_the_conditions_that_have_one(make):
    kept = np.sqrt(0.6)
    stores = [make(), make("force")]
    stores += [make("force", residual=kept * RESIDUAL, treatment="mean")]
    analysis = analyze_files(sort_files(stores), inference=FEW)
    (row,) = analysis.tables["condition_replacement"].to_dict("records")
    assert row["condition"] == "BOS at position 0"
    assert row["fraction_removed"] == pytest.approx(0.4, abs=0.1)
    claim = next(c for c in make_claims(analysis) if c.id == "bos_replacement")
    assert claim.conditions[0]["verdict"] == "not_applicable"
    assert claim.conditions[1]["estimate"] == pytest.approx(row["fraction_removed"])


def test_means_over_texts_have_limits_over_items_and_over_texts(make):
    sizes = {"prose": 1.0, "code": 1.5, "german": 0.5, "shuffled prose": 9.0}
    stores = [
        make(text=text, residual=size * RESIDUAL, seed=k, shuffled=text.startswith("shuffled"))
        for k, (text, size) in enumerate(sizes.items())
    ]
    tables = analyze_files(sort_files(stores), inference=FEW).tables
    rows = tables["condition_texts"].set_index("quantity")
    each = tables["conditions"].set_index("text")["V_R"].drop("shuffled prose")
    assert set(rows["texts"]) == {3}  # shuffled tokens are a control
    row = rows.loc["V_R"]
    assert row["estimate"] == pytest.approx(each.mean())
    half = stats.t.ppf(0.975, 2) * each.std() / np.sqrt(3)
    assert row["high_texts"] - row["estimate"] == pytest.approx(half)
    assert row["high_items"] - row["low_items"] < row["high_texts"] - row["low_texts"]


def test_two_texts_are_too_few_to_speak_of_texts(make):
    tables = analyze_files(sort_files([make(), make(text="code")]), inference=FEW).tables
    assert "condition_texts" not in tables
    assert "condition_differences" not in tables  # other texts, other windows
