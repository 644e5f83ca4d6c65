"""Signals that end a process, as a KeyboardInterrupt that cannot get lost and may wait for a good moment."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPEAT_S = 0.05  # until an interrupt that Python discarded is raised again
#: Ctrl-C, termination, a closed terminal and Slurm's warning before the end of a job, where they exist.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
_ALARM = [signal.SIGALRM] if hasattr(signal, "setitimer") else []  # not on Windows


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` was received."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")


class Check:
    """Raises `Interrupted` where there was a signal; `number` is the first, or 0."""

    number = 0

    def __call__(self) -> None:
        if self.number:
            raise Interrupted(self.number)

    def receive(self, number: int, frame: object) -> None:
        """Handle a signal: later ones, which schedulers send, do not disturb what the first began, but for Ctrl-C."""
        if not self.number and number in SIGNALS:
            self.number = number
        elif number not in (signal.SIGINT, *_ALARM):
            return
        self()


_check: Check | None = None  # of the outermost context


@contextmanager
def interruptible() -> Iterator[Check]:
    """Raise `Interrupted` at a signal of `SIGNALS`, also where Python discards exceptions.

    It does so in finalisers and in callbacks of the garbage collector, one of which is JAX's; the interrupt is then
    raised again by a timer. Signals that the process was started to ignore stay ignored, as nohup wants it, but for
    Ctrl-C. Contexts may be nested. No effect outside the main thread, which alone receives signals.

    **Returns:** a function that raises if there was a signal; the end of the context does too.
    """
    global _check
    if threading.current_thread() is not threading.main_thread():
        yield Check()
        return
    if _check is not None:
        yield _check
        _check()
        return
    check, hook = Check(), sys.unraisablehook

    def repeat(discarded):
        if not issubclass(discarded.exc_type, KeyboardInterrupt):
            hook(discarded)
        elif _ALARM:
            signal.setitimer(signal.ITIMER_REAL, REPEAT_S)

    wanted = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, check.receive) for number in (*wanted, *_ALARM)}
    sys.unraisablehook, _check = repeat, check
    try:
        yield check
        check()
    finally:
        if _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook, _check = hook, None
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Let signals wait until the end of the context; a Ctrl-C after another signal does not wait.

    Signals that would end the process at once still do.

    **Returns:** a function: the number of the one that is waiting, or 0.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    handlers = {n: handler for n in (*SIGNALS, *_ALARM) if callable(handler := signal.getsignal(n))}

    def receive(number, frame):
        if waiting and number == signal.SIGINT:
            handlers[number](number, frame)
        waiting.append(number)

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield lambda: waiting[0] if waiting else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        handlers[waiting[0]](waiting[0], None)
