"""Build the wheel and the source distribution: ``python docs/packaging/build.py FOLDER``.

A package index shows README.md by itself. Its links are relative, so they work in any copy of the
repository; here they become those of the released version.
"""

import os
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from flit_core import buildapi

import posprobe

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)([^)\s#]+)")


def absolute(text, address, root=ROOT):
    """Make the links of a page absolute.

    Parameters
    ----------
    text : str
        Markdown.
    address : str
        Of the repository on the web.
    root : Path
        Folder of the page.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        If there is nothing at the end of a link.
    """

    def link(match):
        path = root / match[3]
        if not path.exists():
            raise FileNotFoundError(f"the page links to {match[3]}, and there is no {path}")
        kind = "raw" if match[1] else "tree" if path.is_dir() else "blob"
        return f"{match[1]}{match[2]}{address}/{kind}/v{posprobe.__version__}/{match[3]}"

    return LINK.sub(link, text)


def main(folder):
    """Build both from a copy in which the links are absolute."""
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as copy:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "posprobe", Path(copy, "posprobe"), ignore=ignored)
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        page = (ROOT / "README.md").read_text(encoding="utf-8")
        readme = absolute(page, project["urls"]["Source"])
        Path(copy, "README.md").write_text(readme, encoding="utf-8")
        os.chdir(copy)
        for build in (buildapi.build_wheel, buildapi.build_sdist):
            print(target / build(str(target)))
        os.chdir(ROOT)


if __name__ == "__main__":
    main(sys.argv[1])
