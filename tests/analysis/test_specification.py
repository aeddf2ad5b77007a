"""The specification curve: known fractions, one primary specification, and every refusal."""

import itertools

import numpy as np
import pytest
import synthetic

from posprobe.analysis.replacement import fraction_removed
from posprobe.analysis.specification import METRICS, specification_curve
from posprobe.channels import early_limit
from posprobe.errors import DesignError
from posprobe.intervals import fieller_ratio, pseudo_values
from posprobe.intervals.student import leave_one_out

PREFIXES = (1, 4, 7, 10)
EFFECT = np.array([1.0, 0.5, 0.3, 0.0])
OFFSETS = (1, 2)


@pytest.fixture
def make(tmp_path):
    """A shifted file with one residual effect (N, P) per layer."""
    count = itertools.count()

    def function(
        residuals, *, treatment="native", window=4, offsets=OFFSETS, heads=2, first=0, **fields
    ):
        layers = [
            synthetic.effect_arrays(
                np.zeros_like(r), r, window=window, offsets=offsets, heads=heads
            )
            for r in residuals
        ]
        arrays = {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}
        index = synthetic.shifted_index(len(residuals[0]), PREFIXES, window, first)
        options = dict(
            design="shifted",
            length=PREFIXES[-1] + window,
            prefixes=PREFIXES,
            window=window,
            offsets=offsets,
            position0_treatment=treatment,
        )
        return synthetic.write(
            tmp_path / f"{next(count)}.h5", arrays, index=index, **options | fields
        )

    return function


def effects(rng, scale=1.0, n=20, noise=0.05, layers=1):
    return [scale * EFFECT + noise * rng.normal(size=(n, len(EFFECT))) for _ in range(layers)]


