"""Sink-reading heads: chosen on one half, reported on the other, matched by random others."""

import numpy as np
import pytest
import synthetic

from posprobe.analysis import held_back_half, random_heads, sink_reading_heads, strongest
from posprobe.analysis.heads import sink_head_table, writing_table
from posprobe.errors import DesignError

QUERIES = 5


@pytest.fixture
def make(tmp_path):
    """A natural file in which head (l, h) gives key 0 the attention `attention[s, l, h]`."""

    def function(attention, *, value=None, residual=None, **fields):
        by_layer = np.log(np.asarray(attention, float)).transpose(1, 0, 2)
        score = np.repeat(by_layer[:, :, None], QUERIES, axis=2)
        arrays = {"normalizer": np.zeros_like(score), "sink_score": score}
        if value is not None:
            arrays["sink_value"] = np.asarray(value, float)
        if residual is not None:
            arrays["residual"] = residual
        return synthetic.write(tmp_path / "natural.h5", arrays, **fields)

    return function


def draw(rng, n=12, shape=(2, 3), **chances):
    """Attention of .8 with the given chance for each head named l_h, else .1."""
    attention = np.full((n, *shape), 0.1)
    for name, chance in chances.items():
        head = tuple(int(k) for k in name.strip("h").split("_"))
        attention[(slice(None), *head)] = np.where(rng.random(n) < chance, 0.8, 0.1)
    return attention


def test_halves_are_of_items_disjoint_and_the_same_whoever_asks(make, rng):
    store = make(draw(rng, n=10), index=dict(item=np.repeat(np.arange(5), 2)))
    half = held_back_half(store)
    assert np.array_equal(half, held_back_half(store))
    assert len(np.unique(store.item[half])) == 2
    assert not set(store.item[half]) & set(store.item[~half])
    other = make(draw(rng, n=10), index=dict(item=np.repeat(np.arange(5), 2)), seed=1)
    assert not np.array_equal(half, held_back_half(other))


def test_rates_are_those_of_each_half(make, rng):
    attention = rng.choice([0.1, 0.29, 0.31, 0.9], size=(12, 2, 3))
    store = make(attention)
    half, table = held_back_half(store), sink_head_table(store)
    for _, row in table.iterrows():
        own = attention[:, row["layer"], row["head"]]
        assert row["rate_chosen"] == pytest.approx((own[half] > 0.3).mean())
        assert row["sink_rate"] == pytest.approx((own[~half] > 0.3).mean())
        assert row["attention"] == pytest.approx(own[~half].mean(), abs=1e-6)
        assert row["sink_reading"] == ((own[half] > 0.3).mean() > 0.5)


def test_interval_of_a_rate_is_wilsons(make, rng):
    table = sink_head_table(make(draw(rng, n=20, h0_1=0.6, h1_2=1.0)))
    n, z = 10, 1.959964
    for _, row in table.iterrows():
        p = row["sink_rate"]
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        limits = row["sink_rate_low"], row["sink_rate_high"]
        assert limits == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_the_reporting_half_shows_regression_to_the_mean(make, rng):
    chance = rng.choice([0.1, 0.8], size=(20, 10, 10))  # every head sinks half of the time
    table = sink_head_table(make(chance))
    chosen = table[table["sink_reading"]]
    assert chosen["rate_chosen"].mean() > 0.65
    assert abs(chosen["sink_rate"].mean() - 0.5) < 0.05


def test_heads_come_strongest_first_and_a_rate_at_the_threshold_does_not_count(make, rng):
    attention = draw(rng, h0_0=1.0, h1_1=1.0, h1_2=1.0)
    attention[:, 1, 1] = 0.95
    store = make(attention)
    attention[np.flatnonzero(held_back_half(store))[:3], 1, 2] = 0.1  # a rate of 3/6
    assert sink_reading_heads(make(attention)) == [(1, 1), (0, 0)]


def test_a_higher_rate_counts_more_than_a_higher_attention(make, rng):
    attention = draw(rng, h0_0=1.0, h1_1=1.0)
    attention[:, 1, 1] = 0.95
    attention[np.flatnonzero(held_back_half(make(attention)))[0], 1, 1] = 0.1
    assert sink_reading_heads(make(attention)) == [(0, 0), (1, 1)]


def test_too_few_items_to_halve(make, rng):
    with pytest.raises(DesignError, match=r"has 3 items; choosing heads .* at least 4"):
        sink_head_table(make(draw(rng, n=3)))


# --- random others ---

SHAPE = (4, 5)


