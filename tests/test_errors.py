"""Ways out: what a signal leaves, whoever handles signals already, and notes on the way."""

import os
import signal
import threading

import pytest

from posprobe.errors import Stopped, noting, signals_blocked, stoppable

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
