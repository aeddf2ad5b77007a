"""From stored files to tables: which file answers what, and what is refused."""

import itertools

import capture_child
import numpy as np
import pandas as pd
import pytest
import synthetic
from limits import compare_limits, follows

from posprobe.analysis import Files, analyze_files, check, possible_steps, sort_files
from posprobe.captures import capture_stimulus
from posprobe.errors import DesignError
from posprobe.intervals import Inference

NATIVE = ("natural", "shifted", "repeated", "bos_repeated")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return synthetic.study_files(tmp_path_factory.mktemp("study"), np.random.default_rng(0))


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def analysis(stores, steps):
    files = sort_files(stores.values())
    return analyze_files(files, inference=Inference(n_jobs=1), step=steps.append)


def one(path, **fields):
    """A file that only its header matters of."""
    arrays = {"normalizer": np.zeros((1, 2, 3, 1))}
    return synthetic.write(path, arrays, **{"weights_digest": "abc"} | fields)


# --- which file is which ---


def test_files_are_recognised_in_any_order(stores):
    for order in itertools.islice(itertools.permutations(stores.values()), 0, 720, 91):
        files = sort_files(order)
        for role in NATIVE:
            assert getattr(files, role) is stores[role]
        assert set(files.replaced) == {stores["mean"], stores["content"]}
        assert set(files.all()) == set(stores.values())


def test_any_one_file_will_do(stores):
    for role in NATIVE:
        assert sort_files([stores[role]]).all() == [stores[role]]


def test_refuses_no_file():
    with pytest.raises(DesignError, match="no file was given; make one with: posprobe capture"):
        sort_files([])


@pytest.mark.parametrize("role", NATIVE)
def test_refuses_two_files_of_one_role(role, stores, tmp_path):
    header = stores[role].header
    same = dict(design=header.design, stimulus=header.stimulus, length=header.length)
    twin = one(tmp_path / "twin.h5", **same)
    said = (
        rf"twin\.h5 and {role}\.h5 are both {role} captures and cannot be read as one .*; give one"
    )
    with pytest.raises(DesignError, match=said):
        sort_files([stores[role], twin])


def test_refuses_two_files_of_one_replacement(stores, tmp_path):
    same = dict(design="shifted", length=stores["mean"].length)
    twin = one(tmp_path / "twin.h5", position0_treatment="mean", **same)
    said = r"twin\.h5 and mean\.h5 both replace position 0 by 'mean'; give one"
    with pytest.raises(DesignError, match=said):
        sort_files([stores["shifted"], stores["mean"], twin])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights_digest", "xyz"),
        ("variant", "ntk(8)"),
        ("interventions", [{"temperature": [[0, 2.0]]}]),
    ],
)
def test_refuses_files_that_do_not_belong_together(name, value, stores, tmp_path):
    other = one(tmp_path / "other.h5", **{"design": "natural", name: value})
    said = rf"other\.h5 differs from shifted\.h5 in {name}; analyze one model and one change"
    with pytest.raises(DesignError, match=said):
        sort_files([stores["shifted"], other])


def test_refuses_a_design_that_nothing_uses(tmp_path):
    with pytest.raises(
        DesignError, match=r"iid\.h5 is of design 'iid', which no analysis uses; read"
    ):
        sort_files([one(tmp_path / "iid.h5", design="iid")])


def test_a_bos_whose_id_is_zero_is_a_bos(tmp_path):
    store = one(tmp_path / "a.h5", design="repeated", stimulus={"bos_token": 0})
    assert sort_files([store]).bos_repeated is store


# --- what is made of them ---


def test_every_step_is_counted(analysis, steps, stores):
    assert len(steps) == len(possible_steps(sort_files(stores.values())))
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize("roles", [("natural",), ("shifted",), ("repeated",), ("shifted", "mean")])
def test_steps_are_counted_for_fewer_files(roles, stores):
    steps, files = [], sort_files(stores[role] for role in roles)
    found = analyze_files(files, step=steps.append)
    assert len(steps) == len(possible_steps(files))
    assert "checks" in found.tables
    assert ("probes" in found.tables) == ("natural" in roles)
    assert ("channels" in found.tables) == ("repeated" not in roles)
    assert ("replacement" in found.tables) == ("mean" in roles)


def test_two_processes_find_what_one_finds(analysis, stores):
    same = analyze_files(sort_files(stores.values()), inference=Inference(n_jobs=2))
    assert list(same.tables) == list(analysis.tables)
    for name, table in analysis.tables.items():
        pd.testing.assert_frame_equal(same.tables[name], table, rtol=1e-12)
    for name, interval in analysis.intervals.items():
        assert same.intervals[name].estimate == pytest.approx(interval.estimate, rel=1e-12)


