"""Token sequences by design.

designs   pure functions of an array of token ids
corpus    the text they are drawn from
stimulus  a drawn stimulus: design, first token, checks
"""

from posprobe.stimuli.corpus import DEFAULT_CORPUS, corpus_name, default_corpus, read_corpus
from posprobe.stimuli.stimulus import Corpus, Stimulus, make_stimulus

__all__ = [
    "DEFAULT_CORPUS",
    "Corpus",
    "Stimulus",
    "corpus_name",
    "default_corpus",
    "make_stimulus",
    "read_corpus",
]
