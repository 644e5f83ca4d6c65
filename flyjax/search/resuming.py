"""A run that is taken up again: what it keeps unasked, and what the call changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, parse_experiment
from flyjax.search.journal import fold, read_journal
from flyjax.search.opening import CHANGEABLE, has_begun
from flyjax.search.state import State

def begun(run_dir: str | Path) -> State | None:
    """A run that has begun, as it was last called; None where none has."""
    state = fold(read_journal(run_dir)) if has_begun(run_dir) else None
    return state if state is not None and state.started else None


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
