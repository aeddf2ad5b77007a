"""Links of the pages, which work in the repository, made to work on the site.

A link to a committed report opens the copy that the site has. One to a script of the gallery leads
to the page that the script makes, and one to any other file of the repository to its public home.
"""

import re
import shutil
from pathlib import Path

from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()((?:\.\./|examples/|packaging/)[^)\s#]+)((?:#[^)\s]*)?\))")


def address(target, source):
    """What a link to a file of the repository, seen from `docs`, leads to on the site.

    Examples
    --------
    >>> address("../analyses/reports/01_two_channels/report.html", "https://example.org/x")
    'site:reports/01_two_channels/report.html'
    >>> address("../LICENSE", "https://example.org/x")
    'https://example.org/x/blob/main/LICENSE'
    >>> address("examples/plot_sinks.py", "https://example.org/x")
    'gallery/plot_sinks.rst'
    """
    path = (ROOT / "docs" / target).resolve()
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("analyses/reports/") and path.suffix == ".html":
        return "site:" + name.removeprefix("analyses/")
    if name.startswith("docs/examples/plot_"):
        return f"gallery/{path.stem}.rst"
    return f"{source}/{'blob' if path.is_file() else 'tree'}/main/{name}"


def rewrite(app, name, lines):
    """Rewrite the links of one Markdown page; pages that Sphinx writes have none of these."""
    if app.env.doc2path(name).suffix == ".md":
        source = app.config.source_address
        for target in {match[2] for match in LINK.finditer(lines[0])}:
            if not (ROOT / "docs" / target).exists():
                LOGGER.warning("a link leads to %s, which is not there", target, location=name)
        lines[0] = LINK.sub(lambda m: m[1] + address(m[2], source) + m[3], lines[0])


def copy_reports(app, exception):
    """Copy the committed reports into the site, where the links lead."""
    if exception is None and app.builder.format == "html":
        for page in (ROOT / "analyses" / "reports").rglob("*.html"):
            copy = Path(app.outdir) / page.relative_to(ROOT / "analyses")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, copy)


def setup(app):
    """Register with Sphinx."""
    app.add_config_value("source_address", "", "env")
    app.connect("source-read", rewrite)
    app.connect("build-finished", copy_reports)
    return {"parallel_read_safe": True}
