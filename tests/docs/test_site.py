"""The site holds every page and every public name; its sources are read, and nothing is built."""

import importlib
import re
from pathlib import Path

import pytest

import posprobe

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(posprobe.__file__).parent
WITHOUT_DOOR = {"cli", "workflows"}
ROOMS = sorted(
    path.name.removesuffix(".py")
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
    if not path.name.startswith("__") and path.name.removesuffix(".py") not in WITHOUT_DOOR
)


def toctree(page):
    """Pages that the hidden table of contents of a page names, one after another."""
    found = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)\n```", page.read_text(), re.DOTALL)
    return [re.sub(r".*<(.*)>", r"\1", line) for lines in found for line in lines.splitlines()]


def listed(module):
    """Names that the API page lists for a module."""
    (section,) = re.findall(
        rf"^\.\. module:: {re.escape(module)}\n(.*?)(?=^\.\. module::|\Z)",
        (DOCS / "api.rst").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return re.findall(r"^   (\w+)$", section, re.MULTILINE) + re.findall(r"data:: (\w+)", section)


def test_every_page_is_in_the_table_of_contents_once():
    pages = {path.stem for path in DOCS.iterdir() if path.suffix in (".md", ".rst")}
    held = [name for page in DOCS.glob("*.md") for name in toctree(page)]
    assert pages ^ {"index", "gallery/index"} == set(held)
    assert len(held) == len(set(held))


@pytest.mark.parametrize("module", ["posprobe", *(f"posprobe.{room}" for room in ROOMS)])
def test_the_api_page_lists_every_public_name_once(module):
    public = set(importlib.import_module(module).__all__)
    if module != "posprobe":
        public -= set(posprobe.__all__)
    found = listed(module)
    assert set(found) ^ public == set()
    assert len(found) == len(public)


def test_the_gallery_has_ten_examples_or_more_and_each_has_a_title():
    examples = sorted((DOCS / "examples").glob("plot_*.py"))
    assert len(examples) >= 10
    for path in examples:
        title, line = path.read_text().splitlines()[1:3]
        assert line == "=" * len(title)


def test_the_files_of_the_gallery_stay_small():
    assert sum(path.stat().st_size for path in (DOCS / "captures").glob("*.h5")) < 800_000
