"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager

AGAIN_S = 0.05  # until an interrupt that was ignored is sent once more


@contextmanager
def stoppable():
    """Ctrl-C is KeyboardInterrupt, a moment later where Python ignores it at first.

    It does so in finalisers and in callbacks of its garbage collector, of which JAX has one. Gives a function that
    raises it once more should it have got lost all the same; so does the end. Nests: the innermost hears it.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield lambda: None
        return
    asked, again, main, tell = [], [], threading.main_thread().ident, sys.unraisablehook

    def stop(signum, frame):
        asked.append(signum)
        raise KeyboardInterrupt

    def ignored(what):
        if what.exc_type is not KeyboardInterrupt:
            return tell(what)
        again.append(threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGINT)))
        again[-1].daemon = True
        again[-1].start()

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = ignored
    try:
        yield check
        check()
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = tell
        signal.signal(signal.SIGINT, before)
