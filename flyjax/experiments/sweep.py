"""Sweeps without a search: which configurations, trained how, and the table of what came out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats.qmc import Sobol

from flyjax.config import Experiment, Range, Training, dump_yaml, parse_experiment
from flyjax.config.ranges import derive_seed, quantile, sample
from flyjax.experiments.forecast import forecast, given_memory, measured_rate
from flyjax.experiments.node import NodeSpec
from flyjax.experiments.train_nodes import train_nodes
from flyjax.report.figures.drawing import Drawing
from flyjax.report.figures.sweep import parallel_figure
from flyjax.report.html import write_report
from flyjax.report.tables import SHORT_NAMES, format_setting, markdown_table
from flyjax.training import Halving
from flyjax.training.loggers import MetricLogger
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import csv_table, plural
from flyjax.utils.history import HISTORY
from flyjax.utils.metric_names import SWEEP_TABLE
from flyjax.utils.run_directory import RunDirectory, remove_checkpoints


def sweep_candidates(experiment: Experiment) -> list[Training]:
    """The configurations of the sweep section: its list, its grid, its random draws, its Sobol sequence.

    **Raises:** `UserError` where there is none, or a value is outside its range.
    """
    sweep, ranges = experiment.sweep, experiment.search.ranges
    changes = [dict(c) for c in sweep.candidates]
    if sweep.grid:
        changes += [dict(zip(sweep.grid, values)) for values in itertools.product(*sweep.grid.values())]
    rng = np.random.default_rng(sweep.seed)
    changes += [{name: sample(span, rng) for name, span in ranges.items()} for _ in range(sweep.n_random)]
    changes += sobol_settings(ranges, sweep.n_sobol, sweep.seed)
    if not changes:
        raise UserError(
            "nothing to sweep: give sweep.candidates, sweep.grid, sweep.n_random or sweep.n_sobol "
            "(python scripts/sweep.py --help)"
        )
    base = experiment.model_dump(mode="json")
    return [
        parse_experiment({**base, "training": {**base["training"], **change}}, f"sweep configuration {k + 1}").training
        for k, change in enumerate(changes)
    ]


def sobol_settings(ranges: Mapping[str, Range], n: int, seed: int) -> list[dict[str, Any]]:
    """The first `n` points of a scrambled Sobol sequence in the ranges, one dictionary each; the same for every larger
    `n`."""
    if not n or not ranges:
        return []
    points = Sobol(len(ranges), seed=seed).random_base2(math.ceil(math.log2(n)))[:n]
    return [{name: quantile(span, u) for (name, span), u in zip(ranges.items(), point)} for point in points]


def varied(candidates: list[Training]) -> list[str]:
    """Names whose values differ between candidates."""
    return [name for name in dict(candidates[0]) if len({getattr(c, name) for c in candidates}) > 1]


def node_specs(experiment: Experiment, candidates: list[Training]) -> list[NodeSpec]:
    n_seeds, seed = experiment.training.n_seeds, experiment.search.seed
    return [NodeSpec(k, c, tuple(derive_seed(seed, k, s) for s in range(n_seeds))) for k, c in enumerate(candidates, 1)]


def describe(
    experiment: Experiment, candidates: list[Training], memory_gb: float | None = None, n_devices: int | None = None
) -> str:
    """Forecast the programs, memory and time of a sweep; needs no data.

    **Arguments:** `memory_gb` plans for `n_devices` accelerators of that size, GB, instead of this machine.
    """
    seeds = [spec.seeds for spec in node_specs(experiment, candidates)]
    plan = forecast(
        experiment.simulation,
        experiment.model,
        candidates,
        seeds,
        measured_rate() if memory_gb is None else None,
        given_memory(memory_gb),
        experiment.search.max_disk_gb,
        n_devices,
    )
    lines = [
        f"{experiment.name}: {plural(len(candidates), 'configuration')} x "
        f"{plural(experiment.training.n_seeds, 'seed')}",
        plan.text,
    ]
    halving = halving_of(experiment)
    if halving is not None:
        lines.append(
            f"successive halving: one in {halving.factor:g} continues at each of {plural(halving.rungs, 'rung')}"
            + ("; the time above is without it" if memory_gb is None else "")
        )
    return "\n".join(lines)


def halving_of(experiment: Experiment) -> Halving | None:
    """Successive halving, if the sweep section asks for it."""
    return (
        None if experiment.sweep.halving is None else Halving(experiment.sweep.halving, experiment.sweep.halving_rungs)
    )


def run_sweep(
    experiment: Experiment,
    candidates: list[Training],
    run_dir: Path,
    console,
    viewers: Sequence[str] = (),
    kind: str = "sweep",
) -> dict[int, dict]:
    """Train and evaluate; write nodes/, results.csv, results.md, report.html, parallel.png and history.jsonl; print the
    table.

    A run directory that has these results already stays as it is.

    **Returns:** the results by node; empty where nothing was left to do.
    """
    logger = MetricLogger(viewers, run_dir, experiment.name)
    with RunDirectory(run_dir, kind) as run:
        own, text = run.path / "config.yaml", dump_yaml(experiment)
        if own.is_file() and own.read_text("utf-8") != text:
            raise UserError(f"{run_dir} has another configuration; choose another --run")
        write_atomic(own, text)
        table = run.path / "results.md"
        if not (run.facts.get("finished") and table.is_file()):
            results = _train_and_tabulate(experiment, candidates, run.path, console, logger)
            run.note(finished=True)
            console.log(f"Report: {write_report(run.path)}")
        else:
            results = {}
            console.log(f"{run_dir} is finished: see {table}. To train again, choose another --run")
        remove_checkpoints(run.path)  # last, so that an interrupted call can continue
    return results


def _train_and_tabulate(
    experiment: Experiment, candidates: list[Training], run_dir: Path, console, logger: MetricLogger
) -> dict[int, dict]:
    specs = node_specs(experiment, candidates)
    # A process would take longer to start than the figures of a single node.
    drawing = Drawing(run_dir, lambda line: console.log(f"warning: {line}"), None if len(specs) > 1 else 0)
    try:
        with (
            console.training_bar(f"{len(candidates)} configurations", [spec.id for spec in specs]) as (
                on_progress,
                on_stage,
            ),
            drawing,
        ):
            results = train_nodes(
                experiment,
                specs,
                run_dir,
                on_progress=on_progress,
                on_stage=on_stage,
                logger=logger,
                halving=halving_of(experiment) if len(candidates) > 1 else None,
                drawing=drawing,
            )
    finally:
        logger.close()
    names = varied(candidates)
    rows = [_row(spec, results[spec.id], names) for spec in specs]
    # The best first: by what was recovered, without which by number.
    known = {name for result in results.values() for name in result["metrics"] or {}}
    ranked_by = (
        "connectivity_R2" if experiment.simulation.recording is None or "connectivity_R2" in known else "test_R2"
    )
    best_first = sorted(
        rows, key=lambda r: (-math.inf if r[ranked_by] is None else r[ranked_by], -r["node"]), reverse=True
    )
    stopped = ["stopped_at"] if any(r["stopped_at"] is not None for r in rows) else []
    shown_metrics = [name for name in SWEEP_TABLE if name in known or experiment.simulation.recording is None]
    columns = ["node", *names, *shown_metrics, *stopped, "reason"]
    write_atomic(run_dir / "results.csv", csv_table(columns, rows))
    written = ["results.md", "results.csv"]
    figure = ""
    if names and len(rows) > 1:
        parallel_figure(run_dir / "parallel.png", rows, names, experiment.search.ranges)
        written.append("parallel.png")
        figure = "![One line per configuration](parallel.png)\n\n"
    shown = [{**row, **{name: format_setting(row[name]) for name in names}} for row in best_first]
    write_atomic(run_dir / "results.md", f"# {experiment.name}\n\n{figure}{markdown_table(shown, columns)}")
    # 80 characters wide; the files have the rest.
    brief = {
        "W": "connectivity_R2",
        "tau": "tau_R2",
        "V_rest": "V_rest_R2",
        "clust": "cluster_accuracy",
        "r": "test_pearson",
    }
    lines = [
        {
            "node": row["node"],
            "settings": ", ".join(f"{SHORT_NAMES.get(name, name)} {row[name]}" for name in names) or "as configured",
            **{short: row[name] for short, name in brief.items() if name in shown_metrics},
            "final_loss": row["final_loss"],
            **{name: row[name] for name in stopped},
        }
        for row in shown
    ]
    heads = [short for short, name in brief.items() if name in shown_metrics]
    # More than three settings would wrap.
    console.table(lines, ["node", *(["settings"] if len(names) <= 3 else []), *heads, "final_loss", *stopped])
    console.log(f"Wrote {', '.join(written)}, {HISTORY} and nodes/ with figures and parameters to {run_dir}")
    return results


def _row(spec: NodeSpec, result: dict, names: Sequence[str]) -> dict:
    """A configuration in the tables."""
    metrics = result["metrics"] or {}
    stopped = [m["stopped_at"] for m in result["per_seed"] if m.get("stopped_at") is not None]
    return {
        "node": spec.id,
        **{name: getattr(spec.training, name) for name in names},
        **{name: metrics.get(name) for name in SWEEP_TABLE},
        "stopped_at": max(stopped) if stopped else None,
        "reason": result["reason"],
    }
