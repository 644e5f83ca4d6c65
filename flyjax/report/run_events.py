"""The events of a run: the journal of a search, or the same events made from the files of a sweep or a training."""

import json
from pathlib import Path
from typing import Any

from flyjax.config import read_yaml_file
from flyjax.search.journal.journal import read_journal
from flyjax.utils.errors import UserError, reading
from flyjax.utils.history import HISTORY
from flyjax.utils.run_directory import JOURNAL, MARKER

SWEEP = "sweep"  # the strategy of the nodes of a sweep


def run_events(folder: str | Path) -> list[dict[str, Any]]:
    """The events of a search, a sweep or a single training, oldest first.

    **Raises:** `UserError` where there is no run, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / JOURNAL).is_file():
        return read_journal(folder)
    if (folder / "nodes").is_dir() or (folder / HISTORY).is_file():
        with reading(folder, "restore its config.yaml and marker from a copy, or train the node again"):
            return _sweep_events(folder)
    if (folder / "trainings.csv").is_file():
        raise UserError(f"{folder} has trainings without nodes: draw their map with scripts/landscape.py {folder}")
    return read_journal(folder)


def _sweep_events(folder: Path) -> list[dict[str, Any]]:
    """A sweep as one iteration of one block: every configuration is a child of the configured one."""
    experiment = read_yaml_file(folder / "config.yaml")
    root = experiment.get("training") or {}
    planned, results = [], []
    for path in sorted((folder / "nodes").glob("[0-9]*/metrics.json")):
        config = read_yaml_file(path.with_name("config.yaml"))
        with reading(path, "train the node again"):
            metrics = json.loads(path.read_bytes())
            per_seed = metrics.pop("per_seed", [metrics])
        training, seeds = config["training"], config.get("seeds", [0])
        number = int(config.get("node", path.parent.name))
        changes = {k: v for k, v in training.items() if root.get(k) != v}
        strategy = SWEEP if changes else "root"
        planned.append(
            {"node": number, "parent": "root", "config": training, "changes": changes, "strategy": strategy}
            | {"seeds": seeds}
        )
        result = {"node": number, "time": path.stat().st_mtime, "metrics": metrics, "per_seed": per_seed}
        if all(m.get("final_loss") is None for m in per_seed):
            result = {k: result[k] for k in ("node", "time")} | {"event": "node_failed"}
            result["reason"] = (per_seed[0].get("reasons") or {}).get("connectivity_R2", "no result")
        results.append({"event": "node_finished", **result})
    begun = (folder / "config.yaml").stat().st_mtime
    start = {"event": "run_started", "time": begun, "experiment": experiment, "protocol": "", "proposer": "none"}
    place = {"iteration": 1, "block": 1, "iter_in_block": 1, "simulation": experiment.get("simulation") or {}}
    iteration = {"event": "iteration_started", "time": begun, **place, "nodes": planned}
    events = [start, iteration, *sorted(results, key=lambda e: e["time"])] if planned else [start]
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_bytes()).get("finished"):
        events.append({"event": "run_finished", "time": events[-1]["time"], "reason": "all configurations trained"})
    return events
