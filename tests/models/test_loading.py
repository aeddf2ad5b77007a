"""Where a checkpoint is looked for, how it is loaded, and what is refused as none."""

import copy
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import tokenizers
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from watched import IDS

from posprobe.errors import ModelError
from posprobe.models import (
    Intervention,
    ObservableModel,
    load_model,
    loading,
)
from posprobe.models.checkpoints import Checkpoint
from posprobe.models.loading import source

# --- the hub is asked once, and its silence is not waited out ---

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
    with pytest.raises(ModelError, match=r"'org/model' is not on this machine, and the hub cannot"):
        load_model("org/model")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (RepositoryNotFoundError, "'org/model' is unknown to the hub, or private there; give"),
        (GatedRepoError, "'org/model' is gated: accept its terms on the hub, and log in with hf"),
        (RevisionNotFoundError, "'org/model' has no revision 'v9' on the hub; give"),
    ],
)
def test_what_the_hub_refuses_is_said(kind, said, asked, monkeypatch):
    def refuse(**place):
        raise OSError("org/model is not a valid model identifier") from kind.__new__(kind)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=said):
        load_model("org/model", revision="v9")


def test_loading_leaves_transformers_as_talkative_as_it_was():
    before = transformers.logging.get_verbosity()
    with pytest.raises(RuntimeError, match="stop"), loading.quiet():
        raise RuntimeError("stop")
    assert transformers.logging.get_verbosity() == before


# --- folders ---


@pytest.fixture(scope="module")
def llama():
    return ObservableModel(tiny.tiny_model("llama"))


WORDS = ["a", "the", "of", "king", "queen", "sea", "ship", "storm"]


def make_tokenizer(*, prepends_bos):
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if prepends_bos:
        plain.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def folder(tmp_path):
    tiny.tiny_model("llama").save_pretrained(tmp_path)
    make_tokenizer(prepends_bos=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_folder_is_loaded_as_it_was_saved(folder, dtype):
    model = load_model(str(folder), dtype=dtype)
    assert str(model.model.dtype) == f"torch.{dtype}"
    assert model.name == str(folder)
    reference = tiny.tiny_model("llama")(IDS, use_cache=False).logits.detach().double()
    tolerance = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 0.5}[dtype]
    torch.testing.assert_close(model.logits(IDS).double(), reference, atol=tolerance, rtol=0.1)


def test_bos_is_the_one_that_the_tokenizer_prepends(folder):
    model = load_model(str(folder))
    assert (model.native_bos, model.bos_id) == (1, 1)
    assert model.tokenize("the king of the sea").tolist() == [4, 6, 5, 4, 8]
    assert model.tokenize("").tolist() == []
    assert model.special_ids == [0, 1, 2]
    make_tokenizer(prepends_bos=False).save_pretrained(folder)
    model = load_model(str(folder))
    assert (model.native_bos, model.bos_id) == (None, 1)
    assert model.tokenize("the king of the sea").tolist() == [4, 6, 5, 4, 8]


def test_a_token_put_at_the_end_is_refused_as_native(llama):
    tokenizer = make_tokenizer(prepends_bos=False)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    model = copy.copy(llama)
    model.tokenizer = tokenizer
    assert tokenizer("a")["input_ids"] == [3, 2]
    with pytest.raises(ModelError, match=r"puts 0 tokens in front of a text and 1 behind it"):
        _ = model.native_bos


def test_long_text_is_tokenized_without_a_warning(folder, capfd):
    model = load_model(str(folder))
    model.tokenizer.model_max_length = 4
    assert len(model.tokenize("the sea " * 100)) == 200
    assert capfd.readouterr().err == ""


def test_model_without_tokenizer_takes_token_ids_only(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load_model(str(folder))
    assert (model.tokenizer, model.native_bos, model.bos_id, model.special_ids) == (
        *(None,) * 3,
        [],
    )
    with pytest.raises(ModelError, match="has no tokenizer; pass token ids"):
        model.tokenize("the sea")


def test_variant_is_loaded_as_its_configuration_says(folder):
    model = load_model(str(folder), variant="ntk(4)", dtype="float64")
    theta = model.effective_config()["rope_parameters"]["rope_theta"]
    assert theta == pytest.approx(10_000 * 4 ** (8 / 6))
    frequencies = model.model.model.rotary_emb.inv_freq
    expected = theta ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(frequencies.double(), expected.double(), rtol=1e-6, atol=0)
    model = load_model(str(folder), variant="linear(4)", dtype="float64")
    quarter = 10_000 ** (-torch.arange(0, 8, 2) / 8) / 4
    frequencies = model.model.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies.double(), quarter.double(), rtol=1e-6, atol=0)
    model = load_model(str(folder), variant="window(5)")
    assert model.intervention() == Intervention(window=5)


def test_digest_knows_the_weights(llama):
    own = ObservableModel(tiny.tiny_model("llama"))
    assert llama.weights_digest() == own.weights_digest() == own.weights_digest()
    with torch.no_grad():
        own.model.model.norm.weight[0] += 1  # in place, after the digest was made
    assert own.weights_digest() != llama.weights_digest()
    other = tiny.tiny_model("llama")
    other.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1e-12
    assert ObservableModel(other).weights_digest() != llama.weights_digest()


def test_configuration_names_no_path_of_this_machine(folder):
    values = load_model(str(folder)).effective_config()
    assert str(folder) not in str(values)
    assert values["num_key_value_heads"] == 2


