"""A sign of life: what a session that was killed in a long training had worked, the journal alone cannot say.

While a session works, a thread writes the time into `.alive` in the run directory. A session that ends takes
the file with it; one that is killed leaves it to the next, which journals the time beyond the last event.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flyjax.utils.atomic_io import write_atomic

NAME, EVERY = ".alive", 10.0  # s


def unseen(run_dir: Path, last: float, now: float) -> float:
    """Seconds that a killed session worked after its last event, at time `last`; 0 where nothing tells."""
    try:
        alive = float((Path(run_dir) / NAME).read_text("ascii"))
    except (OSError, ValueError):
        return 0.0
    return max(0.0, min(alive, now) - last)


class Heartbeat:
    """Tells every 10 s that this session is alive, from `start` to `stop`."""

    def __init__(self, run_dir: Path, clock: Callable[[], float]):
        self._path, self._clock, self._over = Path(run_dir) / NAME, clock, threading.Event()
        self._thread: threading.Thread | None = None
        self._held = False
        self.waited = 0.0  # s held, until an event tells them

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No signs meanwhile: somebody's answer is waited for, and that is no work."""
        self._held, since = True, self._clock()
        try:
            yield
        finally:
            self._held, self.waited = False, self.waited + max(0.0, self._clock() - since)

    def stop(self) -> None:
        """No more signs; the file goes. Without a `start` the file of an earlier session stays."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            if self._held:
                continue
            try:
                write_atomic(self._path, f"{self._clock():.3f}\n")
            except OSError:
                pass  # a full disk: the loop will say so
