"""Checkpoints of one training run: who is at which step, and when each quantity comes."""

import json
import re

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from lineups import file_of

from posprobe.cli import main
from posprobe.comparison import follow, line_up, line_up_steps
from posprobe.errors import DesignError
from posprobe.figures import TRAINING_PANELS, draw
from posprobe.intervals import Inference
from posprobe.workflows.compare import compare

STEPS = (0, 15, 63, 255, 1023)  # 1 + step doubles twice from one to the next
AXIS = np.log2(1 + np.array(STEPS))
MASK_SIZE = dict(zip(STEPS, (1.0, 1.0, 0.6, 0.2, 0.2), strict=True))
RESIDUAL_SIZE = dict(zip(STEPS, (0.02, 0.02, 0.02, 0.5, 0.8), strict=True))
SINK = dict(zip(STEPS, (0.0, 0.0, 2.0, 4.0, 4.0), strict=True))
CODE = dict(zip(STEPS, (0.05, 0.05, 0.05, 0.3, 1.0), strict=True))
QUICK = Inference(n_resamples=400)


def natural(path, step, *, n=26, length=12, seed=0, **fields):
    """A head that sinks more and more, and a stream from which position is read better."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sink = rng.normal(size=(1, n, length, 2)) * 0.2
    sink[..., 1] += SINK[step]
    others = np.log(np.arange(1, length + 1))[None, None, :, None] + np.zeros_like(sink)
    noise = rng.normal(size=(1, n, length, 3))
    noise[..., 0] += CODE[step] * np.arange(length)
    arrays = {
        "normalizer": np.logaddexp(others, sink),
        "sink_score": sink,
        "residual": np.concatenate([noise, noise]),
    }
    arrays["normalizer"], arrays["sink_score"] = (
        np.concatenate([arrays[k]] * 2) for k in ("normalizer", "sink_score")
    )
    fields = dict(residual_layers=(0, 1), model="zoo/run", weights_digest=f"{step}") | fields
    return synthetic.write(path, arrays, **fields)


def run_of(folder, steps=STEPS, *, naturals=True, n=24, **fields):
    stores = []
    for step in steps:
        home = folder / f"step{step}"
        options = dict(size=RESIDUAL_SIZE[step], mask=MASK_SIZE[step], n=n) | fields
        stores.append(
            file_of(home / "shifted.h5", "run", weights_digest=f"{step}", **options)
        )  # fmt: skip
        if naturals:
            stores.append(natural(home / "natural.h5", step))
    return stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def training(stores):
    return follow(line_up_steps(stores[::-1]), inference=QUICK)


# --- which step ---


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (("run/step1", "run/step20", "run/step300"), True),
        (("run/checkpoint-1", "run/checkpoint-20"), True),
        (("run/step1", "other/step1"), False),
        (("rope-step1", "ntk-step20"), False),
        (("rope-0", "rope-1"), False),
    ],
)
def test_checkpoints_without_their_steps_are_noted(names, noted, tmp_path):
    files = [
        file_of(tmp_path / f"{k}.h5", name, weights_digest=f"{k}", model=f"zoo/{name}")
        for k, name in enumerate(names)
    ]
    said = " ".join(line_up(files).notes)
    assert ("posprobe compare --steps follows a run" in said) == noted


def test_files_are_sorted_by_step_in_any_order(stores):
    for given in (stores, stores[::-1]):
        run = line_up_steps(given)
        assert run.steps == STEPS
        assert [m.shifted.header.weights_digest for m in run.members] == [str(s) for s in STEPS]
        assert len(run.items) == 24


@pytest.mark.parametrize(
    ("name", "revision", "folder", "step"),
    [
        ("zoo/run", None, "step7", 7),
        ("runs/step12", None, "step7", 12),
        ("EleutherAI/pythia-70m", "step3000", "step7", 3000),
        ("org/olmo", "stage1-step1000-tokens5B", "any", 1000),
        ("a/checkpoint-500", None, "any", 500),
        ("a/iter_0020", None, "any", 20),
    ],
)
def test_a_step_is_read_from_revision_name_or_path(name, revision, folder, step, tmp_path):
    options = {"model": {"revision": "a1b2", **({"asked_revision": revision} if revision else {})}}
    one = file_of(tmp_path / folder / "a.h5", "x", model=name, options=options)
    rest = [file_of(tmp_path / f"step{k}" / "b.h5", "x", weights_digest=f"{k}") for k in (1, 2)]
    assert step in line_up_steps([one, *rest]).steps


def test_steps_may_be_said(tmp_path):
    files = [file_of(tmp_path / f"{k}.h5", "x", weights_digest=f"{k}") for k in "abc"]
    run = line_up_steps(files, steps={30: "*/a.h5", 10: "*/b.h5", 20: "*/c.h5"})
    assert [member.shifted.path.name for member in run.members] == ["b.h5", "c.h5", "a.h5"]
    with pytest.raises(DesignError, match=r"matches no --step: give each file one"):
        line_up_steps(files, steps={30: "*/a.h5", 10: "*/b.h5"})
    with pytest.raises(DesignError, match=r"matches steps 30 and 10"):
        line_up_steps(files, steps={30: "*/a.h5", 10: "*.h5"})


def refuses(said, stores):
    with pytest.raises(DesignError, match=said) as error:
        line_up_steps(stores)
    assert "\n" not in str(error.value)


def test_without_natural_captures_no_empty_figure_of_sinks_and_probes_is_drawn(tmp_path):
    tables = follow(line_up_steps(run_of(tmp_path, naturals=False)), inference=QUICK).tables
    assert draw("training_fractions", tables) is None
    assert draw("training_V_R", tables) is not None


def test_what_is_no_course_of_training_is_refused(tmp_path):
    good = run_of(tmp_path / "good", naturals=False)
    refuses("of steps 0, 15, and a course of training needs three", good[:2])
    refuses(r"says no training step", [*good, file_of(tmp_path / "x" / "a.h5", "x")])
    other = file_of(tmp_path / "other" / "step63" / "b.h5", "run", weights_digest="9", n=24)
    refuses(r"step 63 has two models \(step63/shifted\.h5, step63/b\.h5\)", [*good, other])
    twice = file_of(tmp_path / "twice" / "step63" / "b.h5", "run", weights_digest="63", n=24)
    refuses(r"is given twice", [*good, twice])
    lone = natural(tmp_path / "step63" / "natural.h5", 63)
    refuses(r"step 0, step 15, step 255, step 1023 has no natural capture", [*good, lone])
    changed = run_of(tmp_path / "c", (0, 15), naturals=False, interventions=[{"cut_sink": "all"}])
    refuses(r"under an intervention \(cut_sink\)", [*good[2:], *changed])


def test_natural_captures_of_other_text_are_refused(tmp_path, stores):
    other = synthetic.different(26, 12) + 5
    lone = natural(tmp_path / "step63" / "natural.h5", 63, index={"tokens": other})
    kept = [s for s in stores if not (s.design == "natural" and "step63" in str(s.path))]
    refuses("contain different tokens", [*kept, lone])


# --- what is found ---


def curve(training, quantity):
    table = training.tables["curves"]
    return table[table["quantity"] == quantity].sort_values("step")


def test_curves_are_those_of_each_step_alone(training, stores):
    from posprobe.channels import decompose

    by_step = {s.header.weights_digest: s for s in stores if s.design == "shifted"}
    for name in ("V_M", "V_R", "C_MR"):
        alone = [decompose(by_step[str(s)]).overall[name].item() for s in STEPS]
        np.testing.assert_allclose(curve(training, name)["estimate"], alone, rtol=1e-9)


def test_bands_are_wider_than_intervals_of_one_step(training, stores):
    from posprobe.channels import decompose

    rows = curve(training, "V_R")
    last = decompose([s for s in stores if s.design == "shifted"][-1], n_resamples=400).overall
    own = last["V_R_high"].item() - last["V_R_low"].item()
    assert rows["high"].iloc[-1] - rows["low"].iloc[-1] > own
    assert ((rows["low"] <= rows["estimate"]) & (rows["estimate"] <= rows["high"])).all()


def test_half_way_is_where_it_was_put(training):
    table = training.tables["half_way"].set_index("quantity")
    sizes = np.array([MASK_SIZE[s] for s in STEPS]) ** 2  # a variance goes with the square
    wanted = np.interp(-(sizes[0] + sizes[-1]) / 2, -sizes[1:4], AXIS[1:4])
    assert np.log2(1 + table.loc["V_M", "step"]) == pytest.approx(wanted, abs=0.05)
    assert table.loc["V_M", "low"] <= 2**wanted - 1 <= table.loc["V_M", "high"]
    assert 63 < table.loc["V_R", "step"] < 1023
    assert 15 < table.loc["sink_attention", "step"] < 255
    assert 63 < table.loc["probe", "step"] < 1023


def test_order_says_what_comes_first(training):
    table = training.tables["order"]
    first = dict(zip(zip(table["earlier"], table["later"], strict=True), table["first"],
                     strict=True))  # fmt: skip
    assert first["V_M", "V_R"] == "V_M"
    assert first["sink_attention", "V_R"] == "sink_attention"
    assert (table["ratio"] >= 1).all()


def test_what_ends_where_it_began_has_no_half_way(tmp_path):
    same = [file_of(tmp_path / f"step{k}" / "a.h5", "run", weights_digest=f"{k}", n=24, seed=0)
            for k in range(3)]  # fmt: skip
    found = follow(line_up_steps(same), inference=QUICK)
    assert found.tables["half_way"]["step"].isna().all()
    assert "order" not in found.tables


def test_the_head_is_chosen_on_other_sequences_than_those_that_measure_it(tmp_path):
    """Thirty heads that differ from sequence to sequence, and not from each other."""
    rng = np.random.default_rng(3)
    files = run_of(tmp_path, (0, 15, 63), naturals=False)
    for step in (0, 15, 63):
        sink = np.repeat(rng.normal(size=(1, 14, 1, 30)), 6, axis=2)
        arrays = {"normalizer": np.log(1 + np.exp(sink)), "sink_score": sink}
        files.append(
            synthetic.write(
                tmp_path / f"step{step}" / "natural.h5", arrays, model="zoo/run",
                weights_digest=f"{step}",
            )
        )  # fmt: skip
    attention = np.exp(sink - arrays["normalizer"]).mean((1, 2))[0]
    found = curve(follow(line_up_steps(files), inference=QUICK), "sink_attention")["estimate"]
    assert abs(found.iloc[-1] - attention.mean()) < 0.15
    assert found.iloc[-1] < attention.max() - 0.05


def test_a_rate_that_no_sample_moves_has_no_band(training):
    rows = curve(training, "sink_rate")
    assert rows["low"].iloc[0] != rows["low"].iloc[0]  # NaN: no head sinks, in no sample
    assert rows["estimate"].iloc[-1] == 0.5


# --- on paper ---


@pytest.mark.parametrize("name", TRAINING_PANELS)
def test_every_panel_asks_and_names_its_axes(name, training):
    (ax,) = draw(name, training.tables).axes
    assert ax.figure.get_suptitle().endswith("?")
    assert "step" in ax.get_xlabel()
    assert "95%" in TRAINING_PANELS[name].caption.format(level="95%")


def test_the_command_writes_a_report_that_can_be_sent(tmp_path, stores):
    files = [str(store.path) for store in stores]
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["compare", *files, "--steps", "-o", str(out), "--resamples", "200", "-q"]
    )
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "mask channel before the residual channel" in page
    assert "This is one run of training" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    plain = json.loads((out / "training.json").read_text())
    assert plain["steps"] == list(STEPS)
    assert {row["quantity"] for row in plain["half_way"]} == {
        "V_M", "V_R", "sink_attention", "probe"}  # fmt: skip
    assert (out / "tables" / "curves.csv").exists()


def test_steps_exclude_what_belongs_to_models(tmp_path, stores):
    with pytest.raises(DesignError, match="leave these out, or leave the steps out"):
        compare([s.path for s in stores], tmp_path, steps=True, blocks={"0": "*"}, progress=False)


def test_steps_of_the_command_line_are_numbers(stores):
    result = CliRunner().invoke(main, ["compare", str(stores[0].path), "--step", "a=*"])
    assert result.exit_code == 2
    assert "steps are whole numbers, as in 1000='*step1000*'" in result.output
