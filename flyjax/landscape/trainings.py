"""A table of trainings: one row per configuration and seed, from runs, sweeps and tables."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flyjax.config import PROTOCOL_RANGES, TUNABLE, Model, Simulation, Training, read_yaml_file
from flyjax.config.strict import SectionError
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError, reading
from flyjax.utils.event_lines import read_events
from flyjax.utils.format import csv_table, finite, printable, read_csv
from flyjax.utils.metric_names import TRANSCRIPT
from flyjax.utils.run_directory import JOURNAL

#: What the trainings of one map have in common unless they are pooled: never a setting that a search may vary.
CONDITIONS = (
    *("learner", "ground_truth", "stimulus"),
    *("n_frames", "delta_t", "extent", "measurement_noise_level", "width"),
)
#: Learners with a name, by what differs from the published one; others are called by their differences.
LEARNERS = {
    "": "published",
    "embedding_size 8, activation gelu, units data, schedule warmup_cosine": "reliable",
}
#: Metrics that are read; a training that diverged counts as 0 in those of which 1 is the best.
METRICS = (*TRANSCRIPT, "one_step_R2", "external_input_R2", "final_error", "final_loss", "wall_s")
TABLE = "trainings.csv.gz"


@dataclass(frozen=True)
class Trainings:
    """Trainings by column.

    **Attributes:**

    - `settings`, `conditions`: one value per training, by the name of the setting or condition.
    - `metrics`: one number per training, NaN where there is none.
    - `seeds`: of the trainings.
    - `reasons`: why a training has no result; empty where it has one.
    """

    settings: Mapping[str, tuple[Any, ...]]
    conditions: Mapping[str, tuple[Any, ...]]
    metrics: Mapping[str, Float[np.ndarray, " n"]]
    seeds: tuple[int, ...]
    reasons: tuple[str, ...]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Trainings:
        """The table of rows `{"settings": {…}, "conditions": {…}, "seed": 0, "metrics": {…}, "reason": ""}`.

        A setting or condition that a row lacks is None; a metric that it lacks is NaN.
        """
        rows = list(rows)

        def columns(key: str) -> dict[str, tuple[Any, ...]]:
            names = dict.fromkeys(name for row in rows for name in row.get(key) or {})
            return {name: tuple((row.get(key) or {}).get(name) for row in rows) for name in names}

        metrics = {
            name: np.array([np.nan if (v := finite(value)) is None else v for value in values])
            for name, values in columns("metrics").items()
        }
        seeds = tuple(int(row.get("seed") or 0) for row in rows)
        return cls(
            columns("settings"), columns("conditions"), metrics, seeds, tuple(str(r.get("reason") or "") for r in rows)
        )

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> Trainings:
        """The trainings of run directories of searches and sweeps, and of tables (trainings.csv, trainings.csv.gz).

        Trainings that were stopped early by successive halving are left out: they are no result of their setting.

        A training that is read twice counts once.

        **Raises:** `UserError` for a path that holds neither, a damaged file, or a value that no training can have.
        """
        rows = {_key(row): row for path in map(Path, paths) for row in _rows(path) if _check(path, row)}
        return cls.from_rows(rows.values())

    def write(self, path: str | Path) -> None:
        """Write a compressed table that `read` reads, numbers to five digits; settings that nobody varied are left out.

        **Raises:** `UserError` where the file cannot be written.
        """
        settings = [n for n in self.settings if n in PROTOCOL_RANGES or n in self.varied()]
        columns = {n: self.conditions[n] for n in self.conditions} | {n: self.settings[n] for n in settings}
        columns |= {"seed": self.seeds}
        for name, values in self.metrics.items():
            columns[name] = tuple(float(f"{v:.5g}") if np.isfinite(v) else None for v in values)
        columns |= {"reason": self.reasons}
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        # Without a time in its header, the same table is the same file.
        data = gzip.compress(csv_table(tuple(columns), rows).encode(), 9, mtime=0)
        try:
            write_atomic(Path(path), data)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None

    def __len__(self) -> int:
        return len(self.seeds)

    def where(self, mask: Bool[np.ndarray, " n"] | Sequence[bool]) -> Trainings:
        """The trainings that are True in `mask`."""
        keep: list[int] = np.flatnonzero(np.asarray(mask, bool)).tolist()

        def pick(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(column[k] for k in keep)

        return Trainings(
            {name: pick(column) for name, column in self.settings.items()},
            {name: pick(column) for name, column in self.conditions.items()},
            {name: values[keep] for name, values in self.metrics.items()},
            pick(self.seeds),
            pick(self.reasons),
        )

    def varied(self, names: Iterable[str] | None = None) -> tuple[str, ...]:
        """The settings and conditions with more than one value, or those among `names`."""
        columns = {**self.settings, **self.conditions}
        names = columns if names is None else names
        return tuple(n for n in names if n in columns and len(set(map(_key, columns[n]))) > 1)

    def groups(self, names: Iterable[str]) -> Int[np.ndarray, " n"]:
        """A number per training, the same for trainings with equal values of all of `names`, in order of appearance."""
        columns = [c for n in names if (c := {**self.settings, **self.conditions}.get(n)) is not None]
        numbers: dict[tuple, int] = {}
        return np.array(
            [numbers.setdefault(tuple(_key(c[k]) for c in columns), len(numbers)) for k in range(len(self))], int
        )

    def split(self, ranges: Iterable[str]) -> dict[str, Trainings]:
        """The trainings of each condition, by its description: what differs among all of them.

        **Arguments:** `ranges`: names of the settings that are axes of the map; other settings split like conditions.
        """
        axes = set(ranges)
        names = self.varied(n for n in (*self.conditions, *self.settings) if n not in axes)
        groups = self.groups(names)
        out = {}
        for number in range(groups.max(initial=-1) + 1):
            part = self.where(groups == number)
            columns = {**part.settings, **part.conditions}
            out[", ".join(describe(name, columns[name][0]) for name in names) or "all trainings"] = part
        return out

    @property
    def diverged(self) -> int:
        """Number of trainings without a result."""
        return int(np.isnan(self.metrics[self._result_of("connectivity_R2")]).sum())

    def _result_of(self, metric: str) -> str:
        """The metric, or test_R2 for connectivity_R2 where no training has it: of a recording without ground truth."""
        known = self.metrics.get(metric)
        has_none = known is None or not np.isfinite(known).any()
        return "test_R2" if metric == "connectivity_R2" and has_none and "test_R2" in self.metrics else metric

    def values(self, metric: str) -> Float[np.ndarray, " n"]:
        """A metric of every training; where 1 is the best value, no result and values below 0 count as 0.

        Where no training has connectivity_R2, as on a recording without ground truth, test_R2 stands for it.
        """
        values = self.metrics.get(self._result_of(metric), np.full(len(self), np.nan))
        return np.maximum(np.nan_to_num(values, nan=0.0), 0.0) if is_score(metric) else values


def is_score(metric: str) -> bool:
    """Whether 1 is the best value of a metric and 0 that of no result."""
    return metric in TRANSCRIPT or metric.endswith("_R2")


def _key(value: Any) -> str:
    return json.dumps(float(value) if isinstance(value, (int, float)) else value, sort_keys=True, default=str)


def describe(name: str, value: Any) -> str:
    """A condition in words: its value, with its name where that is a number."""
    return str(value) if isinstance(value, str) else f"{name} {value:g}" if finite(value) is not None else f"no {name}"


# --- readers ---


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kinds: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Iterator[dict[str, Any]]]]] = {
        "table": (lambda p: p.is_file(), _table_rows),
        "search": (lambda p: (p / JOURNAL).is_file(), lambda p: _journal_rows(p / JOURNAL)),
        "sweep of trainings": (lambda p: (p / "trainings.csv").is_file(), lambda p: _table_rows(p / "trainings.csv")),
        "table in a folder": (lambda p: (p / TABLE).is_file(), lambda p: _table_rows(p / TABLE)),
        "sweep": (lambda p: (p / "nodes").is_dir(), _node_rows),
    }
    for found, read in kinds.values():
        if found(path):
            with reading(path, "restore it from a copy"):
                yield from read(path)
            return
    raise UserError(f"{path} holds no trainings: name a run directory, or a table such as {TABLE}")


def _check(path: Path, row: Mapping[str, Any]) -> bool:
    """**Raises:** `UserError` for a setting that no training can have, or a seed or metric that is no number."""
    given = {name: value for name, value in row["settings"].items() if value is not None}
    # Coefficients of plugins, which are not loaded to read their results.
    own = {name: value for name, value in given.items() if name not in TUNABLE}
    try:
        Training.model_validate({name: value for name, value in given.items() if name not in own})
    except SectionError as error:
        raise UserError(f"{path}: {error.problem}; correct it, or remove this training") from None
    for name, value in {**row["metrics"], **own, "seed": row["seed"]}.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int if name == "seed" else (int, float))
        ):
            raise UserError(printable(f"{path}: {name} is {value!r:.60}, no number; correct it"))
        if is_score(name) and value is not None and value > 1 + 1e-6:
            raise UserError(f"{path}: {name} is {value:g}, and no score is above 1; correct it")
    return True


def _is_setting(name: str) -> bool:
    """Whether a key of the section `training` is a setting of the landscape: tunable, or a plugin's coefficient."""
    return name in TUNABLE or name.startswith("coeff_")


