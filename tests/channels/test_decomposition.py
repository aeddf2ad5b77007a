"""The two channels as tables: known answers, intervals that cover, shares that are not defined."""

import dataclasses

import numpy as np
import pytest
import synthetic

from posprobe.channels import (
    ChannelEffects,
    Variances,
    channel_effects,
    decompose,
    gather_variances,
    position_covariance,
    shares,
    variances,
)
from posprobe.channels import decomposition as channels
from posprobe.channels.variances import resampled
from posprobe.errors import DesignError
from posprobe.intervals import Inference, bootstrap_limits

GRID = np.linspace(1, 0, 5)  # an effect that shrinks towards the reference


def simulated(rng, n, mask, residual, repetitions, noise=1.0):
    """Effects of `repetitions` independent studies, one in the place of each head."""
    shape = (n, len(mask), repetitions, 1)
    m, r = (x[:, None, None] + noise * rng.normal(size=shape) for x in (mask, residual))
    m, r = m - m[:, -1:], r - r[:, -1:]
    return ChannelEffects(np.arange(len(mask)), m + r, m, r, 0 * r)


def truths(mask, residual):
    m, r = mask - mask.mean(), residual - residual.mean()
    return {
        "V_T": np.mean((m + r) ** 2),
        "V_M": np.mean(m**2),
        "V_R": np.mean(r**2),
        "C_MR": np.mean(m * r),
    }


def share_of_mask(mask, residual):
    v = truths(mask, residual)
    return (v["V_M"] + v["C_MR"]) / v["V_T"]


def defined(variances, head):
    found = shares(variances, 0, head, 0.95)
    return bool(found) and not found["mask"].unbounded


# --- identities ---


def test_total_variance_is_the_sum_and_shares_add_to_one(rng, tmp_path):
    store = synthetic.Rows(rng, design="shifted", n=20, heads=3).store(tmp_path / "a.h5")
    result = decompose(store, n_resamples=100)
    for table in (result.by_head, result.by_layer, result.overall):
        total = table["V_M"] + table["V_R"] + 2 * table["C_MR"]
        np.testing.assert_allclose(table["V_T"], total, atol=1e-12)
    found = [shares(result.variances, 0, head, 0.95) for head in range(3)]
    assert sum(map(len, found)) > 0
    for pair in filter(None, found):
        assert abs(pair["mask"].estimate + pair["residual"].estimate - 1) < 1e-10


def test_pseudo_values_average_to_the_estimate(rng):
    variances = gather_variances(
        [simulated(rng, 9, GRID, -GRID / 2, 7)], Inference(n_resamples=100)
    )
    for name, estimate in variances.estimate.items():
        np.testing.assert_allclose(variances.pseudo[name].mean(0), estimate, atol=1e-12)
    assert variances.n_items == 9


def test_mean_over_heads_is_of_every_part(rng):
    layers = [simulated(rng, 6, GRID, GRID, 4) for _ in range(2)]
    variances = gather_variances(layers, Inference(n_resamples=100))
    over = variances.mean((0, 1))
    assert over.estimate["V_R"].shape == (1, 1)
    assert np.isclose(over.estimate["V_R"][0, 0], variances.estimate["V_R"].mean())
    np.testing.assert_allclose(
        over.replicates("V_T")[0][3, 0, 0], variances.replicates("V_T")[0][3].mean()
    )
    np.testing.assert_allclose(over.pseudo["V_M"][:, 0, 0], variances.pseudo["V_M"].mean((1, 2)))


def test_layers_share_their_resampled_items(rng):
    layer = simulated(rng, 8, GRID, GRID, 2)
    variances = gather_variances([layer, layer], Inference(n_resamples=100, seed=3))
    assert np.array_equal(
        variances.replicates("V_T")[0][:, 0], variances.replicates("V_T")[0][:, 1]
    )
    again = gather_variances([layer], Inference(n_resamples=100, seed=3))
    assert np.array_equal(variances.replicates("V_T")[0][:, :1], again.replicates("V_T")[0])


def test_replicates_are_those_of_repeated_items_and_their_errors_the_jackknifes(rng):
    effects = simulated(rng, 9, GRID, -GRID / 2, 3)
    variances = gather_variances([effects, effects], Inference(n_resamples=100))
    once = np.ones((1, 9))
    for name in variances.products:
        draws, errors = variances.replicates(name)
        np.testing.assert_allclose(draws[:, 1], effects.variances(variances.weights)[name])
        # dV/dw by differences, and from it the standard error
        step, w = 1e-6, variances.weights[7]
        moved = effects.variances(w + step * np.eye(9))[name]
        slope = (moved - effects.variances(w[None])[name]) / step
        expected = np.sqrt(9 * 8 / 7**2 * (w[:, None] * slope**2).sum(0))
        np.testing.assert_allclose(errors[7, 0], expected, rtol=1e-3, atol=1e-8)
        jackknife = variances.pseudo[name].std(0, ddof=1) / 3
        _, plain = Variances(variances.products, once).replicates(name)
        np.testing.assert_allclose(plain[0], jackknife, atol=1e-12)


