"""Whatever a tokenizer does, a capture begins as its users' sequences do, or is refused."""

import json
import shutil

import numpy as np
import pytest
import tiny
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from posprobe.captures import capture
from posprobe.errors import PosprobeError
from posprobe.models import ObservableModel, load_model

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>"]
WORDS = [f"w{n}" for n in range(20)]
TEXT = " ".join(np.random.default_rng(0).choice([*WORDS, "The", "cat", "a", "unknown"], 300))
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZES = dict(n=2, length=12, window=4, progress=False)


@pytest.fixture(scope="module")
def model():
    found = tiny.tiny_model("llama", dtype=torch.float32, vocab_size=400)
    return ObservableModel(found, name="tiny")


def word_level():
    words = [*SPECIAL, *WORDS, *[word.lower() for word in WORDS], "The", "the", "cat", "a"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(words))}
    return models.WordLevel(vocabulary, unk_token="<unk>")


def word_piece():
    pieces = [*SPECIAL, *"wThecata0123456789", *(f"##{letter}" for letter in "hecat0123456789w")]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    return models.WordPiece(vocabulary, unk_token="<unk>")


def byte_pairs():
    vocabulary = {piece: n for n, piece in enumerate([*SPECIAL, *LETTERS, "w1", "The"[:2]])}
    return models.BPE(vocabulary, [("w", "1"), ("T", "h")])


def unigram():
    pieces = [*SPECIAL, "▁", "", "w", "1", "2", "▁w1", "a", "T", "h", "e", "c", "t"]
    return models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0, False)


KINDS = st.sampled_from([word_level, word_piece, byte_pairs, unigram])
NORMALIZERS = st.sampled_from(
    [
        None,
        normalizers.Lowercase(),
        normalizers.NFKC(),
        normalizers.Strip(),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace("a", ""),
        normalizers.Replace(tokenizers.Regex("."), ""),
    ]
)
SPLITTERS = st.sampled_from(
    [
        None,
        pre_tokenizers.Whitespace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Digits(individual_digits=True),
    ]
)
SIDES = st.lists(st.sampled_from(SPECIAL), max_size=3)


@st.composite
def post_processors(draw):
    """What is put around a text: nothing, a template, or BERT's."""
    before, after = draw(SIDES), draw(st.one_of(st.just([]), SIDES))
    ids = [(name, n) for n, name in enumerate(SPECIAL)]
    template = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *after]), special_tokens=ids
    )
    return draw(
        st.sampled_from(
            [
                None,
                template,
                processors.Sequence([processors.ByteLevel(trim_offsets=True), template]),
                processors.BertProcessing(("</s>", 2), ("<s>", 1)),
                processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
            ]
        )
    )


@st.composite
def any_tokenizer(draw):
    plain = tokenizers.Tokenizer(draw(KINDS)())
    for name, part in (
        ("normalizer", draw(NORMALIZERS)),
        ("pre_tokenizer", draw(SPLITTERS)),
        ("post_processor", draw(post_processors())),
    ):
        if part is not None:
            setattr(plain, name, part)
    if draw(st.booleans()):
        plain.enable_truncation(5)
    if draw(st.booleans()):
        plain.enable_padding(length=40, pad_token="<unk>")
    named = draw(st.sets(st.sampled_from(["bos_token", "eos_token", "unk_token"])))
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, **{name: names[name] for name in named}
    )
    for added in draw(st.sets(st.sampled_from(["w1", "cat", "<new>", "The cat"]), max_size=2)):
        found.add_tokens([added], special_tokens=draw(st.booleans()))
    if draw(st.booleans()):  # far beyond the embeddings
        found.add_tokens([f"<extra{n}>" for n in range(400)])
    return found


def users_ids(tokenizer, text):
    return tokenizer(text, verbose=False)["input_ids"]


