"""The trainer of the controlled family, and the weights that it shipped."""

import collections
import contextlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, SmolLM3Config

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "analyses" / "zoo"))

import corpus
import family
import sink_curve
import train
import training

ROOT = Path(__file__).resolve().parents[2]
SHAPE = family.Shape(layers=2, width=32, heads=2, inner=48, length=48, vocabulary=64)
SETTINGS = training.Settings(steps=6, batch=2, every=2, warm_up=2, held_out=2, shape=SHAPE)
CPU = torch.device("cpu")
SHIPPED = sorted((ROOT / "data" / "zoo").glob("*/provenance.json"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    stream = rng.integers(1, SHAPE.vocabulary, 2000).astype(np.uint16)
    return training.Data(stream[:1500], stream[1500:], {"sha256": "of the test"})


@pytest.fixture
def make_run(data, tmp_path):
    def make(architecture="rope", work="work", settings=SETTINGS, source=data):
        (tmp_path / work).mkdir(exist_ok=True)
        return training.Run(architecture, 0, settings, source, tmp_path / work, CPU)

    return make


def loud(architecture, seed=0, shape=SHAPE):
    """Return an untrained model with scores large enough for differences to show."""
    model = family.build_model(architecture, seed, shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and ".wpe." not in name:
                parameter.mul_(20)
    return model


def first_layer(model, tokens):
    return sink_curve.attention_and_norms(model, torch.tensor([tokens]))[1][0][0]


# architectures


def test_ntk_stretches_the_slowest_frequency_by_the_scale_and_leaves_the_fastest():
    def frequencies(name):
        return family.build_model(name, 0, family.Shape()).model.rotary_emb.inv_freq

    ratio = frequencies("rope") / frequencies("ntk")
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(family.NTK_SCALE, rel=1e-5)
    assert family.ntk_theta(10_000.0, 8.0, 32) == pytest.approx(10_000 * 8 ** (32 / 30))


def test_nope_scores_depend_on_the_tokens_alone_and_ropes_on_the_offset_too():
    tokens = [0, 5, 9, 5, 7, 5, 11, 3, 5, 20]
    same_token = [1, 3, 5, 8]
    nope = first_layer(loud("nope"), tokens)[:, 9, same_token]
    rope = first_layer(loud("rope"), tokens)[:, 9, same_token]
    torch.testing.assert_close(nope, nope[:, :1].expand_as(nope), rtol=1e-5, atol=0)
    assert (rope.max(1).values / rope.min(1).values > 1.05).all()


def test_nope_sees_its_context_as_a_set():
    model, tokens = loud("nope"), torch.tensor([[0, 5, 9, 14, 7, 30]])
    permuted = tokens[:, [0, 3, 2, 1, 4, 5]]
    one_layer = family.build_model("nope", 0, replace(SHAPE, layers=1)).eval()
    one_layer.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(
            one_layer(tokens).logits[0, -1], one_layer(permuted).logits[0, -1]
        )


def test_nope_is_rope_but_for_the_rotation():
    rope = loud("rope")
    settings = family.make_config("nope", SHAPE).to_dict() | {"no_rope_layers": [1, 1]}
    rotated = AutoModelForCausalLM.from_config(SmolLM3Config(**settings)).eval()
    rotated.load_state_dict(rope.state_dict())
    tokens = torch.arange(SHAPE.length)[None]
    with torch.no_grad():
        torch.testing.assert_close(rotated(tokens).logits, rope(tokens).logits)


def test_window_hides_what_is_32_tokens_back_and_is_rope_before_that():
    window, rope = loud("window"), loud("rope")
    tokens = torch.arange(SHAPE.length)[None]
    for attention in sink_curve.attention_and_norms(window, tokens)[1]:
        assert (attention[0, :, family.WINDOW :, 0] == 0).all()
        assert (attention[0, :, family.WINDOW - 1, 0] > 0).all()
    with torch.no_grad():
        early = [model(tokens).logits[:, : family.WINDOW] for model in (window, rope)]
        late = [model(tokens).logits[:, family.WINDOW :] for model in (window, rope)]
    torch.testing.assert_close(early[0], early[1])
    assert (late[0] - late[1]).abs().max() > 1e-3


def test_window_is_the_same_on_the_path_that_trains_and_on_the_default_one():
    model, tokens = loud("window"), torch.arange(SHAPE.length)[None]
    with torch.no_grad():
        default = model(tokens).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(tokens).logits, default, rtol=1e-4, atol=1e-4)


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="no architecture 'alibi'"):
        family.make_config("alibi", SHAPE)


# initial weights


@pytest.mark.parametrize("architecture", ["ntk", "window", "nope"])
def test_initial_weights_are_shared_by_all_llama_types(architecture):
    rope = family.build_model("rope", 3, SHAPE).state_dict()
    other = family.build_model(architecture, 3, SHAPE).state_dict()
    assert rope.keys() == other.keys()
    assert all(torch.equal(rope[name], other[name]) for name in rope)


def test_learned_shares_what_fits():
    rope = family.build_model("rope", 3, SHAPE).state_dict()
    learned = family.build_model("learned", 3, SHAPE).state_dict()
    assert torch.equal(rope["model.embed_tokens.weight"], learned["transformer.wte.weight"])
    assert torch.equal(rope["lm_head.weight"], learned["lm_head.weight"])
    for layer in range(SHAPE.layers):
        block, mine = f"model.layers.{layer}.self_attn", f"transformer.h.{layer}.attn"
        query, key, value = learned[f"{mine}.c_attn.weight"].T.chunk(3)
        for name, matrix in (("q", query), ("k", key), ("v", value)):
            assert torch.equal(rope[f"{block}.{name}_proj.weight"], matrix)
        output = learned[f"{mine}.c_proj.weight"].T
        assert torch.equal(rope[f"{block}.o_proj.weight"], output)


def test_seeds_differ_and_no_two_matrices_share_a_draw():
    zero, one = (family.build_model("rope", seed, SHAPE).state_dict() for seed in (0, 1))
    query, key = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(zero[query], one[query])
    assert not torch.equal(zero[query], zero[key])
    assert float(zero["lm_head.weight"].std()) == pytest.approx(family.INITIAL_SD, rel=0.1)


# data


def test_batches_follow_from_seed_and_step_and_begin_with_bos(data):
    first = corpus.batch(data.train, 48, 4, seed=1, step=5)
    assert torch.equal(first, corpus.batch(data.train, 48, 4, seed=1, step=5))
    assert not torch.equal(first, corpus.batch(data.train, 48, 4, seed=1, step=6))
    assert not torch.equal(first, corpus.batch(data.train, 48, 4, seed=2, step=5))
    assert first.shape == (4, 48)
    assert (first[:, 0] == corpus.BOS_ID).all()
    assert (first[:, 1:] != corpus.BOS_ID).all()


def test_corpus_is_ordered_split_and_checksummed(tmp_path):
    for number in range(40):
        (tmp_path / f"module_{number:02d}.py").write_text(f"n = {number}\n")
    for folder in ("test", "pydoc_data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "topics.py").write_text("left out")
    (tmp_path / "latin.py").write_bytes(b"\xe9")
    text = corpus.read_corpus(tmp_path)
    assert text.files == 40
    assert text.train.startswith("n = 0\n\nn = 1\n")
    assert text.held_out == "n = 19\n\nn = 39\n"
    (tmp_path / "module_07.py").write_text("n = 8\n")
    assert corpus.read_corpus(tmp_path).sha256 != text.sha256


def test_tokenizer_puts_bos_first_and_loses_nothing(tmp_path):
    text = "def f(x):\n    return 'é' + x\n" * 5
    tokenizer = corpus.load_tokenizer(tmp_path / "tokenizer", text)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == corpus.BOS_ID
    assert corpus.encode(tokenizer, text).tolist() == ids[1:]
    assert tokenizer.decode(ids[1:]) == text
    again = corpus.load_tokenizer(tmp_path / "tokenizer", "other text is not trained on")
    assert again(text)["input_ids"] == ids


# training


def test_learning_rate_rises_stays_falls_and_stays_on_its_floor():
    settings = training.Settings(warm_up=100, fall=(300, 500), floor=0.1)
    rates = [training.learning_rate(step, settings) for step in range(700)]
    assert rates[0] == pytest.approx(settings.peak / 100)
    assert rates[98] < rates[99] == rates[299] == settings.peak
    assert rates[399] == pytest.approx(settings.peak * 0.55)
    assert rates[498] > rates[499] == rates[-1] == settings.peak / 10


def test_training_learns(make_run):
    settings = replace(SETTINGS, steps=40, every=20, batch=4, fall=(20, 40))
    run = make_run(settings=settings)
    run.data.train[:] = np.arange(len(run.data.train)) % 7 + 1
    first, last = run.advance(), run.advance()
    assert last["train_loss"] < first["train_loss"] < np.log(SHAPE.vocabulary) + 0.1
    assert last["train_loss"] < 2.5


def test_snapshots_are_models_and_change_nothing(make_run, data, tmp_path):
    plain = make_run(work="plain")
    kept = training.Run("rope", 0, SETTINGS, data, tmp_path / "work", CPU, snapshots=(0, 3, 6))
    (tmp_path / "work").mkdir()
    for run in (plain, kept):
        while run.step < SETTINGS.steps:
            run.advance()
    for name, weights in plain.model.state_dict().items():
        assert torch.equal(weights, kept.model.state_dict()[name])
    folders = sorted((tmp_path / "work" / "snapshots" / "rope-0").iterdir())
    assert [folder.name for folder in folders] == ["step0", "step3", "step6"]
    first, _, last = (AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in folders)
    start = family.build_model("rope", 0, SHAPE).half().state_dict()
    assert all(torch.equal(first.state_dict()[name], start[name]) for name in start)
    end = kept.model.half().state_dict()
    assert all(torch.equal(last.state_dict()[name], end[name]) for name in end)


@pytest.mark.parametrize("product", ["matmul", "bmm", "linear"])
def test_rounded_products_are_those_of_bfloat16(product):
    rng = torch.Generator().manual_seed(0)
    shape = (2, 24, 24) if product == "bmm" else (24, 24)
    a, b = (torch.randn(shape, generator=rng).bfloat16().requires_grad_() for _ in range(2))
    args = (a, b, a[0]) if product == "linear" else (a, b)
    do = torch.nn.functional.linear if product == "linear" else getattr(torch, product)
    found = []
    for context in (contextlib.nullcontext(), training.RoundedProducts()):
        with context:
            out = do(*args)
            grads = torch.autograd.grad(out.float().square().sum(), (a, b))
        found.append((out, *grads))
    for native, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), native.float(), rtol=2**-7, atol=2**-5)
    exact = do(*(each.detach().double() for each in args))
    ours = (found[1][0].double() - exact).abs().max()
    assert 0 < ours <= exact.abs().max() * 2**-8


