"""What SECURITY.md promises of the sources: none unpickles, evaluates text or starts programs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "posprobe").rglob("*.py"), *(ROOT / "analyses").glob("*.py")])
MODULES = {
    "_pickle", "cloudpickle", "code", "ctypes", "dill", "jsonpickle", "marshal", "pickle", "runpy",
    "shelve", "subprocess",
}  # fmt: skip
NAMES = {"__import__", "compile", "eval", "exec", "execfile"}
ATTRIBUTES = {
    "full_load", "popen", "read_pickle", "spawnv", "startfile", "to_pickle",
    "unsafe_load",
}  # fmt: skip
CALLS = {
    "joblib.dump", "joblib.load", "np.load", "numpy.load", "os.system", "torch.load", "yaml.load",
}  # fmt: skip
KEYWORDS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
ALLOWED = {"analyses/conditions/models.py": {"subprocess"}}  # it runs pip download, if asked to
IN_MEMORY = {"Parallel", "delayed"}  # of joblib: its workers are this process's own


def unsafe(text):
    """What a module does that can run what a file holds."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found = {name.name.partition(".")[0] for name in names} & MODULES
            case ast.ImportFrom(module="joblib", names=names):
                found = {name.name for name in names} - IN_MEMORY
            case ast.ImportFrom(module=str(module)):
                found = {module.partition(".")[0]} & MODULES
            case ast.Name(id=name):
                found = {name} & NAMES
            case ast.Attribute(attr=name):
                found = ({name} & ATTRIBUTES) | ({ast.unparse(node)} & CALLS)
            case ast.keyword(arg=name, value=ast.Constant(value=value)) if name in KEYWORDS:
                found = {name} if value is KEYWORDS[name] else set()
            case _:
                found = set()
        yield from found


def trusting_defaults(text):
    """Functions whose trust_remote_code is not False by default."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            both = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for argument, default in both:
                if argument.arg == "trust_remote_code" and ast.unparse(default) != "False":
                    yield node.name
            plain = {argument.arg for argument in (*node.args.args, *node.args.posonlyargs)}
            yield from {node.name} if "trust_remote_code" in plain else ()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_run_what_a_file_holds(path):
    text = path.read_text(encoding="utf-8")
    assert {*unsafe(text)} == ALLOWED.get(path.relative_to(ROOT).as_posix(), set())
    assert not {*trusting_defaults(text)}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import os, dill as safe",
        "from joblib import Parallel, load",
        "import joblib\njoblib.load(path)",
        "torch.load(path)",
        "np.load(path)",
        "load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "run = eval",
        "os.system('ls')",
        "load(name, trust_remote_code=True)",
        "load(name, weights_only=False)",
    ],
)
def test_what_could_would_be_seen(text):
    assert {*unsafe(text)}


@pytest.mark.parametrize("default", ["*, trust_remote_code=True", "*, trust_remote_code=None",
                                     "trust_remote_code=False"])  # fmt: skip
def test_trust_by_default_would_be_seen(default):
    assert [*trusting_defaults(f"def load(name, {default}): ...")] == ["load"]


def test_the_sources_are_all_of_the_package():
    assert len(SOURCES) > 100
