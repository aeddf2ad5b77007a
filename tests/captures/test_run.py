"""Captures: the file holds what the model did, pass by pass."""

import contextlib
import io
import json
import sys

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
from stored import WORDS, assert_close, assert_same_bits, everything, leftovers, make_tokenizer
from tqdm import tqdm

from posprobe.captures import OFFSETS, QUANTITIES, CaptureOptions, capture, capture_stimulus
from posprobe.captures.plan import plan_capture
from posprobe.captures.run import FirstTokens
from posprobe.errors import StimulusError, StoreError
from posprobe.models import (
    NO_INTERVENTION,
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    load_model,
    parse_variant,
)
from posprobe.stimuli import read_text

DESIGNS = ("natural", "shifted", "iid", "repeated")


def watch(model, ids, observation):
    seen = {}
    observer = Observer(lambda name, layer, x: seen.update({(name, layer): x[0]}), observation)
    model.run(ids, observer)
    return seen


# --- what is in the file ---


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("bos", ["none", "force"])
def test_file_holds_what_each_sequence_shows_alone(design, family, bos, take):
    model = child.model(family)
    stimulus = child.stimulus(design, bos=bos, bos_id=1)
    store = take(stimulus, model=model, batch_tokens=60)
    observation = Observation(
        stimulus.n_queries,
        OFFSETS,
        stimulus.prefixes,
        stimulus.window,
        first_is_apart=design != "repeated" or bos == "force",
    )
    for s, (tokens, length) in enumerate(zip(stimulus.tokens, stimulus.lengths, strict=True)):
        seen = watch(model, torch.tensor(tokens[None, :length]), observation)
        for (name, layer), expected in seen.items():
            assert_close(store.read(name, layer)[s], expected)
        for layer in range(4):
            assert_close(store.read("position0_alone", layer)[s], seen["position0", layer])
    assert {name for name, _ in seen} | {"position0_alone"} == set(store.header.quantities)
    assert np.array_equal(store.tokens, stimulus.tokens)
    assert np.array_equal(store.item, stimulus.item)
    assert np.array_equal(store.positions[:, 0], stimulus.query_start)


def test_header_says_what_was_done(take):
    model = ObservableModel(
        tiny.tiny_model("qwen2-window"),
        name="mine",
        variant=parse_variant("window(7)"),
        quantization="Q4_1",
    )
    cut = Intervention(cut_sink=((1, 2),))
    stimulus = child.stimulus(seed=8)
    header = take(stimulus, model=model, intervention=cut, position0="zero").header
    assert (header.model, header.variant, header.design) == ("mine", "window(7)", "shifted")
    assert header.layer_window == (7, 7, 7)
    assert header.position0_treatment == "zero"
    assert header.seed == 8
    assert header.weights_digest == model.weights_digest()
    assert header.config["num_key_value_heads"] == 2
    assert header.config["posprobe_quantization"] == "Q4_1"
    assert header.stimulus == stimulus.describe() | {"special_tokens": {}}
    (found,) = header.interventions
    assert (found["window"], found["cut_sink"]) == (7, [[1, 2]])
    assert set(header.versions) == {"posprobe", "torch", "transformers"}


@pytest.mark.parametrize(("length", "windows"), [(24, (9, 9, 9)), (9, (0, 0, 0)), (10, (9, 9, 9))])
def test_window_is_said_to_be_there_where_it_hides_a_key(length, windows, take):
    stimulus = child.stimulus("natural", length=length, window=3, prefixes=None)
    assert take(stimulus, model=child.model("mistral")).layer_window == windows


def test_interventions_and_variants_are_applied_to_every_pass(take):
    stimulus = child.stimulus("natural")
    plain = take(stimulus)
    cut = take(stimulus, intervention=Intervention(cut_sink="all"))
    late = np.s_[:, 1:]
    assert_close(cut.read("sink_score", 0), plain.read("sink_score", 0))
    share = np.exp((plain.read("sink_score", 0) - plain.normalizer(0))[late])
    assert_close(np.exp((cut.normalizer(0) - plain.normalizer(0))[late]), 1 - share)
    narrow = child.model()
    narrow.variant = parse_variant("window(2)")
    windowed = take(stimulus, model=narrow)
    both = np.logaddexp(*(windowed.read("offset_score", 0)[:, 1:, :, 0], _self_score(take, 0)))
    assert_close(windowed.normalizer(0)[late], both)


def _self_score(take, layer):
    store = take(child.stimulus("natural"), offsets=(0,))
    return store.read("offset_score", layer)[:, 1:, :, 0]


def test_values_do_not_depend_on_the_batch(take):
    for design in ("shifted", "natural"):
        one, many = (take(child.stimulus(design), batch_tokens=n) for n in (1, 10_000))
        for name in QUANTITIES:
            assert_close(one.read(name), many.read(name))


