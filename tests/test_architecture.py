"""The house: its floors, its doors and its page agree with the import contracts and the code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "posprobe"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
MARKERS = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__"}
ENTRIES = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name not in MARKERS}
WITHOUT_DOOR = {"workflows"}  # each module is named after its command, and exports that name


def layers(container):
    """Floors of a package, top to bottom, as sets of names."""
    (contract,) = [c for c in CONTRACTS if c.get("containers") == [container]]
    return [set(re.findall(r"\w+", line)) for line in contract["layers"]]


def floors():
    """Rows of the floors table: rooms, what each does, what each owns."""
    (table,) = re.findall(r"^\| floor .*\n\|---.*\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def modules(room):
    """Names of a room's modules and folders, without its door."""
    inside = (PACKAGE / room).glob("*.py"), (PACKAGE / room).glob("*/__init__.py")
    files, folders = map(list, inside)
    return ({path.stem for path in files} | {path.parent.name for path in folders}) - {"__init__"}


def test_the_floors_table_is_the_layers_contract():
    assert [set(re.findall(r"`(\w+)`", cell)) for cell, *_ in floors()] == layers("posprobe")


def test_the_floors_table_says_what_each_room_does():
    for rooms, described, _ in floors():
        assert re.findall(r"\*\*(\w+)\*\* \w", described) == re.findall(r"`(\w+)`", rooms)


def test_the_floors_table_names_the_owner_of_each_outside_dependency():
    owned = {}
    for *_, cell in floors():
        for room, names in re.findall(r"(\w+): ([`\w, ]+)", cell):
            owned[room] = set(re.findall(r"`(\w+)`", names))
    protected = {}
    for contract in CONTRACTS:
        for importer in contract.get("allowed_importers", ()):
            room = importer.removeprefix("posprobe.")
            protected.setdefault(room, set()).update(contract["protected_modules"])
    assert owned == protected


def test_the_data_flow_names_every_room():
    (flow,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert set(re.findall(r"\w+", flow)) >= ENTRIES


def test_one_glance_shows_the_house():
    assert len(ENTRIES) <= 16
    assert len(layers("posprobe")) <= 10
    assert set.union(*layers("posprobe")) == ENTRIES


def test_a_room_of_more_than_five_modules_has_floors_of_its_own():
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    large = {p.relative_to(PACKAGE) for p in packages if len(modules(p.relative_to(PACKAGE))) > 5}
    assert large
    for room in large:
        name = ".".join(("posprobe", *room.parts))
        assert set.union(*layers(name)) == modules(room)


def imports(path):
    """Everything below posprobe that a module imports, as parts of dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the import in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in names if name.startswith("posprobe."))


def test_rooms_are_entered_through_their_doors():
    past = [
        f"{path.relative_to(ROOT)} imports posprobe.{room}.{'.'.join(rest)}"
        for path in PACKAGE.rglob("*.py")
        for room, *rest in imports(path)
        if room not in WITHOUT_DOOR | {path.relative_to(PACKAGE).parts[0]}
        if rest and rest[0] in modules(room)
    ]
    assert not past


@pytest.mark.parametrize("room", sorted(ENTRIES - WITHOUT_DOOR - {"cli", "errors"}))
def test_no_module_has_the_name_of_what_its_door_exports(room):
    door = ast.parse((PACKAGE / room / "__init__.py").read_text())
    (exported,) = [
        set(ast.literal_eval(node.value))
        for node in door.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    ]
    assert exported
    assert not exported & modules(room)


def markdown():
    """Pages that people write; those in analyses/reports are written by scripts."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*.md")]
    return [*pages, *ROOT.glob("analyses/*.md"), *ROOT.glob("analyses/zoo/*.md")]


@pytest.mark.parametrize("page", markdown(), ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_of_markdown_have_at_most_120_characters(page):
    lines = page.read_text().splitlines()
    free = ("|", "![")  # rows of tables and pictures cannot be broken, nor can links
    long = [s for s in lines if len(s) > 120 and not s.startswith(free) and "](" not in s]
    assert not long
