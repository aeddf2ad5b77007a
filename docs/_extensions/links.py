"""Check the links inside a built site: ``python links.py FOLDER`` names those that lead nowhere.

Sphinx checks links between its own pages. This reads what a browser reads: every link, picture and
anchor of every page, whoever wrote it.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors that a page has, and the places within the site that it asks for."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note anchors and links of one element."""
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        link = values.get("src") or (values.get("href") if tag != "base" else None)
        if link and not urlsplit(link).scheme and not urlsplit(link).netloc:
            self.links.append(link)


def broken(folder):
    """Yield each link that leads nowhere, with the page that has it."""
    paths = [path.resolve() for path in Path(folder).rglob("*.html")]
    pages = {path: Page(path) for path in paths if "_static" not in path.parts}  # not the theme's
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path}: {link}: no such file"
            elif target in pages and unquote(parts.fragment) not in {"", *pages[target].anchors}:
                yield f"{path}: {link}: no such anchor"


if __name__ == "__main__":
    found = list(broken(sys.argv[1]))
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(bool(found))
