"""The time a session was last active: what a session that was killed had worked is not in the journal.

While a session works, a thread writes the time into `.alive` in the run directory. A session that ends removes the
file; a killed one leaves it to the next session, which journals the time beyond the last event.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flyjax.utils.atomic_io import write_atomic

FILE_NAME, INTERVAL_S = ".alive", 2.0


def crashed_session_seconds(run_dir: Path, last_event: float, now: float) -> float:
    """Seconds that a killed session worked after its last event (unix seconds); 0 where there is no record of it."""
    try:
        last_active = float((Path(run_dir) / FILE_NAME).read_text("ascii"))
    except (OSError, ValueError):
        return 0.0
    return max(0.0, min(last_active, now) - last_event)


class Heartbeat:
    """Writes the time every 2 s, from `start` to `stop`."""

    def __init__(self, run_dir: Path, clock: Callable[[], float]):
        self._path, self._clock, self._stopped = Path(run_dir) / FILE_NAME, clock, threading.Event()
        self._thread: threading.Thread | None = None
        self._paused = False
        self.waited_s = 0.0  # paused, and not yet in an event

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        with suppress(RuntimeError):  # no more threads: a kill would lose the time since the last event
            thread.start()
            self._thread = thread

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is written meanwhile: waiting for a user's answer is no work."""
        self._paused, since = True, self._clock()
        try:
            yield
        finally:
            self._paused, self.waited_s = False, self.waited_s + max(0.0, self._clock() - since)

    def stop(self) -> None:
        """Stop and remove the file. Without a `start` the file of an earlier session stays."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self.discard()

    def discard(self) -> None:
        with suppress(OSError):  # somebody's folder, or a directory that can no longer be written
            self._path.unlink()

    def _run(self) -> None:
        ended = False
        while not ended:
            if not self._paused:
                with suppress(OSError):  # a full disk is reported by the loop
                    write_atomic(self._path, f"{self._clock():.3f}\n")
            ended = self._stopped.wait(INTERVAL_S)
