"""What is released: the wheel and the sdist contain the package, all of it, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import posprobe

ROOT = Path(__file__).parents[1]
NAME = f"posprobe-{posprobe.__version__}"
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "posprobe").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
BUILD = "import sys; from flit_core import buildapi; buildapi.build_{0}(sys.argv[1])"


def built(kind, folder):
    """Build with the build backend of pyproject.toml itself, which needs no network."""
    command = [sys.executable, "-c", BUILD.format(kind), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(built("wheel", tmp_path_factory.mktemp("wheel"))) as file:
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


def test_the_sdist_is_what_the_wheel_is_built_from(tmp_path):
    with tarfile.open(built("sdist", tmp_path)) as file:
        names = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
    assert names == PACKAGE | {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
