"""Sweeps without a search: which configurations, trained how, and the table of what came out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from flyjax import nodes
from flyjax.config import Experiment, Training, dump_yaml, parse_experiment
from flyjax.errors import UserError
from flyjax.report.tables import csv, markdown_table
from flyjax.search.ranges import derive_seed, sample
from flyjax.training import plan

COLUMNS = (
    "connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2", "test_pearson", "external_input_R2",
    "one_step_R2", "final_loss", "wall_s",
)  # fmt: skip


def sweep_candidates(experiment: Experiment) -> list[Training]:
    """The configurations of the sweep section: its list, then its grid, then its random draws.

    **Raises:** `UserError` where there is none, or a value is outside its range.
    """
    sweep, ranges = experiment.sweep, experiment.search.ranges
    changes = [dict(c) for c in sweep.candidates]
    if sweep.grid:
        changes += [dict(zip(sweep.grid, values)) for values in itertools.product(*sweep.grid.values())]
    rng = np.random.default_rng(sweep.seed)
    changes += [{name: sample(span, rng) for name, span in ranges.items()} for _ in range(sweep.n_random)]
    if not changes:
        raise UserError("nothing to sweep: give sweep.candidates, sweep.grid or sweep.n_random (python scripts/sweep.py --help)")
    base = experiment.model_dump(mode="json")
    return [
        parse_experiment({**base, "training": {**base["training"], **change}}, f"sweep configuration {k + 1}").training
        for k, change in enumerate(changes)
    ]


def varied(candidates: list[Training]) -> list[str]:
    """Names whose values differ between candidates."""
    return [name for name in Training.model_fields if len({getattr(c, name) for c in candidates}) > 1]


def _specs(experiment: Experiment, candidates: list[Training]) -> list[nodes.NodeSpec]:
    n_seeds, seed = experiment.training.n_seeds, experiment.search.seed
    return [
        nodes.NodeSpec(k, c, tuple(derive_seed(seed, k, s) for s in range(n_seeds))) for k, c in enumerate(candidates, 1)
    ]


def describe(experiment: Experiment, candidates: list[Training]) -> str:
    """The programs a sweep compiles and what runs in each."""
    specs = _specs(experiment, candidates)
    groups = plan(candidates, [s.seeds for s in specs], experiment.simulation.n_frames)
    levels = sorted({c.noise_model_level for c in candidates})
    lines = [
        f"{experiment.name}: {len(candidates)} configurations x {experiment.training.n_seeds} seeds in {len(groups)} programs; "
        f"training recordings at noise {', '.join(f'{x:g}' for x in levels)}"
    ]
    for group in groups:
        lines.append(f"  batch_size {group.static.batch_size}: {len(group.lanes)} trainings of up to {max(group.n_steps)} steps")
    return "\n".join(lines)


def run_sweep(experiment: Experiment, candidates: list[Training], run_dir: Path, console) -> dict[int, dict]:
    """Train and judge; write nodes/, results.csv and results.md; print the table."""
    run_dir = Path(run_dir)
    text = dump_yaml(experiment)
    own = run_dir / "config.yaml"
    if own.is_file() and own.read_text() != text:
        raise UserError(f"{run_dir} holds another configuration; choose another --run, or remove it")
    run_dir.mkdir(parents=True, exist_ok=True)
    own.write_text(text)
    with console.training_bar(f"{len(candidates)} configurations") as (on_progress, on_stage):
        results = nodes.train_nodes(
            experiment, _specs(experiment, candidates), run_dir, on_progress=on_progress, on_stage=on_stage
        )
    nodes.drop_checkpoints(run_dir)
    names = varied(candidates)
    rows = []
    for k, candidate in enumerate(candidates, 1):
        metrics = results[k]["metrics"] or {}
        rows.append(
            {"node": k, **{n: getattr(candidate, n) for n in names}, **{c: metrics.get(c) for c in COLUMNS}, "reason": results[k]["reason"]}
        )
    columns = ["node", *names, *COLUMNS, "reason"]
    (run_dir / "results.csv").write_text(csv(rows, columns))
    table = markdown_table(rows, columns)
    (run_dir / "results.md").write_text(table)
    console.table(rows, ["node", *names, *COLUMNS[:6], "final_loss"])
    console.say(f"Wrote {run_dir / 'results.md'}, results.csv and nodes/ with figures and parameters")
    return results
