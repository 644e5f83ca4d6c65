"""The events of a journal: the fields that readers rely on, and a line of the file as an event.

A line is {"schema": 1, "seq": its number in the file, "event": name, "time": unix seconds, ...}. Fields that are not
listed here, and events of other names, are kept as they are: another version of the program may have written them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from flyjax.utils.errors import UserError

SCHEMA = 1

#: Names of fields in journals of earlier versions -> their names today.
OLD_NAMES = {"said": "config_overrides", "stand_ins": "stimulus_fallbacks", "unseen_s": "crashed_session_s"}

Data = dict[str, Any]
NodeTexts = dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], str]  # node id -> a line of the log


class Event(BaseModel):
    """What every event has."""

    model_config = ConfigDict(strict=True, extra="allow")

    event: str
    time: float  # unix seconds
    waited_s: float = 0.0  # of the time since the last event, seconds that a user's answer was waited for


class Session(Event):
    """A session begins (run_started) or goes on with (run_resumed) a run."""

    experiment: Data = {}
    config_overrides: Data | None = None  # changeable settings that the config files name (`flyjax.search.run.resume`)
    made_with: Data | None = None  # versions, devices, commit
    crashed_session_s: float = 0.0  # worked by a session that was killed, after its last event


class RunStarted(Session):
    """The first event of a run."""

    experiment: Data
    protocol: str
    stimulus_fallbacks: dict[str, str] | None = None


class Spending(Event):
    """What was paid ({}: nothing; None: not known), or before a call what the step may cost at most (call_started)."""

    usage: Data | None = None
    errors: list[str] = []


class ProtocolEdited(Event):
    """The protocol has a new text; `reverts` is the number of the edit that it takes back."""

    block: int
    by: str
    reason: str
    protocol: str
    diff: str
    reverts: int = 0


class ProtocolChange(BaseModel):
    """`old` is replaced by `new`; both empty where nothing changes."""

    old: str = ""
    new: str = ""
    reason: str = ""


class Proposal(Event):
    """An accepted step: the choice among the newest nodes and the next candidates."""

    iteration: int
    block: int = 0
    by: str = ""
    activity: NodeTexts = {}
    observation: NodeTexts = {}
    proposals: list[Data] = []
    simulation: Data = {}
    opens_block: bool = False
    n_next: int = 0
    why_none: str = ""
    notes: str = ""
    block_summary: str = ""
    protocol_edit: ProtocolChange | None = None
    user_input: str = ""
    usage: Data | None = None


class PlannedNode(BaseModel):
    """One candidate of an iteration."""

    node: int
    parent: int | str
    config: Data
    changes: Data
    strategy: str
    seeds: list[int]


class IterationStarted(Event):
    """An iteration begins: its place, its simulation, its nodes."""

    iteration: int
    block: int
    iter_in_block: int
    simulation: Data
    nodes: list[PlannedNode]


class NodeDone(Event):
    """A node was trained and evaluated (means over seeds, and each seed's metrics), or has no metrics for a reason."""

    node: int
    metrics: Data | None = None
    per_seed: list[Data] | None = None
    reason: str | None = None
    activity: str | None = None


class Choice(Event):
    """The chosen node of an iteration, and the parents of the next."""

    iteration: int
    chosen: int
    reason: str = ""
    next_parents: list[int | str]


class BlockEnded(Event):
    """A block is over: its summary, the edit of the protocol, the measures behind it."""

    block: int
    summary: str
    edit: ProtocolChange
    measures: Data = {}


#: The events of a run; one of another name is checked as an `Event`.
EVENTS: dict[str, type[Event]] = {
    "run_started": RunStarted,
    "run_resumed": Session,
    "run_paused": Spending,
    "run_finished": Event,
    "protocol_edited": ProtocolEdited,
    "call_started": Spending,
    "proposal": Proposal,
    "proposal_rejected": Spending,
    "iteration_started": IterationStarted,
    "node_finished": NodeDone,
    "node_failed": NodeDone,
    "choice": Choice,
    "block_ended": BlockEnded,
}


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


def parse_line(line: bytes) -> dict[str, Any]:
    """A line of the file, its fields under today's names.

    **Raises:** `ValueError` for what is no whole event, as a line that was cut off.
    """
    event = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or "time" not in event:
        raise ValueError("not an event")
    return {OLD_NAMES.get(name, name): value for name, value in event.items()}


def check_event(event: dict[str, Any]) -> None:
    """**Raises:** `UserError` for a field that is missing or of another type."""
    try:
        EVENTS.get(event["event"], Event).model_validate(event, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field, given = ".".join(map(str, first["loc"])), str(first["input"])[:40]
        raise UserError(
            f"the journal is damaged: {event['event']!r} has no valid {field!r} ({given!r}); "
            "restore the file from a copy"
        ) from None
