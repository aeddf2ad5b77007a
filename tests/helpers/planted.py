"""Faults planted in a copy of the project, and what its tests say to them."""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests" / "planted" / "faults.toml"
COPIED = ("posprobe", "tests", "pyproject.toml")
# What pytest's report of a failed assertion begins with; any other exception is not a finding.
ASSERTION = re.compile(r"assert |AssertionError|Failed: ")


@dataclass(frozen=True)
class Fault:
    """One replacement of source text that makes a user's numbers wrong.

    `file` is relative to the package, and `before` occurs in it once. `caught_by` names tests as
    pytest does, relative to the folder of tests; each of them must fail.
    """

    name: str
    effect: str
    file: str
    before: str
    after: str
    caught_by: tuple[str, ...]

    @property
    def room(self):
        return self.file.partition("/")[0]

    def planted(self, source):
        """The source with the fault in it."""
        found = source.count(self.before)
        if found != 1:
            raise ValueError(
                f"fault {self.name!r}: its text occurs {found} times in posprobe/{self.file}, not "
                "once: update tests/planted/faults.toml"
            )
        return source.replace(self.before, self.after)


def read_faults():
    """All faults, in the order of the list."""
    faults = tomllib.loads(LIST.read_text())["fault"]
    return [Fault(**fault | {"caught_by": tuple(fault["caught_by"])}) for fault in faults]


@contextmanager
def copy_of_project(fault=None):
    """A temporary copy of package and tests with links to the rest, and the fault in it if any."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in ROOT.iterdir():
            if path.name not in COPIED:
                (folder / path.name).symlink_to(path)
            elif path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copy2(path, folder)
        if fault is not None:
            file = folder / "posprobe" / fault.file
            file.write_text(fault.planted(file.read_text()))
        yield folder


def run_tests(folder, tests):
    """What pytest reports of some tests of a copy: messages of failures by test function.

    A function that passed has the empty list, one of which a case failed has the messages.
    """
    report = folder / "report.xml"
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    subprocess.run(
        [*command, f"--junitxml={report}", *(f"tests/{test}" for test in tests)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    messages = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        found = messages[_test_of(case)]
        found += [part.get("message") for part in case if part.tag in ("failure", "error")]
    return dict(messages)


def _test_of(case):
    """The function of a reported case, written as in the list."""
    path, dot, kind = case.get("classname").removeprefix("tests.").partition(".Test")
    kind = f"::Test{kind}" if dot else ""
    return f"{path.replace('.', '/')}.py{kind}::{case.get('name').partition('[')[0]}"


def missed_by(fault, messages):
    """Named tests that did not fail with an assertion, each with what it said instead."""
    named = {test.partition("[")[0] for test in fault.caught_by}
    return {
        test: messages.get(test) or "passed"
        for test in sorted(named)
        if not any(ASSERTION.match(message) for message in messages.get(test, ()))
    }


def try_fault(fault):
    """Plant a fault in a copy, run the tests that should catch it: what missed it, and CPU time."""
    start = _seconds_of_children()
    with copy_of_project(fault) as folder:
        missed = missed_by(fault, run_tests(folder, fault.caught_by))
    return missed, _seconds_of_children() - start


def _seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row_of(fault):
    """Cells of a fault's row: room, name, effect, and the tests that catch it."""
    tests = ", ".join(f"`{test}`" for test in fault.caught_by)
    return fault.room, fault.name, fault.effect, tests
