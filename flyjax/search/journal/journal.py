"""The journal: an append-only file of events, one JSON object per line. It is the run's state.

    with Journal(run_dir) as journal:          # takes the run's lock
        state = fold(journal.events)
        state = apply(state, journal.append("run_started", ...))

Every line is {"schema": 1, "seq": its number in the file, "event": name, "time": unix seconds, ...},
written and fsynced whole. `seq` belongs to the line, not to the event: readers do not see it.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flyjax.search.journal.state import Block, Choice, Iteration, Node, Spent, State, apply, fold
from flyjax.utils.errors import UserError

__all__ = [
    "Journal",
    "read_journal",
    "clean",
    "Block",
    "Choice",
    "Iteration",
    "Node",
    "Spent",
    "State",
    "apply",
    "fold",
]

SCHEMA = 1
NAME = "journal.jsonl"


def clean(value: Any) -> Any:
    """A JSON-able copy: numbers that are not finite become None, array scalars become plain numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 1024 else None  # beyond every float
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):
        return clean(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no place in a journal")


def _refuse_constant(token):
    raise ValueError(f"{token} is not JSON")


def _parse(line: bytes) -> dict[str, Any]:
    event = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise ValueError("not an event")
    if isinstance(event.get("time"), bool) or not isinstance(event.get("time"), (int, float)):
        raise ValueError("no time")
    return event


def _line(event: dict[str, Any], number: int) -> bytes:
    """An event as the line of this number."""
    schema = {"schema": event["schema"], "seq": number}
    return json.dumps(schema | event, allow_nan=False).encode("ascii") + b"\n"


def _read(path: Path) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Events, the number of good bytes, warnings."""
    data = path.read_bytes() if path.exists() else b""
    events, good, number = [], 0, 0
    while good < len(data):
        number += 1
        end = data.find(b"\n", good)
        last = end < 0 or end == len(data) - 1
        line = data[good:] if end < 0 else data[good:end]
        try:
            if end < 0:
                raise ValueError("no end of line")
            event = _parse(line)
        except (ValueError, RecursionError):
            if last:
                return events, good, [f"{path.name}: line {number} was cut off while being written; it is dropped"]
            raise UserError(
                f"{path}: line {number} is damaged and lines follow it; restore the file from a copy, or start a new run"
            ) from None
        if event.get("schema") != SCHEMA:
            raise UserError(
                f"{path}: line {number} has schema {event.get('schema')!r}, this version reads {SCHEMA}; "
                "use the version that wrote the run"
            )
        told = event.pop("seq", number)  # journals of earlier versions do not count their lines
        if told != number:
            raise UserError(
                f"{path}: line {number} says that it is line {told!r}: lines were lost or added before it; "
                "restore the file from a copy, or start a new run"
            )
        events.append(event)
        good = end + 1
    return events, good, []


def read_journal(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of a run, without its lock: for reports on a run that may be going on.

    **Raises:** `UserError` where there is no journal or a line in the middle is damaged.
    """
    path = Path(run_dir) / NAME
    if not path.is_file():
        raise UserError(f"no {NAME} in {run_dir}: name a run directory, for example runs/quickstart")
    return _read(path)[0]


class Journal:
    """The open journal of a run, held by one process.

    **Arguments:** `run_dir` is made where absent; `clock` gives unix seconds.

    **Raises:** `UserError` where another process holds the run, or a line in the middle is damaged.
    """

    def __init__(self, run_dir: str | Path, clock=time.time):
        run_dir = Path(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run directory {run_dir}: {error.strerror}; choose another --run"
            ) from None
        self.path, self._clock = run_dir / NAME, clock
        self._lock = FileLock(str(run_dir / ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"run {run_dir} is in use by another process; wait for it, stop it, or choose another --run"
            ) from None
        except OSError as error:
            self._lock = None
            raise UserError(f"cannot lock {run_dir}: {error.strerror}; is it writable?") from None
        try:
            self.events, self._good, self.warnings = _read(self.path)
            self._tail = self._beyond()  # what a crash left half-written
        except BaseException:
            self._lock.release()
            raise

    def append(self, event: str, **fields) -> dict[str, Any]:
        """Write one event, on disk when this returns; gives the event as a reader will see it.

        **Raises:** `UserError` where the disk refuses (nothing of the event is kept), or another process has
        written to the file.
        """
        written = json.loads(
            json.dumps(clean({"schema": SCHEMA, "event": event, "time": self._clock(), **fields}), allow_nan=False)
        )
        data = _line(written, len(self.events) + 1)
        try:
            self._mend()
            with open(self.path, "ab") as file:
                # What a crash left half-written goes before anything is added to it.
                file.truncate(self._good)
                self._tail = data
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not self.events:
                self._sync_folder()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; make room and run the same command again"
            ) from None
        self._good, self._tail = self._good + len(data), b""
        self.events.append(written)
        return written

    def _beyond(self) -> bytes:
        """What the file holds after its last good line."""
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            file.seek(self._good)
            return file.read()

    def _mend(self) -> None:
        """Make sure that the file ends where this process left it: every event is known here, others' are not."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._good:
            fresh = self.path.with_name(NAME + ".new")
            data = b"".join(_line(event, number) for number, event in enumerate(self.events, 1))
            with open(fresh, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            self._sync_folder()
            self._good = len(data)
            self.warnings.append(
                f"{NAME} was shortened or removed while the run was going; it is written again, nothing is lost"
            )
        elif not self._tail.startswith(self._beyond()):  # a torn end is this process's, or that of the one before it
            raise UserError(
                f"{self.path} is being written by another process; stop one of the two, then run the same command again"
            )

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Give the run free."""
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
