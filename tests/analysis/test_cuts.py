"""Key 0 hidden from some heads: what may change, what must not, and what is counted."""

import capture_child as child
import numpy as np
import pytest
import sinks
import synthetic

from posprobe.analysis.cuts import MEASURES, cut_table
from posprobe.analysis.sinks import sink_attention
from posprobe.captures import capture_stimulus
from posprobe.channels import channel_effects
from posprobe.errors import DesignError
from posprobe.models import NO_INTERVENTION, Intervention

RANDOM = ((0, 3), (1, 0))
CUTS = {"none": None, "sink": sinks.HEADS, "random": RANDOM, "all": "all"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A shifted stimulus through the tiny model with key 0 hidden from different heads."""
    folder, model = tmp_path_factory.mktemp("cuts"), sinks.sink_model()
    stimulus = child.stimulus(n=6, bos="force", bos_id=sinks.FIRST)
    return {
        name: capture_stimulus(
            model,
            stimulus,
            folder / f"{name}.h5",
            intervention=NO_INTERVENTION if heads is None else Intervention(cut_sink=heads),
            progress=False,
        )
        for name, heads in CUTS.items()
    }


def table_of(stores, *names):
    return cut_table(stores["none"], [stores[name] for name in names], sinks.HEADS)[0]


def test_the_model_has_the_heads_that_it_was_built_with(stores):
    attention = np.stack([sink_attention(stores["none"], layer).mean(0) for layer in range(3)])
    found = {tuple(map(int, head)) for head in np.argwhere(attention > 0.3)}
    assert found == set(sinks.HEADS)


def test_manipulation_check_reads_the_denominators_that_were_used(stores):
    table = table_of(stores, "sink", "random", "all")
    checked = table.dropna(subset="attention_left").set_index("heads")
    assert (checked["attention_left"] < 1e-5).all()
    native = np.stack([sink_attention(stores["none"], layer) for layer in range(3)])
    own = np.mean([native[layer, :, head].mean() for layer, head in sinks.HEADS])
    assert checked.loc["sink-reading", "attention_native"].iloc[0] > 0.9 * own > 0.3


def test_hiding_key_0_changes_no_first_layer_effect_among_the_other_keys(stores):
    native, cut = (channel_effects(stores[name], 0, without_sink=True) for name in ("none", "all"))
    for part in ("total", "mask", "residual"):
        np.testing.assert_allclose(getattr(cut, part), getattr(native, part), atol=2e-5)
    plain = [channel_effects(stores[name], 0) for name in ("none", "all")]
    assert np.abs(plain[0].residual - plain[1].residual).max() > 0.01  # the cut by itself


def test_later_layers_feel_a_cut_through_the_residual_stream(stores):
    native, cut = (channel_effects(stores[name], 2, without_sink=True) for name in ("none", "sink"))
    assert np.abs(native.residual - cut.residual).max() > 1e-3


def test_key_0_has_no_part_where_it_is_hidden(stores):
    cut, native = (channel_effects(stores[name], 0) for name in ("sink", "none"))
    assert np.abs(native.sink[:, :, 1]).max() > 0
    assert (cut.sink[:, :, 1] == 0).all()
    assert np.abs(cut.sink[:, :, 0]).max() > 0
    assert (sink_attention(stores["sink"], 0)[:, 1] == 0).all()


def test_each_measure_reads_its_own_denominators(stores):
    table = table_of(stores, "sink")
    for measured, without_sink in MEASURES.items():
        parts = [channel_effects(stores["none"], k, without_sink=without_sink) for k in range(3)]
        variances = np.stack([part.variances()["V_R"] for part in parts])
        kept = np.ones((3, 4), bool)
        if not without_sink:
            kept[tuple(zip(*sinks.HEADS, strict=True))] = False
        row = table[(table["measured"] == measured) & (table["positions"] == "all")].iloc[0]
        assert row["V_R_native"] == pytest.approx(variances[kept].mean(), rel=1e-9)
        assert row["n_heads_measured"] == kept.sum()


def test_without_key_0_is_for_the_shifted_design_only(tmp_path):
    natural = child.stimulus("natural", n=4)
    store = capture_stimulus(child.model(), natural, tmp_path / "n.h5", progress=False)
    with pytest.raises(DesignError, match="kept for late rows only"):
        channel_effects(store, 0, without_sink=True)


# --- the table, with known answers ---

PREFIXES, WINDOW = (1, 4, 9, 40), 4
SHAPE = (1, 4)
EFFECT = np.array([1.0, 0.6, 0.2, 0.0])


@pytest.fixture
def make(tmp_path):
    """A shifted file whose head h has residual effects of size `scales[h]`; `cut` as in a header.

    Attention to key 0 is 0 where it is cut and 1/2 elsewhere.
    """
    count = iter(range(100))

    def function(scales, cut, *, n=15, first=0, turned=False):
        rng = np.random.default_rng(0)
        noise = 0.05 * rng.normal(size=(first + n, 4))[first:]
        hidden = np.zeros(SHAPE[1], bool)
        hidden[[head for _, head in cut] if cut != "all" else slice(None)] = True
        heads = []
        for scale, gone in zip(scales, hidden, strict=True):
            sign = np.where(turned & (np.arange(n) % 2 == 1), -1, 1)[:, None]
            residual = scale * (EFFECT + noise) * sign
            arrays = synthetic.effect_arrays(np.zeros((n, 4)), residual, window=WINDOW)
            place = np.repeat(np.arange(4), n)
            body = arrays["normalizer"][0] - (0.0 if gone else np.log(2))
            arrays["remasked_body"][0, np.arange(4 * n), place] = body
            heads.append(arrays)
        arrays = {
            name: np.concatenate([h[name] for h in heads], 3 + ("masked" in name))
            for name in heads[0]
        }
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
            interventions=[{"cut_sink": cut}] if cut else [],
        )

    return function


def at(table, heads, measured="heads left whole", positions="all"):
    rows = table[(table["heads"] == heads) & (table["measured"] == measured)]
    return rows[rows["positions"] == positions].iloc[0]


def test_cut_heads_themselves_are_not_counted(make):
    native = make([1, 1, 1, 1], [])
    sink = make([0, 0.5, 0.5, 0.5], [[0, 0]])  # the cut head's own effect dies at once
    random = make([0.9, 0, 0.9, 0.9], [[0, 1]])
    table, _ = cut_table(native, [sink, random], [(0, 0)])
    row = at(table, "sink-reading")
    assert row["n_heads_measured"] == 2  # neither the cut one nor the random one
    assert row["fraction_removed"] == pytest.approx(0.75, abs=1e-5)
    assert at(table, "random 1")["fraction_removed"] == pytest.approx(0.19, abs=1e-5)
    row = at(table, "sink-reading minus random")
    assert row["fraction_removed"] == pytest.approx(0.81 - 0.25, abs=1e-5)
    assert row["n_heads_cut"] == 1
    assert np.isnan(row["V_R_cut"])


@pytest.mark.parametrize(("size", "method"), [(1.0, "fieller: unbounded"), (0.0, "undefined")])
def test_nothing_is_removed_of_a_variance_at_or_below_0(size, method, make):
    native = make([size] * 4, [], n=14, turned=True)
    cuts = [make([0, 0.5, 0.5, 0.5], [[0, 0]], n=14), make([0.5] * 4, [[0, 1]], n=14)]
    table, _ = cut_table(native, cuts, [(0, 0)])
    for heads in ("sink-reading", "sink-reading minus random"):
        row = at(table, heads)
        assert row["V_R_native"] < 0 or size == 0
        assert row["method"] == method
        assert np.isnan([row["low"], row["high"]]).all()


def test_a_set_that_no_draw_matches_is_measured_over_all_other_heads(make):
    native = make([1, 1, 1, 1], [])
    whole, some = make([0, 0, 0.5, 0.5], [[0, 0], [0, 1]]), make([0, 1, 0.5, 0.5], [[0, 0]])
    random = make([1, 1, 1, 1], [[0, 2]])
    table, _ = cut_table(native, [whole, some, random], [(0, 0), (0, 1)])
    measured = table[table["measured"] == "heads left whole"].set_index("heads")
    counts = measured.loc[measured["positions"] == "all", "n_heads_measured"]
    assert counts["sink-reading"] == 2
    assert counts["some sink-reading"] == counts["random 1"] == 2
    assert at(table, "some sink-reading")["fraction_removed"] == pytest.approx(0.375, abs=1e-5)
    assert at(table, "sink-reading")["fraction_removed"] == pytest.approx(0.75, abs=1e-5)


def test_all_heads_are_measured_without_key_0_only(make):
    native, cut = make([1, 1, 1, 1], []), make([0.5, 0.5, 0.5, 0.5], "all")
    table, _ = cut_table(native, [cut], [(0, 0)])
    assert set(table["measured"]) == {"without key 0"}
    assert set(table["positions"]) == {"early", "all"}
    row = at(table, "all", "without key 0")
    assert (row["n_heads_cut"], row["n_heads_measured"]) == (4, 4)
    assert row["attention_native"] == pytest.approx(0.5, abs=1e-5)
    assert row["attention_left"] == pytest.approx(0.0, abs=1e-6)


def test_a_cut_that_did_not_happen_is_seen(make):
    native, cut = make([1, 1, 1, 1], []), make([1, 1, 1, 1], [[0, 2]])
    uncut = make([1, 1, 1, 1], [])
    uncut.header.interventions.append({"cut_sink": [[0, 2]]})  # the file says so, no more
    assert at(cut_table(native, [cut], [])[0], "random 1")["attention_left"] < 1e-5
    assert at(cut_table(native, [uncut], [])[0], "random 1")["attention_left"] > 0.4


def test_files_are_named_by_what_they_cut(make):
    cuts = {
        "sink-reading": [[0, 0], [0, 1]],
        "some sink-reading": [[0, 1]],
        "random 1": [[0, 2]],
        "random 2": [[0, 3]],
        "other heads": [[0, 1], [0, 2]],
        "all": "all",
    }
    native = make([1, 1, 1, 1], [])
    stores = [make([0.9] * 4, cut) for cut in cuts.values()]
    found = set(cut_table(native, stores, [(0, 0), (0, 1)])[0]["heads"])
    assert found == {*cuts, "some sink-reading minus random"}


def test_items_that_all_files_hold_are_compared(make):
    native, cut = make([1, 1, 1, 1], []), make([0.5] * 4, [[0, 2]], n=8)
    table, _ = cut_table(native, [cut, make([0.6] * 4, [[0, 3]], n=6)], [])
    assert set(table["n"]) == {6}
    assert at(table, "random 1")["fraction_removed"] == pytest.approx(0.75, abs=1e-4)
    later = at(cut_table(native, [make([0.5] * 4, [[0, 2]], n=8, first=4)], [])[0], "random 1")
    assert later["n"] == 8
    assert later["fraction_removed"] == pytest.approx(0.75, abs=1e-5)
    with pytest.raises(DesignError, match=r"share 2 items with .* intervals need 3"):
        cut_table(native, [make([1] * 4, "all", n=2)], [])
