"""The events of a journal: the fields that readers rely on, and a line of the file as an event.

A line is {"schema": 1, "seq": its number in the file, "event": name, "time": unix seconds, ...}. Fields that are not
listed here, and events of other names, are kept as they are: another version of the program may have written them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, create_model

from flyjax.utils.errors import UserError

SCHEMA = 1

#: Names of fields in journals of earlier versions -> their names today.
OLD_NAMES = {
    "said": "config_overrides",
    "stand_ins": "stimulus_fallbacks",
    "unseen_s": "crashed_session_s",
}

_Data = dict[str, Any]
_NodeTexts = dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], str]  # node id -> a line of the log
_Text = str | None
_Usage = _Data | None  # what was paid: calls, tokens, usd; {}: nothing, None: not known


def _model(required: dict[str, Any], **optional: Any) -> type[BaseModel]:
    """A strict model of these fields; others are allowed."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in required.items()}
    fields |= {name: (kind, None) for name, kind in optional.items()}
    return create_model("Event", __config__=ConfigDict(strict=True, extra="allow"), **fields)


def _event(required: dict[str, Any] | None = None, **optional: Any) -> type[BaseModel]:
    # waited_s: of the time since the last event, seconds that a user's answer was waited for
    return _model({"event": str, "time": float, **(required or {})}, waited_s=float, **optional)


#: `old` is replaced by `new` in the protocol; both empty where nothing changes.
_Edit: Any = _model({}, old=str, new=str, reason=str)
_PlannedNode: Any = _model(
    {"node": int, "parent": int | str, "config": _Data, "changes": _Data, "strategy": str, "seeds": list[int]}
)
# crashed_session_s: worked by a session that was killed, after its last event
_session: dict[str, Any] = {"config_overrides": _Data, "made_with": _Data, "crashed_session_s": float}

#: Every kind of event: (what it must have, what it may have).
EVENTS: dict[str, type[BaseModel]] = {
    "run_started": _event({"experiment": _Data, "protocol": str}, stimulus_fallbacks=dict[str, str], **_session),
    "run_resumed": _event(experiment=_Data, **_session),
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
        {"iteration": int, "block": int, "iter_in_block": int, "simulation": _Data, "nodes": list[_PlannedNode]}
    ),
    "node_finished": _event(
        {"node": int}, metrics=_Data | None, per_seed=list[_Data] | None, reason=_Text, activity=_Text
    ),
    "node_failed": _event({"node": int}, reason=_Text),
    "choice": _event({"iteration": int, "chosen": int, "next_parents": list[int | str]}, reason=str),
    "block_ended": _event({"block": int, "summary": str, "edit": _Edit}, measures=_Data),
}  # fmt: skip
_OTHER = _event()


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


def parse_line(line: bytes) -> dict[str, Any]:
    """A line of the file, its fields under today's names.

    **Raises:** `ValueError` for an incomplete event, such as a line that was cut off.
    """
    event = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or "time" not in event:
        raise ValueError("not an event")
    return {OLD_NAMES.get(str(name), str(name)): value for name, value in event.items()}


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
