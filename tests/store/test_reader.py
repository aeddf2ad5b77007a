"""Stores read what was written, and refuse what was not."""

import os
import pickle
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import store_child as child
from alterations import fixed
from hypothesis import given, settings
from hypothesis import strategies as st
from store_files import HEADER, INDEX, datasets, digests, edit

from posprobe.errors import StoreError
from posprobe.store import AXES, ActivationStore, Header, StoreWriter
from posprobe.store.layout import ATTRIBUTES, DATA_SETS

# What was written is what is read


def test_every_data_set_reads_back(complete):
    with ActivationStore(complete) as store:
        for name, expected in INDEX.items():
            np.testing.assert_array_equal(store.read(name), expected)
        for name, expected in child.batch(HEADER, 0, HEADER.n_sequences).items():
            np.testing.assert_array_equal(store.read(name), expected)
            for row, layer in enumerate(HEADER.layers(name)):
                np.testing.assert_array_equal(store.read(name, layer), expected[row])
                np.testing.assert_array_equal(
                    store.read(name, layer, [3, 1]), expected[row, [3, 1]]
                )
            np.testing.assert_array_equal(store.read(name, None, slice(2, 5)), expected[:, 2:5])


def test_h5py_reads_the_same_without_posprobe(complete):
    with h5py.File(complete) as file, ActivationStore(complete) as store:
        axes = {AXES[axis].name for axis in HEADER.coordinates()}
        assert set(file) == set(HEADER.datasets()) | axes
        assert set(file.attrs) == set(ATTRIBUTES)
        for name in HEADER.datasets():
            np.testing.assert_array_equal(file[name][...], store.read(name))


def test_every_axis_has_a_name_and_coordinates_in_hdf5(complete):
    expected = {AXES[axis].name: values for axis, values in HEADER.coordinates().items()}
    assert expected["residual_layer"].tolist() == [0, 2]
    assert expected["offset"].tolist() == [1, 4]
    with h5py.File(complete) as file:
        for name, values in expected.items():
            assert file[name].is_scale
            np.testing.assert_array_equal(file[name][()], values)
        for name in HEADER.datasets():
            names = [AXES[axis].name for axis in DATA_SETS[name].axes]
            assert [d.label for d in file[name].dims] == names
            assert [list(d.keys()) for d in file[name].dims] == [[each] for each in names]
            described = file[name].attrs
            assert described["units"].decode() == DATA_SETS[name].unit
            assert described["long_name"].decode() == DATA_SETS[name].meaning


def test_xarray_opens_a_file_with_the_names_of_its_axes(complete):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(complete, engine="h5netcdf") as data, ActivationStore(complete) as own:
        assert data.residual.dims == ("residual_layer", "sequence", "residual_query", "dimension")
        np.testing.assert_array_equal(data.residual.sel(residual_layer=2), own.residual(2))
        assert data.attrs["model"] == "tiny"
        assert data.normalizer.units == "nats"


def test_verify_compares_the_axes_with_the_attributes(copy):
    ActivationStore(copy).verify()
    edit(copy, lambda file: file["offset"].__setitem__(1, 5))
    with pytest.raises(StoreError, match="data set '/offset' is not the axis that the attributes"):
        ActivationStore(copy).verify()

    def without(file):
        for name in HEADER.datasets():
            for dimension in file[name].dims:
                for scale in list(dimension.values()):
                    dimension.detach_scale(scale)
        for axis in HEADER.coordinates():
            del file[AXES[axis].name]

    edit(copy, without)
    assert ActivationStore(copy).verify() > 0  # a writer need not write them


VARIABLE = {
    "attribute": "attribute 'model' has variable length, which HDF5 reads without end where",
    "complete": "is incomplete",
    "offset": "data set '/offset' is not the axis that the attributes describe",
}


@pytest.mark.parametrize("where", VARIABLE)
def test_no_heap_is_read_since_reading_a_damaged_one_never_returns(where, copy):
    def lengthen(file):
        if where == "attribute":
            file.attrs["model"] = "of a length that varies"
            return
        if where in file:
            del file[where]
        file.create_dataset(where, (), h5py.string_dtype(), data="of a length that varies")

    edit(copy, lengthen)
    content = bytearray(copy.read_bytes())
    for heap in re.finditer(b"GCOL", content):  # a lost block: objects of no length, for ever
        content[heap.start() + 16 : heap.start() + 4096] = bytes(4080)
    copy.write_bytes(content)
    with pytest.raises(StoreError, match=VARIABLE[where]):
        ActivationStore(copy).verify()


def test_arrays_outlive_the_store_and_the_file(complete, tmp_path):
    with ActivationStore(shutil.copy(complete, tmp_path / "copy.h5")) as store:
        array = store.residual(2)
        os.truncate(store.path, 0)
    expected = child.values(HEADER, "residual", 0, HEADER.n_sequences)[1]
    np.testing.assert_array_equal(array, expected)
    with pytest.raises(StoreError, match=r"copy\.h5 is closed: open it again"):
        store.read("residual")


