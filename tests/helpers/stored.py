"""A tokenizer of plain words, and comparisons of what is in files and folders."""

from pathlib import Path

import numpy as np
import tokenizers
import transformers

WORDS = [f"word{n}" for n in range(94)]


def make_tokenizer():
    names = ["<unk>", "<s>", "</s>", *WORDS]
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(names)}, unk_token="<unk>")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def everything(store):
    return {name: store.read(name) for name in store.header.datasets()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        assert values.tobytes() == other[name].tobytes(), name


def assert_close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


def leftovers(folder):
    return [path.name for path in Path(folder).iterdir()]
