"""A run that is taken up again: what it keeps unasked, and what the call changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, apply_overrides, parse_experiment, read_config
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import State, fold
from flyjax.search.run.opening import CHANGEABLE, has_begun


def begun(run_dir: str | Path) -> State | None:
    """A run that has begun, as it was last called; None where none has."""
    state = fold(read_journal(run_dir)) if has_begun(run_dir) else None
    return state if state is not None and state.started else None


def changeable(data: Mapping[str, Any]) -> dict[str, Any]:
    """What an experiment says of the changeable settings, by dotted name; those of the language model one by one."""
    out = {}
    for name in CHANGEABLE:
        section, _, key = name.rpartition(".")
        held = data.get(section) if section else data
        if isinstance(held, Mapping) and key in held:
            several = name == "search.llm" and isinstance(held[key], Mapping)
            out |= {f"{name}.{k}": v for k, v in held[key].items()} if several else {name: held[key]}
    return out


def said_by(config: str | Path) -> dict[str, Any]:
    """What a config file alone says of the changeable settings, without --set."""
    data = read_config(config)
    return changeable(apply_overrides(data, ())) if isinstance(data, dict) else {}


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        data = data[part]
    data[last] = value


def taken_up(
    experiment: Experiment, was: State, said: Mapping[str, Any], settings: Sequence[str]
) -> tuple[Experiment, list[str], dict[str, Any]]:
    """(the experiment a run goes on with, what that changes of the run, a line each, what its files have said by now).

    A limit that a call does not name is the run's own: who has limited what a run may cost does not lift the limit by
    forgetting to say it again. --set (`settings`) names one, null drops it; the config file names what it `said` where
    that is not what the files of earlier calls said, or the value that --set once stood against would come back. A
    journal that does not tell what they said leaves --set alone.
    """
    data, own, given = (
        experiment.model_dump(mode="json"),
        changeable(was.experiment),
        changeable(apply_overrides({}, settings)),
    )
    before = said if was.config_overrides is None else was.config_overrides
    named = {*given, *(k for k, v in said.items() if k not in before or before[k] != v)}
    now = changeable(data)
    for name in now:
        if name in own and name not in named:
            now[name] = own[name]
            _set(data, name, own[name])
    changed = [
        f"{name}: {_shown(own[name])} -> {_shown(now[name])}" for name in now if name in own and own[name] != now[name]
    ]
    # A file that repeats the run's own values, as its config.yaml does, takes nothing back of what another said.
    heard = {**before, **{k: v for k, v in said.items() if k in given or v != own.get(k)}}
    return parse_experiment(data, "the run's own settings"), changed, heard


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