def test_the_same_capture_twice_has_the_same_bits(take):
    assert_same_bits(everything(take(child.stimulus())), everything(take(child.stimulus())))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_each_quantity_can_be_kept_alone(quantity, take):
    whole, alone = take(child.stimulus()), take(child.stimulus(), quantities=(quantity,))
    assert alone.header.quantities == (quantity,)
    assert np.array_equal(alone.read(quantity), whole.read(quantity), equal_nan=True)


def test_some_residual_layers_are_those_of_all(take):
    whole, some = take(child.stimulus()), take(child.stimulus(), residual_layers=(0, 3))
    assert some.read("residual").shape[0] == 2
    for layer in (0, 3):
        assert np.array_equal(some.residual(layer), whole.residual(layer))
    assert some.read("position0").shape[0] == 4
    with pytest.raises(StoreError, match="layer 1"):
        some.residual(1)


@pytest.mark.parametrize("design", ["natural", "shifted"])
def test_some_residual_positions_are_those_of_all(design, take):
    stimulus = child.stimulus(design)
    whole, some = take(stimulus), take(stimulus, residual_positions=(0, 2, 4))
    assert some.header.residual_queries == (0, 2, 4)
    assert some.read("residual").shape == (4, len(stimulus.tokens), 3, 32)
    assert np.array_equal(some.read("residual"), whole.read("residual")[:, :, [0, 2, 4]])
    assert np.array_equal(some.residual_positions, stimulus.query_start[:, None] + [0, 2, 4])
    assert np.array_equal(whole.residual_positions, whole.positions)
    for name in set(QUANTITIES) - {"residual"}:
        assert np.array_equal(some.read(name), whole.read(name), equal_nan=True)


def test_layers_and_positions_are_read_from_text(take):
    stimulus = child.stimulus("natural")
    layers = "0,blocks.2.hook_resid_post"
    some = take(stimulus, residual_layers=layers, residual_positions="all/8,last")
    assert some.header.residual_layers == (0, 3)
    assert some.residual_positions[0].tolist() == [0, 8, 16, 23]
    every = take(stimulus, residual_positions="all")
    assert every.header == take(stimulus).header


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(residual_layers="4"), "--layers: '4' is not a range within 0 to 3"),
        (dict(residual_positions="5"), "--positions: '5' is not a range within 0 to 4"),
        (dict(residual_positions=()), "residual_positions is empty"),
    ],
)
def test_layers_and_positions_that_are_not_there_are_refused(options, reason, take, tmp_path):
    with pytest.raises(StimulusError, match=reason):
        take(child.stimulus(), **options)
    assert leftovers(tmp_path) == []


def test_float16_rounds_the_residual_stream_alone(take):
    whole, half = take(child.stimulus()), take(child.stimulus(), dtype="float16")
    assert half.read("residual").dtype == np.float16
    assert np.array_equal(half.read("residual"), whole.read("residual").astype(np.float16))
    for name in set(QUANTITIES) - {"residual"}:
        assert np.array_equal(half.read(name), whole.read(name), equal_nan=True)


class Watcher:
    """A consumer that keeps what it gets."""

    def __init__(self, *quantities):
        self.quantities = quantities
        self.header = self.index = None
        self.seen = {}

    def begin(self, header, index):
        self.header, self.index = header, index

    def consume(self, quantity, layer, sequences, values):
        self.seen.setdefault((quantity, layer), []).append((sequences, values))


@pytest.mark.parametrize("kept", [QUANTITIES, ("normalizer",), ()])
def test_consumers_get_what_the_file_would_hold(kept, take):
    whole = take(child.stimulus(), batch_tokens=50, residual_layers=(1, 3))
    watchers = [Watcher(*QUANTITIES), Watcher("residual", "offset_score"), Watcher()]
    options = dict(batch_tokens=50, residual_layers=(1, 3), quantities=kept)
    store = take(child.stimulus(), consumers=watchers, **options)
    assert store.header.quantities == kept
    for name in kept:
        assert np.array_equal(store.read(name), whole.read(name), equal_nan=True)
    for watcher in watchers:
        assert watcher.header == store.header
        assert np.array_equal(watcher.index["item"], store.item)
        assert {name for name, _ in watcher.seen} == set(watcher.quantities)
        for (name, layer), parts in watcher.seen.items():
            numbers = [n for sequences, _ in parts for n in range(20)[sequences]]
            assert numbers == list(range(20))
            values = np.concatenate([values for _, values in parts])
            assert values.dtype == np.float32
            assert np.array_equal(values, whole.read(name, layer), equal_nan=True)
    residual = {layer for name, layer in watchers[0].seen if name == "residual"}
    assert residual == {1, 3}


def test_consumers_see_all_or_nothing(llama, tmp_path, monkeypatch):
    path, run, calls = tmp_path / "a.h5", llama.run, iter(range(100))

    def failing(*args, **keywords):
        if next(calls) == 6:
            raise KeyboardInterrupt
        run(*args, **keywords)

    monkeypatch.setattr(llama, "run", failing)
    options = dict(batch_tokens=50, progress=False)
    with pytest.raises(KeyboardInterrupt):
        capture_stimulus(llama, child.stimulus(), path, **options)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"a\.h5 holds \d+ sequences that no consumer has seen"):
        capture_stimulus(
            llama, child.stimulus(), path, resume=True, consumers=[Watcher()], **options
        )


