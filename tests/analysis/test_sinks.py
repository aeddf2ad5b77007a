"""Position 0: sinks, the closed system and the fingerprint, on numbers that were put in."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import synthetic

from posprobe.analysis import closed_system_table, share_of_sink_heads
from posprobe.analysis.position0 import closure, fingerprint_spread
from posprobe.analysis.sinks import sink_attention, sink_table


def attending(path, attention, *, index=None, **fields):
    """A file in which query i of each sequence and head gives key 0 the attention (S, Q, H)."""
    scores = {"normalizer": np.zeros((1, *attention.shape)), "sink_score": np.log(attention)[None]}
    return synthetic.write(path, scores, index=index, **fields)


def test_sink_attention_is_the_mean_over_queries(rng, tmp_path):
    attention = rng.uniform(0.1, 0.9, size=(3, 7, 2))
    found = sink_attention(attending(tmp_path / "a.h5", attention), 0)
    np.testing.assert_allclose(found, attention.mean(1), rtol=1e-6)


def test_queries_from_which_a_window_hides_key_0_count_as_zero(rng, tmp_path):
    attention = rng.uniform(0.1, 0.9, size=(3, 7, 2))
    found = sink_attention(attending(tmp_path / "a.h5", attention, layer_window=(4,)), 0)
    np.testing.assert_allclose(found, attention[:, :4].sum(1) / 7, rtol=1e-6)


def test_a_hidden_score_of_any_size_does_no_harm(tmp_path):
    attention = np.full((2, 6, 1), 0.5)
    attention[:, 3:] = np.exp(200.0)  # above the normalizer, as only a hidden score can be
    store = attending(tmp_path / "a.h5", attention, layer_window=(3,))
    np.testing.assert_allclose(sink_attention(store, 0), 0.25, rtol=1e-6)


def test_heads_that_an_intervention_cut_attend_to_nothing_there(rng, tmp_path):
    store = attending(tmp_path / "a.h5", rng.uniform(0.1, 0.9, size=(2, 5, 3)))
    store.header = dataclasses.replace(store.header, interventions=[{"cut_sink": [[0, 2]]}])
    found = sink_attention(store, 0)
    assert (found[:, 2] == 0).all()
    assert (found[:, :2] > 0).all()


def test_only_the_longest_prefix_of_a_shifted_file(rng, tmp_path):
    attention = rng.uniform(0.1, 0.9, size=(9, 4, 2))
    index = synthetic.shifted_index(3, (1, 5, 9), 4)
    store = attending(tmp_path / "a.h5", attention, index=index, design="shifted", length=13)
    found = sink_attention(store, 0)
    np.testing.assert_allclose(found, attention[6:].mean(1), rtol=1e-6)
    windowed = attending(
        tmp_path / "b.h5", attention, index=index, design="shifted", length=13, layer_window=(11,)
    )
    expected = attention[6:, :2].sum(1) / 4  # positions 9 and 10 of 9 to 12
    np.testing.assert_allclose(sink_attention(windowed, 0), expected, rtol=1e-6)


def test_sink_rate_is_the_share_of_sequences_strictly_above(tmp_path):
    mean = np.array([[0.2, 0.3], [0.4, 0.3], [0.5, 0.3], [0.9, 0.8]])
    store = attending(tmp_path / "a.h5", np.repeat(mean[:, None], 2, 1))
    exact = sink_attention(store, 0)[0, 1]  # .3 as a float32 logarithm gives it back
    table = sink_table(store, threshold=exact)
    assert table["sink_rate"].tolist() == [0.75, 0.25]
    np.testing.assert_allclose(table["attention"], mean.mean(0), rtol=1e-6)
    assert (table["attention_low"] < table["attention"]).all()
    assert (table["attention_high"] > table["attention"]).all()
    assert table["head"].tolist() == [0, 1]


def test_share_of_heads_whose_mean_attention_is_above(rng, tmp_path):
    attention = np.full((6, 3, 4), 0.1)
    attention[..., 0] = 0.8
    attention += 0.02 * rng.uniform(size=attention.shape)
    found = share_of_sink_heads(attending(tmp_path / "a.h5", attention))
    assert (found.estimate, found.low, found.high) == (0.25, 0.25, 0.25)
    attention[..., 1] = np.array([0.1, 0.5, 0.1, 0.5, 0.1, 0.55])[:, None]
    unsure = share_of_sink_heads(attending(tmp_path / "b.h5", attention))
    assert unsure.low < 0.25 < unsure.estimate == 0.5 < unsure.high
    assert unsure.n == 6


def first_position(path, together, alone, **more):
    """A file with position 0 as given: (layer + 1, sequence, width)."""
    layers, n = len(together) - 1, together.shape[1]
    arrays = {"normalizer": np.zeros((layers, n, 3, 1)), "position0": together}
    return synthetic.write(path, arrays | {"position0_alone": alone} | more)


def test_closed_system_table(rng, tmp_path):
    alone = rng.normal(size=(3, 4, 6))
    together = alone.copy()
    together[2, 1] *= 1.01
    residual = np.full((3, 4, 3, 6), 2.0)
    residual[:, :, 0] = 1e6  # position 0 itself
    table = closed_system_table(
        first_position(tmp_path / "a.h5", together, alone, residual=residual)
    )
    assert table["layer"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(table["difference"], [0, 0, 0.01], atol=1e-6)
    np.testing.assert_allclose(table["norm_later"], np.sqrt(24))
    np.testing.assert_allclose(
        table["norm"], np.median(np.linalg.norm(together, axis=-1), axis=1), rtol=1e-6
    )
    without = closed_system_table(first_position(tmp_path / "b.h5", together, alone))
    assert without["norm_later"].isna().all()


def test_closure_is_the_largest_difference_over_layers(rng, tmp_path):
    alone = rng.normal(size=(3, 4, 6))
    together = alone.copy()
    together[1, 0] *= 1.02
    together[2, 0] *= 1.01
    together[2, 3] *= 1.06
    found = closure(first_position(tmp_path / "a.h5", together, alone))
    assert np.isclose(found.estimate, (0.02 + 0 + 0 + 0.06) / 4, atol=1e-6)
    assert found.n == 4
    closed = closure(first_position(tmp_path / "b.h5", alone, alone))
    assert (closed.estimate, closed.low, closed.high) == (0, 0, 0)


def test_a_zero_embedding_is_compared_absolutely(rng, tmp_path):
    alone = rng.normal(size=(2, 3, 4))
    alone[0] = 0
    store = first_position(tmp_path / "a.h5", alone, alone)
    assert closure(store).estimate == 0
    assert closed_system_table(store)["difference"].tolist() == [0, 0]
    interval, spread = fingerprint_spread(store)
    assert np.isfinite(interval.estimate)
    assert spread["spread"][0] == 0


def test_fingerprint_is_the_same_behind_one_token(rng, tmp_path):
    h0 = np.repeat(rng.normal(size=(3, 1, 5)), 4, axis=1)
    interval, table = fingerprint_spread(first_position(tmp_path / "a.h5", h0, h0))
    assert interval.estimate < 1e-12
    assert (table["spread"] < 1e-12).all()


def test_fingerprint_spread_by_hand(tmp_path):
    h0 = np.zeros((2, 2, 2))
    h0[:, :, 0] = 2.0
    h0[0, 0, 1], h0[0, 1, 1] = 1.0, -1.0  # mean (2, 0), distance 1 of 2
    h0[1, 0, 1], h0[1, 1, 1] = 0.5, -0.5
    interval, table = fingerprint_spread(first_position(tmp_path / "a.h5", h0, h0))
    assert interval.estimate == pytest.approx(0.5)
    pd.testing.assert_series_equal(table["spread"], pd.Series([0.5, 0.25], name="spread"))


def test_fingerprint_counts_each_item_once(rng, tmp_path):
    h0 = np.tile(rng.normal(size=(2, 2, 3)), (1, 3, 1))
    h0[:, 2:] += 5.0  # sequences of the same items behind longer prefixes
    index = synthetic.shifted_index(2, (1, 5, 9), 3)
    arrays = {"normalizer": np.zeros((1, 6, 3, 1)), "position0": h0}
    store = synthetic.write(tmp_path / "a.h5", arrays, index=index, design="shifted", length=12)
    interval, _ = fingerprint_spread(store)
    first = h0[:, :2]
    distance = np.linalg.norm(first - first.mean(1, keepdims=True), axis=-1)
    expected = (distance / np.linalg.norm(first.mean(1), axis=-1)[:, None]).max(0)
    assert interval.n == 2
    assert interval.estimate == pytest.approx(expected.mean(), rel=1e-5)


def test_trajectory_of_position_0(rng, tmp_path):
    first = rng.normal(size=(3, 8))
    turned = np.roll(first, 1, axis=-1)
    turned[:, 2] = 5e4
    together = np.stack([first, first * 3, turned])
    table = closed_system_table(first_position(tmp_path / "a.h5", together, together))
    assert np.isnan(table["cosine"][0])
    assert table["cosine"][1] == pytest.approx(1)
    expected = np.median(
        (first * turned).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(turned, axis=-1)
    )
    assert table["cosine"][2] == pytest.approx(expected, rel=1e-4)
    assert table["dimensions"][2] == 1
    assert table["dimensions"][0] == table["dimensions"][1] > 3
