"""Compile programs in the background, before they are needed: XLA lets other threads run meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

#: The last of the threads, which run one after the other. At its end a process waits for all that an executor was
#: given, but these see that it ends, and only the one that compiles is waited for.
_newest: threading.Thread | None = None
_pending: dict[Any, list[Future]] = {}


def compile_ahead(program: Any, lowered: Callable[[], Any]) -> None:
    """Have a function of `jax.jit` compiled in the background.

    **Arguments:** `lowered`: gives `program.lower` of what it will be called with, `jax.ShapeDtypeStruct` for arrays;
    called in the background too.
    """

    global _newest
    job: Future[None] = Future()

    def compile_it(before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        if threading.main_thread().is_alive() and job.set_running_or_notify_cancel():
            try:
                lowered().compile()
                job.set_result(None)
            except BaseException as error:
                job.set_exception(error)

    for other in [p for p, jobs in _pending.items() if all(job.done() for job in jobs)]:
        del _pending[other]
    _pending.setdefault(program, []).append(job)
    _newest = threading.Thread(target=compile_it, args=(_newest,), name="compile")
    _newest.start()


def ready(program: Any) -> Any:
    """Wait until a compilation in progress ends, cancel those not begun, and return the program.

    An error of the compilation is raised where the program is called.
    """
    for job in _pending.pop(program, ()):
        if not job.cancel():
            job.exception()
    return program
