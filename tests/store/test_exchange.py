"""Captured data as other tools take them: what they hold is what the file holds."""

import sys

import numpy as np
import pandas as pd
import pytest
import store_child as child
from safetensors import safe_open
from safetensors.numpy import load_file
from store_files import write_all

from posprobe.errors import StoreError
from posprobe.store import ActivationStore, HeldStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    header = child.header(residual_queries=(1, 4))
    return ActivationStore(write_all(tmp_path_factory.mktemp("store") / "a.h5", header))


# --- xarray ---


def test_a_dataset_has_the_names_units_and_values_of_the_file(store):
    data = store.to_xarray()
    for name in store.header.quantities:
        np.testing.assert_array_equal(data[name], store.read(name))
    assert data.offset_score.dims == ("layer", "sequence", "query", "head", "offset")
    assert data.offset.values.tolist() == [1, 4]
    assert data.residual_layer.values.tolist() == [0, 2]
    assert data.residual_query.values.tolist() == [1, 4]
    assert (data.normalizer.units, data.prefix.units) == ("nats", "tokens")
    assert data.normalizer.long_name.startswith("log-sum-exp")
    assert "units" not in data["head"].attrs  # a plot would write "[1]"
    assert {"item", "prefix_length", "query_start", "sequence_id"} <= set(data.coords)
    np.testing.assert_array_equal(data.tokens, store.tokens)
    assert data.attrs["model"] == "tiny"


def test_layers_are_chosen_by_their_numbers(store):
    data = store.to_xarray(["residual", "position0"], layers=[2])
    np.testing.assert_array_equal(data.residual.sel(residual_layer=2), store.residual(2))
    np.testing.assert_array_equal(data.position0.sel(stream_layer=2), store.read("position0", 2))
    with pytest.raises(StoreError, match=r"layer 1 of 'residual' is not in the file, which"):
        store.to_xarray("residual", layers=[1])


def test_a_store_in_memory_gives_the_same(store):
    held = HeldStore(["normalizer"])
    held.begin(store.header, {name: store.read(name) for name in store.header.index})
    for layer in range(store.n_layers):
        held.consume("normalizer", layer, slice(None), store.normalizer(layer))
    expected = store.to_xarray("normalizer")
    assert held.to_xarray().drop_attrs().equals(expected.drop_attrs())


def test_without_xarray_it_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(
        StoreError, match=r"to_xarray needs xarray: pip install 'posprobe\[notebook"
    ):
        store.to_xarray()


# --- pandas ---


def test_a_table_has_one_row_for_each_number(store):
    table = store.to_pandas(["normalizer", "sink_score"], layers=[1])
    assert list(table) == [
        *("layer", "sequence", "item", "query", "position", "head"),
        *("normalizer", "sink_score"),
    ]
    assert len(table) == store.normalizer(1).size
    for row in table.sample(20, random_state=0).itertuples():
        where = row.sequence, row.query, row.head
        assert row.layer == 1
        assert row.normalizer == store.normalizer(1)[where]
        assert row.sink_score == store.read("sink_score", 1)[where]
        assert row.item == store.item[row.sequence]
        assert row.position == store.positions[row.sequence, row.query]


def test_offsets_and_prefixes_are_in_the_table(store):
    table = store.to_pandas("offset_score")
    row = table[(table["layer"] == 1) & (table["offset"] == 4)].iloc[7]
    where = (1, row["sequence"], row["query"], row["head"], 1)
    assert row["offset_score"] == store.read("offset_score")[tuple(map(int, where))]
    assert set(store.to_pandas("remasked_body")["prefix"]) == {1, 3, 9}


def test_a_vector_of_the_stream_is_one_cell(store):
    table = store.to_pandas("residual", layers=[2])
    assert len(table) == store.n_sequences * 2
    row = table[(table["sequence"] == 3) & (table["residual_query"] == 4)].iloc[0]
    np.testing.assert_array_equal(row["residual"], store.residual(2)[3, 1])
    assert row["position"] == store.residual_positions[3, 1]


def test_without_quantities_it_is_the_table_of_sequences(store):
    table = store.to_pandas()
    assert table["item"].tolist() == store.item.tolist()
    assert table["tokens"].tolist() == (store.tokens >= 0).sum(1).tolist()


@pytest.mark.parametrize(
    ("quantities", "said"),
    [
        (["normalizer", "residual"], "'normalizer' and 'residual' have different axes, so they do"),
        ("tokens", "'tokens' is not in the file: choose some of normalizer, "),
        ([], "no quantity is not in the file: choose some of"),
    ],
)
def test_what_does_not_fit_or_is_not_there_is_refused(quantities, said, store, tmp_path):
    with pytest.raises(StoreError, match=said):
        store.to_pandas(quantities)
    with pytest.raises(StoreError, match=said):
        store.export(tmp_path / "a.parquet", quantities)
    assert not list(tmp_path.iterdir())


# --- files ---


def test_safetensors_hold_the_arrays_and_the_attributes(store, tmp_path):
    path = store.export(tmp_path / "a.safetensors", ["residual", "normalizer"])
    found = load_file(path)
    assert set(found) == {"residual", "normalizer", *store.header.index}
    for name, array in found.items():
        np.testing.assert_array_equal(array, store.read(name))
    with safe_open(path, "np") as file:
        assert file.metadata()["model"] == "tiny"
    some = load_file(store.export(path, "residual", [2], overwrite=True))
    np.testing.assert_array_equal(some["residual"], store.residual(2)[np.newaxis])


def test_parquet_holds_the_table(store, tmp_path):
    pytest.importorskip("pyarrow")
    path = store.export(tmp_path / "a.parquet", ["normalizer"], [0])
    pd.testing.assert_frame_equal(pd.read_parquet(path), store.to_pandas("normalizer", [0]))
    vectors = pd.read_parquet(store.export(tmp_path / "b.parquet", "residual"))
    np.testing.assert_array_equal(vectors["residual"].iloc[0], store.residual(0)[0, 0])


def test_files_are_not_overwritten_unless_told(store, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(
        StoreError, match=r"a\.safetensors exists: choose another name, or replace it with --ov"
    ):
        store.export(path)
    assert path.read_text() == "mine"
    with pytest.raises(StoreError, match=r"a\.npz ends in neither \.safetensors nor \.parquet"):
        store.export(tmp_path / "a.npz")
    with pytest.raises(StoreError, match=r"cannot write .*a\.parquet: Cannot save"):
        store.export(tmp_path / "none" / "a.parquet", "normalizer")


def test_parquet_without_pyarrow_says_what_to_install(store, tmp_path, monkeypatch):
    def fail(*args, **keywords):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(StoreError, match=r"Parquet needs pyarrow: pip install 'posprobe\[notebook"):
        store.export(tmp_path / "a.parquet", "normalizer")
