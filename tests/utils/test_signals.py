"""Ctrl-C is never lost, and the handler that was there comes back."""

import gc
import signal
import sys
import time
import weakref
from contextlib import nullcontext

import pytest

from flyjax.cli import app
from flyjax.utils.signals import interruptible


class Dying:
    """Interrupted where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


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
