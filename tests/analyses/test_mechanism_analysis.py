"""Analysis 4: its controls, what a change leaves, and a page that says what the tables say."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scripts

import posprobe
from posprobe.channels import channel_effects
from posprobe.models import NO_INTERVENTION, find_bands, load_model


@pytest.fixture(scope="module")
def analysis():
    return scripts.load("04_mechanism")


@pytest.fixture(scope="module")
def model():
    return load_model("zoo/rope-0")


@pytest.fixture(scope="module")
def tables(analysis, model, tmp_path_factory):
    """All tables of a small model, whose blocks are fewer and sequences shorter."""
    files = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        shorter(patch, analysis)
        chosen = part("measuring").Blocks(edited=2, probed=(2, 3), read=(1, 3))
        patch.setattr(part("measuring").Blocks, "of", lambda model: chosen)
        patch.setattr(part("erasing"), "N_NATURAL", 24)
        store = analysis.captured(model, files / "a.h5", 5, bands=3)
        standard = model, store, files, 4
        bands = analysis.band_tables({"standard": store})
        whole = analysis.decompose(store).overall.assign(variant="standard")
        found = {"bands": bands, "channels": whole}
        found |= {"zeroed": analysis.zeroed_table(*standard, range(1))}
        found |= analysis.erased_tables(*standard)
        for name, value in (("START", store.prefixes[1]), ("STOP", store.prefixes[2])):
            patch.setattr(part("steering"), name, value)
        found["steered"] = analysis.steered_table(model, store, files / "natural.h5", files, 4)
        short = {"LENGTH": 64, "N": 16, "TRAINED_TO": 12}
        short["FILES"] = {"native": {}, "ntk(8)": {"variant": "ntk(8)"}}
        for name, value in short.items():
            patch.setattr(part("elsewhere"), name, value)
        natural = analysis.natural_files("zoo/rope-0", files)
        found |= {"elsewhere": analysis.elsewhere_table(natural)}
        return found | analysis.shape_tables(natural)


def part(name):
    """A module of the analysis."""
    return sys.modules[f"mechanism.{name}"]


def shorter(patch, analysis):
    """Let sequences be as long as the small model takes them."""
    for module in (analysis, part("measuring"), part("erasing")):
        patch.setattr(module, "LENGTH", 128)


def test_a_control_has_as_many_pairs_and_whole_ones(analysis, model):
    bands = find_bands(model, 128, 3)
    half = sum(map(len, bands.dimensions[0])) // 2
    for number in range(3):
        change = analysis.random_pairs(bands, number, 0)
        for layer, dims in change.zero_dimensions:
            assert len(dims) == len(bands.dimensions[layer][number])
            assert {d % half for d in dims} == {d for d in dims if d < half}
    assert analysis.random_pairs(bands, 2, 0) != analysis.random_pairs(bands, 2, 1)


def test_no_change_leaves_everything_and_costs_nothing(analysis, model, tmp_path, monkeypatch):
    shorter(monkeypatch, analysis)
    store = analysis.captured(model, tmp_path / "a.h5", 4)
    left = analysis.variances_left(store, store)
    assert left["V_R_left"] == left["V_M_left"] == pytest.approx(1)
    loss = analysis.losses(model, store, NO_INTERVENTION, 3)
    assert loss.shape == (3,)
    assert 0 < loss.mean() < 10
    assert analysis.loss_gained(loss + 1, loss)["loss"] == pytest.approx(1)


def test_every_band_and_its_control_are_in_the_table(tables):
    zeroed = tables["zeroed"]
    assert list(zeroed["zeroed"]) == ["band", "random 0"] * 3
    assert zeroed["loss"].abs().min() > 0
    assert (zeroed["V_R_left"] != 1).all()


def test_erasing_takes_position_from_the_stream_and_the_control_does_not(tables):
    probes = tables["probes"].set_index(["erased", "layer"])["r2"]
    assert probes["nothing", 2] > 0.04  # a small model, and few sequences
    assert probes["position", 2] < 0.1 * probes["nothing", 2]
    assert probes["random", 2] > 0.8 * probes["nothing", 2]
    assert probes["content", 2] > 0.5 * probes["nothing", 2]
    assert list(tables["erased"]["rank"]) == [2, 2, 2]


def test_the_page_says_what_the_tables_say(analysis, tables, tmp_path):
    first = {name: tables[name] for name in ("bands", "channels")}
    page = analysis.write_page(tmp_path, "rope", first)
    assert "Without a band" not in page
    assert "had not run to its end" in page
    page = analysis.write_page(tmp_path, "rope", tables)
    assert "had not run to its end" not in page
    assert max(map(len, (line for line in page.splitlines() if line[:1] not in "|!"))) <= 120
    rows = tables["bands"].query("layer == 'all' and channel == 'R'")
    top = rows.loc[rows["share"].astype(float).idxmax()]
    assert f"The band {top['band']} has {top['share']:.2f}" in " ".join(page.split())
    assert "goes on behind them: contradicted" in " ".join(page.split())
    for section in (
        "Shares of the bands",
        "Without a band",
        "Position erased at block",
        "Moved along position at block",
        "Probes",
        "The shape",
    ):
        assert f"## {section}" in page
    assert sorted(p.stem for p in tmp_path.glob("tables/*.csv")) == sorted(tables)
    for name in ("bands", "elsewhere", "shape"):
        assert (tmp_path / "figures" / f"{name}.svg").read_text().startswith("<svg")


def test_the_share_of_a_move_has_known_answers(rng):
    steering = part("steering")
    effect = rng.normal(size=40)
    moved, steered = (k * effect + 0.5 * rng.normal(size=(24, 40)) for k in (1.0, 0.6))
    found = steering.share_made(steered, moved)
    assert found.low < 0.6 < found.high
    assert found.high - found.low < 0.2
    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    numerator, denominator = (
        np.mean([x[i] @ moved[j] for i, j in pairs]) for x in (steered, moved)
    )
    assert found.estimate == pytest.approx(numerator / denominator)
    assert steering.alignment(steered, moved) == pytest.approx(1, abs=0.05)
    assert steering.alignment(-steered, moved) == pytest.approx(-1, abs=0.05)
    nothing = steering.share_made(0.5 * rng.normal(size=(24, 40)), moved)
    assert nothing.low < 0 < nothing.high


def test_a_stream_that_is_not_moved_makes_no_share(analysis, model, tmp_path, monkeypatch):
    shorter(monkeypatch, analysis)
    store = analysis.captured(model, tmp_path / "a.h5", 4)
    for name, value in zip(("START", "STOP"), store.prefixes[1:3], strict=True):
        monkeypatch.setattr(part("steering"), name, value)
    steered, moved = part("steering").steered_and_moved(store, store, 4, first=2)
    assert steered.shape == moved.shape == (4, 2 * 4)
    assert not steered.any()
    assert moved.any()
    effects = channel_effects(store, 2)
    own = effects.total[:, 2] - effects.total[:, 1]
    weights = [part("steering").log_weights(store, 2, 4)]
    monkeypatch.setattr(part("steering"), "START", store.prefixes[2])
    weights.append(part("steering").log_weights(store, 2, 4))
    np.testing.assert_allclose(weights[1] - weights[0], own.mean(-1), atol=1e-5)


def test_every_file_is_scored_behind_the_trained_range(tables):
    table = tables["elsewhere"]
    assert set(table["target_file"]) == {"native", "ntk(8)"}
    assert sorted(table["start"].unique()) == [1, 13, 25, 49]
    assert set(table.query("question == 'layers'")["target_layer"]) == {1, 3}


def test_every_block_has_a_shape_and_is_aligned_with_every_other(tables):
    layers = (1, 3)
    assert list(tables["shape"]["layer"]) == list(layers)
    pairs = tables["alignment"][["layer", "with", "with_layer"]].itertuples(index=False, name=None)
    native = {(one, "native", other) for one in layers for other in layers}
    assert set(pairs) == {(one, "ntk(8)", one) for one in layers} | native
    assert tables["alignment"]["similarity"].between(0, 1).all()
    assert len(tables["coordinates"]) == 2 * 15


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [((0.6, 0.8), "supported"), ((0.1, 0.3), "contradicted"), ((0.4, 0.6), "undecided")],
)
def test_a_code_goes_on_if_it_is_read_in_every_range(analysis, limits, verdict):
    row = {"question": "positions", "layer": 5, "slope": 1.0, "slope_low": 0.9, "slope_high": 1.1}
    rows = [
        row | {"start": start, "stop": 2 * start + 1, "r2": r2, "r2_low": low, "r2_high": high}
        for start, r2, low, high in ((1, 0.9, 0.8, 1.0), (65, np.mean(limits), *limits))
    ]
    said = part("elsewhere").elsewhere_finding(pd.DataFrame(rows))
    assert f"goes on behind them: {verdict}" in said.line()


@pytest.mark.parametrize(
    ("own", "control", "verdict"),
    [((0.2, 0.4), (0.8, 1.1), "supported"), ((0.2, 0.9), (0.8, 1.1), "undecided"),
     ((1.3, 1.5), (0.8, 1.1), "contradicted"), ((0.7, 1.2), (1.3, 1.4), "undecided")],
)  # fmt: skip
def test_a_band_is_needed_only_if_it_differs_from_the_control(analysis, own, control, verdict):
    rows = [
        dict(V_R_left=np.mean(pair), V_R_left_low=pair[0], V_R_left_high=pair[1])
        | dict(loss=0.1, loss_low=0.0, loss_high=0.2, native_loss=3.0, band="turns > 4")
        for pair in (own, control)
    ]
    overall = pd.DataFrame(
        [dict(channel="R", layer="all", variant="standard", band="turns > 4", share=0.9,
              share_low=0.4, share_high=1.2, status="ok", dimensions=34)]
    )  # fmt: skip
    band, needed = part("page").findings({"bands": overall, "zeroed": pd.DataFrame(rows)})
    assert f"residual channel: {verdict}" in needed.line()
    assert "standard: undecided" in band.line()


def test_codes_of_two_models_are_aligned_block_by_block(analysis, tables, model, tmp_path):
    options = dict(n=16, length=64, quantities=("residual",), progress=False)
    paths = {}
    for name, layers in (("zoo/rope-0", (1, 3)), ("zoo/ntk-0", (1, 2))):
        paths[name] = tmp_path / f"{name[4:]}.h5"
        posprobe.capture(name, paths[name], residual_layers=layers, **options).close()
    table = analysis.between_models(paths)
    assert table[["layer", "with_layer"]].to_numpy().tolist() == [[1, 1], [3, 2]]
    assert table["similarity"].between(0, 1).all()
    assert (table["model"] == "zoo/rope-0").all()


def test_blocks_follow_the_depth():
    blocks = part("measuring").Blocks.of
    deep = blocks(SimpleNamespace(n_layers=30))
    assert (deep.edited, deep.probed) == (10, (10, 11, 15, 20, 29))
    assert deep.read == (1, 5, 10, 15, 20, 25, 29)
    for n_layers in (2, 3, 4, 24):
        found = blocks(SimpleNamespace(n_layers=n_layers))
        assert all(1 <= each < n_layers or n_layers < 3 for each in found.probed + found.read)
        assert found.edited in found.probed


def test_the_page_over_all_models_says_what_each_came_to(analysis, tables, tmp_path):
    kept = tmp_path / "one" / "tables"
    analysis.write_page(kept.parent, "one", tables)
    read = analysis.read_tables(kept.parent)
    short = {name: read[name] for name in ("bands", "channels")}
    between = pd.DataFrame([dict(model="One", other="Two", layer=1, with_layer=2, similarity=0.9,
                                 null=0.7, p_value=0.01)])  # fmt: skip
    page = analysis.write_overview(tmp_path, {"One": read, "Two": short}, between)
    page, codes = page.split("## One code in both models?")
    assert "In 1 of 1 blocks" in " ".join(codes.split())
    assert "| 1 | 2 | 0.9 | 0.7 | 0.01 |" in codes
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert all(len(row) == 3 for row in rows)
    ours = part("page").findings(tables)
    assert [row[0].removeprefix("| ") for row in rows[1:]] == [found.claim for found in ours]
    for found, row in zip(ours, rows[1:], strict=True):
        assert row[1] == f"{found.verdict}: {found.number}"
    assert rows[-1][2].startswith("not measured")
    assert "(one/README.md)" in page
