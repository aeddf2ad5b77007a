"""Captures: what stands in the file is what the model did, however often it was interrupted."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
from stored import WORDS, assert_same_bits, everything, make_tokenizer
from tqdm import tqdm

from posprobe.captures import OFFSETS, QUANTITIES, CaptureOptions, capture, capture_stimulus
from posprobe.captures.plan import plan_capture
from posprobe.captures.position0 import POSITION0
from posprobe.captures.run import FirstTokens
from posprobe.errors import ModelError, PosprobeError, StimulusError, StoreError
from posprobe.models import (
    NO_INTERVENTION,
    Intervention,
    ObservableModel,
    Observation,
    Observer,
    parse_variant,
)

DESIGNS = ("natural", "shifted", "iid", "repeated")


@pytest.fixture(scope="module")
def llama():
    return child.model(tokenizer=make_tokenizer())


@pytest.fixture
def take(tmp_path, llama):
    """Capture into a new file, without a bar."""
    count = iter(range(100))

    def function(stimulus, *, model=llama, **options):
        path = tmp_path / f"{next(count)}.h5"
        return capture_stimulus(model, stimulus, path, **{"progress": False} | options)

    return function


def assert_close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


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
    assert header.stimulus == stimulus.describe()
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
        if next(calls) == 4:
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


# --- interrupted ---


@pytest.mark.parametrize("calls", [0, 1, 2, 7])
def test_capture_resumed_after_an_error_has_the_same_bits(calls, take, tmp_path, monkeypatch):
    options = dict(batch_tokens=50, progress=False)
    expected = everything(take(child.stimulus(), batch_tokens=50))
    model, path = child.model(), tmp_path / "resumed.h5"
    run, counter = model.run, iter(range(1000))

    def failing(tokens, observer, **keywords):
        if next(counter) == calls:
            emit = observer.emit

            def half(name, layer, tensor):
                if layer == 2:
                    raise KeyboardInterrupt
                emit(name, layer, tensor)

            observer.emit = half
        run(tokens, observer, **keywords)

    monkeypatch.setattr(model, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        capture_stimulus(model, child.stimulus(), path, **options)
    assert not path.exists()
    monkeypatch.undo()
    store = capture_stimulus(child.model(), child.stimulus(), path, resume=True, **options)
    assert_same_bits(everything(store), expected)
    again = capture_stimulus(child.model(), child.stimulus(), path, resume=True, **options)
    assert_same_bits(everything(again), expected)


def test_killed_capture_resumed_has_the_same_bits(take, tmp_path):
    expected = everything(take(child.stimulus(), batch_tokens=50))
    path = tmp_path / "killed.h5"
    command = [sys.executable, child.__file__, str(path), "5"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not path.exists()
    assert path.with_name("killed.h5.partial").exists()
    store = capture_stimulus(child.model(), path=path, **child.plan())
    assert_same_bits(everything(store), expected)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict(position0="zero"), "position0_treatment"),
        (dict(intervention=Intervention(cut_sink="all")), "interventions"),
        (dict(batch_tokens=60), "batch_tokens"),
        (dict(stimulus=child.stimulus(seed=4)), "stimulus"),
        (dict(model=child.model(hidden_act="relu")), "config"),
        (dict(model=child.model(attention_dropout=0.1)), "config"),
    ],
)
def test_another_capture_is_not_resumed(change, name, tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(child.model(), path=path, **child.plan())
    options = child.plan() | dict(model=child.model(), path=path) | change
    with pytest.raises(StoreError, match=name):
        capture_stimulus(**options)


def test_other_weights_are_not_resumed(tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(child.model(), path=path, **child.plan())
    other = ObservableModel(tiny.tiny_model("llama", dtype=torch.float32, seed=1))
    other.name = "tiny-llama"
    with pytest.raises(StoreError, match="weights_digest"):
        capture_stimulus(other, path=path, **child.plan())


# --- position 0 ---


def paired(store):
    """Values per item of what stands at position 0 at layer 0: (item, prefix, width)."""
    order = np.lexsort((store.prefix_length, store.item))
    return store.read("position0", 0)[order].reshape(5, 4, -1)


@pytest.mark.parametrize("position0", sorted(set(POSITION0) - {"native"}))
@pytest.mark.parametrize("bos", ["none", "force"])
def test_treatment_changes_position_0_and_nothing_else(position0, bos, take, llama):
    stimulus = child.stimulus(bos=bos, bos_id=1)
    native, treated = take(stimulus), take(stimulus, position0=position0)
    before, after = paired(native), paired(treated)
    assert (np.abs(after - before).max(-1) > 1e-3).all()
    assert np.array_equal(after, np.broadcast_to(after[:, :1], after.shape))
    embedding = llama.model.model.embed_tokens.weight.numpy()
    if position0 == "zero":
        assert not after.any()
    elif position0 == "mean":
        assert_close(after[0, 0], embedding.mean(0))
    elif position0 == "noise":
        assert_close(np.linalg.norm(after, axis=-1), np.linalg.norm(before, axis=-1))
        assert len(np.unique(after[:, 0, 0])) == 5
    else:
        assert_close(after.reshape(20, -1), embedding[_in_order(treated)])
        assert (treated.tokens[:, 0] != native.tokens[:, 0]).all()
    special = np.isin(treated.tokens[:, 0], [0, 1, 2])
    assert special.all() == (position0 == "special" or (bos == "force" and position0 != "content"))
    assert np.array_equal(treated.tokens[:, 1:], native.tokens[:, 1:])
    assert np.array_equal(treated.residual(0)[:, 1:], native.residual(0)[:, 1:])
    assert np.abs(treated.residual(3) - native.residual(3)).max() > 1e-3
    assert_close(treated.read("position0_alone"), treated.read("position0"))


def _in_order(store):
    return store.tokens[np.lexsort((store.prefix_length, store.item)), 0]


@pytest.mark.parametrize("seed", range(5))
def test_content_never_draws_the_token_that_stands_there(seed, take):
    stimulus = child.stimulus("repeated", n=2, seed=seed)
    treated = take(stimulus, position0="content", quantities=("position0",))
    assert (treated.tokens[:, 0] != stimulus.tokens[:, 0]).all()


def test_content_needs_another_token(take):
    stimulus = child.stimulus("natural")
    stimulus.tokens[:] = 7
    with pytest.raises(StimulusError, match="'content': the text holds no other token"):
        take(stimulus, position0="content")


def test_treatments_are_of_the_embedding_where_that_is_narrower(take):
    model = child.model("opt", word_embed_proj_dim=16)
    for position0 in ("zero", "mean", "noise"):
        store = take(child.stimulus(), model=model, position0=position0)
        assert store.read("position0", 0).shape == (20, 32)


@pytest.mark.parametrize("position0", ["native", "zero", "content"])
@pytest.mark.parametrize("bos", ["none", "force"])
def test_replaced_token_of_the_repeated_design_is_apart(position0, bos, take):
    """The counterfactual shows key 0 itself as soon as it is another token than the rest."""
    store = take(child.stimulus("repeated", bos=bos, bos_id=1), position0=position0)
    late = store.read("sink_score", 1)[:, -store.window :]
    body = store.read("remasked_body", 1)
    error = np.abs(np.logaddexp(body, late[:, None]) - store.read("remasked_normalizer", 1))
    all_alike = position0 == "native" and bos == "none"
    assert (error.max() > 0.1) == all_alike
    assert error[:, -1].max() < 1e-5
    if not all_alike:
        assert error.max() < 1e-5


def test_unknown_treatment_is_refused(take):
    with pytest.raises(StimulusError, match="position0 'one' is unknown; use one of native"):
        take(child.stimulus(), position0="one")


def test_special_needs_another_special_token(take):
    with pytest.raises(StimulusError, match="'tiny-llama' has no other special token"):
        take(child.stimulus(), model=child.model(), position0="special")


# --- refusals, and the bar ---


def leftovers(folder):
    return [path.name for path in Path(folder).iterdir()]


def test_sequences_longer_than_the_model_are_refused(take, tmp_path):
    stimulus = child.stimulus("natural", length=65, prefixes=None)
    with pytest.raises(StimulusError, match="length 65 exceeds the 64 positions that model 'tiny"):
        take(stimulus)
    assert leftovers(tmp_path) == []
    take(child.stimulus("natural", length=64, prefixes=None))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(quantities=("normaliser",)), "quantity 'normaliser' is unknown"),
        (dict(quantities=("normalizer", "offset_score"), offsets=()), "'offset_score' has an axis"),
        (dict(dtype="float8"), "dtype 'float8' is unknown"),
        (dict(residual_layers=(0, 4)), "residual_layers"),
        (dict(residual_positions=(0, 5)), "residual_queries"),
        (dict(batch_tokens=0), "'batch_tokens' is 0"),
    ],
)
def test_contradictory_options_are_refused_before_anything_is_written(
    options, reason, take, tmp_path
):
    with pytest.raises(PosprobeError, match=reason):
        take(child.stimulus(), **options)
    assert leftovers(tmp_path) == []


def test_folder_that_cannot_be_written_is_refused(llama, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.h5", tmp_path / "nowhere" / "a.h5"):
        with pytest.raises(StoreError, match="cannot write the file") as error:
            capture_stimulus(llama, child.stimulus(), path, progress=False)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_existing_file_is_kept_unless_it_may_be_overwritten(llama, tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(llama, child.stimulus(), path, progress=False)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"a\.h5 exists: choose another name"):
        capture_stimulus(llama, child.stimulus(seed=9), path, progress=False)
    assert path.read_bytes() == before
    store = capture_stimulus(llama, child.stimulus(seed=9), path, progress=False, overwrite=True)
    assert store.header.seed == 9


def test_window_other_than_the_configured_one_is_refused(take, monkeypatch):
    model = child.model("mistral")
    monkeypatch.setattr(ObservableModel, "layer_windows", (9, None, 9))
    with pytest.raises(ModelError, match="layer 1 has a window of 9 tokens, its configuration"):
        take(child.stimulus(), model=model)
    monkeypatch.setattr(ObservableModel, "layer_windows", (9, 9, 8))
    with pytest.raises(ModelError, match="layer 2 has a window of 9 tokens, its configuration"):
        take(child.stimulus(), model=model)


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


def test_capture_without_a_text_reads_the_language_reference(llama, tmp_path):
    store = capture(llama, tmp_path / "a.h5", **SMALL)
    assert set(store.tokens.ravel()) <= {0, 1}  # none of its words is known to the tiny tokenizer


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
