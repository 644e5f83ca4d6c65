"""A run that goes on: the settings that it keeps, and those that a call may change.

A limit that a call does not name is the run's own: leaving it out does not lift it. --set names a setting, null drops
it. A config file names a setting where it says something else than the config files of earlier calls: otherwise a
value that --set replaced once would come back. `config_overrides` of the journal keep what the files have said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, apply_overrides, parse_experiment
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.search.journal.state import State, fold
from flyjax.search.run.opening import has_begun
from flyjax.utils.errors import UserError

#: What may differ between the config of a run and that of a later call: limits, and what changes no result.
CHANGEABLE = (
    "description", "search.max_usd", "search.max_calls", "search.max_tokens", "search.max_wall_s", "search.max_nodes",
    "search.max_disk_gb", "search.target", "search.patience", "search.n_blocks", "search.proposer", "search.transcript",
    "simulation.data_path", "training.checkpoint_every",
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
