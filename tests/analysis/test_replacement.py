"""Replacing position 0: the fraction removed is the one that was put in, and pairs are pairs."""

import numpy as np
import pytest
import synthetic

from posprobe.analysis import PRIMARY_TREATMENT, replacement_table
from posprobe.analysis.replacement import common_items, fraction_removed, ratio_of_variances
from posprobe.channels import early_limit
from posprobe.errors import DesignError

PREFIXES = (1, 8, 15, 57)
RESIDUAL = np.array([1.0, 0.5, 0.25, 0.0])


def effects(rng, n=10):
    return np.tile(np.array([0.5, 0.3, 0.1, 0]), (n, 1)), RESIDUAL + 0.05 * rng.normal(size=(n, 4))


@pytest.fixture
def pair(rng, tmp_path):
    """A native and a replaced file whose residual channel is `factor` of the native one."""
    mask, residual = effects(rng)

    def make(factor=0.5, treatment="mean", residual=residual, **changes):
        stores = []
        for name, r, how in (
            ("native", residual, "native"),
            (treatment, factor * residual, treatment),
        ):
            fields = {"weights_digest": "abc", "position0_treatment": how}
            if name != "native":
                fields |= changes
            prefixes = fields.pop("prefixes", PREFIXES)
            path = tmp_path / f"{name}.h5"
            stores.append(
                synthetic.effect_store(
                    path, mask[: len(r)], r, prefixes=prefixes, window=7, fields=fields
                )
            )
        return stores

    return make


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, 2.0])
@pytest.mark.parametrize("up_to", [1, 8, 57])
def test_fraction_removed_is_one_minus_the_square_of_the_factor(factor, up_to, pair):
    interval, before, after = fraction_removed(*pair(factor), up_to=up_to)
    assert interval.estimate == pytest.approx(1 - factor**2, abs=1e-5)
    assert after == pytest.approx(factor**2 * before, abs=1e-6)
    assert interval.low - 1e-6 <= 1 - factor**2 <= interval.high + 1e-6
    assert interval.n == 10


def test_variances_are_those_of_the_positions_up_to_the_limit(rng, tmp_path):
    residual = np.tile(RESIDUAL, (6, 1))
    store = synthetic.effect_store(tmp_path / "a.h5", residual * 0, residual, prefixes=PREFIXES)
    for up_to, kept in ((1, [0, 3]), (8, [0, 1, 3]), (57, [0, 1, 2, 3])):
        _, before, _ = fraction_removed(store, store, up_to=up_to)
        assert before == pytest.approx(np.var(RESIDUAL[kept]), rel=1e-5)


def test_interval_covers_what_was_put_in(tmp_path):
    """Different noise in the two files: 1 - 1/4 is inside nearly always, and 0 never."""
    inside = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        stores = [
            synthetic.effect_store(
                tmp_path / f"{factor}.h5",
                np.zeros((12, 4)),
                factor * RESIDUAL + 0.1 * rng.normal(size=(12, 4)),
                prefixes=PREFIXES,
            )
            for factor in (1.0, 0.5)
        ]
        interval, *_ = fraction_removed(*stores, up_to=57)
        assert interval.excludes(0)
        inside += not interval.excludes(0.75)
    assert inside >= 9  # .95 of 12, less three binomial errors


def test_unbounded_where_there_is_no_residual_channel(pair):
    seen = []
    for seed in range(8):
        noise = 0.1 * np.random.default_rng(seed).normal(size=(10, 4))
        interval, before, _ = fraction_removed(*pair(0.5, residual=noise), up_to=57)
        seen.append(before <= 0)
        assert interval.unbounded
    assert any(seen)


def test_never_bounded_where_the_variance_is_significantly_below_zero(pair):
    # each item has its own direction: the pairs oppose each other, and the estimate is negative
    angles = 2 * np.pi * np.arange(10) / 10
    wave = np.stack([np.cos(angles), np.sin(angles), -np.cos(angles), -np.sin(angles)], 1)
    interval, before, after = fraction_removed(*pair(0.5, residual=wave), up_to=57)
    assert before < 0
    assert after < 0
    assert interval.unbounded


def test_table_marks_one_primary_row(pair):
    _, content = pair(0.9, "content")
    native, mean = pair()
    table, primary = replacement_table(native, [content, mean])
    assert (
        primary.row("fraction_removed").items() <= table[table["primary"]].iloc[0].to_dict().items()
    )
    assert table["primary"].sum() == 1
    row = table[table["primary"]].iloc[0]
    assert (row["treatment"], row["positions"], row["up_to"]) == (PRIMARY_TREATMENT, "early", 8)
    assert row["fraction_removed"] == pytest.approx(0.75, abs=1e-5)
    assert row["V_R_replaced"] == pytest.approx(row["V_R_native"] / 4, rel=1e-4)
    assert table["treatment"].tolist() == ["content"] * 2 + ["mean"] * 2
    assert table["up_to"].tolist() == [8, 57] * 2
    assert (table["method"] == "fieller").all()
    assert (table["n"] == 10).all()


def test_table_leaves_limits_empty_where_unbounded(pair):
    angles = 2 * np.pi * np.arange(10) / 10
    wave = np.stack([np.cos(angles), np.sin(angles), -np.cos(angles), -np.sin(angles)], 1)
    table, _ = replacement_table(*(lambda a, b: (a, [b]))(*pair(0.5, residual=wave)))
    row = table[table["positions"] == "all"].iloc[0]
    assert row["method"] == "fieller: unbounded"
    assert row["low"] is None or np.isnan(row["low"])


