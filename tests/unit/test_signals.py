"""How launcher and doctor handle signals."""

import os
import signal
import threading

import pytest

from tf_gossip_pga.launch import signals


@pytest.fixture(autouse=True)
def _restored():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("before", [signal.SIG_DFL, lambda *_: None])
def test_the_previous_handler_is_restored(before):
    signal.signal(signal.SIGTERM, before)
    with pytest.raises(ZeroDivisionError), signals.handled({signal.SIGTERM: signals.interrupt}):
        assert signal.getsignal(signal.SIGTERM) == signals.interrupt
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_remains_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with signals.handled({signal.SIGTERM: signals.interrupt}):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_sigterm_is_an_interrupt():
    with signals.handled({signal.SIGTERM: signals.terminate}):
        with pytest.raises(signals.Terminated):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.type is KeyboardInterrupt


def test_outside_the_main_thread_nothing_changes():
    before, found = signal.getsignal(signal.SIGTERM), []

    def use():
        with signals.handled({signal.SIGTERM: signals.interrupt}):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_signal_waits_until_it_may_interrupt():
    with signals.handled({signal.SIGTERM: signals.terminate}):
        done = False
        with pytest.raises(signals.Terminated), signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done = True
        assert done
