"""The vocabulary is written down once: the page and the report say the same words."""

import re
from pathlib import Path

from posprobe.report.glossary import GLOSSARY, VOCABULARY

PAGE = Path(__file__).parents[2] / "docs" / "glossary.md"
ENTRY = re.compile(r"\*\*(.+?)\*\*: (.+?)\s*\\\n\*Where: (.+?)\*(?=\n\n|\n$)", re.DOTALL)


def one_line(text):
    return " ".join(text.split())


def page():
    """Terms of docs/glossary.md by heading: name, meaning and where, without line breaks."""
    _, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    return {
        heading: [tuple(map(one_line, found)) for found in ENTRY.findall(body)]
        for heading, body in (part.split("\n", 1) for part in parts)
    }


def test_the_page_has_every_term_with_the_same_words_in_the_same_order():
    assert page() == {
        heading: [(term.name, term.meaning, term.where) for term in terms]
        for heading, terms in VOCABULARY.items()
    }


def test_every_paragraph_of_the_page_is_an_introduction_a_heading_or_a_term():
    paragraphs = PAGE.read_text().strip().split("\n\n")
    terms = sum(map(len, VOCABULARY.values()))
    assert len(paragraphs) == 2 + len(VOCABULARY) + terms  # the title and one introduction


def test_no_word_is_explained_twice():
    names = [term.name for terms in VOCABULARY.values() for term in terms]
    assert len({name.casefold() for name in names}) == len(names)


def test_the_report_explains_a_part_of_the_vocabulary_in_plain_text():
    assert 20 < len(GLOSSARY) < sum(map(len, VOCABULARY.values()))
    assert not any("`" in text for text in GLOSSARY.values())
