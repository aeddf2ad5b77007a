"""Position probes by layer, on files in which the answer was put."""

import numpy as np
import pandas as pd
import pytest
import synthetic

from posprobe.analysis import probes as probing
from posprobe.analysis.probes import Probes, probe_layers, spread_layers
from posprobe.errors import DesignError
from posprobe.intervals import Inference
from posprobe.probes import VariancePartition, feature_matrix, features

N, T = 14, 40


def arrays(rng, n=N, layers=3):
    """Normalizers are log position and noise; the residual stream has position from layer 2 on."""
    position = np.arange(T)
    z = np.log1p(position)[None, None, :, None] + 0.3 * rng.normal(size=(layers, n, T, 2))
    stream = rng.normal(size=(layers + 1, n, T, 4))
    stream[2:, :, :, 0] = 4 * (position / T - 0.5)
    return {"normalizer": z, "residual": stream}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    return synthetic.write(tmp_path_factory.mktemp("store") / "a.h5", arrays(rng))


@pytest.fixture(scope="module")
def found(store):
    return probe_layers(store, refit_layers=[1], inference=Inference(n_jobs=1))


def r2(found, layer, name, estimand="fixed_probe"):
    rows = found.probes.set_index(["layer", "features", "estimand"])
    return rows.loc[(layer, name, estimand)]


def test_position_is_found_where_it_was_put_and_nowhere_else(found):
    for layer in range(3):
        assert r2(found, layer, "normalizer")["low"] > 0.5
    for layer in (0, 1):
        assert abs(r2(found, layer, "residual")["r2"]) < 0.05
    assert r2(found, 2, "residual")["low"] > 0.5


def test_error_is_set_against_guessing(found):
    y = np.tile(np.arange(1, T), N)
    guess = np.abs(y[:, None] - y[None, :]).mean()
    assert r2(found, 0, "normalizer")["mae_guess"] == pytest.approx(guess)
    # one constant for all, the median, errs by T/4; two random positions differ by T/3
    assert r2(found, 0, "residual")["mae"] == pytest.approx(T / 4, rel=0.1)
    assert r2(found, 0, "normalizer")["mae"] < T / 6


def test_only_the_layers_that_were_asked_for_are_refitted(found):
    refitted = found.probes[found.probes["estimand"] == "refit"]
    assert set(refitted["layer"]) == {1}
    assert set(found.probes["layer"]) == {0, 1, 2}
    both = (r2(found, 1, "normalizer", kind) for kind in ("fixed_probe", "refit"))
    fixed, refit = both
    assert fixed["r2"] == refit["r2"]
    assert (fixed["low"], fixed["high"]) != (refit["low"], refit["high"])


def test_layers_to_refit_may_come_from_any_iterable(store, found):
    same = probe_layers(store, refit_layers=(k for k in [1]), inference=Inference(n_jobs=1))
    assert same.probes.equals(found.probes)


def test_partition_is_that_of_the_three_probes(found):
    table = found.partition.set_index(["layer", "quantity", "group", "estimand"])["estimate"]
    kind = "fixed_probe"
    for layer in range(3):
        z, h, both = (
            r2(found, layer, name)["r2"]
            for name in ("normalizer", "residual", "normalizer+residual")
        )
        joint = "normalizer+residual"
        assert table[layer, "unique", "normalizer", kind] == pytest.approx(both - h)
        assert table[layer, "unique", "residual", kind] == pytest.approx(both - z)
        assert table[layer, "shared", joint, kind] == pytest.approx(z + h - both)
        assert table[layer, "shapley", "normalizer", kind] == pytest.approx((z + both - h) / 2)


def test_mean_over_layers_is_of_the_probes_as_fitted(found):
    for name in ("normalizer", "residual", "normalizer+residual"):
        each = [r2(found, layer, name)["r2"] for layer in range(3)]
        assert found.mean[name].estimate == pytest.approx(np.mean(each))
        assert found.mean[name].low < found.mean[name].estimate < found.mean[name].high
        assert found.mean[name].n == N


def test_the_probes_of_layer_0_have_the_interval_of_their_rows(store, found):
    for name in ("normalizer", "residual", "normalizer+residual"):
        row, interval = r2(found, 0, name), found.layer_0[name]
        expected = [row["r2"], row["low"], row["high"], row["n"]]
        assert [interval.estimate, interval.low, interval.high, interval.n] == expected
    normalizer = found.layer_0["normalizer"]
    assert normalizer.p_value(normalizer.low) == pytest.approx(0.05)
    others = probe_layers(store, layers=[2], refit_layers=[], inference=Inference(n_jobs=1))
    assert others.layer_0 == {}


