"""Files of a run that people may write in while it runs: user_input.md and, between its markers, protocol.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flyjax.search.journal.state import State
from flyjax.search.protocol.document import EditRefused, body, with_body
from flyjax.search.sanitize import scrub
from flyjax.utils import environment
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError

MAX_INPUT = 20_000  # characters of one instruction
PENDING, DONE = "## Pending", "## Acknowledged"
_HEAD = f"""# Instructions to the search

Write below "{PENDING[3:]}". The next step reads it and moves it to "{DONE[3:]}".
"""


def _decoded(line: bytes) -> str:
    """A line in UTF-8, or in Latin-1 where it is not: what people type gets lost nowhere."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _read(path: Path) -> str:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf") if path.is_file() else b""
    return "\n".join(map(_decoded, data.replace(b"\r\n", b"\n").split(b"\n")))


def without_key(text: str) -> str:
    """A text without the key of the language model, which goes into no journal, report or prompt."""
    return scrub(text, environment.api_key())


def _instructions(run_dir: Path, state: State) -> tuple[str, int | None]:
    """(what is pending in user_input.md, how many entries are acknowledged there, None in a file that is not laid out as ours).

    Pending is what stands under its heading, and whatever else in the file is not ours: people append to the end.
    """
    text = without_key(_read(run_dir / "user_input.md"))
    found = re.search(rf"^{PENDING}[ \t]*$", text, re.M)
    if not found:
        # A file without our headings is an instruction as a whole.
        return text.strip(), None
    pending, _, done = text[found.end() :].partition(f"\n{DONE}")
    ours = {line.rstrip() for line in [*_HEAD.split("\n"), DONE, *_entries(state).split("\n")]} - {""}
    others = (
        "\n".join(line for line in part.split("\n") if line.rstrip() not in ours)
        for part in (DONE + done, text[: found.start()])
    )
    told = "\n\n".join(filter(None, map(str.strip, (pending, *others))))
    return told, len(re.findall(r"^- iteration \d+:", done, re.M))


def pending_input(run_dir: Path, state: State) -> str:
    """The instructions that no step has read yet, at most 20,000 characters."""
    return _instructions(run_dir, state)[0][:MAX_INPUT]


def acknowledge(run_dir: Path, state: State, just_read: str = "") -> None:
    """Write user_input.md: what was read moves to the acknowledged entries, newer text stays pending.

    A file that somebody has written as a whole is new, but for what was `just_read`. When a run is taken up, one
    that is word for word what was read last is what a crash left before this could move it.
    """
    path = run_dir / "user_input.md"
    text, listed = _instructions(run_dir, state)
    newest = state.acknowledged[-1][1] if state.acknowledged else ""
    if just_read:
        text = _without(text, just_read)
    elif newest and text == newest and (listed is None or listed < len(state.acknowledged)):
        text = ""
    elif newest and listed is not None and listed < len(state.acknowledged):
        text = _without(text, newest)
    parts = [_HEAD.rstrip(), PENDING, text, DONE, _entries(state)]
    write_atomic(path, "\n\n".join(p for p in parts if p) + "\n")


def _entries(state: State) -> str:
    """The acknowledged instructions as the file lists them."""
    return "".join(f"- iteration {number}: {_indented(read)}\n" for number, read in state.acknowledged).rstrip()


def _without(text: str, read: str) -> str:
    """A text less the lines that were read, whatever was put between them; where one was changed, all of it is new."""
    if len(read) >= MAX_INPUT:  # cut off somewhere
        return text.removeprefix(read).strip()
    left, gone = [], read.split("\n")
    for line in text.split("\n"):
        if gone and line == gone[0]:
            gone.pop(0)
        else:
            left.append(line)
    return text if gone else "\n".join(left).strip()


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def left_by_a_crash(events: list[dict[str, Any]], state: State) -> tuple[str, ...]:
    """Versions of the protocol that protocol.md may hold although nobody put them there.

    An edit is journaled, then written: what comes between the two leaves the version before it.
    """
    last = next((e["event"] for e in reversed(events) if e["event"] not in ("run_resumed", "run_paused")), "")
    return state.protocols[-2:] if last == "protocol_edited" else ()


def edited_protocol(run_dir: Path, state: State, own: tuple[str, ...] = ()) -> str | None:
    """The protocol as a person changed it between the markers; None where nobody did.

    A missing file, or one that is one of the run's `own` versions, is no edit.

    **Raises:** `UserError` for a change outside the markers, or one that the guard refuses.
    """
    path = run_dir / "protocol.md"
    text = _read(path)
    if not text.strip() or text == state.protocol or text in own:
        return None
    remedy = f"undo the change, or delete {path} to have the run's own version written again"
    try:
        inside = body(text)
        merged = with_body(state.protocol, inside)
    except (EditRefused, UserError) as error:
        raise UserError(f"{path} was edited in a way the search cannot use ({error}); {remedy}") from None
    if merged != text:
        raise UserError(f"{path} was edited outside the markers of the parent selection rule; {remedy}")
    return merged