def test_attributes_describe_the_capture(complete):
    store = ActivationStore(complete)
    assert store.header == replace(HEADER, interventions=store.header.interventions)
    assert (store.model, store.design, store.n_layers, store.n_heads) == ("tiny", "shifted", 2, 3)
    assert (store.n_sequences, store.length, store.window) == (11, 16, 5)
    assert (store.offsets, store.prefixes, store.layer_window) == ((1, 4), (1, 3, 9), (0, 4))
    np.testing.assert_array_equal(store.positions[4], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(store.item, INDEX["item"])
    assert store.header.config["name"] == "tïny"


def test_hook_names_are_aliases(complete):
    store = ActivationStore(complete)
    np.testing.assert_array_equal(store["blocks.0.hook_resid_pre"], store.residual(0))
    np.testing.assert_array_equal(store["blocks.1.hook_resid_post"], store.residual(2))
    np.testing.assert_array_equal(store["normalizer"], store.read("normalizer"))
    with pytest.raises(StoreError, match=r"layer 1 of 'residual' is not in .* has layers 0, 2"):
        store["blocks.1.hook_resid_pre"]
    with pytest.raises(StoreError, match=r"'blocks.0.attn.hook_attn_scores' is not .* normalizer"):
        store["blocks.0.attn.hook_attn_scores"]


@pytest.mark.parametrize(
    "sequences",
    [
        slice(2, 7),
        slice(None, None, -3),
        [4, 5, 1, 1],
        np.arange(11) % 2 == 0,
        [],
        3,
        [[0, 1], [9, 2]],
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("quantity", "layer"), [("residual", 2), ("residual", None), ("item", None)]
)
def test_sequences_are_those_of_the_whole(complete, quantity, layer, sequences):
    store = ActivationStore(complete)
    whole = store.read(quantity, layer)
    expected = whole[:, sequences] if quantity == "residual" and layer is None else whole[sequences]
    np.testing.assert_array_equal(store.read(quantity, layer, sequences), expected)


@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_blocks_stream_a_layer(complete, size):
    store = ActivationStore(complete)
    blocks = list(store.blocks("normalizer", 1, size))
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), store.normalizer(1))
    for sequences, block in blocks:
        np.testing.assert_array_equal(block, store.normalizer(1)[sequences])
        assert len(block) <= size
        assert block.flags.writeable


def test_blocks_refuse_what_they_cannot_stream(complete):
    store = ActivationStore(complete)
    with pytest.raises(StoreError, match="n_sequences is 0: it must be at least 1"):
        next(store.blocks("normalizer", 1, 0))
    with pytest.raises(StoreError, match="'item' has no layers"):
        next(store.blocks("item", 1, 2))


def test_store_pickles_by_path(complete):
    store = pickle.loads(pickle.dumps(ActivationStore(complete)))
    np.testing.assert_array_equal(store.residual(0), ActivationStore(complete).residual(0))


def test_summary_adds_up(complete):
    summary = ActivationStore(complete).summary()
    assert [row["name"] for row in summary["rows"]] == list(HEADER.datasets())
    assert summary["bytes"] == complete.stat().st_size
    assert 0 < summary["bytes"] - sum(row["bytes"] for row in summary["rows"]) < 40_000
    assert summary["attributes"]["model"] == "tiny"
    for row in summary["rows"]:
        assert len(row["shape"]) == len(row["axes"].split(", ")) or row["name"] == "complete"


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip_of_any_header(tmp_path_factory, data):
    small = st.integers(1, 4)
    n_layers, n_sequences = data.draw(small), data.draw(st.integers(1, 7))
    header = Header(
        model=data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
        design="natural",
        n_layers=n_layers,
        n_heads=data.draw(small),
        width=data.draw(small),
        n_sequences=n_sequences,
        length=8,
        n_queries=data.draw(st.integers(1, 6)),
        quantities=data.draw(st.lists(st.sampled_from(child.ACTIVATIONS), unique=True)),
        layer_window=(0,) * n_layers,
        offsets=range(data.draw(small)),
        prefixes=range(data.draw(small)),
        window=data.draw(small),
        residual_layers=sorted(data.draw(st.sets(st.integers(0, n_layers), min_size=1))),
        residual_queries=(0,) if data.draw(st.booleans()) else (),
        dtype=data.draw(st.sampled_from(["float32", "float16"])),
    )
    index = child.index(header) | {"query_start": np.zeros(n_sequences)}
    path = tmp_path_factory.mktemp("any") / "a.h5"
    with StoreWriter.create(path, header, index) as writer:
        while writer.done < n_sequences:
            stop = data.draw(st.integers(writer.done + 1, n_sequences))
            for quantity, array in child.batch(header, writer.done, stop).items():
                for row, layer in reversed(list(enumerate(header.layers(quantity)))):
                    writer.put(quantity, array[row], layer)
            writer.advance(stop - writer.done)
        writer.finish()
    with ActivationStore(path) as store:
        assert store.header.attributes() == header.attributes()
        for quantity, expected in child.batch(header, 0, n_sequences).items():
            stored = expected.astype(header.stored_dtype(quantity))
            np.testing.assert_array_equal(store.read(quantity), stored)


