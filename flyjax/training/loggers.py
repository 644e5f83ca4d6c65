"""Loggers of training metrics: a JSON Lines history always, other viewers on request.

    logger = MetricLogger(("tensorboard",), run_dir, "quickstart")
    logger.start({"node_0001/seed_7": {"batch_size": 4}})
    logger.log(250, "node_0001/seed_7", {"loss": 3.2, "connectivity_R2": 0.61})
    logger.close()

Logging changes nothing: with or without it a training gives the same bits. A killed training
resumes from its checkpoint and logs the steps since then again; the last entry of a step counts.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyjax.utils.atomic_io import open_lines, write_line
from flyjax.utils.errors import UserError, nearest

HISTORY = "history.jsonl"  # one object per line: "lane", "step" and the values by name
VIEWERS = ("tensorboard", "wandb", "trackio")


def read_history(path: Path) -> dict[str, list[dict[str, float]]]:
    """By lane, its entries in the order of steps; of a step logged twice, the last. Torn lines are skipped."""
    lanes: dict[str, dict[int, dict]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            lanes.setdefault(entry.pop("lane"), {})[entry["step"]] = entry
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return {lane: [steps[k] for k in sorted(steps)] for lane, steps in lanes.items()}


def _package(viewer: str, package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"--log {viewer} needs the package {package}: pip install {package}") from None


class TensorBoard:
    """Event files, a folder per training: `tensorboard --logdir runs/<name>/tensorboard`."""

    def __init__(self, folder: Path):
        self._tensorboard, self._folder = _package("tensorboard", "tensorboardX"), folder
        self._writers: dict[str, Any] = {}

    def start(self, lanes) -> None:
        for lane in lanes.keys() - self._writers.keys():
            self._writers[lane] = self._tensorboard.SummaryWriter(logdir=str(self._folder / lane), flush_secs=30)

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[lane].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Tracker:
    """Weights & Biases or trackio, which share these calls: one run with the curves and settings of every training.

    Each training has a step of its own, logged beside its values.
    """

    def __init__(self, module: str, project: str):
        self._tracker, self._project = _package(module, module), project
        self._run: Any = None
        self._known: set[str] = set()

    def start(self, lanes) -> None:
        settings = {lane: dict(config) for lane, config in lanes.items() if lane not in self._known}
        self._known |= set(settings)
        if self._run is None:
            self._run = self._tracker.init(project=self._project, config=settings)
        elif settings:
            self._run.config.update(settings)
            if isinstance(self._run.config, dict):  # trackio's is sent with the first values and not again
                for lane, config in settings.items():
                    self._tracker.log({f"{lane}/{k}": v for k, v in config.items() if isinstance(v, (int, float))})
        for lane in settings:
            if hasattr(self._tracker, "define_metric"):
                self._tracker.define_metric(f"{lane}/*", step_metric=f"{lane}/step")

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        self._tracker.log({f"{lane}/{k}": v for k, v in {**values, "step": step}.items()})

    def close(self) -> None:
        if self._run is not None:
            self._tracker.finish()


class MetricLogger:
    """Receives the metrics of trainings while they run: into the history of a run, and the viewers asked for.

    **Raises:** `UserError` for an unknown viewer, or one whose package is not installed (with the remedy).
    """

    def __init__(self, viewers: Sequence[str], run_dir: Path, project: str):
        self._history, self._viewers = Path(run_dir) / HISTORY, []
        for name in dict.fromkeys(viewers):
            if name not in VIEWERS:
                raise UserError(f"--log {name}: unknown.{nearest(name, VIEWERS)} Known: {', '.join(VIEWERS)}.")
            tensorboard = name == "tensorboard"
            self._viewers.append(TensorBoard(Path(run_dir) / name) if tensorboard else Tracker(name, project))

    def start(self, lanes: Mapping[str, Mapping[str, Any]]) -> None:
        """Settings of trainings that start, by name. May be called again with others."""
        for viewer in self._viewers:
            viewer.start(lanes)

    def log(self, step: int, lane: str, values: Mapping[str, float | None]) -> None:
        """Metrics of a training after so many steps; values that are not finite are left out."""
        finite = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        with open_lines(self._history) as file:
            write_line(file, {"lane": lane, "step": step, **finite})
        for viewer in self._viewers:
            viewer.log(step, lane, finite)

    def close(self) -> None:
        """Write what is buffered."""
        for viewer in self._viewers:
            viewer.close()