def test_rows_are_those_of_the_partition_itself(store, found):
    X, y, groups, parts = features(store, 0)
    model = VariancePartition(parts).fit(X, y, groups=groups)
    assert r2(found, 0, "residual")["r2"] == pytest.approx(model.r2_[1])
    assert r2(found, 0, "residual")["n_features"] == 4


def test_only_some_layers(store):
    found = probe_layers(store, layers=iter([2]), refit_layers=[], inference=Inference(n_jobs=1))
    assert isinstance(found, Probes)
    assert set(found.probes["layer"]) == {2}
    assert set(found.probes["estimand"]) == {"fixed_probe"}


def test_only_layers_whose_stream_was_kept(rng, tmp_path):
    values = arrays(rng, n=5)
    values["residual"] = values["residual"][[0, 2]]
    store = synthetic.write(tmp_path / "a.h5", values, residual_layers=(0, 2))
    found = probe_layers(store, refit_layers=[], inference=Inference(n_jobs=1))
    assert set(found.probes["layer"]) == {0, 2}


def test_same_seed_same_tables(store):
    one, two = (
        probe_layers(store, layers=[0], refit_layers=[], inference=Inference(seed=4))
        for _ in range(2)
    )
    other = probe_layers(store, layers=[0], refit_layers=[], inference=Inference(seed=5))
    assert one.probes.equals(two.probes)
    assert not one.probes.equals(other.probes)


@pytest.mark.parametrize(
    ("n_layers", "count", "expected"),
    [(30, 5, [0, 7, 14, 22, 29]), (3, 5, [0, 1, 2]), (1, 5, [0]), (9, 1, [0])],
)
def test_spread_layers(n_layers, count, expected):
    assert spread_layers(n_layers, count) == expected


def test_refuses_fewer_sequences_than_folds(rng, tmp_path):
    store = synthetic.write(tmp_path / "few.h5", arrays(rng, n=4))
    with pytest.raises(DesignError, match=r"few\.h5 has 4 sequences; probes need 5 folds, so cap"):
        probe_layers(store)


def test_refuses_no_layer(store, rng, tmp_path):
    with pytest.raises(DesignError, match=r"a\.h5 does not keep the residual stream"):
        probe_layers(store, layers=[])
    values = arrays(rng, n=5)
    values["residual"] = values["residual"][3:]
    last = synthetic.write(tmp_path / "last.h5", values, residual_layers=(3,))
    with pytest.raises(DesignError, match=r"last\.h5 does not keep the residual stream"):
        probe_layers(last)


def test_many_sequences_are_pooled_into_units_and_streamed(store, monkeypatch):
    monkeypatch.setattr(probing, "MAX_UNITS", 7)
    pooled = probe_layers(store, layers=[2], refit_layers=[2], inference=Inference(n_jobs=1))
    X, y, groups, feature_groups = features(store, 2)
    model = VariancePartition(feature_groups).fit(X, y, groups=groups // 2)
    how = Inference()
    weights = {"fixed_probe": how.weights(7), "refit": how.refit_weights(7)}
    expected = pd.concat([model.intervals(kind, weights=w) for kind, w in weights.items()])
    expected = expected[expected["quantity"] == "R2"]
    for name in ("low", "high"):
        np.testing.assert_allclose(pooled.probes[name], expected[name], rtol=1e-6)
    assert pooled.probes["low"].notna().tolist() == [False] * 3 + [True] * 3
    np.testing.assert_allclose(pooled.probes["r2"], expected["estimate"], rtol=1e-9)
    np.testing.assert_allclose(pooled.probes["mae"], [*model.mae_, *model.mae_], rtol=1e-9)
    whole = probe_layers(store, layers=[2], refit_layers=[], inference=Inference(n_jobs=1))
    assert pooled.probes["mae_guess"].iloc[0] == whole.probes["mae_guess"].iloc[0]
    assert set(pooled.probes["n"]) == {7}


def test_pooled_probes_never_hold_a_whole_layer(store, monkeypatch):
    sizes = []

    def watched(*arguments, **keywords):
        found = features(*arguments, **keywords)
        sizes.append(len(np.unique(found.groups)))
        return found

    monkeypatch.setattr(probing, "MAX_UNITS", 7)
    monkeypatch.setattr(feature_matrix, "features", watched)
    monkeypatch.setattr(feature_matrix.feature_blocks, "__kwdefaults__", {"n_sequences": 5})
    probe_layers(store, layers=[0], refit_layers=[], inference=Inference(n_jobs=1))
    assert sizes == [5] + 2 * [5, 5, 4]
