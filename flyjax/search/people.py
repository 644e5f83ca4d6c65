"""Files of a run that people may write in while it runs: user_input.md and, between its markers, protocol.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flyjax.errors import UserError
from flyjax.search.protocol import EditRefused, body, with_body
from flyjax.search.state import State

MAX_INPUT = 20_000  # characters of one instruction
PENDING, DONE = "## Pending", "## Acknowledged"
_HEAD = f"""# Instructions to the search

Write below "{PENDING[3:]}". The next step reads it and moves it to "{DONE[3:]}".
"""


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one. Unchanged text is not written."""
    data = text.encode("utf-8", "backslashreplace")
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n") if path.is_file() else ""


def _instructions(run_dir: Path) -> str:
    # A key that somebody pasted goes into no journal, report or prompt.
    text, key = _read(run_dir / "user_input.md"), os.environ.get("ANTHROPIC_API_KEY", "").strip()
    return text.replace(key, "[redacted]") if len(key) >= 16 else text  # a local gateway's "x" is no secret


def _parts(text: str) -> tuple[str, int | None]:
    """(what is pending, how many entries are acknowledged, None in a file that is not laid out as ours)."""
    found = re.search(rf"^{PENDING}[ \t]*$", text, re.M)
    if not found:
        # A file without our headings is an instruction as a whole.
        return text.strip(), None
    pending, _, done = text[found.end() :].partition(f"\n{DONE}")
    return pending.strip(), len(re.findall(r"^- iteration \d+:", done, re.M))


def pending_input(run_dir: Path, state: State) -> str:
    """The instructions that no step has read yet, at most 20,000 characters."""
    return _parts(_instructions(run_dir))[0][:MAX_INPUT]


def acknowledge(run_dir: Path, state: State, just_read: str = "") -> None:
    """Write user_input.md: what was read moves to the acknowledged entries, newer text stays pending.

    A file that somebody has written as a whole is new, but for what was `just_read`. When a run is taken up, one
    that is word for word what was read last is what a crash left before this could move it.
    """
    path = run_dir / "user_input.md"
    text, listed = _parts(_instructions(run_dir))
    newest = state.acknowledged[-1][1] if state.acknowledged else ""
    if just_read:
        text = text.removeprefix(just_read).strip()
    elif newest and text == newest and (listed is None or listed < len(state.acknowledged)):
        text = ""
    elif newest and listed is not None and listed < len(state.acknowledged):
        text = text.removeprefix(newest).strip()
    done = "".join(f"- iteration {number}: {_indented(read)}\n" for number, read in state.acknowledged)
    parts = [_HEAD.rstrip(), PENDING, text, DONE, done.rstrip()]
    write_text(path, "\n\n".join(p for p in parts if p) + "\n")


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


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
