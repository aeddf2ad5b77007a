"""How the pages that analyses write are wrapped."""

import textwrap

WIDTH = 120


def wrapped(line: str) -> str:
    """A line of Markdown in lines of at most `WIDTH` characters.

    Rows of tables, headings and images stay whole.
    """
    if line.startswith(("|", "#", "!")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
