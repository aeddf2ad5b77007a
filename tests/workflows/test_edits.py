"""Edits fitted on a capture, from Python and from the command line, and what they leave."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import posprobe
from posprobe.channels import remaining
from posprobe.cli import main
from posprobe.errors import DesignError, ModelError
from posprobe.probes import PositionProbe, features
from posprobe.store import ActivationStore
from posprobe.workflows.edits import erase_position, erase_random, move_position

BLOCK = 2


@pytest.fixture(scope="module")
def model():
    return posprobe.load_model("zoo/rope-0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A natural capture, and a shifted one of the same model."""
    home = tmp_path_factory.mktemp("edits")
    for design, n in (("natural", 16), ("shifted", 8)):
        quantities = ("residual",) if design == "natural" else None
        more = {"quantities": quantities} if quantities else {}
        posprobe.capture(
            model, home / f"{design}.h5", design=design, n=n, length=64, progress=False, **more
        ).close()
    return home


def stream_of(model, edit, path):
    with model.editing(edit):
        return posprobe.capture(
            model, path, n=16, length=64, quantities=("residual",), residual_layers="1,2",
            progress=False,
        )  # fmt: skip


def test_what_is_erased_is_not_read_in_that_block(model, folder, tmp_path):
    edit = erase_position(model, folder / "natural.h5", BLOCK)
    assert (edit.layer, edit.what, edit.rank) == (BLOCK, "position erased", 2)
    store = ActivationStore(folder / "natural.h5")
    X, y, _, _ = features(store, BLOCK, "residual")
    erased = X - (X - edit.mean) @ edit.inward @ edit.outward
    centred = erased - erased.mean(0)
    for concept in (y, np.log1p(y)):
        assert np.abs(centred.T @ (concept - concept.mean())).max() < 1e-8 * len(y)
    before, after = (
        PositionProbe().fit(*features(each, BLOCK, "residual")[:3]).r2_
        for each in (store, stream_of(model, edit, tmp_path / "erased.h5"))
    )
    assert after < 0.01 < 0.05 < before


def test_the_control_has_the_rank_and_other_directions(model, folder):
    position = erase_position(model, folder / "natural.h5", BLOCK)
    control = erase_random(model, folder / "natural.h5", BLOCK)
    other = erase_random(model, folder / "natural.h5", BLOCK, seed=1)
    assert control.rank == position.rank == 2
    assert control.what == "2 random directions erased"
    assert not np.allclose(control.outward, other.outward)


def test_a_move_goes_as_far_as_positions_are_apart_and_none_changes_nothing(model, folder):
    there = move_position(model, folder / "natural.h5", BLOCK, 5, 40)
    back = move_position(model, folder / "natural.h5", BLOCK, 40, 5)
    np.testing.assert_allclose(there.shift, -back.shift)
    assert np.abs(there.shift).max() > 0
    store = ActivationStore(folder / "natural.h5")
    X, y, groups, _ = features(store, BLOCK, "residual")
    probe = PositionProbe().fit(X, y, groups=groups)
    moved = float((probe.predict(X + there.shift) - probe.predict(X)).mean())
    assert moved > 0.3 * 35 * probe.r2_
    assert not move_position(model, folder / "natural.h5", BLOCK, 7, 7).shift.any()


def test_what_does_not_fit_is_refused(model, folder):
    other = posprobe.load_model("zoo/rope-1")
    with pytest.raises(ModelError, match=r"natural\.h5 is of other weights than model 'zoo/rope-1"):
        erase_position(other, folder / "natural.h5", BLOCK)
    with pytest.raises(DesignError, match="is of the shifted design: use a natural one"):
        erase_random(model, folder / "shifted.h5", BLOCK)
    with pytest.raises(DesignError, match=r"has positions 1 to 63, .* 5 to 64 is out of range"):
        move_position(model, folder / "natural.h5", BLOCK, 5, 64)


