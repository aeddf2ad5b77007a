"""A tiny model in a folder, and an audit of it in a process of its own.

`python study_child.py MODEL OUT KILL` kills itself in front of its KILL-th forward pass.
"""

import os
import signal
import sys

import numpy as np
import tiny
import tokenizers
import torch
import transformers

WORDS = [f"word{n}" for n in range(94)]
SIZES = dict(n=6, length=64, seed=2, progress=False)


def make_tokenizer():
    names = ["<unk>", "<s>", "</s>", *WORDS]
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(names)}, unk_token="<unk>")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_text(n_words=3000):
    return " ".join(np.random.default_rng(0).choice(WORDS, n_words))


def save_model(folder, family="llama", **changes):
    sizes = {"num_hidden_layers": 2} | changes
    tiny.tiny_model(family, dtype=torch.float32, **sizes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def main(model, out, kill):
    from posprobe.models import ObservableModel
    from posprobe.workflows.audit import audit

    run, calls = ObservableModel.run, iter(range(1_000_000))

    def dying(*args, **keywords):
        if next(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        run(*args, **keywords)

    ObservableModel.run = dying
    audit(model, out, text=make_text(), **SIZES)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
