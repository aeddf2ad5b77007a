"""Captures with bands of rotation: only where asked, the same bytes again, refusals by name."""

import capture_child as child
import numpy as np
import pytest
from click.testing import CliRunner

from posprobe.captures import capture_stimulus
from posprobe.cli import main
from posprobe.errors import ModelError, StimulusError, StoreError
from posprobe.store import BAND_DATA_SETS, ActivationStore, Header, StoreWriter


def captured(path, family="llama", **changes):
    return capture_stimulus(
        child.model(family), child.stimulus(), path, **dict(progress=False) | changes
    )


def test_without_bands_a_file_says_nothing_of_them(tmp_path):
    store = captured(tmp_path / "a.h5")
    assert store.header.version == 2
    assert store.bands == store.band_dimensions == ()
    assert "posprobe_bands" not in store.header.config
    assert not {*BAND_DATA_SETS} & {*store.header.datasets()}
    assert "zero_dimensions" not in store.header.interventions[0]


def test_bands_are_added_to_what_is_kept_anyway(tmp_path):
    plain, store = captured(tmp_path / "a.h5"), captured(tmp_path / "b.h5", bands=3)
    assert store.header.version == 3
    assert store.bands == ("turns > 4", "turns 1/4 to 4", "turns < 1/4")
    assert len(store.band_dimensions) == store.n_layers
    for name in plain.header.datasets():
        if name != "digest":
            np.testing.assert_array_equal(store.read(name), plain.read(name))
    for part, whole in (("band_sink_score", "sink_score"), ("band_offset_score", "offset_score")):
        np.testing.assert_allclose(store.read(part).sum(-1), store.read(whole), atol=1e-5)
    assert store.verify() == plain.n_digests + 3 * store.n_layers


def test_a_capture_with_bands_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    options = dict(bands=2, zero_band=(1,), batch_tokens=50)
    captured(tmp_path / "a.h5", **options)
    model, calls = child.model(), iter(range(1000))
    run = model.run

    def stopped(*args, **keywords):
        if next(calls) == 9:
            raise KeyboardInterrupt
        run(*args, **keywords)

    monkeypatch.setattr(model, "run", stopped)
    path = tmp_path / "b.h5"
    with pytest.raises(KeyboardInterrupt):
        capture_stimulus(model, child.stimulus(), path, progress=False, **options)
    assert path.with_name("b.h5.partial").exists()
    captured(path, resume=True, **options)
    assert path.read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_zeroed_bands_are_on_record(tmp_path):
    store = captured(tmp_path / "a.h5", bands=3, zero_band=(2,))
    (change,) = store.header.interventions
    assert [layer for layer, _ in change["zero_dimensions"]] == [0, 1, 2]
    assert not store.read("band_sink_score")[..., 2].any()
    assert store.read("band_sink_score")[..., 1].any()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(bands=1), ModelError, "1 bands: give a number from 2 to 4"),
        (dict(zero_band=(0,)), StimulusError, "zero_band names bands .* that is not given"),
        (dict(bands=3, zero_band=(4,)), ModelError, "there is no band 4 to zero"),
    ],
)
def test_bands_that_make_no_sense_are_refused(options, error, said, tmp_path):
    with pytest.raises(error, match=said):
        captured(tmp_path / "a.h5", **options)
    assert not list(tmp_path.iterdir())


def test_another_design_is_refused(tmp_path):
    natural = child.stimulus("natural")
    with pytest.raises(StimulusError, match="bands are recorded in the shifted design only"):
        capture_stimulus(child.model(), natural, tmp_path / "a.h5", bands=3, progress=False)


@pytest.mark.parametrize(
    ("family", "said"), [("gpt2", "rotates nothing"), ("gemma2", "scores are capped at 2 nats")]
)
def test_a_model_without_bands_is_refused_before_anything_is_written(family, said, tmp_path):
    with pytest.raises(ModelError, match=f"model 'tiny-{family}'.*{said}"):
        captured(tmp_path / "a.h5", family, bands=3)
    assert not list(tmp_path.iterdir())


def test_version_2_has_no_bands(tmp_path):
    header = captured(tmp_path / "a.h5", bands=3).header
    said = "'band_sink_score', which version 2 of the format does not have: write version 3"
    with pytest.raises(StoreError, match=said):
        Header(**{f: getattr(header, f) for f in header.__dataclass_fields__} | {"version": 2})


def test_nan_where_a_band_exists_is_refused(tmp_path):
    store = captured(tmp_path / "a.h5", bands=3)
    values = {name: store.read(name).copy() for name in store.header.quantities}
    values["band_offset_score"][1, 2, 4, 0, 0, 1] = np.nan
    index = {name: store.read(name) for name in store.header.index}
    with StoreWriter.create(tmp_path / "b.h5", store.header, index) as writer:
        writer.write(values)
        writer.finish()
    with pytest.raises(StoreError, match=r"'band_offset_score' at layer 1, head 0.*band 1.* nan"):
        ActivationStore(tmp_path / "b.h5").verify()


def test_the_command_line_passes_bands_on(tmp_path):
    path = tmp_path / "a.h5"
    words = f"zoo/rope-0 -o {path} -q --design shifted --n 4 --length 64 --bands 3 --zero-band 0"
    done = CliRunner().invoke(main, ["capture", *words.split()])
    assert done.exit_code == 0, done.output
    store = ActivationStore(path)
    assert store.bands[0] == "turns > 4"
    assert not store.read("band_sink_score")[..., 0].any()
