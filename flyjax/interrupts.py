"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

AGAIN_S = 0.05  # until an interrupt that nobody could hear is sent once more


def _deaf(frame) -> bool:
    """Whether Python would ignore an exception here: in a finaliser or a callback of its garbage collector."""
    while frame is not None:
        name = frame.f_code.co_name
        if name == "__del__" or "gc_callback" in name:  # JAX has one of the latter
            return True
        frame = frame.f_back
    return False


@contextmanager
def stoppable():
    """Ctrl-C is KeyboardInterrupt, also where Python would swallow it: then a moment later.

    Gives a function that raises it once more should it have got lost all the same; so does the end. Nests: the
    innermost hears it.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield lambda: None
        return
    asked, again, main = [], [], threading.main_thread().ident

    def stop(signum, frame):
        asked.append(signum)
        if not _deaf(frame):
            raise KeyboardInterrupt
        again.append(threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGINT)))
        again[-1].daemon = True
        again[-1].start()

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield check
        check()
    finally:
        for timer in again:
            timer.cancel()
        signal.signal(signal.SIGINT, before)