def test_cells_that_are_the_same_are_resampled_once_and_each_gets_its_own(rng, monkeypatch):
    effects = simulated(rng, 9, GRID, -GRID / 2, 3)
    inference, seen = Inference(n_resamples=100), []
    one, other = (products for products in effects.products()["V_T"][:2])
    cells = np.stack([one, one, other, one])
    products = dict.fromkeys(("V_T", "V_M", "V_R", "C_MR", "V_S"), cells[None])
    weights = gather_variances([effects], inference).weights

    def counted(products, weights):
        seen.append(len(products))
        return resampled(products, weights)

    monkeypatch.setattr(variances, "resampled", counted)
    found = Variances(products, weights).replicates("V_T")
    assert seen == [3]
    for draws, alone in zip(found, resampled(cells, weights), strict=True):
        np.testing.assert_array_equal(draws[:, 0], alone)


def test_paired_conditions_are_subtracted_item_by_item(rng):
    one, other = (simulated(rng, 12, GRID, k * GRID, 1) for k in (0.5, 1.0))
    first, second = (gather_variances([e], Inference(n_resamples=100)) for e in (one, other))
    less = second.less(first)
    for name in ("V_T", "C_MR"):
        assert less.estimate[name] == pytest.approx(second.estimate[name] - first.estimate[name])
        np.testing.assert_allclose(less.pseudo[name], second.pseudo[name] - first.pseudo[name])
        draws = second.replicates(name)[0] - first.replicates(name)[0]
        np.testing.assert_allclose(less.replicates(name)[0], draws)
    alike = first.less(first).interval("V_T", 0.95, "nothing")
    assert (alike.low, alike.high, alike.estimand) == (0, 0, "nothing")


# --- known answers ---


def store_of(path, rng, mask, residual, n=60, noise=0.05):
    each = noise * rng.normal(size=(2, n, len(mask)))
    return synthetic.effect_store(path, mask + each[0], residual + each[1], noise, rng=rng)


CASES = {
    "mask only": (GRID, 0 * GRID),
    "residual only": (0 * GRID, -0.7 * GRID),
    "one to one": (GRID, GRID),
    "three to one": (0.9 * GRID, 0.3 * GRID),
    "opposed": (GRID, -0.4 * GRID**2),
}


@pytest.mark.parametrize("name", CASES)
def test_known_shares_are_recovered(name, tmp_path):
    rng = np.random.default_rng(list(CASES).index(name))
    mask, residual = CASES[name]
    store = store_of(tmp_path / "a.h5", rng, mask, residual)
    # 30 intervals in all: at this level all of them hold, unless one is wrong
    result = decompose(store, n_resamples=300, level=0.999)
    row, truth = result.overall.iloc[0], share_of_mask(mask, residual)
    assert row["status"] == "ok"
    for channel, expected in (("mask", truth), ("residual", 1 - truth)):
        assert abs(row[f"share_{channel}"] - expected) < 0.02
        assert row[f"share_{channel}_low"] <= expected <= row[f"share_{channel}_high"]
    for quantity, expected in truths(mask, residual).items():
        assert row[f"{quantity}_low"] <= expected <= row[f"{quantity}_high"]


def test_shares_that_oppose_are_not_clipped(rng, tmp_path):
    store = store_of(tmp_path / "a.h5", rng, GRID, -0.4 * GRID)
    row = decompose(store, n_resamples=300).overall.iloc[0]
    assert row["share_mask"] > 1.5
    assert row["share_residual"] < -0.5
    assert row["relation"] == "opposed"


@pytest.mark.parametrize(
    ("mask", "residual", "relation"),
    [
        (GRID, GRID, "reinforcing"),
        (GRID, -GRID, "opposed"),
        (GRID, 0 * GRID, "not distinguishable"),
    ],
)
def test_relation_in_words(mask, residual, relation, rng, tmp_path):
    row = decompose(store_of(tmp_path / "a.h5", rng, mask, residual), n_resamples=300).overall
    assert row["relation"].item() == relation


