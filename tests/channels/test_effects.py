"""Position effects: unbiased variances, and the split of attention by brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from posprobe.channels import (
    ChannelEffects,
    channel_effects,
    cut_heads,
    position_covariance,
    reading,
    score_shift,
)
from posprobe.errors import DesignError
from posprobe.intervals import cluster_weights

LIMITS = (0, 9, 5, 3)  # none; hides key 0 late, but not early; hides an offset too


def centered(x):
    return x - x.mean(1, keepdims=True)


def over_pairs(x, y):
    """The definition, one pair of different items after the other."""
    x, y = centered(x), centered(y)
    pairs = [(n, m) for n in range(len(x)) for m in range(len(x)) if n != m]
    return np.mean([(x[n] * y[m]).mean(0) for n, m in pairs], axis=0)


def rows(rng, design="shifted", **options):
    return synthetic.Rows(rng, design=design, **options)


# --- the estimator ---


def test_covariance_is_the_mean_over_pairs_of_different_items(rng):
    x, y = rng.normal(size=(2, 7, 5, 3, 2))
    np.testing.assert_allclose(position_covariance(x, y), over_pairs(x, y), atol=1e-14)


def test_covariance_does_not_see_what_is_constant_over_positions(rng):
    x, y = rng.normal(size=(2, 6, 4))
    found = position_covariance(x + rng.normal(size=(6, 1)), y + 1e3)
    np.testing.assert_allclose(found, position_covariance(x, y), atol=1e-10)


def test_covariance_is_without_bias_where_the_variance_of_means_is_not(rng):
    n, effect = 12, np.array([0.4, 0.1, -0.2, -0.3])
    truth = np.var(effect)
    draws = effect[:, None] + rng.normal(size=(n, 4, 2000))
    draws += 2 * rng.normal(size=(n, 1, 2000))  # what an item is by itself
    estimates = position_covariance(draws, draws)
    error = estimates.std(ddof=1) / np.sqrt(2000)
    assert abs(estimates.mean() - truth) < 3 * error
    naive = draws.mean(0).var(0)
    assert naive.mean() - truth > 10 * error
    assert (estimates < 0).any()  # never clipped


def test_cross_covariance_is_without_bias_where_noise_is_shared(rng):
    m, r = np.array([0.5, 0.2, 0.0]), np.array([-0.3, 0.1, 0.0])
    noise = rng.normal(size=(10, 3, 2000))
    x, y = m[:, None] + noise, r[:, None] - noise
    estimates = position_covariance(x, y)
    truth = ((m - m.mean()) * (r - r.mean())).mean()
    error = estimates.std(ddof=1) / np.sqrt(2000)
    assert abs(estimates.mean() - truth) < 3 * error
    naive = (centered(x.mean(0)[None])[0] * centered(y.mean(0)[None])[0]).mean(0)
    assert abs(naive.mean() - truth) > 10 * error


@given(st.integers(0, 1000), st.integers(3, 8))
def test_weights_are_repeated_items_whose_copies_make_no_pair(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, 4, 2))
    weights = cluster_weights(n, 5, rng)
    weights = weights[(weights > 0).sum(1) > 1]
    found = position_covariance(x, y, weights)
    for row, value in zip(weights, found, strict=True):
        names = np.repeat(np.arange(n), row)
        a, b = centered(x)[names], centered(y)[names]
        other = names[:, None] != names[None, :]
        products = np.einsum("ipk,jpk->ijpk", a, b)[other].mean((0, 1))
        np.testing.assert_allclose(value, products, atol=1e-12)


def test_weights_of_zero_leave_an_item_out(rng):
    x, y = rng.normal(size=(2, 5, 4))
    found = position_covariance(x, y, 1.0 - np.eye(5))
    for i, value in enumerate(found):
        without = position_covariance(np.delete(x, i, 0), np.delete(y, i, 0))
        np.testing.assert_allclose(value, without, atol=1e-14)
    np.testing.assert_allclose(
        position_covariance(x, y, np.ones((1, 5))[:1] * 7)[0], over_pairs(x, y)
    )


@pytest.mark.parametrize(("shape", "said"), [((1, 4), "not 1 and 4"), ((4, 1), "not 4 and 1")])
def test_covariance_refuses_too_little(shape, said):
    x = np.zeros(shape)
    with pytest.raises(DesignError, match=f"at least 2 items and 2 positions, {said}; capture"):
        position_covariance(x, x)


# --- the split, by brute force ---


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_split_equals_brute_force(design, limit, rng, tmp_path):
    case = rows(rng, design, limit=limit)
    found = channel_effects(case.store(tmp_path / "a.h5"), 0)
    parts = (found.total, found.mask, found.residual, found.sink)
    for part, expected in zip(parts, case.expected(), strict=True):
        assert np.abs(expected).max() > 0.05 or limit in (3, 5)
        np.testing.assert_allclose(part, expected, atol=2e-6)
    assert found.offsets == tuple(d for d in (1, 2, 4) if not limit or d < limit)
    assert found.positions.tolist() == [1, 3, 6, 11]


def test_window_of_nine_hides_key_0_late_but_not_early(rng, tmp_path):
    found = channel_effects(rows(rng, limit=9).store(tmp_path / "a.h5"), 0)
    assert np.abs(found.sink[:, 0]).min() > 0
    assert (found.sink[:, -1] == 0).all()


@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_total_is_mask_and_residual_and_all_are_zero_at_the_reference(design, rng, tmp_path):
    case = rows(rng, design)
    found = channel_effects(case.store(tmp_path / "a.h5"), 0)
    _, mask, residual, _ = case.expected()
    np.testing.assert_allclose(found.total, mask + residual, atol=2e-6)
    for part in (found.total, found.mask, found.residual):
        assert (part[:, -1] == 0).all()


@pytest.mark.parametrize("limit", [0, 9])
@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_split_does_not_move_with_a_constant_added_to_a_query(design, limit, rng, tmp_path):
    case = rows(rng, design, limit=limit)
    constants = rng.normal(size=(case.n, case.length)) * 3
    plain = case.store(tmp_path / "plain.h5")
    moved = case.store(
        tmp_path / "moved.h5", gauge=lambda item, position: constants[item, position]
    )
    for name in ("total", "mask", "residual", "sink"):
        before, after = (getattr(channel_effects(s, 0), name) for s in (plain, moved))
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_naive_variances_of_scores_and_normalizers_do_move(rng, tmp_path):
    case = rows(rng)
    profile = np.linspace(2, 0, case.length)  # the same constant in all items: an effect by itself
    naive, split = [], []
    for name, gauge in (("plain", None), ("moved", lambda item, position: profile[position])):
        store = case.store(tmp_path / f"{name}.h5", gauge=gauge)
        bands = {"z": store.normalizer(0), "s": store.read("offset_score", 0)[..., 0]}
        per_item = {
            k: v[:, 1:].mean(1).reshape(len(case.prefixes), case.n, -1).swapaxes(0, 1).astype(float)
            for k, v in bands.items()
        }
        naive.append({k: position_covariance(v, v).mean() for k, v in per_item.items()})
        split.append(channel_effects(store, 0).variances())
    assert abs(naive[1]["z"] - naive[0]["z"]) > 0.1
    assert abs(naive[1]["s"] - naive[0]["s"]) > 0.1
    for name in split[0]:
        np.testing.assert_allclose(split[1][name], split[0][name], atol=1e-5)


def test_order_of_sequences_in_the_file_does_not_matter(rng, tmp_path):
    case = rows(rng)
    plain = channel_effects(case.store(tmp_path / "plain.h5"), 0)
    mixed = channel_effects(case.store(tmp_path / "mixed.h5", order=rng), 0)
    for name in ("total", "mask", "residual", "sink"):
        assert np.array_equal(getattr(plain, name), getattr(mixed, name))


PARTS = ("total", "mask", "residual", "sink")


@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_blocks_of_items_change_nothing(design, rng, tmp_path, monkeypatch):
    store = rows(rng, design).store(tmp_path / "a.h5", order=rng)
    whole = channel_effects(store, 0)
    monkeypatch.setattr(reading, "BLOCK_ITEMS", 2)
    blocks = channel_effects(store, 0)
    assert whole.n_items > 2
    for name in PARTS:
        assert np.array_equal(getattr(blocks, name), getattr(whole, name))


def test_blocks_of_items_change_nothing_without_sink(rng, tmp_path, monkeypatch):
    case = rows(rng)
    arrays = case.arrays()
    arrays["remasked_body"] = rng.normal(size=arrays["remasked_body"].shape)
    index = synthetic.shifted_index(case.n, case.prefixes, case.window)
    fields = dict(index=index, design="shifted", length=case.length, prefixes=case.prefixes)
    fields |= dict(window=case.window, offsets=case.offsets)
    store = synthetic.write(tmp_path / "a.h5", arrays, **fields)
    whole = channel_effects(store, 0, without_sink=True)
    monkeypatch.setattr(reading, "BLOCK_ITEMS", 2)
    blocks = channel_effects(store, 0, without_sink=True)
    assert np.isfinite(whole.total).all()
    for name in PARTS:
        assert np.array_equal(getattr(blocks, name), getattr(whole, name))


@pytest.mark.parametrize("design", ["shifted", "natural"])
def test_units_are_means_of_neighbouring_items(design, rng, tmp_path):
    store = rows(rng, design).store(tmp_path / "a.h5")
    whole = channel_effects(store, 0)
    n = whole.n_items
    units = channel_effects(store, 0, max_units=3)
    cuts = [0, n // 3, 2 * n // 3, n]
    for name in PARTS:
        each = getattr(whole, name)
        expected = [each[a:b].mean(0) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_allclose(getattr(units, name), expected, rtol=1e-12)
    same = channel_effects(store, 0, max_units=n)
    assert np.array_equal(same.total, whole.total)


def test_rows_nearer_to_the_windows_start_than_the_offset_are_left_out(rng, tmp_path):
    case = rows(rng)
    arrays = case.arrays()
    index = synthetic.shifted_index(case.n, case.prefixes, case.window)
    fields = dict(index=index, design="shifted", length=case.length, prefixes=case.prefixes)
    fields |= dict(window=case.window, offsets=case.offsets)
    before = channel_effects(synthetic.write(tmp_path / "a.h5", arrays, **fields), 0)
    arrays["normalizer"][:, :, 0] += 100  # row 0: no offset is inside the window
    arrays["remasked_normalizer"][:, :, :, 0] -= 50
    arrays["offset_score"][:, :, 1, :, 2] += 30  # offset 4 in row 1
    after = channel_effects(synthetic.write(tmp_path / "b.h5", arrays, **fields), 0)
    for name in ("total", "mask", "residual", "sink"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-5)


def test_without_sink_is_the_split_among_the_other_keys(rng, tmp_path):
    case = rows(rng)
    arrays = case.arrays()
    shift = arrays["normalizer"].shape
    own = np.zeros(shift)
    for s, (prefix, item) in enumerate((p, i) for p in case.prefixes for i in range(case.n)):
        for row, head in np.ndindex(case.window, case.heads):
            scores = case.scores[item, prefix][head, row, 1 : prefix + row + 1]
            own[0, s, row, head] = synthetic.logsumexp(scores)
            at = case.prefixes.index(prefix)
            arrays["remasked_body"][0, s, at, row, head] = own[0, s, row, head]
    fields = dict(design="shifted", length=case.length, prefixes=case.prefixes)
    fields |= dict(index=synthetic.shifted_index(case.n, case.prefixes, case.window))
    fields |= dict(window=case.window, offsets=case.offsets)
    store = synthetic.write(tmp_path / "a.h5", arrays, **fields)
    found = channel_effects(store, 0, without_sink=True)
    changed = arrays | {
        "normalizer": own,
        "remasked_normalizer": arrays["remasked_body"],
        "sink_score": np.full(shift, -1e4),
    }
    expected = channel_effects(synthetic.write(tmp_path / "b.h5", changed, **fields), 0)
    np.testing.assert_allclose(found.total, expected.total, atol=1e-6)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-6)
    assert (found.sink == 0).all()
    natural = rows(rng, "natural").store(tmp_path / "natural.h5")
    with pytest.raises(DesignError, match=r"natural\.h5 is of design 'natural'.* --design shifted"):
        channel_effects(natural, 0, without_sink=True)


@pytest.mark.parametrize(
    ("cut", "hidden"), [([[0, 1]], [False, True]), ("all", [True, True]), (None, [False, False])]
)
def test_heads_that_cannot_see_key_0_owe_nothing_to_it(cut, hidden, rng, tmp_path):
    case = rows(rng)
    store = case.store(tmp_path / "a.h5")
    store.header = dataclasses.replace(store.header, interventions=[{"cut_sink": cut}])
    assert cut_heads(store, 0).tolist() == hidden
    found = channel_effects(store, 0)
    assert [(found.sink[:, :, h] == 0).all() for h in (0, 1)] == hidden


# --- scores of a window that moves ---


def window_of_scores(tmp_path, moved, n=5, size=1.0):
    """Scores of 3 heads by row and offset; `moved` (item, prefix) of their spread goes to one."""
    prefixes, window, offsets = (1, 4, 9), 4, (1, 2, 6)
    scores = size * np.random.default_rng(0).normal(size=(n, 1, window, 3, 3)).repeat(3, axis=1)
    scores[:, :, 0] = scores[:, :, 1, :, 1] = scores[..., 2] = np.nan  # keys before the window
    spread = np.nanstd(scores[:, -1], axis=(1, 2, 3))
    scores[:, :, 3, 1, 0] += moved * spread[:, None]
    scores = np.nan_to_num(scores, nan=1e3)  # to be seen where it must not be
    arrays = {"offset_score": scores.swapaxes(0, 1).reshape(1, -1, window, 3, 3)}
    arrays["normalizer"] = np.zeros((1, 3 * n, window, 3))
    index = synthetic.shifted_index(n, prefixes, window)
    fields = dict(design="shifted", length=13, prefixes=prefixes, window=window, offsets=offsets)
    return synthetic.write(tmp_path / "a.h5", arrays, index=index, **fields)


def test_scores_that_move_with_the_window_are_measured_item_by_item(tmp_path, monkeypatch):
    moved = np.zeros((5, 3))
    moved[1, 0], moved[3, :2] = 0.5, (0.2, -0.7)
    store = window_of_scores(tmp_path, moved)
    np.testing.assert_allclose(score_shift(store, 0), [0, 0.5, 0, 0.7, 0], atol=1e-6)
    monkeypatch.setattr(reading, "BLOCK_ITEMS", 2)
    np.testing.assert_allclose(score_shift(store, 0), [0, 0.5, 0, 0.7, 0], atol=1e-6)


def test_scores_without_spread_do_not_move(tmp_path):
    store = window_of_scores(tmp_path, np.zeros((5, 3)), size=0.0)
    assert (score_shift(store, 0) == 0).all()


def test_refuses_to_shift_what_does_not_move_as_one(rng, tmp_path):
    natural = rows(rng, "natural").store(tmp_path / "natural.h5")
    with pytest.raises(DesignError, match=r"natural\.h5 has no pair of tokens.* --design shifted"):
        score_shift(natural, 0)
    case = rows(rng)
    case.offsets = (6, 8)
    with pytest.raises(DesignError, match="offsets inside the window"):
        score_shift(case.store(tmp_path / "a.h5"), 0)


# --- what is made of it ---


def effects_of(rng, n=6, p=4, h=3, d=2):
    parts = rng.normal(size=(4, n, p, h, d))
    return ChannelEffects(np.array([1, 3, 9, 20])[:p], *parts, offsets=(1, 2))


def test_early_positions_keep_the_reference(rng):
    effects = effects_of(rng)
    early = effects.up_to(3)
    assert early.positions.tolist() == [1, 3, 20]
    assert np.array_equal(early.total, effects.total[:, [0, 1, 3]])
    assert early.offsets == effects.offsets
    assert effects.up_to(0).positions.tolist() == [20]


def test_some_items_can_be_taken(rng):
    effects = effects_of(rng)
    some = effects.take(np.array([4, 1]))
    assert some.n_items == 2
    assert np.array_equal(some.residual, effects.residual[[4, 1]])


def test_profile_is_the_mean_over_items_heads_and_offsets(rng):
    effects = effects_of(rng)
    np.testing.assert_allclose(effects.profile()["M"], effects.mask.mean((0, 2, 3)))
    np.testing.assert_allclose(effects.profile()["S"], effects.sink.mean((0, 2, 3)))
    weights = cluster_weights(6, 4, rng)
    repeated = np.repeat(effects.total, weights[2], axis=0).mean((0, 2, 3))
    np.testing.assert_allclose(effects.profile(weights)["T"][2], repeated)


def test_variances_average_offsets_not_effects(rng):
    effects = effects_of(rng)
    found = effects.variances()
    np.testing.assert_allclose(
        found["C_MR"], over_pairs(effects.mask, effects.residual).mean(-1), atol=1e-14
    )
    assert found["V_S"].shape == (3,)
    assert effects.variances(np.ones((5, 6)))["V_T"].shape == (5, 3)


def test_refuses_a_file_without_what_the_split_needs(rng, tmp_path):
    case = rows(rng)
    arrays = case.arrays()
    del arrays["remasked_body"]
    fields = dict(design="shifted", length=case.length, prefixes=case.prefixes)
    fields |= dict(index=synthetic.shifted_index(case.n, case.prefixes, case.window))
    store = synthetic.write(
        tmp_path / "a.h5", arrays, window=case.window, offsets=case.offsets, **fields
    )
    with pytest.raises(DesignError, match=r"a\.h5 has no 'remasked_body'; capture it with all"):
        channel_effects(store, 0)


@pytest.mark.parametrize("limit", [0, 2])
def test_refuses_where_every_offset_is_hidden(limit, rng, tmp_path):
    case = rows(rng, limit=limit)
    case.offsets = (6, 8)
    with pytest.raises(
        DesignError, match=rf"layer 0: none of the offsets \(6, 8\) is below {limit or 6}"
    ):
        channel_effects(case.store(tmp_path / "a.h5"), 0)
