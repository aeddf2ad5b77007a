"""Token sequences by design.

reading    whatever text a user has: files, folders, data sets, strings
bundled    texts that need no download
text       a text: documents, name, digest, source
corpus     its token ids
designs    pure functions of a corpus
stimulus   a drawn stimulus: design, first token, checks
"""

from posprobe.stimuli.bundled import BUNDLED, DEFAULT_CORPUS
from posprobe.stimuli.corpus import Corpus
from posprobe.stimuli.reading import TextSource, read_text, text_source
from posprobe.stimuli.stimulus import BOS_POLICIES, Stimulus, make_stimulus
from posprobe.stimuli.text import UNNAMED, Text

__all__ = [
    "BOS_POLICIES",
    "BUNDLED",
    "DEFAULT_CORPUS",
    "UNNAMED",
    "Corpus",
    "Stimulus",
    "Text",
    "TextSource",
    "make_stimulus",
    "read_text",
    "text_source",
]