def test_profile_of_positions(rng, tmp_path):
    store = store_of(tmp_path / "a.h5", rng, GRID, -GRID / 2, noise=0.01)
    table = decompose(store, n_resamples=100).positions
    assert set(table["layer"]) == {0, "all"}
    whole = table[table["layer"] == "all"]
    np.testing.assert_allclose(whole["M"], GRID, atol=0.02)
    np.testing.assert_allclose(whole["R"], -GRID / 2, atol=0.02)
    np.testing.assert_allclose(whole["T"], whole["M"] + whole["R"], atol=1e-6)
    assert (whole["T_low"] <= whole["T"]).all()
    assert whole["position"].tolist() == list(store.prefixes)


def test_up_to_keeps_early_positions_and_the_reference(rng, tmp_path):
    store = store_of(tmp_path / "a.h5", rng, GRID, GRID)
    result = decompose(store, up_to=4, n_resamples=100)
    assert sorted(set(result.positions["position"])) == [1, 4, store.prefixes[-1]]
    with pytest.raises(DesignError, match="no position up to 0; the first is 1"):
        decompose(store, up_to=0)


def test_many_items_are_pooled_into_units(rng, tmp_path, monkeypatch):
    store = store_of(tmp_path / "a.h5", rng, GRID, -GRID / 2, noise=0.01)
    whole = decompose(store, by_offset=True, n_resamples=100)
    monkeypatch.setattr(channels, "MAX_UNITS", whole.variances.n_items // 2)
    pooled = decompose(store, by_offset=True, n_resamples=100)
    assert pooled.variances.n_items == whole.variances.n_items // 2
    np.testing.assert_allclose(pooled.overall["V_T"], whole.overall["V_T"], rtol=0.02)
    np.testing.assert_allclose(pooled.by_offset["T"], whole.by_offset["T"], atol=0.02)


def test_same_seed_same_tables(rng, tmp_path):
    store = store_of(tmp_path / "a.h5", rng, GRID, GRID)
    one, two = (decompose(store, n_resamples=100, seed=5) for _ in range(2))
    other = decompose(store, n_resamples=100, seed=6)
    assert one.by_head.equals(two.by_head)
    assert one.positions.equals(two.positions)
    assert not one.by_head.equals(other.by_head)


# --- offset by offset ---


def test_offsets_share_their_rows_so_that_only_scores_differ(rng, tmp_path):
    case = synthetic.Rows(rng, design="shifted", n=12, heads=3)  # 17 tokens: early is up to 2
    result = decompose(case.store(tmp_path / "a.h5"), by_offset=True, n_resamples=100)
    table = result.by_offset
    heads = table[table["layer"] != "all"]
    assert len(heads) == 3 * 3 * 3  # ranges, heads, offsets
    assert table.groupby("positions")["offset"].unique().map(list).to_dict() == {
        name: [1, 2, 4] for name in ("early", "late", "all")
    }
    for _, rows in heads.groupby(["positions", "head"]):
        assert np.ptp(rows["M"]) < 1e-12
        assert np.ptp(rows["V_M"]) < 1e-12
        assert np.ptp(rows["T"]) > 1e-3
    np.testing.assert_allclose(table["T"], table["M"] + table["R"], atol=1e-12)
    total = table["V_M"] + table["V_R"] + 2 * table["C_MR"]
    np.testing.assert_allclose(table["V_T"], total, atol=1e-12)
    shares_ = table.loc[table["status"] == "ok", ["share_mask", "share_residual"]]
    np.testing.assert_allclose(shares_.sum(axis=1), 1, atol=1e-10)
    assert table.loc[table["status"] != "ok", "share_mask"].isna().all()
    # the largest offset has the rows that it has in the other tables too
    last = heads[(heads["offset"] == 4) & (heads["positions"] == "all")]
    case.offsets = (4,)
    alone = decompose(case.store(tmp_path / "b.h5"), n_resamples=100).by_head
    for name in ("V_T", "V_R", "C_MR_low", "V_M_high"):
        np.testing.assert_allclose(last[name], alone[name], atol=1e-6)


def test_ranges_of_queries_and_means_over_heads(rng, tmp_path):
    case = synthetic.Rows(rng, design="shifted", n=12, prefixes=(1, 3, 6, 20), heads=2)
    store = case.store(tmp_path / "a.h5")  # 26 tokens: early are the prefixes 1 and 3
    table = decompose(store, by_offset=True, n_resamples=100).by_offset
    effects = channel_effects(store, 0, same_rows=True)
    means = effects.total.mean(0)[..., 0]
    kept = {"early": [0, 1], "late": [2], "all": [0, 1, 2]}
    for name, positions in kept.items():
        rows = table[(table["positions"] == name) & (table["offset"] == 1)]
        heads = rows[rows["layer"] != "all"]
        np.testing.assert_allclose(heads["T"], means[positions].mean(0), atol=1e-12)
        whole = rows[rows["layer"] == "all"].iloc[0]
        for column in ("T", "R", "V_T", "V_R", "C_MR"):
            assert np.isclose(whole[column], heads[column].mean())
        assert whole["T_low"] < whole["T"] < whole["T_high"]
        assert np.isnan(whole["V_T_p_adjusted"])
    part = effects.beyond(3).by_offset()
    expected = position_covariance(part.total, part.total)[:, 0]
    rows = table[(table["positions"] == "late") & (table["layer"] != "all")]
    np.testing.assert_allclose(rows["V_T"], expected, atol=1e-12)


def test_p_values_are_adjusted_over_all_offsets_and_ranges(tmp_path):
    rng = np.random.default_rng(0)
    each = 0.05 * rng.normal(size=(2, 20, 5))
    store = synthetic.effect_store(tmp_path / "a.h5", GRID + each[0], each[1], 0.05, heads=2)
    result = decompose(store, by_offset=True, n_resamples=400)
    table = result.by_offset[result.by_offset["layer"] != "all"]
    assert (table["V_T_p_adjusted"] < 0.05).all()
    assert (table["V_R_p_adjusted"] > 0.05).all()
    same = table[table["positions"] == "all"]
    assert (same["V_R_p_adjusted"].to_numpy() >= result.by_head["V_R_p_adjusted"]).all()
    assert same["V_R_p_adjusted"].max() > result.by_head["V_R_p_adjusted"].min()
    assert decompose(store, n_resamples=100).by_offset is None


# --- shares that are not defined ---


@pytest.mark.parametrize("n", [3, 8, 32])
def test_share_of_no_effect_is_rarely_defined(n):
    nothing = 0 * GRID
    variances = gather_variances([simulated(np.random.default_rng(n), n, nothing, nothing, 1500)])
    rate = np.mean([defined(variances, head) for head in range(1500)])
    assert rate < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1500)  # two binomial errors


