"""Compile programs in the background, before they are needed: XLA lets other threads run meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_thread = ThreadPoolExecutor(1, "compile")
_pending: dict[Any, list[Future]] = {}


def compile_ahead(program: Any, lowered: Callable[[], Any]) -> None:
    """Have a function of `jax.jit` compiled in the background.

    **Arguments:** `lowered`: gives `program.lower` of what it will be called with, `jax.ShapeDtypeStruct` for arrays;
    called in the background too.
    """

    def compile_it() -> None:
        if threading.main_thread().is_alive():  # else the process waits for this thread to end
            lowered().compile()

    for other in [p for p, jobs in _pending.items() if all(job.done() for job in jobs)]:
        del _pending[other]
    _pending.setdefault(program, []).append(_thread.submit(compile_it))


def ready(program: Any) -> Any:
    """Wait until a compilation in progress ends, cancel those not begun, and return the program.

    An error of the compilation is raised where the program is called.
    """
    for job in _pending.pop(program, ()):
        if not job.cancel():
            job.exception()
    return program