def test_sink_rates_stand_beside_the_fraction(rng, tmp_path):
    mask, residual = effects(rng)
    shape = (1, 40, 4, 2)
    stores = []
    for name, attention in (("native", (0.9, 0.1)), ("mean", (0.1, 0.1))):
        z = -(mask + residual).T.reshape(-1)[None, :, None, None] * np.ones(shape)
        scores = {"sink_score": z + np.log(attention)}
        stores.append(
            synthetic.effect_store(
                tmp_path / f"{name}.h5",
                mask,
                residual,
                prefixes=PREFIXES,
                heads=2,
                fields={"arrays": scores, "position0_treatment": name},
            )
        )
    row = replacement_table(stores[0], stores[1:])[0].iloc[0]
    assert (row["sink_rate_native"], row["sink_rate_replaced"]) == (0.5, 0)


@pytest.mark.parametrize(
    ("prefixes", "length", "expected"), [((1, 9, 33, 97, 225), 257, 9), ((5, 60), 64, 5)]
)
def test_early_is_an_eighth_of_the_length_or_the_first_prefix(prefixes, length, expected, tmp_path):
    effect = np.zeros((2, len(prefixes)))
    window = length - prefixes[-1]
    store = synthetic.effect_store(
        tmp_path / "a.h5", effect, effect, prefixes=prefixes, window=window
    )
    assert store.length == length
    assert early_limit(store) == expected


# --- pairing ---


def tokens_of(n, prefixes=PREFIXES, window=7, seed=0):
    rng = np.random.default_rng(seed)
    index = synthetic.shifted_index(n, prefixes, window)
    text = rng.integers(5, 99, size=(100, prefixes[-1] + window))
    tokens = index["tokens"].copy()
    for row, item in zip(tokens, index["item"], strict=True):
        row[row > 0] = text[item][: (row > 0).sum()]
    return {"tokens": tokens}


@pytest.mark.parametrize("first", [0, 3])
def test_items_are_paired_by_name_whatever_their_order_and_number(first, rng, tmp_path):
    mask, residual = effects(rng, 8)
    residual = residual * rng.uniform(0.5, 2, size=(8, 1))  # so that pairing matters
    native = synthetic.effect_store(
        tmp_path / "native.h5", mask, residual, prefixes=PREFIXES, window=7,
        fields={"index": tokens_of(8)},
    )  # fmt: skip
    some = slice(first, first + 5)
    arrays = synthetic.effect_arrays(mask[some], residual[some] / 2, window=7)
    index = synthetic.shifted_index(5, PREFIXES, 7)
    index["item"] = index["item"] + first
    tokens = tokens_of(8)["tokens"].reshape(len(PREFIXES), 8, -1)[:, some]
    index["tokens"] = tokens.reshape(len(index["item"]), -1)
    arrays, index = synthetic.shuffled(arrays, index, rng)
    fewer = synthetic.write(
        tmp_path / "fewer.h5", arrays, index=index, design="shifted", length=64,
        prefixes=PREFIXES, window=7, offsets=(1,), position0_treatment="mean",
    )  # fmt: skip
    own, other = common_items(native, fewer)
    assert own.tolist() == list(range(8))[some]
    assert other.tolist() == [0, 1, 2, 3, 4]
    interval, *_ = fraction_removed(native, fewer, up_to=57)
    assert interval.n == 5
    assert interval.estimate == pytest.approx(0.75, abs=1e-5)
    assert interval.high - interval.low < 1e-4  # exactly halved, item by item


def test_another_token_at_position_0_is_still_the_same_stimulus(pair):
    index = synthetic.shifted_index(10, PREFIXES, 7)
    index["tokens"][:, 0] = 77
    stores = pair(index={"tokens": index["tokens"]})
    assert fraction_removed(*stores, up_to=57)[0].estimate == pytest.approx(0.75, abs=1e-5)


def test_refuses_other_text(pair):
    index = synthetic.shifted_index(10, PREFIXES, 7)
    index["tokens"][3, 1] = 77
    with pytest.raises(DesignError, match=r"mean\.h5 is not the stimulus of native\.h5; capture"):
        fraction_removed(*pair(index={"tokens": index["tokens"]}), up_to=57)


def test_refuses_other_prefixes(pair):
    with pytest.raises(DesignError, match=r"mean\.h5 is not the stimulus of native\.h5"):
        fraction_removed(*pair(prefixes=(1, 9, 15, 57)), up_to=57)


def test_refuses_another_model(pair):
    said = r"mean\.h5 is a capture of another model than native\.h5"
    with pytest.raises(DesignError, match=said):
        fraction_removed(*pair(weights_digest="xyz"), up_to=57)


def test_refuses_two_items(rng, tmp_path):
    mask, residual = effects(rng, 2)
    store = synthetic.effect_store(tmp_path / "a.h5", mask, residual, prefixes=PREFIXES)
    with pytest.raises(DesignError, match="at least 3 items, not 2"):
        fraction_removed(store, store, up_to=57)


@pytest.mark.parametrize("quantity", ["removed", "ratio"])
def test_a_variance_below_0_has_no_ratio(quantity):
    rng = np.random.default_rng(0)
    changed = 1 + 0.1 * rng.normal(size=30)
    found = {
        sign: ratio_of_variances(sign * (2 + 0.1 * rng.normal(size=30)), changed, quantity=quantity)
        for sign in (1, -1)
    }
    assert not found[1].unbounded
    assert found[-1].unbounded