def pick(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_known_fractions_are_recovered(make, rng):
    native = make(effects(rng))
    half = make(effects(rng, np.sqrt(0.6)), treatment="mean")
    table = specification_curve(native, [half])
    for metric, truth in (("V_R", 0.4), ("mean |R|", 1 - np.sqrt(0.6))):
        for positions in ("early", "all"):
            row = pick(table, metric=metric, positions=positions, offsets="all", layers="all")
            assert row["low"] < truth < row["high"]
            assert row["high"] - row["low"] < 0.25


def test_primary_specification_is_the_one_fixed_beforehand(make, rng):
    native = make(effects(rng, layers=3))
    replaced = [make(effects(rng, 0.8, layers=3), treatment=t) for t in ("zero", "mean", "noise")]
    table = specification_curve(native, replaced)
    row = pick(table, primary=True)
    early = early_limit(native)
    interval, _, _ = fraction_removed(native, replaced[1], up_to=early)
    assert (row["treatment"], row["up_to"], row["n"]) == ("mean", early, 20)
    found = row["fraction_removed"], row["low"], row["high"]
    expected = interval.estimate, interval.low, interval.high
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_every_combination_is_there_once(make, rng):
    native = make(effects(rng, layers=3))
    replaced = [make(effects(rng, layers=3), treatment=t) for t in ("mean", "zero")]
    table = specification_curve(native, replaced, sink_reading=[(1, 0), (2, 0), (2, 1)])
    names = ["treatment", "positions", "offsets", "layers", "metric"]
    assert len(table) == 2 * 3 * 3 * 5 * 3
    assert not table.duplicated(names).any()
    assert set(table["positions"]) == {"early", "up to 4", "all"}
    assert set(table["offsets"]) == {"1", "2", "all"}
    assert set(table["metric"]) == set(METRICS)


def test_layers_are_averaged_where_they_are_named(make, rng):
    changed = effects(rng, layers=2, noise=0.01) + effects(rng, 0.1, noise=0.01)
    native, replaced = make(effects(rng, layers=3, noise=0.01)), make(changed, treatment="mean")
    table = specification_curve(native, [replaced], sink_reading=[(2, 0)])
    chosen = table[(table["metric"] == "V_R") & (table["offsets"] == "all")]
    chosen = chosen[chosen["positions"] == "all"].set_index("layers")["fraction_removed"]
    expected = {"first third": 0.0, "last third": 0.99, "sink-reading": 0.99, "all": 0.33}
    for layers, value in expected.items():
        assert abs(chosen[layers] - value) < 0.03


def test_mean_absolute_effect_is_the_jackknife_of_its_definition(make, rng):
    a, b = effects(rng, n=6, noise=0.4)[0], effects(rng, 0.5, n=6, noise=0.4)[0]
    table = specification_curve(make([a]), [make([b], treatment="mean")])
    row = pick(table, metric="mean |R|", positions="all", offsets="1", layers="all")

    def statistic(x):
        return np.abs((x - x[:, -1:]).mean(0)[:-1]).mean()

    psi = [pseudo_values(statistic(x), leave_one_out(statistic, x)) for x in (a, b)]
    expected = fieller_ratio(*psi)
    found = row["fraction_removed"], row["low"], row["high"]
    np.testing.assert_allclose(found, (expected.estimate, expected.low, expected.high), atol=1e-5)


@pytest.mark.parametrize("first", [0, 5])
def test_items_pair_with_their_own_in_a_larger_capture(make, rng, first):
    whole, other = effects(rng)[0], effects(rng, 0.7)[0]
    some = slice(first, first + 8)
    few = make([other[some]], treatment="mean", first=first)
    expected = specification_curve(make([whole[some]], first=first), [few])
    found = specification_curve(make([whole]), [few])
    assert (found["n"] == 8).all()
    np.testing.assert_allclose(found["fraction_removed"], expected["fraction_removed"])
    swapped = specification_curve(few, [make([whole], treatment="mean")])
    back = specification_curve(few, [make([whole[some]], treatment="mean", first=first)])
    np.testing.assert_allclose(swapped["fraction_removed"], back["fraction_removed"])


def test_no_limits_where_the_native_effect_is_not_there(make, rng):
    noise = [0.3 * rng.normal(size=(12, 4)) for _ in range(2)]
    table = specification_curve(make(noise[:1]), [make(noise[1:], treatment="zero")])
    rows = table[table["method"] == "fieller: unbounded"]
    assert len(rows)
    assert rows["low"].isna().all()
    assert rows["high"].isna().all()


def test_no_limits_where_the_native_variance_is_below_0(make, rng):
    turned = np.where(np.arange(12) % 2, 1, -1)[:, None] * EFFECT  # of every item alike, below 0
    table = specification_curve(make([turned]), [make(effects(rng, n=12), treatment="mean")])
    row = pick(table, metric="V_R", positions="all", offsets="all", layers="all")
    assert row["method"] == "fieller: unbounded"
    assert np.isnan([row["low"], row["high"]]).all()


def test_nothing_to_remove_is_said_in_a_word(make, rng):
    hidden = dict(layer_window=(2,), offsets=(1,))  # no row sees key 0: the sink has no part
    pair = [make(effects(rng), treatment=t, **hidden) for t in ("native", "mean")]
    table = specification_curve(pair[0], pair[1:])
    undefined = table["method"] == "undefined"
    assert np.array_equal(undefined, table["metric"] == "V_S")
    assert table.loc[undefined, ["fraction_removed", "low", "high"]].isna().all(axis=None)


def test_an_offset_that_a_window_hides_is_left_out_of_means(make, rng):
    sizes = dict(layer_window=(0, 0, 2))
    native = make(effects(rng, layers=3), **sizes)
    replaced = make(effects(rng, 0.5, layers=3), treatment="mean", **sizes)
    table = specification_curve(native, [replaced])
    interval, _, _ = fraction_removed(native, replaced, up_to=early_limit(native))
    assert abs(pick(table, primary=True)["fraction_removed"] - interval.estimate) < 1e-10
    row = pick(table, metric="V_R", positions="all", offsets="2", layers="last third")
    assert row["method"] == "undefined"


def test_another_stimulus_is_refused(make, rng):
    native = make(effects(rng))
    with pytest.raises(DesignError, match="is not the stimulus of"):
        specification_curve(native, [make(effects(rng), offsets=(1,), treatment="mean")])
    with pytest.raises(DesignError, match="is a capture of another model"):
        specification_curve(native, [make(effects(rng), weights_digest="x", treatment="mean")])
