"""What tokenizers put around a text is reproduced or refused; special tokens inside are counted."""

import capture_child as child
import numpy as np
import pytest
import stored
import tiny
import tokenizers
import torch

from posprobe.captures import capture, capture_stimulus
from posprobe.errors import ModelError, StimulusError
from posprobe.models import ObservableModel
from posprobe.models.tokens import Frame, native_frame
from posprobe.stimuli import make_stimulus

TEXT = " ".join(f"word{n}" for n in np.random.default_rng(0).integers(0, 94, 700))


def framed(template):
    tokenizer = stored.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def observable(tokenizer):
    return ObservableModel(tiny.tiny_model("llama", dtype=torch.float32), tokenizer, name="tiny")


@pytest.mark.parametrize(
    ("template", "frame"),
    [
        ("$A", Frame((), ())),
        ("<s> $A", Frame((1,), ())),
        ("<s> </s> $A", Frame((1, 2), ())),
        ("$A </s>", Frame((), (2,))),
        ("<s> $A </s>", Frame((1,), (2,))),
    ],
)
def test_the_frame_is_what_stands_around_a_text(template, frame):
    assert native_frame(framed(template), "tiny") == frame


def test_a_tokenizer_without_a_token_for_a_plain_text_is_asked_for_another():
    class Sparse:
        def __call__(self, text, add_special_tokens=True):
            ids = [5] if text == "0" else []
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    assert native_frame(Sparse(), "tiny") == Frame((1,), ())


def test_a_tokenizer_without_any_token_is_refused():
    with pytest.raises(ModelError, match="'tiny': its tokenizer has no token for plain text"):
        native_frame(lambda text, add_special_tokens=True: {"input_ids": []}, "tiny")


def test_a_tokenizer_that_fails_on_plain_text_is_refused():
    def fail(text, **keywords):
        raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")

    with pytest.raises(ModelError, match=r"no token for plain text \(Exception: WordLevel error"):
        native_frame(fail, "x")


def test_a_tokenizer_that_changes_the_text_is_refused():
    def other(text, add_special_tokens=True):
        return {"input_ids": [1, 9] if add_special_tokens else [8]}

    with pytest.raises(ModelError, match="its tokenizer changes the tokens of 'a'"):
        native_frame(other, "tiny")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("<s> </s> $A", r"puts 2 tokens in front of a text and 0 behind it \(<s> </s>\)"),
        ("$A </s>", r"puts 0 tokens in front of a text and 1 behind it \(</s>\)"),
    ],
)
def test_native_is_refused_where_it_cannot_be_reproduced(template, said, tmp_path):
    model = observable(framed(template))
    options = dict(n=2, length=20, text=TEXT, window=5, progress=False)
    with pytest.raises(ModelError, match=said):
        capture(model, tmp_path / "a.h5", **options)
    assert list(tmp_path.iterdir()) == []
    forced = capture(model, tmp_path / "a.h5", bos="force", **options)
    assert set(forced.tokens[:, 0]) == {1}


def test_special_tokens_inside_a_text_are_counted_and_named(tmp_path):
    text = TEXT.replace("word7 ", "</s> ")
    model = observable(stored.make_tokenizer())
    store = capture(model, tmp_path / "a.h5", n=4, length=60, window=5, text=text, progress=False)
    inside = int((store.tokens[:, 1:] == 2).sum())
    assert inside > 0
    assert store.header.stimulus["special_tokens"] == {"</s>": inside}


def test_tokens_that_the_model_has_no_embedding_of_are_refused_first(tmp_path):
    corpus = np.where(child.CORPUS[5] == child.CORPUS, 97, child.CORPUS)
    stimulus = make_stimulus("natural", corpus, n=4, length=40, window=5)
    with pytest.raises(StimulusError, match="token 97 is beyond the 97 embeddings of model 'tiny'"):
        capture_stimulus(observable(None), stimulus, tmp_path / "a.h5", progress=False)
    assert list(tmp_path.iterdir()) == []
