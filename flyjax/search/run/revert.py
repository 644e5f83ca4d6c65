"""Take back an edit of a run's protocol, while no session works on the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import apply, fold
from flyjax.search.protocol.document import diff, restored
from flyjax.search.run import render
from flyjax.search.run.user_files import edited_protocol, write_protocol
from flyjax.utils.errors import UserError


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