# --- what is left ---


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_erase_and_say_what_remains(model, folder, tmp_path):
    common = ["--design", "shifted", "--n", 8, "--length", 64, "-q"]
    natural = folder / "natural.h5"
    for option, value in (
        ("--erase", f"{natural}:{BLOCK}"),
        ("--erase-random", f"{natural}:{BLOCK}"),
        ("--steer", f"{natural}:{BLOCK}:5:40"),
    ):
        run("capture", "zoo/rope-0", "-o", tmp_path / f"{option[2:]}.h5", *common,
            option, value)  # fmt: skip
    files = [tmp_path / f"{name}.h5" for name in ("erase", "erase-random", "steer")]
    edits = [ActivationStore(f).header.config["posprobe_stream_edits"][0]["what"] for f in files]
    assert edits == ["position erased", "2 random directions erased", "moved from position 5 to 40"]
    found = json.loads(run("remains", folder / "shifted.h5", *files, "--json"))
    direct = remaining(
        ActivationStore(folder / "shifted.h5"), ActivationStore(files[0]), first=BLOCK
    )
    told = {row["variance"]: row["left"] for row in found[str(files[0])]}
    for _, row in direct.iterrows():
        assert told[row["variance"]] == pytest.approx(row["left"])
    assert "V_R" in run("remains", folder / "shifted.h5", files[0])


def test_edits_are_those_of_python(model, folder, tmp_path):
    edit = erase_position(model, folder / "natural.h5", BLOCK)
    run("capture", "zoo/rope-0", "-o", tmp_path / "a.h5", "--n", 3, "--length", 40, "-q",
        "--erase", f"{folder / 'natural.h5'}:{BLOCK}")  # fmt: skip
    with model.editing(edit):
        posprobe.capture(model, tmp_path / "b.h5", n=3, length=40, progress=False).close()
    one, two = (ActivationStore(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert one.header.weights_digest == two.header.weights_digest
    np.testing.assert_array_equal(one.read("residual", 3), two.read("residual", 3))


def test_an_edit_on_a_cluster_and_a_place_without_a_block_are_refused(folder, tmp_path):
    target = ["capture", "zoo/rope-0", "-o", str(tmp_path / "a.h5")]
    for words, said in (
        (["--erase", "natural.h5"], "write FILE:BLOCK, as in natural.h5:10"),
        (["--steer", "natural.h5:3:4"], "write FILE:BLOCK:FROM:TO, as in natural.h5:10:33:97"),
        (["--erase", "a.h5:2", "--dask", "local"], "--erase edits one model in memory"),
    ):
        result = CliRunner().invoke(main, [*target, *words])
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())


def test_a_file_beside_itself_leaves_all(folder):
    store = ActivationStore(folder / "shifted.h5")
    table = remaining(store, store)
    np.testing.assert_allclose(table[["left", "low", "high"]], 1, atol=1e-9)


def test_captures_that_do_not_pair_are_refused(model, folder, tmp_path):
    store = ActivationStore(folder / "shifted.h5")
    plans = {
        "other text": ({"seed": 1}, "contain other tokens"),
        "other items": ({"first_item": 20, "n": 4}, "have 0 items in common"),
        "other offsets": ({"offsets": (1, 2)}, "have other offsets"),
    }
    for name, (change, said) in plans.items():
        path = tmp_path / f"{name}.h5"
        plan = dict(design="shifted", n=8, length=64, progress=False) | change
        other = posprobe.capture(model, path, **plan)
        with pytest.raises(DesignError, match=said):
            remaining(store, other)
    with pytest.raises(DesignError, match="first=4 must be a layer from 0 to 3"):
        remaining(store, store, first=4)


def test_an_edited_file_in_the_wrong_place_is_sent_to_the_right_one(model, folder, tmp_path):
    with model.editing(erase_position(model, folder / "natural.h5", BLOCK)):
        edited = posprobe.capture(
            model, tmp_path / "erased.h5", design="shifted", n=8, length=64, progress=False
        )
    with pytest.raises(DesignError, match=r"edited in erased\.h5 and not in shifted\.h5: give the"):
        remaining(edited, ActivationStore(folder / "shifted.h5"))
    with pytest.raises(DesignError, match="posprobe remains compares an edited stream"):
        posprobe.analyze([folder / "natural.h5", edited.path], tmp_path / "page", progress=False)
