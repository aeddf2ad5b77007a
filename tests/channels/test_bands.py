"""Position effects by band: they add up, the keys are counted, and shares sum to one."""

import dataclasses

import capture_child as child
import numpy as np
import pytest
import synthetic
import torch

from posprobe.captures import capture_stimulus
from posprobe.channels import (
    KEYS,
    band_effects,
    channel_effects,
    decompose,
    decompose_bands,
    why_no_bands,
)
from posprobe.errors import DesignError
from posprobe.models import Intervention

WHOLE = {"T": "total", "M": "mask", "R": "residual", "S": "sink"}
FEW = dict(n_resamples=100)


def captured(path, family="llama", **changes):
    model = child.model(family, dtype=torch.float64)
    stimulus = child.stimulus(length=40, prefixes=(1, 6, 12, 35), n=6)
    options = dict(bands=3, offsets=(1, 2, 4), progress=False) | changes
    return capture_stimulus(model, stimulus, path, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("bands") / "a.h5")


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt-neox", "gpt-oss", "llama4"])
def test_bands_add_up_to_every_effect(family, tmp_path):
    store = captured(tmp_path / "a.h5", family)
    for layer in range(store.n_layers):
        found, whole = band_effects(store, layer), channel_effects(store, layer)
        assert found.names == (*store.bands, KEYS)
        for name, key in WHOLE.items():
            np.testing.assert_allclose(found.effects[name].sum(-1), getattr(whole, key), atol=5e-6)
    assert np.abs(found.effects["R"]).max() > 1e-4  # else there is nothing to split


def test_bands_add_up_where_key_0_is_hidden(tmp_path):
    store = captured(tmp_path / "a.h5", intervention=Intervention(cut_sink=((1, 2),)))
    found, whole = band_effects(store, 1), channel_effects(store, 1)
    np.testing.assert_allclose(found.effects["S"].sum(-1), whole.sink, atol=5e-6)
    assert not found.effects["S"][:, :, 2].any()
    assert found.effects["S"][:, :, 1].any()


def test_counting_is_the_logarithm_of_the_number_of_keys(store):
    effects = band_effects(store, 0).effects
    prefixes, rows = np.array(store.prefixes), np.arange(store.window)
    counts = np.log(prefixes[:, None] + rows + 1)
    for d, offset in enumerate(store.offsets):
        expected = -(counts - counts[-1])[:, rows >= offset].mean(1)
        for name in ("T", "M"):
            found = effects[name][:, :, :, d, -1]
            assert np.abs(found - expected[None, :, None]).max() < 1e-6
    assert np.abs(effects["R"][..., -1]).max() < 1e-6


def test_zeroed_bands_have_no_effect_and_no_part(tmp_path):
    store = captured(tmp_path / "a.h5", zero_band=(0,))
    for layer in range(store.n_layers):
        for values in band_effects(store, layer).effects.values():
            assert np.abs(values[..., 0]).max() < 1e-6
    table = decompose_bands(store, **FEW)
    assert table.loc[table["band"] == store.bands[0], "part"].abs().max() < 1e-9


def test_pooled_items_are_means_of_items(store):
    every, pooled = band_effects(store, 1), band_effects(store, 1, max_units=3)
    for name in WHOLE:
        pairs = every.effects[name].reshape(3, 2, *every.effects[name].shape[1:]).mean(1)
        np.testing.assert_allclose(pooled.effects[name], pairs, atol=1e-12)


def test_parts_add_up_to_the_variances_and_shares_to_one(store):
    table, whole = decompose_bands(store, **FEW), decompose(store, **FEW)
    for name in WHOLE:
        one = table[table["channel"] == name]
        summed = one.groupby("layer", sort=False)["part"].sum()
        expected = [*whole.overall[f"V_{name}"], *whole.by_layer[f"V_{name}"]]
        np.testing.assert_allclose(summed, expected, atol=1e-6)
        shares = one[one["status"] == "ok"].groupby("layer")["share"].sum()
        np.testing.assert_allclose(shares, 1, atol=1e-9)
    assert (table["status"] == "ok").any()
    assert list(table["layer"].unique()) == ["all", 0, 1, 2]


def test_the_table_has_one_row_for_each_layer_channel_and_band(store):
    table = decompose_bands(store, **FEW)
    assert len(table) == (store.n_layers + 1) * (4 * len(store.bands) + 2)
    assert set(table.loc[table["band"] == KEYS, "channel"]) == {"T", "M"}
    counted = table[(table["channel"] == "R") & (table["layer"] != "all")]
    assert counted.groupby("layer")["dimensions"].sum().tolist() == [8] * store.n_layers
    effects = band_effects(store, 1).effects["R"][:, :-1].mean((0, 1, 2, 3))
    of_layer = table[(table["layer"] == 1) & (table["channel"] == "R")]["effect"]
    np.testing.assert_allclose(of_layer, effects[:-1], atol=1e-12)