def test_a_killed_run_goes_on_to_the_same_weights(make_run, monkeypatch):
    whole = make_run(work="whole")
    while whole.step < SETTINGS.steps:
        whole.advance()
    draw, calls = corpus.batch, []

    def killed_at_the_fourth(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "batch", killed_at_the_fourth)
        broken = make_run(work="broken")
        broken.advance()
        with pytest.raises(KeyboardInterrupt):
            broken.advance()
    resumed = make_run(work="broken")
    assert resumed.step == 2
    while resumed.step < SETTINGS.steps:
        resumed.advance()
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.model.state_dict().items())
    assert resumed.curve.read_text() == whole.curve.read_text()


def test_a_finished_run_is_continued_to_the_weights_of_a_longer_one(make_run, tmp_path):
    longer = replace(SETTINGS, steps=8)
    once = train.train(make_run(work="once", settings=longer), tmp_path / "once" / "out")
    folder = train.train(make_run(), tmp_path / "out")
    assert training.is_finished(folder, SETTINGS)
    assert not training.is_finished(folder, longer)
    continued = make_run(settings=longer)
    assert continued.step == SETTINGS.steps
    assert train.train(continued, tmp_path / "out") == folder
    assert training.is_finished(folder, longer)
    digests = {training.sha256(one / "model.safetensors") for one in (once, folder)}
    assert len(digests) == 1
    with pytest.raises(ValueError, match="at step 8, past the 6 wanted"):
        make_run()