def _conditions(simulation: Mapping[str, Any], model: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of a training, from the sections of its config."""
    free = ("n_seeds", "checkpoint_every")
    fixed = {k: v for k, v in training.items() if not _is_setting(k) and k not in free}
    differences = [
        f"{name} {value}"
        for section, values in ((Model(), model), (Training(), fixed))
        for name, value in values.items()
        if name != "width" and value != getattr(section, name, value)
    ]
    learner = ", ".join(differences)
    seed = simulation.get("parameters_seed", 0)
    truth = str(simulation.get("recording") or simulation.get("parameters", Simulation().parameters))
    named, own = f"{truth} {seed}" if truth == "sampled" and seed else truth, simulation.get("connectome")
    return {
        "learner": LEARNERS.get(learner, learner),
        "ground_truth": f"{named} of {own}" if own else named,
        "stimulus": simulation.get("visual_input_type"),
        **{name: simulation.get(name) for name in CONDITIONS[3:-1]},
        "width": model.get("width"),
    }


def _trained(config: Mapping[str, Any], seeds: Sequence[int], per_seed: Sequence[Any], reason: str) -> Iterator[dict]:
    """The rows of a node."""
    sections = [config.get(k) or {} for k in ("simulation", "model", "training")]
    settings = {k: v for k, v in sections[2].items() if _is_setting(k)}
    for k, seed in enumerate(seeds):
        metrics = per_seed[k] if k < len(per_seed) and isinstance(per_seed[k], Mapping) else {}
        if metrics.get("stopped_at") is None:
            why = (metrics.get("reasons") or {}).get("connectivity_R2", "" if metrics else reason or "no result")
            yield {
                "settings": settings,
                "conditions": _conditions(*sections),
                "seed": seed,
                "metrics": {name: metrics.get(name) for name in METRICS},
                "reason": why,
            }


def _journal_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The trainings of the finished and failed nodes of a search."""
    sections: dict[str, Any] = {}
    planned: dict[int, tuple[dict[str, Any], list[int]]] = {}
    trained: dict[int, list[dict[str, Any]]] = {}  # a node that was trained again has its newest result
    for event in read_events(path)[0]:
        name = event["event"]
        if name in ("run_started", "run_resumed"):
            sections = event.get("experiment") or sections
        elif name == "iteration_started":
            simulation = {**sections.get("simulation", {}), **event["simulation"]}
            for node in event["nodes"]:
                config = {"simulation": simulation, "model": sections.get("model"), "training": node["config"]}
                planned[node["node"]] = config, node["seeds"]
        elif name in ("node_finished", "node_failed"):
            per_seed = event.get("per_seed") or [event.get("metrics")]
            trained[event["node"]] = [*_trained(*planned[event["node"]], per_seed, event.get("reason") or "")]
    for rows in trained.values():
        yield from rows


def _node_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The trainings of the nodes of a sweep."""
    for folder in sorted((path / "nodes").glob("[0-9]*")):
        if (folder / "metrics.json").is_file():
            config = read_yaml_file(folder / "config.yaml")
            with reading(folder / "metrics.json", "train the node again"):
                metrics = json.loads((folder / "metrics.json").read_bytes())
            yield from _trained(config, config.get("seeds", [0]), metrics.get("per_seed") or [metrics], "")


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table: a column is a setting, a condition, `seed`, `reason`, or else a metric.

    What the columns do not tell is in the config.yaml beside the table of a sweep.
    """
    rows = read_csv(path)
    if not rows or "seed" not in rows[0] or not set(rows[0]) & set(TUNABLE):
        raise UserError(f"{path} is no table of trainings: it needs the column seed and columns of settings")
    config = path.with_name("config.yaml")
    sections: Mapping[str, Any] = read_yaml_file(config) if config.is_file() else {}
    training = sections.get("training", {})
    common = _conditions(sections.get("simulation", {}), sections.get("model", {}), training) if sections else {}
    fixed = {name: value for name, value in training.items() if name in TUNABLE}
    for row in rows:
        numbers = {name: _number(text) for name, text in row.items()}
        yield {
            "settings": fixed | {k: v for k, v in numbers.items() if k in TUNABLE},
            "conditions": common | {k: v for k, v in numbers.items() if k in CONDITIONS},
            "seed": numbers["seed"],
            "metrics": {k: v for k, v in numbers.items() if k in METRICS},
            "reason": row.get("reason") or "",
        }


def _number(text: str | None) -> Any:
    """The number that a cell holds, or its text; None where it is empty."""
    try:
        number = float(text or "")
    except ValueError:
        return text or None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
