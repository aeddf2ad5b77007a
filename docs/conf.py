"""How Sphinx makes the site from these pages; `make docs` calls it."""

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_extensions"))
os.environ["HF_HUB_OFFLINE"] = "1"  # examples use what the repository has

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

import posprobe  # noqa: E402

project = "posprobe"
author = "posprobe developers"
copyright = f"2026, {author}"
version = release = posprobe.__version__
source_address = PROJECT["urls"]["Source"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "names",
    "repository",
]
exclude_patterns = ["_build", "examples", "packaging", "captures"]
templates_path = ["_templates"]
nitpicky = True

# Markdown: anchors are those of GitHub, so a page reads the same in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist", "smartquotes"]
myst_url_schemes = {"http": None, "https": None, "site": "{{path}}"}

# Docstrings. Types are in their text, in words.
autodoc_preserve_defaults = True  # `CaptureOptions()`, and not all of its fields
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
default_role = "py:obj"

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": "/plot_",
    "show_signature": False,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "ignore_repr_types": r"matplotlib",
    "min_reported_time": 5,
    "abort_on_example_error": True,
    "copyfile_regex": "",
    "image_scrapers": ("matplotlib",),
    "remove_config_comments": True,
}

# The repository has no public home yet; reports are checked as files of the site.
linkcheck_timeout, linkcheck_retries = 15, 2
linkcheck_ignore = [source_address, r"^reports/"]
copybutton_prompt_text = "$ "
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "posprobe"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"install": []}  # it has no pages below it
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "github_url": source_address,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