# What readers refuse


def delete(name):
    return lambda file: file.__delitem__(name)


def set_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, fixed(value))


def drop_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


def remake(name, **keywords):
    def change(file):
        array = file[name][...]
        del file[name]
        file.create_dataset(name, **{"data": array} | keywords)

    return change


REFUSED = {
    "other format": (set_attribute("format", "anndata"), "not a posprobe file .* 'anndata'"),
    "no format": (drop_attribute("format"), "not a posprobe file .* is None"),
    "version": (set_attribute("version", 4), "version 4, this release reads 1 and 2 and 3"),
    "incomplete": (lambda file: file["complete"].__setitem__((), 0), "incomplete: .*--resume"),
    "no flag": (delete("complete"), "incomplete: .*--resume"),
    "missing": (delete("residual"), r"'/residual' is missing, expected float32 \(2, 11, 5, 8\)"),
    "group": (
        lambda file: (file.__delitem__("item"), file.create_group("item")),
        "'/item' is missing, expected int32",
    ),
    "shape": (
        remake("sink_score", data=np.zeros((2, 11, 5, 4), "f4")),
        r"'/sink_score' is float32 \(2, 11, 5, 4\), expected float32 \(2, 11, 5, 3\)",
    ),
    "dtype": (
        remake("sink_score", dtype="f8"),
        r"'/sink_score' is float64 \(2, 11, 5, 3\), expected float32",
    ),
    "big endian": (remake("sink_score", dtype=">f4"), r"'/sink_score' is >f4 .* expected float32"),
    "compressed": (
        remake("residual", compression="gzip"),
        "'/residual' is chunked or compressed, .* h5repack -l CONTI -f NONE",
    ),
    "attribute": (drop_attribute("n_heads"), "attribute 'n_heads' is missing"),
    "later": (drop_attribute("residual_queries"), "attribute 'residual_queries' is missing"),
    "kind": (set_attribute("n_heads", "many"), "attribute 'n_heads' is 'many', expected integer"),
    "text": (set_attribute("model", 3), "attribute 'model' is 3, expected string"),
    "json": (set_attribute("config", "{"), "attribute 'config' is '{', expected json, object"),
    "header": (set_attribute("n_layers", 3), "'layer_window' has 2 entries for 3 layers"),
    "other header": (set_attribute("seed", 3), "its attributes are not those that were written"),
    "no digest": (delete("digest"), r"'/digest' is missing, expected uint32 \(26,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_readers_refuse(copy, case):
    change, message = REFUSED[case]
    ActivationStore(copy)
    edit(copy, change)
    with pytest.raises(StoreError, match=message) as caught:
        ActivationStore(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_readers_ignore_what_they_do_not_know(copy):
    edit(copy, lambda file: (file.create_dataset("notes", data=[1]), file.attrs.create("mine", 1)))
    assert "notes" not in [row["name"] for row in ActivationStore(copy).summary()["rows"]]


def test_digests_are_those_of_the_document(complete):
    with h5py.File(complete) as file:
        np.testing.assert_array_equal(file["digest"][...], digests(file))


def test_readers_refuse_a_partial_file_by_either_name(tmp_path):
    path = tmp_path / "a.h5"
    StoreWriter.create(path, HEADER, INDEX).close()
    with pytest.raises(StoreError, match=r"a\.h5 is incomplete .*a\.h5\.partial\): .*--resume"):
        ActivationStore(path)
    with pytest.raises(StoreError, match=r"a\.h5\.partial is an incomplete capture: .*--resume"):
        ActivationStore(tmp_path / "a.h5.partial")


def test_readers_refuse_what_is_no_file(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(StoreError, match=r"text\.h5 is not an HDF5 file"):
        ActivationStore(tmp_path / "text.h5")
    for name in (".", "absent.h5"):
        with pytest.raises(StoreError, match="is not a file: pass the name of a capture"):
            ActivationStore(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, None])
def test_readers_refuse_a_truncated_file(copy, share):
    size = copy.stat().st_size
    os.truncate(copy, size - 1 if share is None else int(share * size))
    with pytest.raises(StoreError, match=r"copy\.h5 is truncated \(.*eof = \d+.*\): copy it"):
        ActivationStore(copy)


def test_damage_to_the_structure_is_refused_or_harmless(copy):
    intact, rng = copy.read_bytes(), np.random.default_rng(0)
    with h5py.File(copy) as file:
        raw = [(d.id.get_offset(), d.id.get_offset() + d.nbytes) for d in file.values()]
    outside = [i for i in range(len(intact)) if not any(a <= i < b for a, b in raw)]
    expected, refused = datasets(copy), 0
    for position in rng.choice(outside, 150):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(rng.integers(8))
        copy.write_bytes(damaged)
        try:
            with ActivationStore(copy) as store:
                assert all(store.read(n).tobytes() == expected[n] for n in expected)
                assert store.header.attributes() == HEADER.attributes()
        except StoreError:
            refused += 1
    assert refused > 30
