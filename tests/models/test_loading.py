"""Where a checkpoint is looked for: the hub is asked once, and its silence is not waited out."""

import shutil

import huggingface_hub
import pytest
import tiny
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError

from posprobe.errors import ModelError
from posprobe.models import load_model, loading
from posprobe.models.checkpoints import Checkpoint
from posprobe.models.loading import source

HUB = Checkpoint("org/model", "org/model")


@pytest.fixture
def asked(monkeypatch):
    """What the hub was asked, with which timeout; it answers with `asked.answer`."""

    class Asked(list):
        answer = ConnectionError("no route")

    calls = Asked()

    def metadata(url, timeout):
        calls.append((url, timeout))
        if calls.answer is not None:
            raise calls.answer

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    return calls


def test_hub_is_asked_once_with_a_short_timeout(asked):
    place = source(HUB, revision="v2")
    assert place["local_files_only"]
    ((url, timeout),) = asked
    assert url.endswith("/org/model/resolve/v2/config.json")
    assert timeout <= 5


@pytest.mark.parametrize("answer", [None, "refusal"])
def test_hub_that_answers_is_used(asked, answer):
    if answer == "refusal":
        asked.answer = HfHubHTTPError.__new__(HfHubHTTPError)
    else:
        asked.answer = None
    assert source(HUB, trust_remote_code=True) == {
        "pretrained_model_name_or_path": "org/model",
        "revision": "main",
        "trust_remote_code": True,
        "local_files_only": False,
    }


def test_folder_is_not_looked_for_on_the_hub(asked, tmp_path):
    assert source(Checkpoint("x", str(tmp_path)))["local_files_only"]
    assert asked == []


def test_name_that_no_hub_has_is_refused_by_its_form(asked):
    with pytest.raises(ModelError, match=r"could not be loaded .*Repo id must use alphanumeric"):
        load_model("bad name!")
    assert asked == []


def test_model_in_the_cache_is_loaded_without_the_hub(asked, tmp_path, monkeypatch):
    """The layout that the hub's client keeps: refs name a snapshot, snapshots hold the files."""
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    tiny.tiny_model("llama", dtype=torch.float32).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_model("org/model").n_layers == 3
    assert len(asked) == 1
    shutil.rmtree(snapshot)
    with pytest.raises(ModelError, match=r"'org/model' could not be loaded .*hub id that is rea"):
        load_model("org/model")


def test_loading_leaves_transformers_as_talkative_as_it_was():
    before = transformers.logging.get_verbosity()
    with pytest.raises(RuntimeError, match="stop"), loading.quiet():
        raise RuntimeError("stop")
    assert transformers.logging.get_verbosity() == before
