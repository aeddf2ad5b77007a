"""Limits of identities: the smallest size that matters, or what rounding explains."""

import numpy as np
import pytest
import synthetic

from posprobe.analysis import Files, check, floor, limit
from posprobe.analysis.limits import limits_table

BFLOAT16 = {"dtype": "bfloat16"}


def store(path, sizes, *, config=BFLOAT16, **fields):
    arrays = {"normalizer": np.zeros((2, 2, 3, 1))}
    return synthetic.write(path / "a.h5", arrays, rounding=sizes, config=config, **fields)


def test_the_limit_is_4_times_the_rounding_where_that_is_more(tmp_path):
    found = limit("mask_isolated", Files(repeated=store(tmp_path, {"R": [0.02, 0.034]})))
    assert (found.value, found.unit, found.rounding) == (0.14, "nats", 0.034)
    said = "The limit is 4 times the rounding of R seen in float64 (0.034 nats, computed in bf"
    assert found.source.startswith(said)


def test_the_limit_is_the_smallest_that_matters_where_rounding_is_less(tmp_path):
    found = limit("mask_isolated", Files(repeated=store(tmp_path, {"R": [1e-6, 2e-5]})))
    assert found.value == 1e-4
    assert "the smallest size that matters; it exceeds 4 times the rounding of R" in found.source


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({}, "the file does not record it"),
        ({"unknown": "its weights are quantised (uint8)"}, "its weights are quantised (uint8)"),
        ({"normalizer": [0.1, 0.1]}, "the file does not record it"),
    ],
)
def test_the_limit_is_fixed_where_rounding_is_not_known(sizes, reason, tmp_path):
    found = limit("mask_isolated", Files(repeated=store(tmp_path, sizes)))
    assert found.value == 1e-4
    assert np.isnan(found.rounding)
    assert found.source == f"The limit is fixed, since rounding is not known: {reason}."


def test_errors_of_one_layer_count_where_the_identity_is_of_one_layer(tmp_path):
    sizes = {"R": [0.001, 9.0], "M": [0.002, 9.0], "moved": [0.01, 9.0]}
    files = Files(shifted=store(tmp_path, sizes, design="shifted"))
    assert limit("layer_0_residual", files).value == pytest.approx(0.012)
    assert limit("offsets_only", files).value == pytest.approx(0.04)
    assert limit("offsets_only", files).unit == "1"


def test_the_coarsest_of_several_files_counts(tmp_path):
    masks = [
        store(tmp_path / name, {"M": [size] * 2, "mismatch": [0.0, size]}, design="shifted", **more)
        for name, size, more in (
            ("a", 0.1, {"interventions": [{"causal": False}]}),
            ("b", 0.2, {"interventions": [{"window": 2}]}),
            ("c", 0.3, {"interventions": [{"window": 1}]}),
        )
        if not (tmp_path / name).mkdir()
    ]
    assert limit("mask_removed", Files(masks=masks)).value == pytest.approx(0.8)
    assert limit("window_closes_mask", Files(masks=masks)).value == pytest.approx(2.4)


def test_the_floor_of_a_variance_is_the_mean_of_squared_rounding(tmp_path):
    one = store(tmp_path, {"M": [0.0, 0.2], "R": [0.1, 0.3]})
    assert floor(one, "V_R") == pytest.approx((0.01 + 0.09) / 2)
    assert floor(one, "V_M") == pytest.approx(0.04 / 2)
    assert floor(one, "C_MR") == pytest.approx(0.06 / 2)
    assert floor(one, "V_T") == pytest.approx((0.01 + 0.25) / 2)


def test_there_is_no_floor_where_rounding_is_not_known(tmp_path):
    assert floor(store(tmp_path, {}), "V_R") == 0


def test_every_limit_is_in_one_table(tmp_path, rng):
    table = limits_table(Files(natural=synthetic.study_files(tmp_path, rng)["natural"]))
    assert table["claim"].tolist() == ["closed_system", "fingerprint_varies"]
    assert table["value"].tolist() == [1e-4, 1e-4]


def test_a_file_says_how_it_was_computed_and_how_far_it_is_rounded(tmp_path):
    sizes = {"normalizer": [0.1, 0.158], "residual": [0, 0.02, 0.023], "R": [0.05, 0.01]}
    words = "z 0.16 nats, residual stream 0.023 of its norm, R 0.05 nats"
    one = store(tmp_path, sizes)
    assert one.rounding_in_words() == words
    assert (check(one)["computed_in"], check(one)["rounding"]) == ("bfloat16", words)


def test_a_file_without_rounding_says_so(tmp_path):
    assert store(tmp_path, {}, config={}).rounding_in_words() == "not recorded"


def test_a_file_whose_rounding_is_not_known_says_why(tmp_path):
    one = store(tmp_path, {"unknown": "no float64"}, config={})
    assert one.rounding_in_words() == "not known (no float64)"
    assert check(one)["computed_in"] == "unknown"
