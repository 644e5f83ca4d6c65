"""Results tables: named settings, each trained with its seeds and recorded in a journal.

A table is a YAML file with a base experiment and rows of settings that differ from it.

    name: recovery_learner
    title: What makes the learner reliable
    base: {simulation: {...}, model: {...}, training: {...}}
    rows:
      - {name: published recipe, set: {model.width: 80}, published: "W .985"}

Every finished row is one line of the journal, with its configuration; a configuration that is already there is not
trained again. `flyjax.experiments.recovery_report` draws the tables from the journal alone.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from flyjax.config import Experiment, StrictModel, content_hash, parse_experiment, read_yaml_file
from flyjax.config.strict import SectionError
from flyjax.data.cache import Recordings
from flyjax.experiments.node import evaluate_node, learner_for
from flyjax.ground_truth import checkpoint_file
from flyjax.recovery.evaluate import conditions
from flyjax.recovery.rollout import lesion_metrics
from flyjax.training import train_sweep
from flyjax.utils.atomic_io import open_lines, write_line
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.metric_names import QUANTITIES
from flyjax.utils.run_directory import checkpoint_folder, remove_checkpoints

#: Suffixes of the metrics that the journal has of each quantity and seed.
SUFFIXES = (
    "", "_slope", "_identifiable", "_data", "_data_identifiable", "_refit", "_refit_slope", "_refit_identifiable",
    "_ceiling", "_ceiling_identifiable", "_refit_corrected", "_refit_corrected_slope",
    "_refit_corrected_identifiable", "_ceiling_corrected_identifiable", "_inliers", "_outliers", "_refit_inliers",
    "_refit_outliers",
)  # fmt: skip
#: Further metrics of each seed.
OTHERS = (
    "cluster_accuracy", "cluster_accuracy_65", "cluster_accuracy_true", "cluster_accuracy_65_true",
    "cluster_accuracy_refit", "cluster_accuracy_65_refit", "ARI", "test_R2", "test_pearson", "one_step_R2",
    "external_input_R2", "final_loss", "identifiable_edges", "identifiable_neurons", "identifiable_weight_variance",
    "lesion_R2", "lesion_pearson", "external_input_R2_training", "external_input_R2_inverted",
)  # fmt: skip


class Row(StrictModel):
    """One setting."""

    name: str = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict, description="section.key: value, against the base")
    published: str | None = Field(None, description="the published figures of this setting, on other data")
    lesion: float = Field(0.0, ge=0, lt=1, description="share of synapses cut in fly and network for one more free run")


class Base(StrictModel):
    """Of an experiment, what a table may set."""

    simulation: dict[str, Any] = {}
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    search: dict[str, Any] = {}


class Table(StrictModel):
    """Rows against a base."""

    name: str = Field(min_length=1)
    title: str
    text: str = Field("", description="a paragraph above the table")
    base: Base
    rows: tuple[Row, ...] = Field(strict=False)

    @field_validator("rows")
    @classmethod
    def _one_of_each(cls, rows):
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rows are called {twice[0]!r}: rename one")
        return rows

    def experiment(self, row: Row, overrides: Mapping[str, Any] = {}) -> Experiment:
        """The experiment of a row. **Raises:** `UserError` for an unknown key or value, naming the row."""
        where, data = f"{self.name}, row {row.name!r}", self.base.model_dump()
        # Rows are no proposals: the protocol's ranges do not bind them.
        data["search"] |= {"ranges": {}, "simulation_ranges": {}}
        for key, value in {**row.set, **overrides}.items():
            section, _, name = key.partition(".")
            if not name:
                raise UserError(f"{where}: {key!r} is not section.key")
            if section not in data:
                raise UserError(
                    f"{where}: {key!r}: no section {section!r}.{nearest(section, data)} There are {', '.join(data)}."
                )
            data[section][name] = value
        return parse_experiment({"name": self.name, **data}, where)


def load_table(path: Path) -> Table:
    """**Raises:** `UserError`, one line, for a missing or invalid file."""
    if not Path(path).is_file():
        raise UserError(f"no table {path}")
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a table is a mapping with {', '.join(Table.model_fields)}; this is a {type(content).__name__}"
        )
    try:
        return Table.model_validate(content)
    except SectionError as error:
        raise UserError(f"{path}: {error.problem}") from None


def select_rows(tables: Sequence[Table], parts: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows whose name contains one of `parts`; all if there are none.

    **Raises:** `UserError` for a part that is in no row's name, naming the rows.
    """
    every = [(table, row) for table in tables for row in table.rows]
    for part in parts:
        if not any(part in row.name for _, row in every):
            names = list(dict.fromkeys(row.name for _, row in every))
            raise UserError(
                f"--row {part!r}: not in the name of any row of {', '.join(t.name for t in tables)}."
                f"{nearest(part, names)} Rows: {'; '.join(names)}"
            )
    return [(table, row) for table, row in every if not parts or any(part in row.name for part in parts)]


