"""A run that is taken up again: what the config may change, what it must not, what it keeps unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, parse_experiment
from flyjax.errors import UserError
from flyjax.search.journal import NAME, fold, read_journal

#: What may differ between the config of a run and the config it is resumed with.
CHANGEABLE = (
    "description", "search.max_usd", "search.max_calls", "search.max_tokens", "search.max_wall_s", "search.max_nodes",
    "search.max_disk_gb", "search.target", "search.patience", "search.n_blocks", "search.proposer", "search.transcript",
    "search.llm",
)  # fmt: skip


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; what is changeable is not taken apart."""
    out = {}
    for key, value in data.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" not in CHANGEABLE and value
        out.update(flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return out


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two experiments and must not, a phrase each."""
    was, now = flat(was), flat(now)
    return [f"{k} was {was.get(k)}, is {now.get(k)}" for k in sorted({*was, *now}) if was.get(k) != now.get(k) and k not in CHANGEABLE]


def check_unchanged(was: Mapping[str, Any], now: Mapping[str, Any], run_dir: str | Path) -> None:
    """**Raises:** `UserError` where a run would go on with another experiment than it began with."""
    found = differences(was, now)
    if found:
        raise UserError(f"the config differs from the one {run_dir} began with: {found[0]}; restore it, or choose another --run")


def experiment_of(run_dir: str | Path) -> dict[str, Any] | None:
    """The experiment of a run that has begun, as it was last called; None where none has."""
    if not (Path(run_dir) / NAME).is_file():
        return None
    return fold(read_journal(run_dir)).experiment or None


def changeable(data: Mapping[str, Any]) -> dict[str, Any]:
    """What an experiment says of the changeable settings, by dotted name; those of the language model one by one."""
    out = {}
    for name in CHANGEABLE:
        section, _, key = name.rpartition(".")
        held = data.get(section) or {} if section else data
        if key in held:
            out |= {f"{name}.{k}": v for k, v in held[key].items()} if name == "search.llm" else {name: held[key]}
    return out


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        data = data[part]
    data[last] = value


def taken_up(experiment: Experiment, was: Mapping[str, Any]) -> tuple[Experiment, list[str]]:
    """(the experiment a run goes on with, what that changes of the run, a line each).

    A limit that a call does not name, neither in its file nor by --set, is the run's own: who has limited what a run
    may cost does not lift the limit by forgetting to say it again. Null drops it. Only an experiment that comes right
    from its file says what was named.
    """
    data, own = experiment.model_dump(mode="json"), changeable(was)
    named = changeable(experiment.model_dump(mode="json", exclude_unset=True))
    now = changeable(data)
    for name in now:
        if name in own and name not in named:
            now[name] = own[name]
            _set(data, name, own[name])
    changed = [name for name in now if name in own and own[name] != now[name]]
    return parse_experiment(data, "the run's own settings"), [f"{name}: {_shown(own[name])} -> {_shown(now[name])}" for name in changed]


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
