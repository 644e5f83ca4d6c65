"""Ctrl-C as a KeyboardInterrupt that cannot get lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPEAT_S = 0.05  # until an interrupt that Python discarded is raised again


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt at Ctrl-C, also where Python discards exceptions.

    It does so in finalisers and in callbacks of the garbage collector, one of which is JAX's; the interrupt is then
    raised again by a timer. Contexts may be nested. No effect outside the main thread, which alone receives signals.

    **Returns:** a function that raises KeyboardInterrupt if there was an interrupt; the end of the context does too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    interrupted, hook = False, sys.unraisablehook

    def interrupt(signum, frame):
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def repeat(discarded):
        if discarded.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, REPEAT_S)
        else:
            hook(discarded)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    sys.unraisablehook = repeat
    try:
        yield check
        check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
