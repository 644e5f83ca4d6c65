"""Ctrl-C is never lost, and the handler that was there comes back."""

import gc
import signal
import sys
import time
import weakref
from contextlib import nullcontext

import pytest

from flyjax.cli import app
from flyjax.utils.signals import Interrupted, deferred, interruptible


class Dying:
    """Interrupted where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def none_ignored():
    """Background jobs are started to ignore SIGINT, nohup's SIGHUP."""
    names = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(name, signal.default_int_handler) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


@pytest.mark.parametrize("later", [True, False])
def test_an_interrupt_that_was_swallowed_is_raised_again(later):
    before, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt):
        with interruptible() as check:
            Dying()
            reached = True
            if later:
                check()
    assert reached and signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens():
    with interruptible() as check:
        check()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("where", ["finaliser", "weak", "collector"])
def test_an_interrupt_that_python_ignores_is_heard_a_moment_later(nested, where):
    def finaliser():
        Dying()

    def weak():
        kept = type("Thing", (), {})()
        reference = weakref.ref(kept, lambda _: signal.raise_signal(signal.SIGINT))
        del kept
        return reference

    def collector():
        def callback(phase, info):  # as JAX has one
            gc.callbacks.remove(callback)
            signal.raise_signal(signal.SIGINT)

        gc.callbacks.append(callback)
        gc.collect()

    def unheard():
        {"finaliser": finaliser, "weak": weak, "collector": collector}[where]()
        time.sleep(20)  # nobody checks

    before, hook, began = signal.getsignal(signal.SIGINT), sys.unraisablehook, time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with interruptible():
            if nested:
                with interruptible():
                    unheard()
            unheard()
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook


@pytest.mark.parametrize("nested", [True, False])
def test_a_script_stops_with_130_also_when_its_interrupt_got_lost(monkeypatch, capsys, nested):
    monkeypatch.setattr(app, "configure_logging", lambda: None)

    def program(standalone_mode):
        with interruptible() if nested else nullcontext():
            Dying()

    with pytest.raises(SystemExit) as end:
        app.run(program)
    assert end.value.code == 130 and capsys.readouterr().err.startswith("\nstopped; ")


def test_an_interrupt_that_compiled_code_made_an_error_of_is_no_crash(monkeypatch, capsys):
    monkeypatch.setattr(app, "configure_logging", lambda: None)

    def program(standalone_mode):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None  # as matplotlib's Agg does while it draws

    with pytest.raises(SystemExit) as end:
        app.run(program)
    assert end.value.code == 130 and len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_a_script_with_its_code_and_is_restored(monkeypatch, capsys, name):
    monkeypatch.setattr(app, "configure_logging", lambda: None)
    number = getattr(signal, name)
    before, reached = signal.getsignal(number), []

    def program(standalone_mode):
        with pytest.raises(Interrupted, match=name):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # a scheduler repeats it: what the first began is not disturbed
        reached.append(True)
        raise SystemExit(0)

    with pytest.raises(SystemExit) as end:
        app.run(program)
    assert reached and end.value.code == 128 + number and len(capsys.readouterr().err.split("\n")) == 3
    assert signal.getsignal(number) is before


def test_what_the_process_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_what_must_be_completed():
    done = []
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        with deferred() as is_waiting:
            assert not is_waiting()
            signal.raise_signal(signal.SIGTERM)
            assert is_waiting()
            done.append("completed")
        done.append("never")
    assert done == ["completed"]
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert done == ["completed"]
