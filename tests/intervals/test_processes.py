"""Processes that refit give what one process gives, and end with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import processes_child as child
import pytest

from posprobe.intervals import in_processes

ROOT = Path(__file__).parents[2]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("n_jobs", [1, 2, None])
def test_results_come_in_the_order_of_the_calls(n_jobs):
    calls = [(2, n) for n in range(20)]
    assert list(in_processes(child.power, calls, n_jobs)) == [2**n for n in range(20)]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_warning_of_a_process_is_given_here(n_jobs):
    with pytest.warns(UserWarning, match="number") as heard:
        assert list(in_processes(child.warn, [(1,), (2,)], n_jobs)) == [1, 2]
    assert [str(one.message) for one in heard] == ["number 1", "number 2"]


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_another_backend_of_joblib_does_as_well(backend):
    with joblib.parallel_config(backend):
        assert list(in_processes(child.power, [(3, 2), (2, 3)], 2)) == [9, 8]


def test_a_process_that_the_system_kills_is_want_of_memory():
    with pytest.raises(MemoryError, match="a process was killed, likely for want of memory"):
        list(in_processes(child.die, [(1,), (2,)], 2))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "group", "status"),
    [(signal.SIGTERM, True, 143), (signal.SIGKILL, False, -9)],
)
def test_no_process_outlives_the_one_that_started_it(number, group, status, tmp_path):
    noise = tmp_path / "noise"
    with noise.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, child.__file__], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=file, text=True, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:resource_tracker"},
        )  # fmt: skip
    workers = started.stdout.readline().split()
    os.killpg(started.pid, number) if group else started.send_signal(number)
    assert started.wait(20) == status
    started.stdout.close()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(alive, workers))
    assert noise.read_text() == ""
