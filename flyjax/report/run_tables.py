"""A run as tables: its nodes, its trainings and their curves, each a list of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyjax.report.run_view import RunView, node_of
from flyjax.report.tables import nodes_table
from flyjax.search.journal.state import Node
from flyjax.utils.format import csv_table, finite


@dataclass(frozen=True)
class RunTables:
    """A run as tables; `pandas.DataFrame(run.nodes)` makes one a data frame.

    **Attributes:**

    - `name`: of the run.
    - `nodes`: a row per node of the search: where it is in the tree, metrics (means over its seeds), and every setting.
    - `trainings`: a row per node and seed, those that confirm the best settings included: every metric and setting.
    - `curves`: a row per training and logged step: loss, learning rates, connectivity_R2.

    Settings of the training section have their own names, those of the others are `simulation.X` and `model.X`.
    """

    name: str
    nodes: list[dict[str, Any]]
    trainings: list[dict[str, Any]]
    curves: list[dict[str, Any]]


def load_run(run_dir: str | Path) -> RunTables:
    """Read the run directory of a search, a sweep or a single training, finished or in progress.

    **Raises:** `UserError` where there is no run, or its journal is damaged.
    """
    run = RunView(run_dir)
    rows = [row | _settings(run, run.state.nodes[row["node"]]) for row in nodes_table(run.state)]
    return RunTables(run.name, rows, _trainings(run), _curves(run))


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as comma-separated values at full precision, with a column for every key of any row."""
    return csv_table(list(dict.fromkeys(key for row in rows for key in row)), rows)


def _settings(run: RunView, node: Node) -> dict[str, Any]:
    """Every setting of a node."""
    sections = {"simulation": run.state.blocks[node.block].simulation, "model": run.state.experiment.get("model") or {}}
    return node.config | {f"{name}.{k}": v for name, section in sections.items() for k, v in section.items()}


def _trainings(run: RunView) -> list[dict[str, Any]]:
    rows = []
    for node in run.state.all_nodes:
        per_seed: list[Mapping[str, Any]] = run.per_seed.get(node.id) or [{}] * len(node.seeds)
        for seed, metrics in zip(node.seeds, per_seed, strict=False):
            place = {name: getattr(node, name) for name in ("block", "iteration", "parent", "strategy", "status")}
            numbers = {k: v for k, v in metrics.items() if finite(v) is not None or isinstance(v, str)}
            reason = node.reason or (metrics.get("reasons") or {}).get("connectivity_R2")
            rows.append(
                {"node": node.id, "seed": seed, **place, "reason": reason or None} | numbers | _settings(run, node)
            )
    return rows


def _curves(run: RunView) -> list[dict[str, Any]]:
    """A row per training and logged step."""
    known = {lane: (node, int(lane.rpartition("_")[2])) for lane in run.history if (node := node_of(lane)) is not None}
    return [
        {"node": node, "seed": seed, **entry} for lane, (node, seed) in known.items() for entry in run.history[lane]
    ]
