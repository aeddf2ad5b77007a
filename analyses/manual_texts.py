"""The bundled texts `english` and `french`: the same pages of one manual in two languages.

Run it with ``python analyses/manual_texts.py FOLDER``, where FOLDER is ``manual`` of Debian's
package apache2-doc, and copy the checksums that it prints to `posprobe/stimuli/bundled.py`.

A page gives one document: its headings, paragraphs and list items, each on one line, with a blank
line between them. Listings, tables and navigation are left out.
"""

import hashlib
from html.parser import HTMLParser
from pathlib import Path

import click

TARGET = Path(__file__).resolve().parents[1] / "posprobe" / "stimuli" / "data"
LANGUAGES = {"en": "english", "fr": "french"}
PAGES = (
    *("caching", "configuring", "content-negotiation", "dso", "env", "getting-started"),
    *("howto/auth", "howto/htaccess", "howto/ssi", "logs", "misc/security_tips", "sections"),
    *("ssl/ssl_intro", "stopping"),
)
BLOCKS = {"h1", "h2", "h3", "h4", "p", "li", "dt", "dd"}
LEFT_OUT = {"pre", "table", "script", "style", "button"}
NAVIGATION = {"toplang", "bottomlang", "quickview", "top", "footer", "page-header", "path", "up"}
NAVIGATION |= {"comments_section"}
VOID = {"br", "hr", "img", "input", "link", "meta", "META"}


class Prose(HTMLParser):
    """Collects the text of a page's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.hidden: list[bool] = []

    def handle_starttag(self, tag, attrs) -> None:
        """Begin a block, or something that is left out."""
        if tag in BLOCKS:
            self.close_block()
        if tag in VOID:
            return
        marks = {value for name, value in attrs if name in ("id", "class") and value}
        example = "example" in marks or "permalink" in marks
        hides = example or tag in LEFT_OUT or bool(marks & NAVIGATION)
        self.hidden.append(hides or (bool(self.hidden) and self.hidden[-1]))

    def handle_endtag(self, tag) -> None:
        """End a block, or something that is left out."""
        if tag in BLOCKS:
            self.close_block()
        if tag not in VOID and self.hidden:
            self.hidden.pop()

    def handle_data(self, data) -> None:
        """Keep what is shown."""
        if not (self.hidden and self.hidden[-1]):
            self.words.append(data)

    def close_block(self) -> None:
        """Keep the block as one line."""
        line = " ".join("".join(self.words).split())
        if line:
            self.blocks.append(line)
        self.words = []


def read_page(path: Path) -> str:
    """The prose of one page."""
    page = path.read_text(encoding="utf-8")
    prose = Prose()
    prose.feed(page[page.index('<div id="page-content">') :])
    prose.close_block()
    return "\n\n".join(prose.blocks)


@click.command(help=__doc__.splitlines()[0])
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Write both texts, a form feed between pages, and print their checksums."""
    for language, name in LANGUAGES.items():
        pages = [read_page(folder / language / f"{page}.html") for page in PAGES]
        content = "\f\n".join(f"{page}\n" for page in pages).encode()
        (TARGET / f"{name}.txt").write_bytes(content)
        print(name, len(content), hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
