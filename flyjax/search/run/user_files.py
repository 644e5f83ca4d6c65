"""Files of a run that users may edit while it runs: user_input.md and, between its markers, protocol.md."""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import State, apply, fold
from flyjax.search.protocol.document import EditRefused, body, diff, restored, with_body
from flyjax.search.run import render
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import RunDirectory
from flyjax.utils.secrets import redact

MAX_INPUT = 20_000  # characters of one instruction
PENDING, DONE = "## Pending", "## Acknowledged"
_HEAD = f"""# Instructions to the search

Write below "{PENDING[3:]}". The next step reads it and moves it to "{DONE[3:]}".
"""


def _decode(line: bytes) -> str:
    """A line in UTF-8, or in Latin-1 where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _read(path: Path) -> str:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf") if path.is_file() else b""
    return redact("\n".join(map(_decode, data.replace(b"\r\n", b"\n").split(b"\n"))))


def _instructions(run_dir: Path, state: State) -> tuple[str, int | None]:
    """The pending text of user_input.md, and how many acknowledged entries it lists (None: the file has no headings).

    Pending is the text under its heading, and every line elsewhere that the program did not write: users append to
    the end.
    """
    text = _read(run_dir / "user_input.md")
    found = re.search(rf"^{PENDING}[ \t]*$", text, re.M)
    if not found:
        return text.strip(), None
    pending, _, done = text[found.end() :].partition(f"\n{DONE}")
    written = {line.rstrip() for line in [*_HEAD.split("\n"), DONE, *_entries(state).split("\n")]} - {""}
    others = (
        "\n".join(line for line in part.split("\n") if line.rstrip() not in written)
        for part in (DONE + done, text[: found.start()])
    )
    parts = filter(None, map(str.strip, (pending, *others)))
    return "\n\n".join(parts), len(re.findall(r"^- iteration \d+:", done, re.M))


def pending_input(run_dir: Path, state: State) -> str:
    """The instructions that no step has read yet, at most 20,000 characters."""
    return _instructions(run_dir, state)[0][:MAX_INPUT]


def acknowledge(run_dir: Path, state: State, just_read: str = "") -> None:
    """Write user_input.md: what was read moves to the acknowledged entries, newer text stays pending.

    A file without the headings is new text, except for what was `just_read`. After a crash between journal and file
    the newest instruction, which the file does not list yet, moves as well.
    """
    text, n_listed = _instructions(run_dir, state)
    newest = state.acknowledged[-1][1] if state.acknowledged else ""
    unmoved = text == newest if n_listed is None else n_listed < len(state.acknowledged)
    text = _without(text, just_read or (newest if unmoved else ""))
    parts = [_HEAD.rstrip(), PENDING, text, DONE, _entries(state)]
    write_atomic(run_dir / "user_input.md", "\n\n".join(p for p in parts if p) + "\n")


def _entries(state: State) -> str:
    """The acknowledged instructions as the file lists them."""
    lines = (f"- iteration {number}: {text}".replace("\n", "\n  ") for number, text in state.acknowledged)
    return "\n".join(lines).rstrip()


def _without(text: str, read: str) -> str:
    """A text without the lines that were read; where one of them was changed since, the whole text."""
    if len(read) >= MAX_INPUT:  # cut off within a line
        return text.removeprefix(read).strip()
    rest, expected = [], read.split("\n") if read else []
    for line in text.split("\n"):
        if expected and line == expected[0]:
            expected.pop(0)
        else:
            rest.append(line)
    return text if expected else "\n".join(rest).strip()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def write_protocol(run: RunDirectory, text: str) -> None:
    """Write protocol.md, and note which version the file has now."""
    write_atomic(run.path / "protocol.md", text)
    run.note(protocol=_digest(redact(text)))


def edited_protocol(run: RunDirectory, state: State) -> str | None:
    """The protocol as a user changed it between the markers; None where nobody did.

    A missing file is no edit, nor is the version that was written last, whatever the journal holds: a kill may have
    come after the journal's line, or the journal may be an older copy.

    **Raises:** `UserError` for a change outside the markers, or one that the guard refuses.
    """
    path = run.path / "protocol.md"
    text = _read(path)
    if not text.strip() or text == state.protocol or _digest(text) == run.facts.get("protocol"):
        return None
    remedy = f"undo the change, or delete {path} to have the run's own version written again"
    try:
        merged = with_body(state.protocol, body(text))
    except (EditRefused, UserError) as error:
        raise UserError(f"{path} was edited in a way the search cannot use ({error}); {remedy}") from None
    if merged != text:
        raise UserError(f"{path} was edited outside the markers of the parent selection rule; {remedy}")
    return merged


def revert_protocol(run_dir: str | Path, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Take back the newest edit of a run's protocol that was not taken back yet.

    **Returns:** the event, with its reason and diff.

    **Raises:** `UserError` where there is no such edit, the run is in use, or protocol.md was edited by hand meanwhile.
    """
    run_dir = Path(run_dir)
    read_journal(run_dir)  # a missing run is an error here, not a new run
    with Journal(run_dir, clock) as journal:
        state = fold(journal.events)
        if edited_protocol(journal.run, state) is not None:
            raise UserError(
                f"{run_dir / 'protocol.md'} was edited by hand and the run has not read it yet: go on with the run "
                "once, or delete the file to drop that edit, then try again"
            )
        reverted = {e["reverts"] for e in state.edits if "reverts" in e}
        standing = [k for k, e in enumerate(state.edits) if "reverts" not in e and k not in reverted]
        if not standing:
            raise UserError(f"the protocol of {run_dir} has no edit to take back")
        newest = standing[-1]
        # protocols[0] is the run's first version, so protocols[k] is the one before edit k.
        text = restored(state.protocol, state.protocols[newest])
        event = journal.append(
            "protocol_edited", block=state.iteration.block if state.iteration else 0, by="user", reverts=newest,
            reason=f"taken back: {state.edits[newest]['reason']}", protocol=text, diff=diff(state.protocol, text),
        )  # fmt: skip
        write_protocol(journal.run, text)
        render.write(run_dir, apply(state, event))
    return event
