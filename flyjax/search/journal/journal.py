"""The journal: an append-only file of events, one JSON object per line. It is the run's state.

    with Journal(run_dir) as journal:          # takes the run's lock
        state = fold(journal.events)
        state = apply(state, journal.append("run_started", ...))

Every line is written and fsynced before anything follows from it. Its "seq", the number of the line in the file,
belongs to the line and not to the event: readers do not see it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyjax.search.journal.events import SCHEMA, check_event, parse_line
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import JOURNAL as FILE_NAME
from flyjax.utils.run_directory import RunDirectory
from flyjax.utils.secrets import redact


def clean(value: Any) -> Any:
    """A copy for JSON, without keys: numbers that are not finite become None, array scalars become plain numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 1024 else None  # beyond every float
    if isinstance(value, dict):
        return {redact(str(k)): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):
        return clean(value.tolist())
    if isinstance(value, Path):
        return redact(str(value))
    raise TypeError(f"a journal cannot hold a {type(value).__name__}")


def _to_line(event: dict[str, Any], number: int) -> bytes:
    """An event as the line of this number."""
    return json.dumps({"schema": event["schema"], "seq": number} | event, allow_nan=False).encode("ascii") + b"\n"


def _read(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """The events of a file, the number of bytes they take, and whether a line that was cut off follows them."""
    *lines, rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
    events: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            event = parse_line(line)
        except (ValueError, RecursionError):
            if number == len(lines) and not rest:
                return events, size, True
            raise UserError(
                f"{path}: line {number} is damaged and lines follow it; "
                "restore the file from a copy, or start a new run"
            ) from None
        if event.get("schema") != SCHEMA:
            raise UserError(
                f"{path}: line {number} has schema {event.get('schema')!r}, this version reads {SCHEMA}; "
                "use the version that wrote the run"
            )
        if event.get("seq", number) != number:  # journals of earlier versions do not number their lines
            raise UserError(
                f"{path}: line {number} says that it is line {event['seq']!r}: lines were lost or added before it; "
                "restore the file from a copy, or start a new run"
            )
        check_event(event)
        events.append({name: value for name, value in event.items() if name != "seq"})
        size += len(line) + 1
    return events, size, bool(rest)


def read_journal(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of a run, without its lock: for reports on a run that may be going on.

    **Raises:** `UserError` where there is no journal or a line in the middle is damaged.
    """
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        raise UserError(f"no {FILE_NAME} in {run_dir}: name a run directory, for example runs/quickstart")
    return _read(path)[0]


class Journal:
    """The open journal of a run, and its run directory `run`, which one process at a time has.

    **Arguments:** `clock` gives unix seconds.

    **Raises:** `UserError` as `RunDirectory` does, or where a line in the middle is damaged.
    """

    def __init__(self, run_dir: str | Path, clock: Callable[[], float] = time.time):
        self.run = RunDirectory(run_dir, "search")
        self.path, self._clock = self.run.path / FILE_NAME, clock
        self.warnings: list[str] = []
        try:
            self.events, self._size, self._cut_off = _read(self.path)
        except BaseException:
            self.close()
            raise
        if self._cut_off:
            self.warnings.append(
                f"{FILE_NAME}: line {len(self.events) + 1} was cut off while being written; it is dropped"
            )

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event, on disk when this returns.

        **Returns:** the event as a reader of the file sees it.

        **Raises:** `UserError` where the disk refuses (the event is not part of the journal then), or another
        process has written to the file.
        """
        written = json.loads(json.dumps(clean({"schema": SCHEMA, "event": event, "time": self._clock(), **fields})))
        line = _to_line(written, len(self.events) + 1)
        try:
            self._check_file()
            with open(self.path, "ab") as file:
                file.truncate(self._size)  # a line that was cut off goes before anything is added to it
                self._cut_off = True
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if not self.events:
                self._sync_folder()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; make room and run the same command again"
            ) from None
        self._size, self._cut_off = self._size + len(line), False
        self.events.append(written)
        return written

    def _check_file(self) -> None:
        """Make sure that the file ends where this process stopped writing."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._size:
            lines = [_to_line(event, number) for number, event in enumerate(self.events, 1)]
            write_atomic(self.path, b"".join(lines), sync=True)
            self._sync_folder()
            self._size = sum(map(len, lines))
            self.warnings.append(
                f"{FILE_NAME} was shortened or removed while the run was going; it is written again, nothing is lost"
            )
        elif size > self._size and not self._cut_off:
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
        """Release the run directory."""
        self.run.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