def test_a_checkpoint_of_another_schedule_or_corpus_is_refused(make_run, data):
    make_run().advance()
    with pytest.raises(ValueError, match="made with other settings"):
        make_run(settings=replace(SETTINGS, peak=1e-3))
    with pytest.raises(ValueError, match="made with other data"):
        make_run(source=replace(data, source={"sha256": "another"}))


def test_a_loss_that_is_not_finite_stops_the_run(make_run):
    run = make_run()
    with torch.no_grad():
        run.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="rope-0: the loss is not finite at step 2"):
        run.advance()


def test_weights_too_large_for_float16_are_not_shipped(make_run, tmp_path):
    run = make_run()
    run.advance()
    with torch.no_grad():
        run.model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="too large for float16"):
        run.export(tmp_path / "out")
    assert not (tmp_path / "out" / "rope-0").exists()


@pytest.mark.parametrize("architecture", family.ARCHITECTURES)
def test_export_loads_through_plain_transformers(architecture, make_run, tmp_path):
    run = make_run(architecture, settings=replace(SETTINGS, steps=2))
    folder = train.train(run, tmp_path / "out")
    check_shipped(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert loaded.config.model_type == run.model.config.model_type
    written = json.loads((folder / "provenance.json").read_text())
    difference = written["measured_on_shipped_weights"]["held_out_loss"]
    assert difference == pytest.approx(run.rows[-1]["held_out_loss"], abs=1e-3)


def test_export_covers_the_shared_tokenizer_by_its_sums(make_run, tmp_path):
    tokenizer = corpus.load_tokenizer(tmp_path / "out" / "tokenizer", "def f(x):\n    return x\n")
    run = make_run(settings=replace(SETTINGS, steps=2))
    folder = train.train(run, tmp_path / "out")
    written = check_shipped(folder)["files"]
    names = {f"../tokenizer/{path.name}" for path in (tmp_path / "out" / "tokenizer").iterdir()}
    assert names == {"../tokenizer/tokenizer.json", "../tokenizer/tokenizer_config.json"}
    assert set(written) == names | {"config.json", "model.safetensors", "training.csv"}
    loaded = AutoTokenizer.from_pretrained(folder / "../tokenizer")
    assert loaded("def f")["input_ids"] == tokenizer("def f")["input_ids"]


# the curve


def test_sinks_are_zero_for_hidden_keys_and_uniform_for_equal_scores():
    model = family.build_model("window", 0, SHAPE)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    row = sink_curve.sink_row(model, torch.arange(SHAPE.length)[None])
    uniform = np.mean(1 / np.arange(2, family.WINDOW + 1))
    assert row["sink_L0H0"] == row["early_L1H1"] == pytest.approx(uniform, rel=1e-4)
    assert row["norm_ratio_L0"] == pytest.approx(1.0, abs=0.3)
    assert model.config._attn_implementation == "sdpa"
    assert model.training


# the queue


def test_queue_goes_seed_by_seed():
    names = train.queue(2)
    assert names[:3] == [("rope", 0), ("ntk", 0), ("window", 0)]
    assert names[5] == ("rope", 1)
    assert len(names) == 10


@pytest.mark.parametrize("name", ["rope", "rope-x", "alibi-0", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="no model"):
        train.parse_name(name)


def test_two_trainers_cannot_share_a_folder(tmp_path):
    with (
        train.alone(tmp_path),
        pytest.raises(ValueError, match="another trainer works"),
        train.alone(tmp_path),
    ):
        pass


def test_all_skips_what_is_finished(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_data", lambda out, work: data)
    monkeypatch.setattr(train, "Settings", lambda: replace(SETTINGS, steps=2))
    (tmp_path / "out" / "ntk-0").mkdir(parents=True)
    text = json.dumps({"settings": asdict(train.Settings())})
    (tmp_path / "out" / "ntk-0" / "provenance.json").write_text(text)
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    train.main(["--all", "--seeds", "1", "--device", "cpu", *where])
    written = capsys.readouterr().out
    assert "finished" in written
    assert "ntk-0" not in written
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{a}-0" for a in family.ARCHITECTURES
    }
    train.main(["--status", "--seeds", "2", *where])
    assert "rope-1     not started" in capsys.readouterr().out


# what is shipped


def check_shipped(folder):
    written = json.loads((folder / "provenance.json").read_text())
    for name, checksum in written["files"].items():
        assert training.sha256(folder / name) == checksum, f"{folder.name}/{name}"
    weights = load_file(folder / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    return written


def test_the_family_has_its_seeds():
    count = collections.Counter(path.parent.name.rpartition("-")[0] for path in SHIPPED)
    assert min(count[name] for name in ("rope", "ntk", "window")) >= 3
    assert min(count[name] for name in ("nope", "learned")) >= 2


def test_shipped_models_are_whole_and_had_the_same_budget_and_data():
    everything = [check_shipped(path.parent) for path in SHIPPED]
    for written in everything:
        assert written["name"] == f"{written['architecture']}-{written['seed']}"
        assert written["settings"] == everything[0]["settings"]
        assert written["data"] == everything[0]["data"]


def test_no_shipped_model_has_a_tokenizer_of_its_own():
    assert not list((ROOT / "data" / "zoo").glob("*-*/tokenizer*"))


def test_shipped_models_share_a_tokenizer_and_know_their_text():
    text = "import os\n\n\ndef main():\n    for name in os.listdir(path):\n        return self."
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "zoo" / "tokenizer")
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    for folder in (path.parent for path in SHIPPED):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert tokens[0, 0] == model.config.bos_token_id
        with torch.no_grad():
            assert float(model(tokens, labels=tokens).loss) < 4.0, folder.name


def test_shipped_models_are_what_their_names_say():
    for written in map(check_shipped, (path.parent for path in SHIPPED)):
        folder = ROOT / "data" / "zoo" / written["name"]
        config = AutoModelForCausalLM.from_pretrained(folder).config
        shape = family.Shape(**written["settings"]["shape"])
        expected = family.make_config(written["architecture"], shape)
        assert config.model_type == expected.model_type
        for name in ("rope_parameters", "sliding_window", "no_rope_layers", "n_positions"):
            assert getattr(config, name, None) == getattr(expected, name, None)
