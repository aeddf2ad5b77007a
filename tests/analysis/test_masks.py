"""Other masks: what they close, what stays open, and the checks that they were really there."""

import capture_child as child
import numpy as np
import pytest
import synthetic

from posprobe.analysis.masks import NATIVE, mask_name, mask_probes, mask_tables
from posprobe.captures import capture_stimulus
from posprobe.errors import DesignError
from posprobe.models import Intervention

N, PREFIXES, WINDOW = 12, (1, 4, 9, 20), 4
GRID = (1, 8, 16, 28)
MASK, RESIDUAL = np.linspace(1, 0, 4), np.linspace(-0.6, 0, 4)


@pytest.fixture
def make(tmp_path):
    count = iter(range(100))

    def function(mask, residual, *, n=N, first=0, mismatch=0.0, growth=1.0, layers=3, **change):
        rng = np.random.default_rng(0)
        noise = 0.05 * rng.normal(size=(N, 2, 4))[first : first + n].swapaxes(0, 1)
        parts = [
            synthetic.effect_arrays(
                mask + noise[0] * (mask != 0),
                (residual + noise[1]) * growth**layer,
                window=WINDOW,
            )
            for layer in range(layers)
        ]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        late = slice(3 * n, None)
        own = arrays["normalizer"][:, late]
        gap = own - arrays["remasked_normalizer"][:, late, -1]  # a gauge: rows are shifted by it
        for name in ("remasked_normalizer", "remasked_body"):
            arrays[name][:, late] += gap[:, :, None] - mismatch
        index = synthetic.shifted_index(n, PREFIXES, WINDOW, first)
        return synthetic.write(
            tmp_path / f"{next(count)}.h5",
            arrays,
            index=index,
            design="shifted",
            length=PREFIXES[-1] + WINDOW,
            prefixes=PREFIXES,
            window=WINDOW,
            offsets=(1,),
            interventions=[change] if change else [],
        )

    return function


