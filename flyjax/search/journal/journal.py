"""The journal: an append-only file of events, one JSON object per line. It is the run's state.

    with Journal(run_dir) as journal:          # takes the run's lock
        state = fold(journal.events)
        state = apply(state, journal.append("run_started", ...))

A line is {"schema": 1, "seq": its number in the file, "event": name, "time": unix seconds, ...}. It is written and
fsynced before anything follows from it. "seq" belongs to the line and not to the event: readers do not see it. Fields
that are not listed here, and events of other names, are kept: another version of the program may have written them.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.event_lines import SCHEMA, read_events
from flyjax.utils.run_directory import JOURNAL as FILE_NAME
from flyjax.utils.run_directory import RunDirectory
from flyjax.utils.secrets import redact

_Data = dict[str, Any]
_NodeTexts = dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], str]  # node id -> a line of the log
_Text = str | None
_Time = Annotated[float, Field(ge=0, lt=2.5e11)]  # unix seconds, before the year 9892
_Config = dict[str, float | str | bool | None]
_Usage = _Data | None  # what was paid: calls, tokens, usd; {}: nothing, None: not known


def _model(required: dict[str, Any], **optional: Any) -> type[BaseModel]:
    """A strict model of these fields; others are allowed."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in required.items()}
    fields |= {name: (kind, None) for name, kind in optional.items()}
    return create_model("Event", __config__=ConfigDict(strict=True, extra="allow"), **fields)


def _event(required: dict[str, Any] | None = None, **optional: Any) -> type[BaseModel]:
    # waited_s: of the time since the last event, seconds that a user's answer was waited for
    return _model({"event": str, "time": _Time, **(required or {})}, waited_s=float, **optional)


#: `old` is replaced by `new` in the protocol; both empty where nothing changes.
_Edit: Any = _model({}, old=str, new=str, reason=str)
_Metrics: Any = _model({}, reasons=_Data)
_Experiment: Any = _model({}, **dict.fromkeys(("simulation", "model", "training", "search"), _Data))
_Simulation: Any = _model({"visual_input_type": str})
_PlannedNode: Any = _model(
    {"node": int, "parent": int | str, "config": _Config, "changes": _Data, "strategy": str, "seeds": list[int]}
)
# crashed_session_s: worked by a session that was killed, after its last event; startup_s: by this process before it
_session: dict[str, Any] = {"config_overrides": _Data, "made_with": _Data} | dict.fromkeys(
    ("crashed_session_s", "startup_s"), float
)

#: Every kind of event: (what it must have, what it may have).
EVENTS: dict[str, type[BaseModel]] = {
    "run_started": _event({"experiment": _Experiment, "protocol": str}, stimulus_fallbacks=dict[str, str], **_session),
    "run_resumed": _event(experiment=_Experiment, **_session),
    "run_paused": _event(reason=str, usage=_Usage),
    "run_finished": _event(reason=str),
    "protocol_edited": _event(
        {"block": int, "by": str, "reason": str, "protocol": str, "diff": str},
        reverts=int,  # number of the edit that this one takes back
    ),
    # Before a paid call: what the step may have cost at most when the call is over.
    "call_started": _event(usage=_Data),
    # An accepted step: the choice among the newest nodes and the next candidates.
    "proposal": _event(
        {"iteration": int},
        block=int, by=str, activity=_NodeTexts, observation=_NodeTexts, proposals=list[_Data], simulation=_Data,
        opens_block=bool, n_next=int, why_none=str, notes=str, block_summary=str, protocol_edit=_Edit | None,
        user_input=str, usage=_Usage,
    ),
    "proposal_rejected": _event(errors=list[str], usage=_Usage),
    "iteration_started": _event(
        {"iteration": int, "block": int, "iter_in_block": int, "simulation": _Simulation, "nodes": list[_PlannedNode]},
        kind=str,
    ),
    "node_finished": _event(
        {"node": int}, metrics=_Metrics | None, per_seed=list[_Metrics] | None, reason=_Text, activity=_Text
    ),
    "node_failed": _event({"node": int}, reason=_Text),
    "choice": _event({"iteration": int, "chosen": int, "next_parents": list[int | str]}, reason=str, map_score=_Data),
    "block_ended": _event({"block": int, "summary": str, "edit": _Edit}, measures=_Data),
}  # fmt: skip
_OTHER = _event()


def check_event(event: dict[str, Any]) -> None:
    """**Raises:** `UserError` for a field that is missing or of another type."""
    try:
        EVENTS.get(event["event"], _OTHER).model_validate(event)
    except ValidationError as error:
        first = error.errors()[0]
        field, given = ".".join(map(str, first["loc"])), str(first["input"])[:40]
        raise UserError(
            f"the journal is damaged: {event['event']!r} has no valid {field!r} ({given!r}); "
            "restore the file from a copy"
        ) from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a journal cannot hold a {type(value).__name__}")


def clean(value: Any) -> Any:
    """A copy as JSON reads it back, without keys: what is no finite number becomes None, arrays become lists."""
    text = json.dumps(value, default=_plain)

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) <= 308 else None  # beyond every float

    return redact(json.loads(text, parse_int=whole, parse_constant=lambda token: None))


def _to_line(event: dict[str, Any], number: int) -> bytes:
    return json.dumps({"schema": event["schema"], "seq": number} | event, allow_nan=False).encode("ascii") + b"\n"


def _read(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """As `read_events`, with the fields of every event checked."""
    events, size, cut_off = read_events(path)
    for event in events:
        check_event(event)
    return events, size, cut_off


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
        written = clean({"schema": SCHEMA, "event": event, "time": self._clock(), **fields})
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
