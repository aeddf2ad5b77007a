"""Position in patterns with and without the denominator, and the gain of the shifted design."""

import capture_child as child
import numpy as np
import pytest
import synthetic

from posprobe.analysis import mean_normalizers
from posprobe.analysis.denominator import CAVEAT, fixed_denominator_probes, fixed_forward_table
from posprobe.analysis.precision import precision_table
from posprobe.analysis.replacement import fraction_removed
from posprobe.captures import capture_stimulus
from posprobe.errors import DesignError
from posprobe.models import Intervention

LENGTH = 40


@pytest.fixture
def make(tmp_path):
    """A natural file; z and s as given, (layer, sequence, query, head) and one offset."""
    count = iter(range(100))

    def function(z, s):
        arrays = {"normalizer": z, "offset_score": s[..., None]}
        return synthetic.write(tmp_path / f"{next(count)}.h5", arrays, offsets=(1,))

    return function


def noise(rng, n=20):
    return rng.normal(size=(2, n, LENGTH, 2))


def test_a_denominator_that_tells_position_is_missed(make, rng):
    position = np.log1p(np.arange(LENGTH))[None, None, :, None]
    found = fixed_denominator_probes(make(3 * position + 0.1 * noise(rng), noise(rng)))
    assert (found.table["r2_attention"] > 0.6).all()
    assert (found.table["r2_scores"].abs() < 0.05).all()
    assert (found.table["difference_low"] > 0.5).all()
    assert (found.table["p_adjusted"] < 0.05).all()
    assert found.mean.low > 0.5


def test_a_denominator_that_hides_position_is_not(make, rng):
    scores = 0.1 * np.arange(LENGTH)[None, None, :, None] + 0.1 * noise(rng)
    found = fixed_denominator_probes(make(scores, scores + noise(rng)))
    assert found.mean.high < 0


def test_both_probes_share_their_weights(make, rng):
    """A denominator that is constant changes nothing, and so the difference is 0, exactly."""
    found = fixed_denominator_probes(make(np.zeros((2, 20, LENGTH, 2)), noise(rng)))
    assert (found.table[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert (found.table["p_adjusted"] == 1).all()


def test_mean_difference_is_that_of_the_layers(make, rng):
    found = fixed_denominator_probes(make(noise(rng), noise(rng)))
    assert found.mean.estimate == pytest.approx(found.table["difference"].mean())
    explicit = found.table["r2_attention"] - found.table["r2_scores"]
    np.testing.assert_allclose(found.table["difference"], explicit)


def test_too_few_sequences_for_folds(make, rng):
    with pytest.raises(DesignError, match="has 4 sequences; probes need 5 folds"):
        fixed_denominator_probes(make(noise(rng, 4), noise(rng, 4)))


def test_constants_are_means_after_position_0(make, rng):
    z = noise(rng)
    z[:, :, 0] = 100.0
    constants = mean_normalizers(make(z, noise(rng)))
    assert [(layer, head) for layer, head, _ in constants] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for layer, head, c in constants:
        assert c == round(c, 4)
        assert c == pytest.approx(z[layer, :, 1:, head].mean(), abs=1e-4)
    assert mean_normalizers(make(z, noise(rng)), layers=[1]) == constants[2:]


def test_fixed_forward_is_what_the_model_did_with_its_caveat(tmp_path):
    model, stimulus = child.model(), child.stimulus(n=4)
    constants = tuple((layer, head, 0.5 * layer) for layer in range(3) for head in range(4))
    native, fixed = (
        capture_stimulus(model, stimulus, tmp_path / f"{k}.h5", intervention=change, progress=False)
        for k, change in enumerate([Intervention(), Intervention(fixed_denominator=constants)])
    )
    table = fixed_forward_table(native, fixed).set_index("positions")
    interval, before, after = fraction_removed(native, fixed, up_to=native.prefixes[-1])
    row = table.loc["all"]
    assert (row["V_R_native"], row["V_R_fixed"]) == (before, after)
    assert row["fraction_removed"] == interval.estimate
    assert after != before
    assert row["caveat"] == CAVEAT
    assert row["layers"] == "0, 1, 2"
    last = fixed.prefix_length == fixed.prefixes[-1]
    sums = [fixed.normalizer(layer)[last].mean() - 0.5 * layer for layer in range(3)]
    assert row["log_row_sum_last"] == pytest.approx(np.mean(sums), abs=1e-5)
    assert row["log_row_sum_first"] < row["log_row_sum_last"]  # row sums carry position


# --- precision ---

PREFIXES, WINDOW = (1, 6, 11, 20), 4  # windows of one sequence do not overlap


@pytest.fixture
def designs(tmp_path, rng):
    """A natural and a shifted file; the noise of the first is `factor` times that of the second."""

    def function(factor, n=(60, 40), **fields):
        stores = []
        for design, size, count in zip(("natural", "shifted"), (factor, 1.0), n, strict=True):
            effect = size * rng.normal(size=(count, 4))
            effect[:, -1] = 0.0
            arrays = synthetic.effect_arrays(np.zeros((count, 4)), effect, window=WINDOW)
            index = synthetic.shifted_index(count, PREFIXES, WINDOW)
            length = PREFIXES[-1] + WINDOW
            if design == "natural":
                arrays, index = as_natural(arrays, effect, length), None
            stores.append(
                synthetic.write(
                    tmp_path / f"{design}.h5",
                    arrays,
                    index=index,
                    design=design,
                    length=length,
                    prefixes=PREFIXES,
                    window=WINDOW,
                    offsets=(1,),
                    **(fields if design == "natural" else {}),
                )
            )
        return stores

    return function


def as_natural(arrays, effect, length):
    """The same effects read off one sequence: z is -T(p) in the window at p."""
    count = len(effect)
    z = np.zeros((1, count, length, 1))
    for prefix, column in zip(PREFIXES, effect.T, strict=True):
        z[0, :, prefix : prefix + WINDOW, 0] = -column[:, None]
    late = slice(3 * count, None)
    return {
        "normalizer": z,
        "sink_score": np.full_like(z, -20.0),
        "offset_score": np.zeros((*z.shape, 1)),
        "remasked_normalizer": arrays["remasked_normalizer"][:, late],
        "remasked_body": arrays["remasked_body"][:, late],
    }


def test_gain_in_precision_is_the_ratio_of_standard_errors_at_equal_n(designs):
    table = precision_table(*designs(3.0))
    assert set(table["n"]) == {40}
    assert table["position"].tolist() == [1, 6, 11] * 2
    assert abs(np.log(table["ratio"] / 3)).max() < 0.4
    assert (table["low"] > 1.4).all()
    np.testing.assert_allclose(table["ratio"], table["se_natural"] / table["se_shifted"])
    np.testing.assert_allclose(table["se_shifted"], 1 / np.sqrt(40), rtol=0.3)


def test_standard_error_is_that_of_the_mean_over_items(designs):
    natural, shifted = designs(2.0, n=(20, 20))
    from posprobe.channels import channel_effects

    total = channel_effects(shifted, 0).total[:, 1, 0, 0]
    row = precision_table(natural, shifted).iloc[1]
    assert row["se_shifted"] == pytest.approx(total.std(ddof=1) / np.sqrt(20))


def test_designs_that_differ_in_more_than_content_are_refused(designs, tmp_path):
    natural, shifted = designs(2.0)
    natural.window = 5
    with pytest.raises(DesignError, match="cannot be compared in precision"):
        precision_table(natural, shifted)
