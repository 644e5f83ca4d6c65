"""Before a run begins: is the directory free, is the protocol there, and can this machine show the stimuli?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.search.journal.journal import FILE_NAME
from flyjax.search.proposals.space import block_simulation
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import USER_INPUT
from flyjax.utils.secrets import redact

#: Why a run pauses where the user did not approve of an iteration.
NOT_APPROVED = "not approved"


def check_free(run_dir: str | Path) -> None:
    """**Raises:** `UserError` where a new run would write over one whose journal was lost."""
    path = Path(run_dir)
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if not entry.name.startswith(".") and entry.name not in (FILE_NAME, USER_INPUT):
            raise UserError(
                f"{run_dir} holds {entry.name} but no {FILE_NAME} with a run in it: choose another --run, "
                f"or restore its {FILE_NAME} from a copy"
            )


def has_begun(run_dir: str | Path) -> bool:
    """Whether there is a journal that is not empty."""
    path = Path(run_dir) / FILE_NAME
    return path.is_file() and path.stat().st_size > 0


def stimuli(experiment: Experiment, available: tuple[str, ...] | None) -> tuple[str, ...]:
    """The stimuli that proposers may choose from; None: every one in the range.

    **Raises:** `UserError` where a block's stimulus is not available.
    """
    if available is None:
        span = experiment.search.simulation_ranges.get("visual_input_type")
        return tuple(span.values or ()) if span is not None else (experiment.simulation.visual_input_type,)
    for block in range(1, experiment.search.n_blocks + 1):
        wanted = block_simulation(experiment, block)["visual_input_type"]
        if wanted not in available:
            raise UserError(
                f"block {block} shows {wanted!r}, which is not on this machine; there is: {', '.join(available)}"
            )
    return tuple(available)


def was_declined(events: list[dict[str, Any]]) -> bool:
    """Whether the user was shown the newest step of a journal and did not approve of it."""
    for event in reversed(events):
        if event["event"] not in ("run_paused", "run_resumed", "protocol_edited"):
            break
        if event.get("reason") == NOT_APPROVED:
            return True
    return False


def read_protocol(path: str | Path) -> str:
    """The text of a template or of an earlier run's protocol. **Raises:** `UserError` where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no protocol {path}; name a protocol.md")
    return redact(path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n"))