def test_first_tokens_run_together_whatever_the_batch(take, llama, monkeypatch):
    """Always the same ones together, so that not even the last bits tell of batches or parts."""
    monkeypatch.setattr("posprobe.captures.run.ALONE", 8)
    for position0 in ("native", "noise"):
        options = dict(position0=position0, quantities=("position0_alone",))
        one, many = (take(child.stimulus(), batch_tokens=n, **options) for n in (1, 10_000))
        assert one.read("position0_alone").tobytes() == many.read("position0_alone").tobytes()
    plan = plan_capture(llama, child.stimulus(), CaptureOptions(batch_tokens=50))
    whole = FirstTokens(llama, plan).of(slice(0, 20))
    for start in (0, 5, 7, 19):
        part = plan.part(slice(start, 20))
        assert part.start == start
        again = part.part(slice(0, 1))
        assert again.start == start
        assert np.array_equal(FirstTokens(llama, part).of(slice(0, 1)), whole[:, start : start + 1])


def test_float16_refuses_to_overflow(take):
    model = tiny.tiny_model("llama", dtype=torch.float32)
    model.model.embed_tokens.weight.data[:, 5] = 1e5
    with pytest.raises(StoreError, match=r"'residual' at layer 0.*beyond float16.*float32"):
        take(child.stimulus(), model=ObservableModel(model), dtype="float16")
    assert take(child.stimulus(), model=ObservableModel(model)).residual(0).max() > 9e4


def test_a_refused_capture_leaves_nothing_to_resume(tmp_path):
    model = tiny.tiny_model("llama", dtype=torch.float32)
    model.model.embed_tokens.weight.data[:, 5] = 1e5
    path = tmp_path / "a.h5"
    options = dict(batch_tokens=50, progress=False, resume=True)
    with pytest.raises(StoreError, match="beyond float16"):
        capture_stimulus(ObservableModel(model), child.stimulus(), path, dtype="float16", **options)
    assert not list(tmp_path.iterdir())
    capture_stimulus(ObservableModel(model), child.stimulus(), path, **options)  # float32


def test_bar_counts_every_token_once(llama, tmp_path):
    text = io.StringIO()
    total = int(child.stimulus().lengths.sum())
    with tqdm(total=total, file=text) as bar:
        capture_stimulus(llama, child.stimulus(), tmp_path / "a.h5", progress=bar)
        assert bar.n == total
    assert f"{total}/{total}" in text.getvalue()


def test_without_a_bar_nothing_is_printed(llama, tmp_path, capfd):
    capture_stimulus(llama, child.stimulus(), tmp_path / "a.h5", progress=False)
    with contextlib.suppress(ValueError):
        sys.stderr.flush()
    assert capfd.readouterr() == ("", "")


# --- from text ---


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny.tiny_model("llama", dtype=torch.float32).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


TEXT = " ".join(np.random.default_rng(1).choice(WORDS, 600))
SMALL = dict(n=2, length=20, window=4, progress=False)


@pytest.mark.parametrize(("bos", "first"), [("native", True), ("force", True), ("none", False)])
def test_capture_takes_a_model_by_name_and_a_text(bos, first, folder, tmp_path):
    store = capture(str(folder), tmp_path / "a.h5", bos=bos, text=TEXT, **SMALL)
    assert (store.tokens[:, 0] == 1).all() == first
    assert not (store.tokens[:, 1:] == 1).any()
    assert store.header.stimulus["bos_token"] == (1 if first else None)
    ids = make_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    rest = store.tokens[0, int(first) :].tolist()
    assert any(ids[i : i + len(rest)] == rest for i in range(len(ids)))
    assert json.loads(json.dumps(store.header.stimulus)) == store.header.stimulus


def test_capture_without_a_text_reads_the_language_reference(tmp_path):
    model = load_model("zoo/rope-0")
    store = capture(model, tmp_path / "a.h5", **SMALL)
    assert store.header.stimulus["corpus"].startswith("pydoc_data.topics")
    (reference,) = read_text("python-reference").documents
    for row in store.tokens:
        assert model.tokenizer.decode(row[1:]) in reference


@pytest.mark.parametrize(
    ("text", "reason"), [("", "the text is empty"), ("word1 word2", "the text has 2 tokens")]
)
def test_text_that_is_too_short_is_refused(text, reason, llama, tmp_path):
    with pytest.raises(StimulusError, match=reason):
        capture(llama, tmp_path / "a.h5", text=text, **SMALL)
    assert leftovers(tmp_path) == []


def test_no_intervention_is_the_default(take):
    stimulus = child.stimulus()
    plain, same = take(stimulus), take(stimulus, intervention=NO_INTERVENTION)
    assert_same_bits(everything(plain), everything(same))
