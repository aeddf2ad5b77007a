"""A text: documents of characters, with a name, a digest, and what is known of their source."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from posprobe.errors import StimulusError, Telling

__all__ = ["UNNAMED", "Text", "join_texts", "make_text"]

UNNAMED = "a text without a name"


@dataclasses.dataclass(frozen=True, repr=False)
class Text(Telling):
    r"""What stimuli are drawn from.

    Attributes
    ----------
    name : str
        The name on record.
    documents : tuple of str
        Kept apart when sequences are drawn. Line ends are LF, and none is empty.
    kind, source, licence : str
        What it is, where it comes from and under which terms, where that is known.
    given : tuple of str
        What names it on the command line (``--text``), without folders of this machine.
    field : str
        The field of a data set or of JSON that was read.
    notes : tuple of str
        What reading changed or left out.
    limit : int or None
        Characters of each file and data set that were asked for.
    shuffled : bool
        Whether its tokens are put in random order before sequences are drawn.

    Examples
    --------
    >>> text = make_text("words.txt", ["Some words.\r\n", ""])
    >>> text.documents, text.notes
    (('Some words.\n',), ('line ends made LF in 1 document', '1 empty document left out'))
    """

    name: str
    documents: tuple[str, ...]
    kind: str = ""
    source: str = ""
    licence: str = ""
    given: tuple[str, ...] = ()
    field: str = ""
    notes: tuple[str, ...] = ()
    limit: int | None = None
    shuffled: bool = False

    def _line(self) -> str:
        return f"{self.name}, {self.characters:,} characters, documents: {len(self.documents)}"

    @property
    def digest(self) -> str:
        """SHA-256 of the documents in UTF-8, a zero byte between two.

        One document without a byte order mark or CRLF has the digest of its file.

        Examples
        --------
        >>> make_text("a", ["abc"]).digest[:16]
        'ba7816bf8f01cfea'
        """
        # A str may hold halves of surrogate pairs, which a tokenizer takes as well.
        parts = (document.encode("utf-8", "surrogatepass") for document in self.documents)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    @property
    def characters(self) -> int:
        """Characters in all documents."""
        return sum(map(len, self.documents))

    def shuffle(self) -> Text:
        """The same text, whose tokens will be put in random order, by the seed of the stimulus.

        How often each token occurs stays the same; which one follows which does not.

        Examples
        --------
        >>> make_text("words.txt", ["Some words."]).shuffle().name
        'shuffled words.txt'
        """
        if self.shuffled:
            return self
        given = tuple(f"shuffled:{each}" for each in self.given)
        name = f"shuffled {self.name}"
        return dataclasses.replace(self, name=name, given=given, shuffled=True)

    def describe(self) -> dict[str, Any]:
        """What a file records of it, without what is unknown (plain JSON types).

        Examples
        --------
        >>> sorted(make_text("words.txt", ["Some words."]).describe())
        ['characters', 'documents', 'sha256', 'shuffled']
        """
        known = {
            "kind": self.kind,
            "source": self.source,
            "licence": self.licence,
            "given": list(self.given),
            "field": self.field,
            "notes": list(self.notes),
            "limit": self.limit,
        }
        return {
            "sha256": self.digest,
            "documents": len(self.documents),
            "characters": self.characters,
            "shuffled": self.shuffled,
        } | {name: value for name, value in known.items() if value}


def make_text(
    name: str, raw: Iterable[str], *, characters: int | None = None, **known: Any
) -> Text:
    """Make a text of documents as they were found.

    Parameters
    ----------
    name : str
    raw : iterable of str
        Read no further than needed.
    characters : int or None
        Read until this many characters are there. No document is cut.
    **known
        Other attributes of `Text`.

    Returns
    -------
    Text
        Line ends are LF, and empty documents are left out; its notes say so.

    Raises
    ------
    StimulusError
        If there is nothing but white space.
    """
    documents: list[str] = []
    ends = empty = found = 0
    bounded = False
    for document in raw:
        if characters is not None and found >= characters:
            bounded = True
            break
        if not document.strip():
            empty += 1
            continue
        plain = document.replace("\r\n", "\n").replace("\r", "\n")
        ends += plain != document
        found += len(plain)
        documents.append(plain)
    if not documents:
        what = "the text" if name == UNNAMED else f"the text {name}"
        raise StimulusError(f"{what} is empty: pass one with at least a few thousand words")
    changes = (
        (ends, f"line ends made LF in {_count(ends)}"),
        (empty, f"{_count(empty, 'empty document')} left out"),
        (bounded, f"read up to {characters:,} characters" if bounded else ""),
    )
    notes = tuple(note for said, note in changes if said)
    return Text(name, tuple(documents), **{**known, "notes": (*known.get("notes", ()), *notes)})


def join_texts(texts: Sequence[Text], name: str | None = None) -> Text:
    """Several texts as one, which keeps their documents apart.

    Raises
    ------
    StimulusError
        If some are shuffled and others are not.

    Examples
    --------
    >>> joined = join_texts([make_text("a.txt", ["One."]), make_text("b.txt", ["Two."])])
    >>> joined.name, len(joined.documents)
    ('a.txt, b.txt', 2)
    """
    if len(texts) == 1 and name is None:
        return texts[0]
    if len({text.shuffled for text in texts}) > 1:
        raise StimulusError("some texts are shuffled and others are not: shuffle all of them")

    def gather(attribute: str) -> str:
        return "; ".join(dict.fromkeys(filter(None, (getattr(t, attribute) for t in texts))))

    return Text(
        name=name or ", ".join(text.name for text in texts),
        documents=tuple(document for text in texts for document in text.documents),
        kind=gather("kind"),
        source=gather("source"),
        licence=gather("licence"),
        given=tuple(each for text in texts for each in text.given),
        field=gather("field"),
        notes=tuple(f"{text.name}: {note}" for text in texts for note in text.notes),
        shuffled=texts[0].shuffled,
    )


def _count(number: int, what: str = "document") -> str:
    return f"{number} {what}{'s' * (number != 1)}"