def test_share_is_undefined_where_the_variance_is_significantly_below_zero():
    nothing = 0 * GRID
    variances = gather_variances([simulated(np.random.default_rng(32), 32, nothing, nothing, 1500)])
    psi = variances.pseudo["V_T"][:, 0]
    below = np.flatnonzero(psi.mean(0) < -2.1 * psi.std(0, ddof=1) / np.sqrt(32))
    assert len(below) > 10  # it does happen: the estimate of a variance that is 0 is skewed
    assert not any(shares(variances, 0, head, 0.95) for head in below)


def test_the_shares_of_a_table_are_those_of_each_cell(rng, tmp_path):
    store = synthetic.Rows(rng, design="shifted", n=9, heads=3).store(tmp_path / "a.h5")
    result = decompose(store, n_resamples=100, level=0.8)
    for row in result.by_head.to_dict("records"):
        each = shares(result.variances, row["layer"], row["head"], 0.8)
        known = bool(each) and not any(part.unbounded for part in each.values())
        assert row["status"] == ("ok" if known else "undefined")
        for name in ("mask", "residual"):
            found = [row[f"share_{name}{end}"] for end in ("", "_low", "_high")]
            part = each[name] if known else None
            expected = [part.estimate, part.low, part.high] if part else [np.nan] * 3
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_no_share_is_printed_where_it_is_undefined(tmp_path):
    rng = np.random.default_rng(1)
    result = decompose(store_of(tmp_path / "a.h5", rng, 0 * GRID, 0 * GRID, n=8), n_resamples=100)
    row = result.overall.iloc[0]
    assert row["status"] == "undefined"
    printed = [name for name in result.overall if name.startswith("share_")]
    assert len(printed) == 6
    assert row[printed].isna().all()


def test_an_effect_of_exactly_nothing_is_undefined_and_no_error(tmp_path):
    nothing = np.zeros((6, 5))
    store = synthetic.effect_store(tmp_path / "a.h5", nothing, nothing, heads=2)
    result = decompose(store, n_resamples=100)
    assert (result.by_head["status"] == "undefined").all()
    assert result.by_head["V_T_p_adjusted"].isna().all()


def test_p_values_are_adjusted_over_the_heads_that_vary(rng, tmp_path):
    mask = np.tile(GRID, (20, 1)) + rng.integers(-3, 4, (20, 5)) / 32  # exact in float32
    store = synthetic.effect_store(tmp_path / "a.h5", mask, 0 * mask, heads=3)
    table = decompose(store, n_resamples=400).by_head
    assert (table["V_T_p_adjusted"] < 0.05).all()
    assert table["V_R_p_adjusted"].isna().all()