def test_limits_hold_the_estimate_and_level_widens_them(store):
    table, wide = (decompose_bands(store, **FEW, level=level) for level in (0.8, 0.99))
    for name in ("part", "effect"):
        assert (table[f"{name}_low"] <= table[name] + 1e-12).all()
        assert (table[f"{name}_high"] >= table[name] - 1e-12).all()
    size, wider = (t["part_high"] - t["part_low"] for t in (table, wide))
    assert (wider >= size).all()
    assert (wider > size).any()


def test_a_file_without_bands_is_refused(rng, tmp_path):
    store = synthetic.Rows(rng, design="shifted").store(tmp_path / "a.h5")
    assert why_no_bands(store) == (
        "has no 'band_sink_score'; capture it with --design shifted --bands 3"
    )
    with pytest.raises(DesignError, match=r"a\.h5 has no 'band_sink_score'; capture it with"):
        band_effects(store, 0)


@pytest.mark.parametrize("name", ["band_sink_score", "band_offset_score", "band_normalizer"])
def test_bands_that_do_not_add_up_are_refused(store, name, monkeypatch):
    read = type(store).read

    def altered(self, quantity, layer=None, sequences=None):
        values = read(self, quantity, layer, sequences)
        if quantity != name:
            return values
        weight = np.linspace(0, 1, len(values)).reshape(-1, *[1] * (values.ndim - 1))
        return values * (1 + weight)

    monkeypatch.setattr(type(store), "read", altered)
    with pytest.raises(DesignError, match=r"bands of layer 0 add up to [TMRS] only within"):
        band_effects(store, 0)


def test_too_few_items_are_refused(store, tmp_path):
    stimulus = child.stimulus(n=2)
    two = capture_stimulus(child.model(), stimulus, tmp_path / "a.h5", bands=2, progress=False)
    with pytest.raises(DesignError, match="need at least 3 items, not 2"):
        decompose_bands(two, **FEW)


def test_effects_are_frozen(store):
    with pytest.raises(dataclasses.FrozenInstanceError):
        band_effects(store, 0).names = ()


# of the other keys together, relative to key 0
@pytest.mark.parametrize("rest", [-300.0, -2.0, 0.0, 5.0, 300.0])
def test_parts_of_the_sink_add_up_however_far_its_score_moves(rest, rng, tmp_path):
    store = far_moved(tmp_path / "a.h5", rest, rng)
    found, whole = band_effects(store, 0), channel_effects(store, 0)
    assert np.isfinite(found.effects["S"]).all()
    np.testing.assert_allclose(found.effects["S"].sum(-1), whole.sink, rtol=1e-5, atol=1e-4)


def far_moved(path, rest, rng):
    """One head whose score of key 0, 0 in the late row, moves by up to 900 nats either way."""
    changes = np.array([-900.0, -40.0, -1e-4, 0.0, 1e-9, 1e-2, 30.0, 900.0])
    n, prefixes, window = len(changes), (1, 5), 2
    moved = np.concatenate([changes, np.zeros(n)])[None, :, None, None] * np.ones((1, 1, window, 1))
    share = rng.normal(size=(1, 2 * n, 1, 1))
    shape = (1, 2 * n, 2, window, 1)
    normalizer = np.logaddexp(rest, 0)
    late = (np.arange(2 * n) >= n)[None, :, None, None, None] * np.ones(shape)
    keys = np.where((late == 1) | (np.arange(2)[:, None, None] == 0), normalizer, np.nan)
    remasked = np.where(late == 1, normalizer, np.nan)
    arrays = {
        "normalizer": np.full((1, 2 * n, window, 1), normalizer),
        "sink_score": moved,
        "offset_score": np.zeros((1, 2 * n, window, 1, 1)),
        "remasked_normalizer": remasked,
        "remasked_body": np.where(late == 1, rest, np.nan),
        "band_sink_score": np.stack([moved * share, moved * (1 - share)], -1),
        "band_offset_score": np.zeros((1, 2 * n, window, 1, 1, 2)),
        "band_normalizer": np.stack([keys, 0 * keys, 0 * keys], -1),
    }
    return synthetic.write(
        path,
        arrays,
        index=synthetic.shifted_index(n, prefixes, window),
        design="shifted",
        length=prefixes[-1] + window,
        prefixes=prefixes,
        window=window,
        offsets=(1,),
        version=3,
        config={"posprobe_bands": {"names": ["fast", "slow"], "dimensions": [[1, 1]]}},
    )
