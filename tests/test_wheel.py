"""What is released: the wheel and the sdist contain the package, all of it, and nothing else.

What `docs/packaging` says of it, for conda and containers, is compared with pyproject.toml.
"""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import posprobe

ROOT = Path(__file__).parents[1]
NAME = f"posprobe-{posprobe.__version__}"
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "posprobe").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
PACKAGING = ROOT / "docs" / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:])


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of `make dist`, which needs no network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, str(PACKAGING / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as file:
        yield file


def test_the_package_holds_code_types_and_templates():
    others = {name for name in PACKAGE if not name.endswith(".py")}
    templates = {name for name in others if name.startswith("posprobe/report/templates/")}
    assert {Path(name).suffix for name in templates} == {".j2", ".css"}
    texts = {name for name in others if name.startswith("posprobe/stimuli/data/")}
    assert {Path(name).name for name in texts} == {
        "LICENSE-Apache-2.0", "README.md", "english.txt", "french.txt",
    }  # fmt: skip
    assert others - templates - texts == {"posprobe/__init__.pyi", "posprobe/py.typed"}


def test_the_wheel_is_the_package(wheel):
    names = set(wheel.namelist())
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names - about == PACKAGE
    assert {name.removeprefix(f"{NAME}.dist-info/") for name in about} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
        "licenses/posprobe/stimuli/data/LICENSE-Apache-2.0",
    }  # fmt: skip


def test_every_file_of_the_wheel_is_as_it_is_here(wheel):
    for name in PACKAGE:
        assert wheel.read(name) == (ROOT / name).read_bytes()


def test_the_wheel_says_what_pyproject_says(wheel):
    lines = wheel.read(f"{NAME}.dist-info/METADATA").decode().splitlines()
    for line in (f"Version: {posprobe.__version__}", "Requires-Python: >=3.11", "Name: posprobe"):
        assert line in lines
    assert "Root-Is-Purelib: true" in wheel.read(f"{NAME}.dist-info/WHEEL").decode()


def test_the_sdist_is_what_the_wheel_is_built_from(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as file:
        names = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
    assert names == PACKAGE | {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def test_links_of_the_description_lead_to_the_released_version(wheel):
    about = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    page = about.get_payload(decode=True).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    home = PROJECT["urls"]["Source"]
    own = [link for link in links if link.startswith(home)]
    assert not [link for link in links if not link.startswith("https://")]
    assert own
    for link in own:
        path = re.fullmatch(rf"{home}/(blob|tree|raw)/v{posprobe.__version__}/([^#]+)(#.*)?", link)
        assert (ROOT / path[2]).exists()


# --- what other ways of installing know of it ---


def recipe():
    """The outputs of the conda recipe by name, and its version."""
    read = yaml.safe_load((PACKAGING / "conda" / "recipe.yaml").read_text())
    assert (PACKAGING / "conda" / read["source"]["path"]).resolve() == ROOT
    return {out["package"]["name"]: out for out in read["outputs"]}, read["recipe"]["version"]


def needs(lines):
    """Requirements as pairs of a name, as conda calls it, and the versions."""
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base", "flit_core": "flit-core"}
    pairs = [re.fullmatch(r"([\w-]+) ?(.*)", line).groups() for line in lines]
    return {(conda.get(name, name), versions) for name, versions in pairs}


def test_the_conda_recipe_says_what_pyproject_says():
    outputs, version = recipe()
    plain, models = outputs["posprobe"], outputs["posprobe-models"]
    python = ("python", PROJECT["requires-python"])
    assert version == posprobe.__version__
    assert needs(plain["requirements"]["run"]) == needs(PROJECT["dependencies"]) | {python}
    extra = needs(PROJECT["optional-dependencies"]["models"])
    assert needs(models["requirements"]["run"]) == extra | {("posprobe", f"=={version}")}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert needs(plain["requirements"]["host"]) == needs(build) | {python, ("pip", "")}
    (script,) = PROJECT["scripts"].items()
    assert plain["build"]["python"]["entry_points"] == [" = ".join(script)]


def test_the_containerfile_names_what_there_is():
    text = (PACKAGING / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    assert {word for word, _ in lines} == {
        "FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"
    }  # fmt: skip
    for word, rest in lines:
        if word == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
    (run,) = [rest for word, rest in lines if word == "RUN"]
    assert re.findall(r"torch==(\S+)", run) == [PINS["torch"]]
    (extras,) = re.findall(r"\.\[(.*?)\]", run)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert lines[0] == ["FROM", f"docker.io/library/python:{lowest}-slim"]


def test_the_page_on_installing_lists_every_extra():
    page = (ROOT / "docs" / "install.md").read_text()
    extras = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert extras == set(PROJECT["optional-dependencies"]) - {"test"}


# --- installed ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_a_release_works_in_an_empty_environment(kind, dist, tmp_path):
    """Needs the package index, as `make` does."""

    def run(*command, status=0):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    run(sys.executable, "-m", "venv", "env")
    python, command = tmp_path / "env/bin/python", tmp_path / "env/bin/posprobe"
    install = ("install", "--quiet", "-c", ROOT / "constraints.txt", next(dist.glob(kind)))
    run(python, "-m", "pip", *install)
    assert "No broken requirements" in run(python, "-m", "pip", "check")
    assert "Usage: posprobe" in run(command, "--help")
    assert "python-reference" in run(command, "texts")
    file = tmp_path / "natural.h5"
    posprobe.capture("zoo/rope-0", file, n=5, length=48, window=16, progress=False).close()
    assert "all as written" in run(command, "inspect", "--verify", file)
    run(command, "analyze", file, "-o", "report", "-q", "--resamples", "100")
    assert (tmp_path / "report/report.html").is_file()
    assert "posprobe[models]" in run(command, "models", status=2)
    assert "torch" not in run(python, "-m", "pip", "list")
