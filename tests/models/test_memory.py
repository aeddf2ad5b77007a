"""A model in memory is measured as its folder would be, named, and given back as it was."""

import threading

import capture_child as child
import numpy as np
import pytest
import stored
import tiny
import torch
import transformers

from posprobe.captures import capture, capture_stimulus
from posprobe.errors import ModelError
from posprobe.models import load_model
from posprobe.store import ActivationStore

OPTIONS = dict(batch_tokens=50, progress=False)
TEXT = " ".join(np.random.default_rng(0).choice(stored.WORDS, 3000))


@pytest.fixture
def folder(tmp_path):
    tiny.tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "tiny-llama")
    stored.make_tokenizer().save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def loaded(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank addition, as PEFT's layers have it."""

    def __init__(self, base, scaling=2.0):
        super().__init__()
        self.base_layer, self.scaling = base, {"mine": scaling}
        self.active_adapters, self.disable_adapters = ["mine"], False
        generator = torch.Generator().manual_seed(0)
        shapes = (4, base.in_features), (base.out_features, 4)
        self.down, self.up = (
            torch.nn.Parameter(torch.randn(shape, generator=generator) / 4) for shape in shapes
        )

    def forward(self, x):
        output = self.base_layer(x)
        if self.disable_adapters:
            return output
        return output + self.scaling["mine"] * (x @ self.down.T @ self.up.T)

    def merged(self):
        with torch.no_grad():
            self.base_layer.weight += self.scaling["mine"] * self.up @ self.down
        return self.base_layer


def adapt(model, **options):
    for block in model.model.layers:
        for name in ("q_proj", "o_proj"):
            layer = Adapted(getattr(block.self_attn, name), **options)
            setattr(block.self_attn, name, layer)
    return model


def bert():
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.BertConfig(**sizes, intermediate_size=48)
    return transformers.BertForMaskedLM(config).eval()


def refuses(said, model, **options):
    with pytest.raises(ModelError, match=said) as error:
        load_model(model, **options)
    assert "\n" not in str(error.value)


def state_of(model):
    """All that can be seen of a model: attributes, hooks, weights, configuration."""
    parts = {
        name: {k: v for k, v in vars(part).items() if not k.startswith(("_parameters", "_modules"))}
        for name, part in model.named_modules()
    }
    flat = {f"{name}.{key}": repr(v) for name, part in parts.items() for key, v in part.items()}
    weights = {name: (w.data_ptr(), float(w.sum())) for name, w in model.state_dict().items()}
    trained = {name: (w.requires_grad, w.grad) for name, w in model.named_parameters()}
    return flat, weights, trained, {k: repr(v) for k, v in vars(model.config).items()}


# --- the same numbers ---


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_gives_what_its_folder_gives(attention, folder, tmp_path):
    expected = capture(str(folder), tmp_path / "a.h5", text=TEXT, n=4, length=40, progress=False)
    model = loaded(folder, attn_implementation=attention)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = capture(
        model, tmp_path / "b.h5", tokenizer=tokenizer, text=TEXT, n=4, length=40, progress=False
    )
    for name in expected.header.index + expected.header.quantities:
        assert found.read(name).tobytes() == expected.read(name).tobytes(), name
    assert found.header.weights_digest == expected.header.weights_digest
    assert found.header.rounding == expected.header.rounding
    config = dict(found.header.config)
    assert config.pop("posprobe_origin") == found.origin
    assert config == expected.header.config
    assert expected.origin is None


def test_a_cast_model_is_measured_as_cast(folder, tmp_path):
    expected = capture_stimulus(
        load_model(str(folder), dtype="bfloat16"), child.stimulus(), tmp_path / "a.h5", **OPTIONS
    )
    model = load_model(loaded(folder).to(torch.bfloat16))
    found = capture_stimulus(model, child.stimulus(), tmp_path / "b.h5", **OPTIONS)
    assert found.compute_type == "bfloat16"
    gaps = np.abs(found.read("normalizer") - expected.read("normalizer"))
    assert np.median(gaps) < 0.01
    assert "posprobe_other_rotation" in found.header.config  # the cast rounds rotations too


def test_adapters_act_and_are_named(folder, tmp_path):
    plain = load_model(loaded(folder))
    adapted = load_model(adapt(loaded(folder)))
    merged = adapt(loaded(folder))
    for block in merged.model.layers:
        for name in ("q_proj", "o_proj"):
            setattr(block.self_attn, name, getattr(block.self_attn, name).merged())
    z = [
        capture_stimulus(m, child.stimulus(), tmp_path / f"{k}.h5", **OPTIONS)
        for k, m in enumerate((plain, adapted, load_model(merged)))
    ]
    np.testing.assert_allclose(z[1].read("normalizer"), z[2].read("normalizer"), atol=1e-4)
    np.testing.assert_allclose(z[1].read("sink_value"), z[2].read("sink_value"), rtol=1e-4)
    assert np.abs(z[1].read("normalizer") - z[0].read("normalizer")).max() > 0.1
    assert adapted.name == "tiny-llama+mine"
    assert z[1].origin["adapters"] == ["mine"]
    assert "adapters" not in z[0].origin


def test_adapters_that_act_otherwise_are_another_model(folder):
    digests = {load_model(adapt(loaded(folder), scaling=s)).weights_digest() for s in (1.0, 2.0)}
    model = load_model(adapt(loaded(folder)))
    digests.add(model.weights_digest())
    assert len(digests) == 2
    for part in model.model.modules():
        if isinstance(part, Adapted):
            part.disable_adapters = True
    assert model.weights_digest() not in digests
    assert "adapters" not in model.origin


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft(folder, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False, lora_dropout=0.1
    )
    wrapped = peft.get_peft_model(loaded(folder), config, adapter_name="mine").train()
    ids = torch.tensor(child.stimulus("natural").tokens[:2])
    model = load_model(wrapped)
    assert model.name == "tiny-llama+mine"
    torch.testing.assert_close(model.logits(ids), wrapped.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    store = capture_stimulus(model, child.stimulus(), tmp_path / "a.h5", **OPTIONS)
    whole = load_model(wrapped.merge_and_unload())
    merged = capture_stimulus(whole, child.stimulus(), tmp_path / "b.h5", **OPTIONS)
    np.testing.assert_allclose(store.read("normalizer"), merged.read("normalizer"), atol=1e-4)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    soft = peft.get_peft_model(loaded(folder), config, adapter_name="soft")
    refuses("adapter 'soft' puts learned tokens in front of a text", soft)


def test_patched_code_is_measured(folder, tmp_path):
    plain = load_model(loaded(folder))
    model = loaded(folder)
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def halved(*args, **kwargs):
        output, weights = forward(*args, **kwargs)
        return output / 2, weights

    attention.forward = halved
    stores = [
        capture_stimulus(m, child.stimulus(), tmp_path / f"{k}.h5", **OPTIONS)
        for k, m in enumerate((plain, load_model(model)))
    ]
    assert stores[1].attention_gain == (1.0, 0.5, 1.0)
    assert np.array_equal(stores[0].residual(1), stores[1].residual(1))
    assert np.abs(stores[0].residual(2) - stores[1].residual(2)).max() > 1e-3
    assert attention.forward is halved


# --- given back ---


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt-oss"])
def test_the_model_is_given_back_as_it_was(family, tmp_path):
    model = tiny.tiny_model(family, dtype=torch.float32, attention="eager").train()
    model.config.return_dict = False
    next(model.parameters()).requires_grad_(False)
    seen = []
    hook = model.get_decoder().register_forward_hook(lambda *_: seen.append(None))
    before = state_of(model)
    observable = load_model(model)
    assert state_of(model) == before
    capture_stimulus(observable, child.stimulus(), tmp_path / "a.h5", **OPTIONS)
    observable.logits(tiny.tokens())
    repr(observable)
    assert state_of(model) == before
    assert seen  # hooks of the caller see every pass
    hook.remove()
    model.config.return_dict = True  # transformers itself needs it
    model(tiny.tokens())[0].sum().backward()
    assert all(w.grad is not None for w in model.parameters() if w.requires_grad)


def test_buffers_that_grow_with_the_text_are_given_back():
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = tiny.tiny_model(dtype=torch.float32, max_position_embeddings=16, rope_parameters=scaled)
    before = state_of(model)
    longer = load_model(model).logits(tiny.tokens(1, 40))
    assert state_of(model) == before
    model(tiny.tokens(1, 40))
    assert state_of(model) != before  # by itself it remembers the longest text
    torch.testing.assert_close(longer, model(tiny.tokens(1, 40)).logits, atol=1e-4, rtol=1e-4)


def test_a_refused_model_is_given_back_too():
    model = bert().train()
    before = state_of(model)
    refuses("is not causal", model)
    assert state_of(model) == before


def test_the_caller_may_switch_its_attention_and_train_between_captures(folder, tmp_path):
    model = loaded(folder)
    observable = load_model(model)
    take = dict(stimulus=child.stimulus(), **OPTIONS)
    first = capture_stimulus(observable, path=tmp_path / "a.h5", **take)
    model.set_attn_implementation("eager")
    again = capture_stimulus(observable, path=tmp_path / "b.h5", **take)
    stored.assert_same_bits(stored.everything(first), stored.everything(again))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 2
    trained = capture_stimulus(observable, path=tmp_path / "c.h5", **take)
    assert trained.header.weights_digest != first.header.weights_digest
    assert np.abs(trained.read("normalizer") - first.read("normalizer")).max() > 1e-3


def test_two_threads_borrow_one_model(folder, tmp_path):
    model = load_model(loaded(folder))
    before = state_of(model.model)
    paths = [tmp_path / f"{k}.h5" for k in range(3)]
    threads = [
        threading.Thread(target=capture_stimulus, args=(model, child.stimulus(), p), kwargs=OPTIONS)
        for p in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = (stored.everything(ActivationStore(path)) for path in paths)
    for other in others:
        stored.assert_same_bits(first, other)
    assert state_of(model.model) == before


# --- origin and name ---


def test_origin_is_what_can_be_known(folder, monkeypatch):
    model = loaded(folder)
    assert load_model(model).origin == {"class": "LlamaForCausalLM", "name_or_path": "tiny-llama"}
    model.config.name_or_path, model.config._commit_hash = "org/model", "0" * 40
    found = load_model(model)
    assert found.name == found.origin["name_or_path"] == "org/model"
    assert found.origin["commit"] == "0" * 40
    assert load_model(model, name="mine").name == "mine"
    assert load_model(tiny.tiny_model()).name == "LlamaForCausalLM"
    assert load_model(str(folder)).origin == {}


def test_a_model_says_what_it_is_in_one_line(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rest = "LlamaForCausalLM, 3 layers of 4 heads, float32"
    said = f"<ObservableModel tiny-llama: {rest}, position 0: <s>>"
    assert repr(load_model(loaded(folder), tokenizer=tokenizer)) == said
    bare = load_model(loaded(folder), variant="window(4)", name="mine")
    assert repr(bare) == (
        f"<ObservableModel mine: {rest}, window(4), position 0: unknown, no tokenizer>"
    )


# --- refused ---


def test_what_is_not_a_whole_decoder_is_refused():
    refuses("is not causal", bert())
    refuses("has no language-model head", tiny.tiny_model().model)
    refuses("a Linear is not a model; give a name, a folder", torch.nn.Linear(2, 2))
    refuses("a NoneType is not a model", None)


def test_wrapped_models_are_refused():
    model = tiny.tiny_model(dtype=torch.float32)
    refuses("wrapped by DataParallel; pass the model inside", torch.nn.DataParallel(model))
    compiled = torch.nn.Module()
    compiled._orig_mod = model
    refuses("the model is compiled", compiled)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(tiny.tiny_config("llama"))
    refuses("is on the meta device, without weights; load them first", empty)


def test_weights_of_bitsandbytes_are_refused():
    kind = type("Linear4bit", (torch.nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    model = tiny.tiny_model(dtype=torch.float32)
    model.model.layers[0].mlp.up_proj = kind(32, 48)
    refuses("LlamaForCausalLM is quantised by bitsandbytes", model)


def test_how_to_load_is_no_question_for_a_loaded_model():
    model = tiny.tiny_model()
    for option in (dict(dtype="float32"), dict(device="cpu"), dict(revision="main")):
        refuses(f"{next(iter(option))} is for loading", model, **option)
    refuses("trust_remote_code is for loading", model, trust_remote_code=True)
    refuses(r"variant ntk\(8\) is made in the configuration before loading", model, variant="ntk")
    assert load_model(model, variant="no_causal").variant.kind == "no_causal"


def test_tokenizers_that_do_not_fit_are_refused(tmp_path):
    model = tiny.tiny_model(dtype=torch.float32)
    tokenizer = stored.make_tokenizer()
    tokenizer.add_tokens(["more"])
    said = "its tokenizer has 98 tokens and the model has 97 embeddings"
    refuses(said, model, tokenizer=tokenizer)
    refuses("a str is not a tokenizer", model, tokenizer="org/model")
    with pytest.raises(ModelError, match="has no tokenizer; pass token ids, or give load_model"):
        capture(model, tmp_path / "a.h5", text=TEXT, length=40, progress=False)
    assert list(tmp_path.iterdir()) == []