def one_line(error):
    return "\n" not in str(error.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    transformers.LlamaModel(tiny.tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 1 weights of a Llama.* \(lm_head") as error:
        load_model(str(tmp_path))
    assert one_line(error)


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="could not be loaded") as error:
        load_model(str(folder))
    assert one_line(error)


def test_configuration_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=f"{re.escape(str(folder))}.*could not be loaded") as error:
        load_model(str(folder))
    assert one_line(error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody/no-such-model", "'nobody/no-such-model' is not on this machine, .*hub id that is"),
        ("no-such-model", "'no-such-model' is not on this machine, and the hub cannot be reached"),
        ("./no/such/folder", "there is no such folder; check the path"),
        ("/no/such/folder", "there is no such folder; check the path"),
        ("no-such-file.gguf", "'no-such-file.gguf': there is no such file; check the path"),
        ("", "no model was named"),
    ],
)
def test_unknown_model_is_refused(name, reason):
    with pytest.raises(ModelError, match=reason) as error:
        load_model(name)
    assert one_line(error)


def test_unknown_dtype_is_refused():
    with pytest.raises(ModelError, match="dtype 'float8' is unknown; use one of float32"):
        load_model("smollm2", dtype="float8")


def test_folder_that_is_no_model_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the folder has no weights"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"the folder has no config\.json"):
        load_model(str(folder))


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file but not a GGUF file; give its folder"):
        load_model(str(path))


# --- files that are not what they seem ---


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_tokenizer_that_cannot_be_read_is_not_taken_for_none(folder, damage):
    path = folder / "tokenizer.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if damage == "cut" else '{"version": 3}')
    reason = r"its tokenizer cannot be read \(tokenizer\.json: \w+: .*\); download it again"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_pointer_to_a_file_that_was_not_fetched_is_refused(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer, .*; run git lfs pull"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pkl"]
)
def test_weights_that_are_pickled_are_refused_unread(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Marker(folder / "ran")))
    reason = rf"its weights are pickled \({name}\), and a pickle can run code; save them as safe"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert one_line(error)
    assert not (folder / "ran").exists()


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_unpickling_would_have_been_seen(tmp_path):
    pickle.loads(pickle.dumps(Marker(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "other.safetensors.index.json"])
def test_shards_that_are_pickled_are_refused_unread(folder, index):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "weights.bin")
    named = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")})
    (folder / index).write_text(named)
    if not index.startswith("model"):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"transformers_weights": index}))
    with pytest.raises(ModelError, match=rf"{index} names weights\.bin, which is not a safe") as e:
        load_model(str(folder))
    assert one_line(e)


def test_shards_of_safetensors_are_loaded(folder):
    whole = load_model(str(folder)).logits(IDS)
    (folder / "model.safetensors").unlink()
    tiny.tiny_model("llama").save_pretrained(folder, max_shard_size="20kB")
    assert (folder / "model.safetensors.index.json").exists()
    assert torch.equal(load_model(str(folder)).logits(IDS), whole)


OWN_CODE = """
import pathlib

import transformers

pathlib.Path({ran!r}).touch()


class OwnConfig(transformers.LlamaConfig):
    model_type = "own"


class OwnModel(transformers.LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("family", ["own", "llama"])
def test_code_of_a_model_runs_only_if_it_is_asked_for(folder, family, monkeypatch):
    modules = str(folder / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ran = folder / "ran"
    (folder / "own.py").write_text(OWN_CODE.format(ran=str(ran)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": family, "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(settings))
    if family == "own":
        reason = r"code of its own, which runs only if it is asked for: .* trust_remote_code=True"
        with pytest.raises(ModelError, match=reason) as error:
            load_model(str(folder))
        assert one_line(error)
    else:  # transformers has a class of its own for it
        assert load_model(str(folder)).n_layers == 3
    assert not ran.exists()
    assert load_model(str(folder), trust_remote_code=True).n_layers == 3
    assert ran.exists()


def test_configuration_that_asks_for_tuples_is_loaded(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"return_dict": False}))
    assert load_model(str(folder)).n_layers == 3


def test_weights_that_the_configuration_leaves_over_are_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    reason = r"9 weights .* no place in a LlamaForCausalLM of 2 blocks \(model\.layers\.2\.input"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_than_the_configuration_asks_for_are_named(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 40}))
    reason = r"weight model\.layers\.0\.mlp\.down_proj\.weight has shape \(32, 48\) .* \(32, 40\)"
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


SURPLUS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": True,
    "model.layers.0.self_attn.k_scale": True,
    "vision_tower.encoder.layers.0.self_attn.q_proj.weight": True,
    "model.multi_modal_projector.linear_1.weight": True,
    "model.layers.0.self_attn.q_proj.bias": False,
    "model.layers.0.self_attn.q_proj.weight_scale": False,
    "model.layers.3.mlp.up_proj.weight": False,
    "transformer.h.0.attn.c_attn.weight": False,
}


@pytest.mark.parametrize("name", SURPLUS)
def test_surplus_weight_is_left_out_only_if_it_takes_no_part(folder, name):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(4)}, path, metadata={"format": "pt"})
    if SURPLUS[name]:
        assert load_model(str(folder)).n_layers == 3
        return
    with pytest.raises(ModelError, match=rf"1 weights .* \({re.escape(name)}\); does its config"):
        load_model(str(folder))
