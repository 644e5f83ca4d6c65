"""The lines of a journal, before their fields are checked: one event per line, none lost, none added."""

import json
from pathlib import Path
from typing import Any, NoReturn

from flyjax.utils.errors import UserError

SCHEMA = 1

#: Names of fields in journals of earlier versions -> their names today.
OLD_NAMES = {
    "said": "config_overrides",
    "stand_ins": "stimulus_fallbacks",
    "unseen_s": "crashed_session_s",
}


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


def _parse(line: bytes) -> dict[str, Any]:
    """**Raises:** `ValueError` for an incomplete event, such as a line that was cut off."""
    event = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or "time" not in event:
        raise ValueError("not an event")
    return {OLD_NAMES.get(str(name), str(name)): value for name, value in event.items()}


def read_events(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """The events of a file, the number of bytes they take, and whether a line that was cut off follows them.

    **Raises:** `UserError` where a line in the middle is damaged, or of another schema.
    """
    *lines, rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
    events: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            event = _parse(line)
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
        events.append({name: value for name, value in event.items() if name != "seq"})
        size += len(line) + 1
    return events, size, bool(rest)