# --- few items ---


@pytest.mark.parametrize("n", [1, 2])
def test_refuses_fewer_than_three_items(n, rng, tmp_path):
    effects = simulated(rng, n, GRID, GRID, 1)
    with pytest.raises(DesignError, match=f"at least 3 items, not {n}; capture with a larger --n"):
        gather_variances([effects])
    each = np.tile(GRID, (n, 1))
    with pytest.raises(DesignError, match=f"at least 3 items, not {n}"):
        decompose(synthetic.effect_store(tmp_path / "a.h5", each, each))


def test_three_items_are_enough(rng, tmp_path):
    store = store_of(tmp_path / "a.h5", rng, GRID, GRID, n=3)
    row = decompose(store, n_resamples=100).overall.iloc[0]
    assert np.isfinite([row["V_T"], row["V_T_low"], row["V_T_high"]]).all()


# --- coverage ---

# Binomial standard error of a coverage of .95: .008 at 800 repetitions, so .92 to .98 is nearly
# four of them; intervals that take the 5 x 32 cells for independent units must fail.
REPETITIONS = 800
MASK, RESIDUAL = 4 * GRID, -2 * GRID**2


@pytest.fixture(scope="module")
def many():
    effects = simulated(np.random.default_rng(7), 32, MASK, RESIDUAL, REPETITIONS)
    return effects, gather_variances([effects], Inference(n_resamples=400))


@pytest.mark.parametrize("quantity", ["V_T", "V_M", "V_R", "C_MR"])
def test_intervals_of_variances_cover(quantity, many):
    _, variances = many
    low, high = variances.limits(quantity, 0.95)
    truth = truths(MASK, RESIDUAL)[quantity]
    assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.98


def test_intervals_of_shares_cover(many):
    _, variances = many
    found = [shares(variances, 0, head, 0.95) for head in range(REPETITIONS)]
    truth = share_of_mask(MASK, RESIDUAL)
    kept = [pair["mask"] for pair in found if pair and not pair["mask"].unbounded]
    assert len(kept) > 0.8 * REPETITIONS
    assert 0.92 <= np.mean([not interval.excludes(truth) for interval in kept]) <= 0.98


def test_intervals_of_items_that_are_no_units_do_not_cover(many):
    """Control: the gate can fail. Items entered three times over are not 96 items."""
    effects, _ = many
    thrice = dataclasses.replace(
        effects,
        **{k: np.tile(getattr(effects, k), (3, 1, 1, 1)) for k in ("total", "mask", "residual")},
        sink=np.tile(effects.sink, (3, 1, 1, 1)),
    )
    variances = gather_variances([thrice], Inference(n_resamples=100))
    low, high = variances.limits("V_T", 0.95)
    truth = truths(MASK, RESIDUAL)["V_T"]
    assert np.mean((low <= truth) & (truth <= high)) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("size", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("n", [8, 32])
def test_the_t_interval_is_never_far_below_its_level(n, size):
    mask, residual = size * GRID, -size / 2 * GRID**2
    effects = simulated(np.random.default_rng(1), n, mask, residual, 4000)
    variances = gather_variances([effects], Inference(n_resamples=800))
    truth = truths(mask, residual)["V_T"]
    coverage = {}
    for method in ("t", "percentile"):
        low, high = bootstrap_limits(
            variances.replicates("V_T")[0], variances.estimate["V_T"], n=n, method=method
        )
        coverage[method] = np.mean((low <= truth) & (truth <= high))
    assert coverage["t"] > 0.92


def rough(rng, n, repetitions):
    """Items whose effect varies from one to the other as a log-normal variable."""
    own = np.exp(rng.normal(-0.5, 1.0, size=(n, 1, repetitions, 1)))
    mask = own * (GRID - GRID.mean())[:, None, None]
    nothing = 0 * mask
    return ChannelEffects(np.arange(5), mask, mask, nothing, nothing)


def test_limits_hold_where_few_items_carry_the_effect_and_those_of_t_do_not():
    variances = gather_variances(
        [rough(np.random.default_rng(3), 32, 500)], Inference(n_resamples=500)
    )
    low, high = variances.limits("V_M", 0.95)
    truth = np.var(GRID)
    assert np.mean((low <= truth) & (truth <= high)) > 0.9
    draws = variances.replicates("V_M")[0]
    low, high = bootstrap_limits(draws, variances.estimate["V_M"], n=32)
    assert np.mean((low <= truth) & (truth <= high)) < 0.88
