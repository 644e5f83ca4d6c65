"""Before a session: the directory, the protocol, the stimuli, and the settings of a run that goes on.

A limit that a call does not name is the run's own: leaving it out does not lift it. --set names a setting, null drops
it. A config file names a setting where it says something else than the config files of earlier calls: otherwise a
value that --set replaced once would come back. `config_overrides` of the journal keep what the files have said.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, apply_overrides, parse_experiment
from flyjax.search.iteration import block_simulation
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.search.journal.state import State, fold
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
    since = takewhile(lambda e: e["event"] in ("run_paused", "run_resumed", "protocol_edited"), reversed(events))
    return any(event.get("reason") == NOT_APPROVED for event in since)


def read_protocol(path: str | Path) -> str:
    """The text of a template or of an earlier run's protocol. **Raises:** `UserError` where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no protocol {path}; name a protocol.md")
    return redact(path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n"))


#: What may differ between the config of a run and that of a later call: limits, and what changes no result.
CHANGEABLE = (
    "description", "search.max_usd", "search.max_calls", "search.max_tokens", "search.max_wall_s", "search.max_nodes",
    "search.max_disk_gb", "search.confirm_share", "search.target", "search.patience", "search.n_blocks",
    "search.proposer", "search.transcript", "simulation.data_path", "training.checkpoint_every",
)  # fmt: skip  # and every setting of search.llm


def started_run(run_dir: str | Path) -> State | None:
    """The state of a run that has begun; None where none has."""
    state = fold(read_journal(run_dir)) if has_begun(run_dir) else None
    return state if state is not None and state.started else None


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; those of the language model have one level."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        section = isinstance(value, Mapping) and value and not name.startswith("search.llm.")
        out |= _flat(value, f"{name}.") if section else {name: value}
    return out


def _is_changeable(name: str) -> bool:
    return name in CHANGEABLE or name.startswith("search.llm.")


def changeable(data: Mapping[str, Any]) -> dict[str, Any]:
    """The changeable settings that an experiment or a config file names, by dotted name."""
    return {name: value for name, value in _flat(data).items() if _is_changeable(name)}


def resume_experiment(
    experiment: Experiment, run: State, config: Mapping[str, Any], settings: Sequence[str] = ()
) -> tuple[Experiment, dict[str, Any]]:
    """The experiment that a run goes on with.

    **Arguments:**

    - `experiment`: as this call's config file and settings have it.
    - `run`: the state of the run.
    - `config`: the changeable settings that the config file names.
    - `settings`: KEY=VALUE of --set.

    **Returns:** the experiment, and the `config_overrides` for the journal.
    """
    data, own, given = experiment.model_dump(mode="json"), changeable(run.experiment), apply_overrides({}, settings)
    earlier = config if run.config_overrides is None else run.config_overrides
    named = {*changeable(given), *(k for k, v in config.items() if k not in earlier or earlier[k] != v)}
    for name in changeable(data):
        if name in own and name not in named:
            *sections, key = name.split(".")
            target = data
            for section in sections:
                target = target[section]
            target[key] = own[name]
    # A file that repeats the run's own values, as its config.yaml does, changes nothing of what another one said.
    new = {k: v for k, v in config.items() if k in changeable(given) or v != own.get(k)}
    return parse_experiment(data, "the run's own settings"), {**earlier, **new}


def changed_settings(run: State, experiment: Experiment, run_dir: str | Path) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from the run's, by name: (before, now). One that the run does not know had its default.

    **Raises:** `UserError` for one that may not differ, or a journal whose experiment this version cannot read.
    """
    before = _flat(parse_experiment(run.experiment, f"{run_dir}/{FILE_NAME}").model_dump(mode="json"))
    now = _flat(experiment.model_dump(mode="json"))
    names = dict.fromkeys([*CHANGEABLE, *before, *now])
    changed = {k: (before.get(k), now.get(k)) for k in names if before.get(k) != now.get(k)}
    for name, (old, new) in changed.items():
        if not _is_changeable(name):
            raise UserError(
                f"the config differs from the one {run_dir} began with: {name} was {old}, is {new}; "
                "restore it, or choose another --run"
            )
    return changed


def setting_text(value: Any) -> str:
    """A setting as the terminal shows it."""
    return "none" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
