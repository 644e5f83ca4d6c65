"""Before a run begins or goes on: is this directory its own, and is the config the one it began with?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyjax.config import Experiment, parse_experiment
from flyjax.search.journal.journal import FILE_NAME
from flyjax.search.journal.state import State
from flyjax.search.proposals.validation import block_simulation
from flyjax.utils.errors import UserError

#: What may differ between the config of a run and the config it is resumed with: limits, and what changes no result.
CHANGEABLE = (
    "description", "search.max_usd", "search.max_calls", "search.max_tokens", "search.max_wall_s", "search.max_nodes",
    "search.max_disk_gb", "search.target", "search.patience", "search.n_blocks", "search.proposer", "search.transcript",
    "search.llm", "simulation.data_path", "training.checkpoint_every",
)  # fmt: skip

#: What a run writes and nobody else should have: a directory that holds any of it without a journal is not free.
WRITTEN = (
    "nodes", "analysis.md", "analysis.log", "ucb_scores.txt", "memory.md", "config.yaml", "protocol.md", "protocol", "report.html",
)  # fmt: skip


def check_free(run_dir: str | Path) -> None:
    """**Raises:** `UserError` where a new run would write over another one, or over what is no run at all."""
    held = [name for name in WRITTEN if (Path(run_dir) / name).exists()]
    if held:
        raise UserError(
            f"{run_dir} holds {held[0]} but no {FILE_NAME} with a run in it: choose another --run, or restore its {FILE_NAME} from a copy"
        )


def has_begun(run_dir: str | Path) -> bool:
    """Whether there is a journal with something in it."""
    path = Path(run_dir) / FILE_NAME
    return path.is_file() and path.stat().st_size > 0


def stimuli(experiment: Experiment, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The stimuli that proposers may choose from. **Raises:** `UserError` where a block's is not `given`."""
    base = experiment.simulation.visual_input_type
    span = experiment.search.simulation_ranges.get("visual_input_type")
    if given is None:
        return tuple(span.values) if span is not None else (base,)
    for block in range(1, experiment.search.n_blocks + 1):
        wanted = block_simulation(experiment, block)["visual_input_type"]
        if wanted not in given:
            raise UserError(
                f"block {block} shows {wanted!r}, which is not on this machine; there is: {', '.join(given)}"
            )
    return tuple(given)


def changed_settings(state: State, experiment: Experiment, run_dir: Path) -> dict[str, Any]:
    """Settings that differ from those the run has, by name; what an earlier version did not know had its default.

    **Raises:** `UserError` for one that may not differ, or a journal whose experiment this version cannot read.
    """
    began = parse_experiment(state.experiment, f"{run_dir}/{FILE_NAME}").model_dump(mode="json")
    was, now = _flat(began), _flat(experiment.model_dump(mode="json"))
    different = [key for key in sorted(set(was) | set(now)) if was.get(key) != now.get(key)]
    for key in different:
        if key not in CHANGEABLE:
            raise UserError(
                f"the config differs from the one {run_dir} began with: {key} was {was.get(key)}, is "
                f"{now.get(key)}; restore it, or choose another --run"
            )
    return {key: now.get(key) for key in different}


#: Why a run pauses where a person said no.
NOT_APPROVED = "not approved"


def declined(events: list[dict[str, Any]]) -> bool:
    """Whether the newest step of a journal was shown to a person who did not approve of it."""
    for event in reversed(events):
        if event["event"] not in ("run_paused", "run_resumed", "protocol_edited"):
            return False
        if event.get("reason") == NOT_APPROVED:
            return True
    return False


def read_protocol(path: str | Path) -> str:
    """The text of a template or of an earlier run's protocol. **Raises:** `UserError` where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no protocol {path}; name a protocol.md")
    return path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in data.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" not in CHANGEABLE and value
        out.update(_flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return out