def pick(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    (row,) = [row for _, row in table.iterrows()]
    return row


def test_masks_are_named_by_their_headers(make):
    none = make(MASK, RESIDUAL, causal=False, window=None)
    assert mask_name(none) == "no causal mask"
    assert mask_name(make(MASK, RESIDUAL, causal=True, window=9)) == "window of 9 tokens"
    assert mask_name(make(MASK, RESIDUAL)) == NATIVE


@pytest.mark.parametrize("first", [0, 4])
def test_without_a_causal_mask_all_of_the_mask_channel_goes(first, make):
    native = make(MASK, RESIDUAL)
    none = make(0 * MASK, RESIDUAL, n=8, first=first, causal=False)
    found = mask_tables(native, [none])
    row = pick(found.table, quantity="V_M")
    assert (row["mask"], row["positions"], row["n"]) == ("no causal mask", "all", 8)
    assert row["fraction_removed"] == pytest.approx(1)
    assert row["largest_M"] < 1e-6
    same = pick(found.table, quantity="V_R")
    assert same["fraction_removed"] == pytest.approx(0, abs=1e-5)
    assert same["low"] <= 0 <= same["high"]
    assert set(found.intervals) == {"mask_closed"}
    assert found.intervals["mask_closed"].high < 1e-5


def test_behind_the_window_the_mask_is_closed_and_the_rest_is_left(make):
    half_open = np.array([0.6, 0.3, 0, 0])
    windowed = make(half_open, RESIDUAL, window=9)
    found = mask_tables(make(MASK, RESIDUAL), [windowed])
    assert set(found.table["positions"]) == {"all", "behind the window"}
    everywhere = pick(found.table, positions="all", quantity="V_M")
    assert everywhere["largest_M"] > 0.5
    assert 0 < everywhere["fraction_removed"] < 1
    left = found.intervals["window_left"]
    assert left.estimate == pytest.approx(np.var([-0.2, 0]), abs=0.005)
    assert left.low > 0


def test_growth_with_depth_is_measured_against_the_native_run(make):
    native, windowed = make(MASK, RESIDUAL), make(MASK, RESIDUAL, window=9, growth=1.5)
    found = mask_tables(native, [windowed])
    growth = found.intervals["window_growth"]
    assert growth.low > 0
    layers = found.layers
    first = pick(layers, mask=NATIVE, layer=0, quantity="V_R")["estimate"]
    assert growth.estimate == pytest.approx(first * (1.5**4 - 1), rel=1e-3)
    assert set(layers["mask"]) == {NATIVE, "window of 9 tokens"}
    assert len(layers) == 2 * 3 * 3
    last = pick(layers, mask="window of 9 tokens", layer=2, quantity="V_R")
    assert last["low"] < last["estimate"] < last["high"]
    flat = mask_tables(native, [make(MASK, RESIDUAL, window=9)]).intervals["window_growth"]
    assert flat.estimate == pytest.approx(0, abs=1e-9)


def test_a_mask_that_was_not_there_is_seen(make):
    native = make(MASK, RESIDUAL)
    lied = make(0 * MASK, RESIDUAL, causal=False, mismatch=0.3)
    found = mask_tables(native, [lied])
    assert found.table["mismatch"].max() == pytest.approx(0.3, abs=1e-5)
    assert found.intervals["mask_closed"].estimate == pytest.approx(0.3, abs=1e-5)


def test_items_are_paired_and_few_are_refused(make):
    native = make(MASK, RESIDUAL)
    with pytest.raises(DesignError, match="at least 3 items, not 2; capture with a larger --n"):
        mask_tables(native, [make(MASK, RESIDUAL, n=2, causal=False)])
    other = make(MASK, RESIDUAL, n=8, causal=False)
    other.tokens[:, 1:] += 1
    with pytest.raises(DesignError, match="is not the stimulus of"):
        mask_tables(native, [other])


# --- through a model ---


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    model = child.model()
    shifted = child.stimulus(
        "shifted", n=8, length=40, window=12, prefixes=GRID, bos="force", bos_id=1
    )
    natural = child.stimulus(
        "natural", n=8, length=40, window=12, prefixes=GRID, bos="force", bos_id=1
    )
    kinds = {
        "native": Intervention(),
        "none": Intervention(causal=False),
        "window": Intervention(window=10),
    }
    stores = {
        name: capture_stimulus(
            model, shifted, folder / f"{name}.h5", intervention=change, progress=False
        )
        for name, change in kinds.items()
    }
    for name in ("native", "none"):
        stores[f"natural_{name}"] = capture_stimulus(
            model,
            natural,
            folder / f"natural_{name}.h5",
            intervention=kinds[name],
            progress=False,
        )
    return stores


def test_a_model_without_its_mask_has_no_mask_channel(captured):
    found = mask_tables(captured["native"], [captured["none"], captured["window"]])
    closed = found.table[
        (found.table["mask"] == "no causal mask") | (found.table["positions"] != "all")
    ]
    assert len(closed) == 6
    assert closed["largest_M"].max() == 0
    assert found.table["mismatch"].max() < 1e-5
    opened = pick(found.table, mask="window of 10 tokens", positions="all", quantity="V_M")
    assert opened["largest_M"] > 0.01
    assert (found.table["n"] == 8).all()


def test_normalizers_without_a_mask_tell_no_position(captured):
    table, first = mask_probes(captured["natural_native"], captured["natural_none"])
    assert first["normalizer_masked"].estimate > 0.3
    assert first["normalizer_unmasked"].estimate < 0.1
    assert {one.method for one in first.values()} == {"none: 8 sequences"}
    assert list(table["layer"]) == list(range(captured["native"].n_layers))
    row = table.iloc[0]
    assert row["r2_native"] == first["normalizer_masked"].estimate
    assert row["n"] == 8