def identity(experiment: Experiment, row: Row) -> str:
    """Hash of what a row trains and evaluates, without settings at their defaults, which later versions may add."""
    what = experiment.model_dump(mode="json", exclude_defaults=True)
    return content_hash({k: what.get(k, {}) for k in ("simulation", "model", "training")}, row.lesion)


def read_journal(path: Path) -> list[dict]:
    """Finished rows, the newest of each identity last; a torn last line is dropped."""
    rows: dict[str, dict] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            identity = event["identity"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a finished row: repair or remove that line") from None
        rows.pop(identity, None)
        rows[identity] = event
    return list(rows.values())


def run_row(
    table: Table, row: Row, experiment: Experiment, work: Path, machine: dict, on_progress: Callable | None = None
) -> dict:
    """Record, train and evaluate one row.

    **Arguments:** `machine` is stored with the result: hardware, versions and commit.

    **Returns:** its line of the journal.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    training, seeds = experiment.training, tuple(range(experiment.training.n_seeds))
    if row.lesion and experiment.model.stimulus == "field":
        raise UserError(
            f"{table.name}, row {row.name!r}: a free run after a lesion needs a given stimulus: set lesion to 0"
        )
    recordings = Recordings(experiment.simulation, Path(work) / "recordings", experiment.search.max_disk_gb)
    train, test = recordings.train(training.noise_model_level), recordings.test
    learner = learner_for(experiment.simulation, experiment.model)
    start = time.perf_counter()
    trained = train_sweep(
        learner,
        [training],
        [seeds],
        {training.noise_model_level: train},
        checkpoint_dir=checkpoint_folder(work),
        checkpoint_every=training.checkpoint_every,
        on_progress=on_progress,
    )[0]
    # After a resumption the clock misses the beginning, which the programs include. Lanes of one program share their
    # time; programs run one after the other.
    train_s = max(time.perf_counter() - start, sum({one.wall_s for one in trained}))
    per_seed, _ = evaluate_node(learner, training, trained, train, test)
    for metrics, one in zip(per_seed, trained, strict=True):
        if row.lesion and one.diverged_at is None:
            metrics.update(lesion_metrics(learner, one.params, test, row.lesion)[0].values)
    remove_checkpoints(work)
    names = [q + s for q in QUANTITIES for s in SUFFIXES] + list(OTHERS)
    rounded = [{n: float(f"{m[n]:.6g}") for n in names if m.get(n) is not None} for m in per_seed]
    if (parameters := experiment.simulation.parameters) != "sampled":
        content = checkpoint_file(parameters).read_bytes()
        machine = {"parameters_sha256": hashlib.sha256(content).hexdigest()[:16], **machine}
    return {
        "schema": 1,
        "event": "row_finished",
        "identity": identity(experiment, row),
        "table": table.name,
        "row": row.name,
        "config": experiment.model_dump(mode="json", include={"simulation", "model", "training"}),
        "computed_on": conditions(train, test, learner.learns_stimulus)["computed_on"],
        "per_seed": rounded,
        "diverged": sum(one.diverged_at is not None for one in trained),
        "n_steps": trained[0].n_steps,
        "train_s": round(train_s, 1),
        "wall_s": round(time.perf_counter() - begin, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        **machine,
    }


def append(path: Path, event: dict) -> None:
    """Append a line and sync it to disk; an incomplete last line is removed."""
    with open_lines(path) as file:
        write_line(file, event, sync=True)


def finished_rows(tables: Sequence[Table], done: Mapping[str, dict]) -> list[tuple[Table, dict[str, dict]]]:
    """Each table with its finished rows by name, from the events by identity."""
    return [
        (t, {row.name: done[key] for row in t.rows if (key := identity(t.experiment(row), row)) in done})
        for t in tables
    ]
