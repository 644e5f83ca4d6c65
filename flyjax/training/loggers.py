"""Loggers of training metrics: a JSON Lines history always, other viewers on request.

    logger = MetricLogger(("tensorboard",), run_dir, "quickstart")
    logger.start({"node_0001/seed_7": {"batch_size": 4}})
    logger.log(250, "node_0001/seed_7", {"loss": 3.2, "connectivity_R2": 0.61})
    logger.close()

Logging changes nothing: with or without it a training gives the same bits. A killed training resumes from its
checkpoint and repeats the steps since then, which are logged once.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyjax.utils.atomic_io import open_lines, write_line
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.history import HISTORY, read_history
from flyjax.utils.run_directory import identity

VIEWERS = ("tensorboard", "wandb", "trackio")


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

    It belongs to the run directory, whose later sessions add to it. Each training has a step of its own, logged beside
    its values.
    """

    def __init__(self, module: str, project: str, run_dir: Path):
        self._tracker, self._module, self._project, self._run_dir = _package(module, module), module, project, run_dir
        self._run: Any = None
        self._known: set[str] = set()

    def _init(self, settings: dict[str, dict[str, Any]]) -> Any:
        name, key = self._run_dir.absolute().name, identity(self._run_dir)
        # trackio knows a run by its name.
        own = (
            {"id": key, "name": name, "group": self._project} if self._module == "wandb" else {"name": f"{name}-{key}"}
        )
        try:
            return self._tracker.init(project=self._project, config=settings, resume="allow", **own)
        except Exception as error:  # of the network, of a login: of many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"--log {self._module} cannot start ({reason}): correct it, or leave it out") from None

    def start(self, lanes) -> None:
        settings = {lane: dict(config) for lane, config in lanes.items() if lane not in self._known}
        self._known |= set(settings)
        if self._run is None:
            self._run = self._init(settings)
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
        run_dir = Path(run_dir)
        self._history, self._viewers = run_dir / HISTORY, []
        self._last_step: dict[str, float] | None = None  # by lane, of earlier sessions
        for name in dict.fromkeys(viewers):
            if name not in VIEWERS:
                raise UserError(f"--log {name}: unknown.{nearest(name, VIEWERS)} Known: {', '.join(VIEWERS)}.")
            tensorboard = name == "tensorboard"
            self._viewers.append(TensorBoard(run_dir / name) if tensorboard else Tracker(name, project, run_dir))

    def start(self, lanes: Mapping[str, Mapping[str, Any]]) -> None:
        """Settings of trainings that start, by name. May be called again with others."""
        if self._last_step is None:
            known = read_history(self._history) if self._history.is_file() else {}
            self._last_step = {lane: entries[-1]["step"] for lane, entries in known.items()}
        for viewer in self._viewers:
            viewer.start(lanes)

    def log(self, step: int, lane: str, values: Mapping[str, float | None]) -> None:
        """Metrics of a training after so many steps; values that are not finite are left out."""
        if step <= (self._last_step or {}).get(lane, 0):
            return
        finite = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        with open_lines(self._history) as file:
            write_line(file, {"lane": lane, "step": step, **finite})
        for viewer in self._viewers:
            viewer.log(step, lane, finite)

    def close(self) -> None:
        """Write what is buffered."""
        for viewer in self._viewers:
            viewer.close()