def test_tables_of_a_whole_study(analysis):
    expected = {"sinks", "closed_system", "fingerprint", "probes", "partition", "channels"}
    expected |= {"channels_by_head", "channels_by_layer", "position_effects", "replacement"}
    expected |= {"repeated", "checks"}
    assert expected <= set(analysis.tables)
    expected = {"sink_heads", "closure", "fingerprint_text", "fingerprint_bos"}
    expected |= {"repeated", "bos_repeated", "probe_normalizer", "probe_residual"}
    assert expected <= set(analysis.intervals)


def test_natural_and_shifted_stand_side_by_side(analysis):
    assert analysis.tables["channels"]["stimulus"].tolist() == ["shifted", "natural"]
    effects = analysis.tables["position_effects"]
    assert set(effects["stimulus"]) == {"shifted", "natural"}
    shifted = effects[(effects["stimulus"] == "shifted") & (effects["layer"] == "all")]
    np.testing.assert_allclose(shifted["M"], np.linspace(1, 0, 4), atol=0.1)


def test_repeated_token_by_layer_and_position(analysis):
    table = analysis.tables["repeated"]
    closed, opened = (table[table["stimulus"] == k] for k in ("repeated", "bos_repeated"))
    assert closed["residual"].max() < 1e-6
    assert closed["mask"].max() == pytest.approx(1, rel=1e-5)
    assert opened["residual"].max() == pytest.approx(0.5, rel=1e-5)
    assert closed["position"].tolist() == [1, 6, 12] * 2  # the reference is 0 by definition
    assert analysis.intervals["bos_repeated"].estimate == pytest.approx(0.5, rel=1e-5)
    assert analysis.intervals["bos_repeated"].n == 4


def test_checks_say_what_each_file_is(analysis, stores):
    table = analysis.tables["checks"].set_index("file")
    assert set(table.index) == {store.path.name for store in stores.values()}
    assert table.loc["natural.h5", "first_token"].endswith(" different")
    assert table.loc["shifted.h5", "first_token"] == "1"
    assert table.loc["mean.h5", "position0"] == "mean"
    assert table.loc["shifted.h5", "windowed_layers"] == "0 of 2"
    assert table.loc["shifted.h5", "items"] == 8
    assert set(table["mask"]) == {"causal"}
    assert set(table["rope"]) == {"none"}


@pytest.mark.parametrize(
    ("parameters", "kind", "theta"),
    [
        ({"rope_type": "llama3", "rope_theta": 5e5}, "llama3", "500,000"),
        (
            {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "full attention: linear; sliding attention: default",
            "full attention: 1,000,000; sliding attention: 10,000",
        ),
        ({k: {"rope_type": "default"} for k in ("full", "sliding")}, "default", "none"),
    ],
)
def test_checks_say_how_each_type_of_layer_rotates(parameters, kind, theta, tmp_path):
    store = one(tmp_path / "a.h5", config={"rope_parameters": parameters})
    row = check(store)
    assert (row["rope"], row["rope_theta"]) == (kind, theta)


def test_r_of_layer_0_beside_key_0_is_measured(analysis):
    # the synthetic residual channel moves the normalizer, and no score of key 0
    rest = analysis.intervals["layer_0_rest"]
    assert rest.estimate == pytest.approx(0.5, abs=0.1)
    assert rest.n == 8
    table = analysis.tables["layer_0"].set_index("name")
    numbers = table.loc["layer_0_rest", ["estimate", "low", "high"]]
    assert numbers.tolist() == [rest.estimate, rest.low, rest.high]
    assert table.loc["layer_0_rest", "largest"] >= rest.estimate
    assert table.loc["scores_moved", "n"] == 8


def test_same_files_and_seed_same_analysis(analysis, stores):
    again = analyze_files(sort_files(reversed(list(stores.values()))))
    for name, table in analysis.tables.items():
        assert table.equals(again.tables[name]), name
    assert again.intervals == analysis.intervals


def test_every_limit_follows_the_level(analysis, stores):
    unsure = analyze_files(sort_files(stores.values()), inference=Inference(level=0.5))
    compared, wrong = compare_limits(analysis.tables, unsure.tables)
    assert not wrong
    assert {
        *("sinks.attention_low", "probes.low", "partition.low", "replacement.low"),
        *("channels.V_R_low", "channels.share_mask_low", "channels_by_head.C_MR_low"),
        *("channels_by_offset.T_low", "channels_by_offset.V_M_low", "position_effects.R_low"),
    } <= compared
    for name, sure in analysis.intervals.items():
        assert follows(sure, unsure.intervals[name]), name


def test_nothing_is_analyzed_without_files():
    assert possible_steps(Files()) == []


def test_only_a_file_with_bands_has_their_table(analysis, tmp_path):
    assert "bands" not in analysis.tables
    stimulus = capture_child.stimulus(n=4)
    store = capture_stimulus(
        capture_child.model(), stimulus, tmp_path / "a.h5", bands=2, progress=False
    )
    files = sort_files([store])
    assert "bands of rotation" in [step.name for step in possible_steps(files)]
    found = analyze_files(files, inference=Inference(n_resamples=100))
    assert set(found.tables["bands"]["band"]) == {"turns > 1", "turns < 1", "number of keys"}
