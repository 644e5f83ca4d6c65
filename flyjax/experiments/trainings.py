"""A sweep that maps: many trainings, each one row of a table.

Where a sweep with `output: nodes` writes a folder per configuration, this writes one row per training and nothing
else, so that thousands are affordable: only the published read-out and the predictions are evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flyjax.config import Experiment, Training, dump_yaml, load_experiment
from flyjax.data.cache import Recordings
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.experiments.workers import train_nodes_together
from flyjax.recovery import extract
from flyjax.recovery.closed_form import closed_form
from flyjax.recovery.metrics import circuit_metrics, evaluation_pairs, one_step_metrics
from flyjax.recovery.network_outputs import network_outputs, together
from flyjax.recovery.rollout import rollout, rollout_metrics
from flyjax.training import Trained
from flyjax.training.hparams import Static, n_steps, static_of
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import csv_table, duration, plural, read_csv
from flyjax.utils.metric_names import PREDICTION, QUANTITIES
from flyjax.utils.run_directory import RunDirectory

#: The table in the run directory.
TRAININGS = "trainings.csv"
#: Its metrics, named as in metrics.json of a node.
METRICS = (
    *QUANTITIES, *(f"{name}_identifiable" for name in QUANTITIES), *PREDICTION, "one_step_R2", "final_loss",
)  # fmt: skip
#: Trainings of one program: more share its overhead, fewer are lost when the process is killed.
LANES = 16


def run_trainings(experiment: Experiment, specs: Sequence[NodeSpec], run_dir: Path, console) -> None:
    """Train configurations in chunks of like length and add a row per training to trainings.csv, after every chunk.

    The same call continues; so does one with a larger `sweep.n_sobol`, as all other settings are equal.

    **trainings.csv** has a header and one row per training, in the order in which they finished; an empty cell is
    a missing value:

    - `node`: number of the configuration, from 1: the place in the sweep, and in a Sobol sequence of any length.
    - `seed`: of the training.
    - every training parameter of `search.ranges`, by name. All other settings are those of config.yaml.
    - `METRICS`, by the names of metrics.json. A search with the objective `blind` maximises test_R2.
    - `n_steps` taken.
    - `reason`: why the training or its rollout failed, else empty. Where the training diverged all metrics are empty;
      where only the free rollout did, test_R2 and test_pearson are.
    - `wall_s`: seconds of the training's share of its chunk, evaluation included.

    A search and a sweep with `output: nodes` have the same in nodes/*/config.yaml (`training`, `seeds`) and
    metrics.json (`per_seed`, in the order of the seeds).

    **Raises:** `UserError` if the run directory has another configuration.
    """
    with RunDirectory(run_dir, "sweep") as run:
        _claim(run.path / "config.yaml", experiment)
        table = run.path / TRAININGS
        rows = read_rows(table)
        known = {(row["node"], row["seed"]) for row in rows}
        missing = [spec for spec in specs if not {(spec.id, seed) for seed in spec.seeds} <= known]
        console.log(f"{plural(len(specs) - len(missing), 'configuration')} of {len(specs):,} are in {table}")
        limit = experiment.search.max_disk_gb
        recordings = Recordings(experiment.simulation, run.path / "recordings", limit, beside=True)
        learner = learner_for(experiment.simulation, experiment.model)
        names = list(experiment.search.ranges)
        columns = ["node", "seed", *names, *METRICS, "n_steps", "reason", "wall_s"]
        size = max(1, LANES // experiment.training.n_seeds)
        began, done = time.perf_counter(), 0
        for chunk in chunks(missing, experiment.simulation.n_frames, size):
            start = time.perf_counter()
            trained = train_nodes_together(
                run.path, experiment, experiment.simulation, chunk, learner, recordings, saves=False
            )
            new = [
                {
                    "node": spec.id,
                    "seed": one.seed,
                    **{name: getattr(spec.training, name) for name in names},
                    **_evaluated(learner, spec.training, one, recordings),
                    "n_steps": one.n_steps,
                }
                for spec, own in zip(chunk, trained, strict=True)
                for one in own
            ]
            each = (time.perf_counter() - start) / len(new)
            rows += [{**row, "wall_s": round(each, 3)} for row in new]
            write_atomic(table, csv_table(columns, rows), sync=True)
            done += len(chunk)
            left = (time.perf_counter() - began) / done * (len(missing) - done)
            console.log(f"{done:,} of {plural(len(missing), 'configuration')}; about {duration(left)} left")


def _claim(path: Path, experiment: Experiment) -> None:
    """Write config.yaml. **Raises:** `UserError` where it has settings other than the number of points."""

    def fixed(e: Experiment) -> dict[str, Any]:
        data = e.model_dump(mode="json")
        return {**data, "sweep": {**data["sweep"], "n_sobol": None}}

    if path.is_file() and fixed(load_experiment(path)) != fixed(experiment):
        raise UserError(f"{path.parent} has another configuration; choose another --run")
    write_atomic(path, dump_yaml(experiment))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a trainings.csv, with numbers as numbers and None for an empty cell; none where there is no file."""

    def value(text: str) -> Any:
        for number in (int, float):
            with suppress(ValueError):
                return number(text)
        return text or None

    rows = [{name: value(text) for name, text in row.items()} for row in read_csv(path)] if path.is_file() else []
    if not all(isinstance(row.get(name), int) for row in rows for name in ("node", "seed")):
        raise UserError(f"{path}: a row has no whole number of node and seed; restore the file from a copy")
    return rows


def chunks(specs: Sequence[NodeSpec], n_frames: int, size: int) -> Iterator[Sequence[NodeSpec]]:
    """Configurations that share a program, those of like number of steps together: a program runs to its longest.

    The longest first, so that what does not fill a program is short.
    """
    same: dict[Static, list[NodeSpec]] = {}
    for spec in specs:
        same.setdefault(static_of(spec.training), []).append(spec)
    for group in same.values():
        group.sort(key=lambda spec: -n_steps(spec.training, n_frames))
        yield from (group[k : k + size] for k in range(0, len(group), size))


def _evaluated(learner, training: Training, one: Trained, recordings: Recordings) -> dict[str, Any]:
    """`METRICS` of a training, and the first reason for a missing one."""
    if one.diverged_at is not None:
        return {"reason": f"the training diverged at step {one.diverged_at}"}
    train, test = recordings.train(training.noise_model_level), recordings.test
    pairs = evaluation_pairs(test)
    estimate, bound = extract(learner, one.params, train).estimate, closed_form(train)
    metrics = circuit_metrics(estimate, train).update(
        circuit_metrics(estimate, train, "_identifiable", bound.edges, bound.neurons),
        rollout_metrics(rollout(learner, one.params, test), test),
        one_step_metrics(network_outputs(learner, together([one.params]), *pairs[:2])[0], pairs[2]),
    )
    values = {**metrics.values, "final_loss": one.final_loss}
    reasons = [metrics.reasons[name] for name in METRICS if name in metrics.reasons]
    return {**{name: values.get(name) for name in METRICS}, "reason": reasons[0] if reasons else ""}
