"""posprobe generalize: what is scored, that no sequence scores a probe that saw it, refusals."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic

import posprobe
from posprobe.errors import DesignError
from posprobe.probes import PositionProbe, between, features, transfer_scores
from posprobe.store import ActivationStore
from posprobe.workflows.generalize import generalize

CAPTURES = Path(__file__).parents[2] / "docs" / "captures"
PLACE = ["question", "layer", "target_file", "target_layer", "start", "stop"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three captures of one model: natively, with NTK on the same text, and longer on another."""
    folder = tmp_path_factory.mktemp("files")
    plans = {
        "native": {"n": 14, "length": 40},
        "ntk": {"n": 14, "length": 40, "variant": "ntk(8)"},
        "code": {"n": 14, "length": 80, "text": "code"},
    }
    for name, plan in plans.items():
        model = posprobe.load_model("zoo/rope-0", variant=plan.pop("variant", "standard"))
        posprobe.capture(
            model, folder / f"{name}.h5", quantities=("residual",), residual_layers="1,3",
            progress=False, **plan,
        ).close()  # fmt: skip
    return folder


def quiet(*paths, **options):
    return generalize(*paths, progress=False, **options)


def test_every_question_is_asked_of_every_layer(files):
    table = quiet(files / "native.h5", [files / "ntk.h5", files / "code.h5"], trained_to=10)
    native = [(1, 11), (11, 21), (21, 40)]
    expected = []
    for layer, other in ((1, 3), (3, 1)):
        expected += [("positions", layer, "native.h5", layer, *each) for each in native]
        expected.append(("layers", layer, "native.h5", other, 1, 11))
        expected += [("files", layer, "ntk.h5", layer, *each) for each in native]
        longer = [*native[:2], (21, 41), (41, 80)]
        expected += [("files", layer, "code.h5", layer, *each) for each in longer]
    assert list(table[PLACE].itertuples(index=False, name=None)) == expected
    assert (table["sequences"] == 14).all()


def test_scores_are_those_of_the_probe(files):
    table = quiet(files / "native.h5", trained_to=10, layers=[3])
    store = ActivationStore(files / "native.h5")
    data = features(store, 3, "residual")
    near, far = between(data, 1, 11), between(data, 11, 21)
    found = transfer_scores(PositionProbe(), near, {"far": far}, same_sequences=True)
    np.testing.assert_allclose(table.loc[1, ["r2", "slope_low"]].astype(float),
                               found.loc[0, ["r2", "slope_low"]].astype(float))  # fmt: skip


def test_a_sequence_that_comes_again_in_another_file_is_still_held_out(files, tmp_path):
    again = shutil.copy(files / "native.h5", tmp_path / "again.h5")
    table = quiet(files / "native.h5", [again], trained_to=10, layers=[3])
    own, other = (table[table["question"] == what] for what in ("positions", "files"))
    np.testing.assert_array_equal(own["r2"], other["r2"])
    variant = quiet(files / "native.h5", [files / "ntk.h5"], trained_to=10, layers=[1])
    assert variant["r2_low"].notna().all()  # of fixed probes, at 14 sequences


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        ("native", {"trained_to": 39}, "trained_to=39 must be 8 to 38: native.h5 has positions up"),
        ("native", {"trained_to": 3}, "trained_to=3 must be 8 to 38"),
        (
            "native",
            {"layers": [2]},
            r"no residual of layers 2 in all files: use layers of \[1, 3\]",
        ),
        ("native", {"which": "joint"}, "features 'joint': use one of residual, normalizer"),
        (CAPTURES / "shifted.h5", {}, "shifted.h5 is of the shifted design: use a natural one"),
    ],
)
def test_what_cannot_be_asked_is_refused(first, options, message, files):
    path = first if isinstance(first, Path) else files / f"{first}.h5"
    with pytest.raises(DesignError, match=message):
        quiet(path, **options)


def test_a_model_of_another_width_is_refused(files, tmp_path, rng):
    synthetic.study_files(tmp_path, rng)
    with pytest.raises(DesignError, match=r"target 'natural\.h5' has 4 features, the probe 128"):
        quiet(files / "native.h5", [tmp_path / "natural.h5"], trained_to=10, layers=[1])


def test_of_several_files_the_first_is_trained_on(files):
    both = [files / "native.h5", files / "ntk.h5"]
    options = {"layers": [1], "trained_to": 8}
    pd.testing.assert_frame_equal(quiet(both, **options), quiet(*both, **options))
    with pytest.raises(DesignError, match="no file to train on: give a capture of the natural"):
        quiet([])


def test_a_log_gets_lines_instead_of_a_bar(files, capfd):
    table = generalize(files / "native.h5", files / "ntk.h5", layers=[1], trained_to=8)
    assert set(table["target_file"]) == {"native.h5", "ntk.h5"}  # one path is a list of one
    assert "\r" not in capfd.readouterr().err


def test_the_option_that_a_refusal_names_is_one_of_capture(files):
    from posprobe.cli.on_models import capture

    with pytest.raises(DesignError, match="capture them with --layers") as error:
        quiet(files / "native.h5", layers=[2])
    named = str(error.value).split()[-1]
    assert named in {name for option in capture.params for name in option.opts}
