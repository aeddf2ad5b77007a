"""The package as a whole: what importing it costs, what it offers, and what works without torch."""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import pytest
import yaml

import posprobe
from posprobe.errors import WITH_MODELS

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "sklearn",
    "statsmodels",
    "pandas",
    "h5py",
    "matplotlib",
    "seaborn",
)


def run(code):
    """Run `code` in a fresh interpreter; return what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def project():
    """What `pyproject.toml` says of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(name):
    """A YAML file of the repository; every value is left as it is written there."""
    return yaml.load((ROOT / name).read_text(), Loader=yaml.BaseLoader)


def pins():
    """Version of each package by name, from `constraints.txt`."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line[:1] != "#")


def without_torch():
    """Modules that the import rules keep free of torch."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rule,) = [rule for rule in contracts["contracts"] if rule["type"] == "forbidden"]
    return [*rule["source_modules"], "posprobe.cli"]


def test_importing_the_package_imports_nothing_heavy():
    def loaded_by(name):
        return run(f"import {name}, sys; print(*[name for name in {HEAVY} if name in sys.modules])")

    assert loaded_by("posprobe") == ""
    assert "pandas" in loaded_by("pandas")


@pytest.mark.parametrize("command", ["", "audit", "capture", "analyze", "inspect"])
def test_help_imports_nothing_heavy(command):
    shown = run(
        f"""
        import sys
        from posprobe.cli import main

        main([*{command.split()}, "--help"], prog_name="posprobe", standalone_mode=False)
        print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
        """
    )
    assert shown.startswith(f"Usage: posprobe {command}")
    assert shown.endswith("loaded:")


WITHOUT = f"""
import contextlib, importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITH_MODELS}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


def test_statistics_figures_report_and_command_line_import_with_torch_blocked():
    every = "for name in {!r}: importlib.import_module(name)"
    run(WITHOUT + every.format(without_torch()))
    with pytest.raises(AssertionError, match="torch is blocked"):
        run(WITHOUT + every.format(["posprobe.models.attention"]))


MISSING = "which is not installed: run pip install 'posprobe[models]'"


@pytest.mark.parametrize("command", ["audit smollm2", "capture smollm2 -o a.h5", "models"])
def test_a_command_that_needs_torch_says_so_in_one_line(command):
    call = f"main({command.split()}, prog_name='posprobe')"
    said = run(
        f"{WITHOUT}\nimport io\nfrom posprobe.cli import main\n"
        "with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        f"    {call}\n"
        "print(said.getvalue())"
    )
    assert said.startswith("posprobe: models and captures need t")
    assert MISSING in said
    assert "\n" not in said


def test_public_names_that_need_torch_say_so_and_all_others_work_without():
    said = run(
        WITHOUT
        + """
import posprobe

for name in posprobe.__all__:
    try:
        getattr(posprobe, name)
    except posprobe.PosprobeError as error:
        print(name, error)
"""
    )
    refused = {line.partition(" ")[0]: line for line in said.splitlines()}
    assert set(refused) == {"audit", "capture", "load_model"}
    assert all(MISSING in line for line in refused.values())


def test_any_other_package_that_is_missing_is_a_fault():
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        run('import sys; sys.modules["h5py"] = None; import posprobe; posprobe.analyze')


def test_only_what_captures_need_is_left_out_of_a_plain_install():
    named = {re.match(r"[\w-]+", line)[0] for line in project()["optional-dependencies"]["models"]}
    assert named == set(WITH_MODELS)
    assert not named & {re.match(r"[\w-]+", line)[0] for line in project()["dependencies"]}


@pytest.mark.parametrize("name", posprobe.__all__)
def test_every_public_name_resolves_and_is_no_module(name):
    assert not isinstance(getattr(posprobe, name), types.ModuleType)


def test_about_sixteen_public_names():
    assert len(posprobe.__all__) <= 17


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        posprobe.no_such_name  # noqa: B018


def test_the_version_is_in_the_changelog():
    assert f"[{posprobe.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_pin_is_exact():
    assert pins()
    assert not any(sign in version for version in pins().values() for sign in "+*<>=")


# --- what people and machines around the repository read ---


def test_citation_has_the_version_and_the_address_of_the_package():
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == posprobe.__version__
    assert citation["repository-code"] == project()["urls"]["Source"]
    assert all(url.startswith(project()["urls"]["Source"]) for url in project()["urls"].values())


@pytest.mark.parametrize("tool", ["ruff", "codespell"])
def test_pre_commit_runs_the_pinned_version(tool):
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    (revision,) = [one["rev"] for one in repositories if f"/{tool}" in one["repo"]]
    assert revision == f"v{pins()[tool]}"


def test_workflow_calls_make_test_on_every_python_that_the_package_names():
    job = read_yaml(".github/workflows/test.yml")["jobs"]["test"]
    named = [name.rpartition(" ")[2] for name in project()["classifiers"] if "Python ::" in name]
    assert job["strategy"]["matrix"]["python"] == named
    assert project()["requires-python"] == f">={named[0]}"
    assert "make test PYTHON=python" in [step.get("run") for step in job["steps"]]


@pytest.mark.parametrize("name", ["bounds", "docs", "security"])
def test_workflow_calls_a_target_of_the_makefile(name):
    workflow = read_yaml(f".github/workflows/{name}.yml")
    assert "schedule" in workflow["on"]
    (job,) = workflow["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()), ids=lambda path: path.stem
)
def test_issue_form_has_what_github_requires(path):
    form = read_yaml(path)
    assert form["name"]
    assert form["description"]
    assert all(field["id"] and field["attributes"]["label"] for field in form["body"])


# --- what may be reached from outside ---


def bound_names(tree):
    """Names of a module's own: functions, classes, parameters, variables and attributes of self."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def used_names(tree):
    """Names that a module imports, looks up, or spells, as in ``setattr(module, "name", ...)``."""
    parts = {
        part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in set(ast.walk(tree)) - parts:  # an f-string's parts are not whole names
        match node:
            case ast.alias(name=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                yield name.rpartition(".")[2]


def private(names):
    return {name for name in names if name.startswith("_") and not name.endswith("_")}


def private_names_of_posprobe_in(text):
    tree = ast.parse(text)
    return private(used_names(tree)) & PRIVATE - private(bound_names(tree))


PRIVATE = private(
    name
    for path in (ROOT / "posprobe").rglob("*.py")
    for name in bound_names(ast.parse(path.read_text()))
)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "analyses", "docs"])
def test_nothing_beside_the_package_reaches_a_private_name(folder):
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / folder).rglob("*.py")
        if (names := private_names_of_posprobe_in(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "from posprobe.store.hdf5 import {}",
        "import posprobe.store.hdf5 as h; h.{}()",
        "hdf5.{} = None",
        "monkeypatch.setattr(hdf5, {!r}, None)",
        "monkeypatch.setattr('posprobe.store.hdf5.{}', None)",
    ],
)
def test_a_private_name_is_seen_however_it_is_reached(code):
    name = "_" + "allocate"
    assert private_names_of_posprobe_in(code.format(name)) == {name}