def attempt(function, *args, **keywords):
    """What a function returns, or why it refuses."""
    try:
        return function(*args, **keywords), None
    except PosprobeError as error:
        reason = str(error)
    assert reason.isprintable()
    event(f"refused: {reason[:60]}")
    return None, reason


def check_capture(model, tokenizer, text, folder):
    """A native capture is what users see, or one line; nothing else is left behind."""
    model.tokenizer = tokenizer
    for left in folder.iterdir():
        left.unlink()
    store, reason = attempt(capture, model, folder / "a.h5", text=text, bos="native", **SIZES)
    if reason is not None:
        assert list(folder.iterdir()) == []
        return reason
    whole, plain = users_ids(tokenizer, text), model.tokenize(text).tolist()
    first = [] if model.native_bos is None else [model.native_bos]
    assert whole == first + plain
    content = store.tokens[:, len(first) :]
    assert (store.tokens[:, : len(first)] == first).all()
    for row in content:
        assert any(plain[n : n + len(row)] == row.tolist() for n in range(len(plain)))
    event("captured")
    return None


CI = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = settings(CI, max_examples=3000)


def any_tokenizer_is_reproduced_or_refused(tokenizer, inside, model, tmp_path):
    text = TEXT.replace("w7", inside)
    reason = check_capture(model, tokenizer, text, tmp_path)
    if reason is not None and "tokens in front" in reason:
        whole, plain = users_ids(tokenizer, text), model.tokenize(text).tolist()
        assert whole[1:] != plain, reason
        assert whole != plain, reason


INSIDE = st.sampled_from(["w7", "<s>", "</s>", "<extra399>", "<new>", "", "é", "\x00", "\u202e"])


@CI
@given(any_tokenizer(), INSIDE)
def test_any_tokenizer_is_reproduced_or_refused(model, tmp_path, tokenizer, inside):
    any_tokenizer_is_reproduced_or_refused(tokenizer, inside, model, tmp_path)


@pytest.mark.slow
@LONG
@given(any_tokenizer(), INSIDE)
def test_very_many_tokenizers_are_reproduced_or_refused(model, tmp_path, tokenizer, inside):
    any_tokenizer_is_reproduced_or_refused(tokenizer, inside, model, tmp_path)


# files of tokenizers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    plain = tokenizers.Tokenizer(word_level())
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")
    tokenizer.save_pretrained(folder)
    tiny.tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    return folder


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 17082734\n".format(
    "0" * 64
)
PARTS = ["model", "post_processor", "pre_tokenizer", "normalizer", "added_tokens", "version"]
JUNK = st.sampled_from([None, 0, -1, 2**40, "", "x", [], {}, [None], {"type": "x"}, "\x1b]0;"])


def replaced(key, value):
    return lambda text: json.dumps(json.loads(text) | {key: value})


def replaced_in_vocabulary(word, value):
    def change(text):
        content = json.loads(text)
        content["model"]["vocab"][word] = value
        return json.dumps(content)

    return change


DAMAGE = st.one_of(
    st.integers(0, 2500).map(lambda n: lambda text: text[:n]),
    st.just(lambda text: POINTER),
    st.integers(0, 2500).map(lambda n: lambda text: text[:n] + "\x00" + text[n + 1 :]),
    st.builds(replaced, st.sampled_from(PARTS), JUNK),
    st.builds(
        replaced_in_vocabulary, st.sampled_from(["<s>", "w1", "", "new"]), st.integers(-2, 99)
    ),
)


@CI
@given(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]), DAMAGE)
def test_any_file_of_a_tokenizer_is_reproduced_or_refused(folder, tmp_path, name, damage):
    copy, out = tmp_path / "model", tmp_path / "out"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    out.mkdir(exist_ok=True)
    try:
        (copy / name).write_text(damage((copy / name).read_text()))
    except (KeyError, TypeError):
        return
    model, _ = attempt(load_model, str(copy))
    if model is not None and model.tokenizer is not None:
        check_capture(model, model.tokenizer, TEXT, out)