def test_random_heads_match_number_and_layer_and_avoid_the_others():
    like, exclude = [(1, 0), (1, 1), (3, 2)], [(1, 0), (1, 1), (3, 2), (3, 3)]
    draws = random_heads(like, exclude, SHAPE, draws=5)
    assert len({tuple(d) for d in draws}) == 5
    for drawn in draws:
        assert sorted(layer for layer, _ in drawn) == [1, 1, 3]
        assert not set(drawn) & set(exclude)
        assert len(set(drawn)) == 3


def test_random_heads_come_from_other_layers_where_their_own_has_too_few():
    like = [(2, head) for head in range(4)]
    for drawn in random_heads(like, like, SHAPE, draws=3):
        assert len(set(drawn)) == 4
        assert (2, 4) in drawn
        assert not set(drawn) & set(like)


def test_random_heads_are_those_of_the_seed():
    like = [(0, 0), (1, 1)]
    assert random_heads(like, like, SHAPE, seed=4) == random_heads(like, like, SHAPE, seed=4)
    assert random_heads(like, like, SHAPE, seed=4) != random_heads(like, like, SHAPE, seed=5)


def test_no_draw_comes_twice_where_there_are_few():
    assert random_heads([(0, 0)], [(0, 0)], (1, 2), draws=3) == [[(0, 1)]]


def test_too_few_other_heads():
    like = [(0, head) for head in range(3)]
    with pytest.raises(DesignError, match="3 random heads were asked for, but only 1 of 4 are not"):
        random_heads(like, like, (1, 4))


def test_compared_heads_leave_room_for_several_draws():
    heads = list(np.ndindex(4, 5))
    assert strongest(heads[:3], *SHAPE) == heads[:3]
    assert strongest(heads[:12], *SHAPE) == heads[:5]
    assert strongest(heads[:17], *SHAPE) == heads[:3]
    assert strongest(heads, *SHAPE) == []


# --- what they write ---


def writing(make, rng, **options):
    attention = draw(rng, h0_1=1.0)
    value = np.full((2, 12, 3), 5.0)
    value[0, :, 1] = 10.0
    return make(attention, value=value, **options)


def test_what_heads_write_is_attention_times_value(make, rng):
    table, ratio = writing_table(writing(make, rng))
    table = table.set_index("heads")
    assert ratio.row() == table.loc["ratio", ["estimate", "low", "high", "method", "n"]].to_dict()
    assert table.loc["sink-reading", "estimate"] == pytest.approx(0.8 * 10, rel=1e-5)
    assert table.loc["other", "estimate"] == pytest.approx(0.1 * 5, rel=1e-5)
    assert table.loc["ratio", "estimate"] == pytest.approx(16, rel=1e-5)
    assert table["n"].tolist() == [6, 6, 6]
    assert table["n_heads"].tolist() == [1, 5, 6]


def test_what_heads_write_relative_to_the_stream_leaves_position_0_out(make, rng):
    residual = np.ones((3, 12, QUERIES, 4))  # norm 2
    residual[:, :, 0] = 1e4
    table, _ = writing_table(writing(make, rng, residual=residual))
    relative = table[table["quantity"] == "relative to the residual stream"].set_index("heads")
    assert relative.loc["sink-reading", "estimate"] == pytest.approx(4, rel=1e-5)
    assert relative.loc["other", "estimate"] == pytest.approx(0.25, rel=1e-5)


def test_what_is_written_before_a_norm_is_not_compared_with_the_stream(make, rng):
    """Its size in the stream is another one."""
    residual = np.ones((3, 12, QUERIES, 4))
    for gains, there in (([0.5, 0.5], True), ([1.0, None], False)):
        config = {"posprobe_attention_gain": gains}
        table, _ = writing_table(writing(make, rng, residual=residual, config=config))
        assert ("relative to the residual stream" in set(table["quantity"])) == there


def test_writing_is_measured_on_the_half_that_did_not_choose(make, rng):
    attention, value = draw(rng, h0_1=1.0), np.full((2, 12, 3), 5.0)
    half = held_back_half(make(attention))
    value[:, half] = 1e3
    table = writing_table(make(attention, value=value))[0].set_index("heads")
    assert table.loc["sink-reading", "estimate"] == pytest.approx(4, rel=1e-5)


def test_what_writing_needs(make, rng):
    with pytest.raises(DesignError, match="has no 'sink_value'"):
        writing_table(make(draw(rng, h0_1=1.0)))
    with pytest.raises(DesignError, match="output projection of synthetic is not known"):
        writing_table(make(draw(rng, h0_1=1.0), value=np.full((2, 12, 3), np.nan)))
    with pytest.raises(DesignError, match=r"0 of 6 heads .* no two groups"):
        writing_table(make(draw(rng), value=np.ones((2, 12, 3))))
