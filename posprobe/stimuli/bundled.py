"""Texts that need no download: two that come with posprobe, and two that CPython ships."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from posprobe.errors import StimulusError
from posprobe.stimuli.text import Text, make_text

__all__ = ["BUNDLED", "DEFAULT", "DEFAULT_CORPUS", "Bundled", "read_bundled"]

DEFAULT = "python-reference"
DEFAULT_CORPUS = "pydoc_data.topics"  # the name under which files record it
MANUAL = "Apache HTTP Server 2.4.71 documentation, Debian package apache2-doc 2.4.71-1~deb12u1"
PAGE = "\f\n"  # between pages of the manual
# Modules of the standard library since Python 3.11 or earlier, in alphabetical order.
MODULES = (
    *("argparse", "ast", "calendar", "configparser", "dataclasses", "difflib", "fractions"),
    *("ftplib", "heapq", "ipaddress", "mailbox", "optparse", "pickle", "shutil", "statistics"),
    *("subprocess", "tarfile", "textwrap", "threading", "tokenize"),
)


@dataclass(frozen=True)
class Bundled:
    """One bundled text.

    Attributes
    ----------
    kind, source, licence : str
        As in `Text`.
    read : callable
        Returns the name on record and the documents.
    """

    kind: str
    source: str
    licence: str
    read: Callable[[], tuple[str, list[str]]]


def read_bundled(name: str) -> Text:
    """Return a bundled text.

    Raises
    ------
    StimulusError
        If its files are not what this release of posprobe or this Python should have.

    Examples
    --------
    >>> text = read_bundled("french")
    >>> len(text.documents), text.licence
    (14, 'Apache-2.0')
    """
    bundled = BUNDLED[name]
    recorded, documents = bundled.read()
    return make_text(
        recorded,
        documents,
        kind=bundled.kind,
        source=bundled.source,
        licence=bundled.licence,
        given=(name,),
    )


def _topics() -> tuple[str, list[str]]:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return f"{DEFAULT_CORPUS}, Python {platform.python_version()}", [text]


def _library() -> tuple[str, list[str]]:
    name = f"code, Python {platform.python_version()}"
    return name, [_source(module) for module in MODULES]


def _source(module: str) -> str:
    spec = find_spec(module)
    try:
        return Path(str(spec and spec.origin)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StimulusError(
            f"text 'code': this Python has no source of its module {module}; use another --text"
        ) from error


def _pages(name: str, sha256: str) -> tuple[str, list[str]]:
    content = files("posprobe.stimuli").joinpath("data", f"{name}.txt").read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StimulusError(f"text {name!r} is not the one that posprobe came with: reinstall it")
    return name, content.decode("utf-8").split(PAGE)


BUNDLED = {
    DEFAULT: Bundled(
        "English prose: the reference of a programming language",
        "pydoc_data.topics, which CPython ships; other versions of Python have other words",
        "PSF-2.0",
        _topics,
    ),
    "english": Bundled(
        "English prose: the manual of a web server",
        MANUAL,
        "Apache-2.0",
        lambda: _pages("english", ENGLISH),
    ),
    "french": Bundled(
        "French prose: the same pages as `english`",
        MANUAL,
        "Apache-2.0",
        lambda: _pages("french", FRENCH),
    ),
    "code": Bundled(
        f"Python code: {len(MODULES)} modules of the standard library",
        "the standard library, which CPython ships; other versions have other code",
        "PSF-2.0",
        _library,
    ),
}
ENGLISH = "5ead3e687877e763a2b02c06797f38d31b5dd58f48094a9bc9684eada1d40362"
FRENCH = "3ebe16269f058d78110b7be930bc87e8a6c6b014789f69a994ec46ce5e41f1ba"
