"""Ways out: what a signal leaves, whoever handles signals already, and notes on the way."""

import os
import re
import signal
import threading

import pytest

import posprobe
from posprobe import errors
from posprobe.errors import Stopped, noting, progress_bar, signals_blocked, stoppable

pytestmark = pytest.mark.usefixtures("signals")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_what_is_stoppable_and_its_repetition_does_not_disturb(name):
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    closed = []

    def work():
        with stoppable():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)
                closed.append(True)

    with pytest.raises(Stopped, match=name) as caught:
        work()
    assert closed
    assert caught.value.number == number
    assert signal.getsignal(number) == before


def test_signals_that_somebody_handles_stay_as_they_are():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_no_handler():
    failed = []

    def work():
        try:
            with stoppable():
                assert signal.getsignal(signal.SIGINT) == before
        except BaseException as error:
            failed.append(error)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_a_blocked_signal_comes_afterwards():
    seen = []

    def work():
        with stoppable(), signals_blocked("SIGINT", "SIGTERM"):
            # to this thread: another one of the process could take it at once
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            seen.append("inside")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["inside"]


def test_the_outermost_note_is_the_last():
    with pytest.raises(Stopped) as caught, noting("outer"), noting("inner"):
        raise Stopped(signal.SIGINT)
    assert caught.value.__notes__ == ["inner", "outer"]
    with pytest.raises(ValueError, match="other") as other, noting("outer"):
        raise ValueError("other")
    assert not hasattr(other.value, "__notes__")


def test_a_log_gets_a_plain_line_now_and_then(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(errors.time, "monotonic", lambda: now[0])
    with progress_bar(True, total=8, unit="token", desc="capture: a.h5") as bar:
        for _ in range(8):
            now[0] += 12
            bar.update()
            bar.refresh()  # what tqdm itself does when 30 seconds have gone
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    said = r"posprobe: capture: a\.h5:? 3 of 8 tokens \(38%\), \S+ gone, \S+ left"
    assert re.fullmatch(said, lines[0])


def test_a_short_run_leaves_a_log_empty(capsys):
    with progress_bar(True, total=2, unit="step") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(True, total=2, unit="step") as bar:
        bar.update(2)
    assert "2/2" in capsys.readouterr().err


def test_nothing_is_shown_where_nothing_was_asked_for(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(False, total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "call",
    [
        lambda: posprobe.analyze(["a.h5"], "out", resamples=99),
        lambda: posprobe.compare(["a.h5"], "out", resamples=99),
        lambda: posprobe.capture("model", "a.h5", resamples=99),
    ],
)
def test_an_argument_that_is_none_is_named_with_those_that_are(call):
    with pytest.raises(TypeError, match=r"'resamples' is no argument of this call, nor .* \("):
        call()
