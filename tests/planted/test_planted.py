"""Every fault of the list still applies, its tests exist, and some are tried here.

The others take minutes together: ``make planted`` tries them all.
"""

import ast
import dataclasses
import re

import planted
import pytest

FAULTS = {fault.name: fault for fault in planted.read_faults()}
FAST = ("own text as prefix", "Holm without order", "diagonal of the U-statistic")
PAGE = planted.ROOT / "docs" / "reliability.md"


def names_in(path):
    """Functions and methods of a file of tests, as pytest names them."""
    tree = ast.parse(path.read_text())
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner, ahead in [(tree, ""), *((kind, f"{kind.name}::") for kind in kinds)]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield ahead + node.name


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_still_applies(fault):
    source = (planted.ROOT / "posprobe" / fault.file).read_text()
    changed = fault.planted(source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_named_test_exists(fault):
    assert fault.caught_by
    for test in fault.caught_by:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in set(names_in(planted.ROOT / "tests" / file))


def test_the_list_covers_the_path_from_text_to_report():
    assert len(FAULTS) == len(planted.read_faults()) >= 25
    rooms = {"stimuli", "captures", "models", "store", "channels", "probes", "intervals"}
    rooms |= {"architectures", "analysis", "claims", "comparison", "report"}
    assert {fault.room for fault in FAULTS.values()} == rooms


def test_the_page_has_every_fault_with_its_tests():
    rows = re.findall(r"^\| (\w+) \| (.+?): (.+?) \| (.+?) \| \d+ \|$", PAGE.read_text(), re.M)
    assert rows == [tuple(planted.row_of(fault)) for fault in FAULTS.values()]


def test_a_text_that_is_not_there_once_is_refused():
    fault = FAULTS["sign of M"]
    for source in ("", 2 * fault.before):
        with pytest.raises(ValueError, match=r"'sign of M': its text occurs . times in"):
            fault.planted(source)


@pytest.mark.parametrize("name", FAST)
def test_a_fault_is_caught(name):
    missed, _ = planted.try_fault(FAULTS[name])
    assert not missed


@pytest.mark.parametrize("after", ["unaltered", "another error"])
def test_only_a_failed_assertion_is_a_finding(after):
    fault = FAULTS["Holm without order"]
    text = {"unaltered": fault.before, "another error": "nothing_of_this_name"}[after]
    missed, _ = planted.try_fault(dataclasses.replace(fault, after=text))
    (found,) = missed.values()
    assert found == "passed" if after == "unaltered" else "NameError" in found[0]
