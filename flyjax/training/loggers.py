"""Watching trainings: one small interface, a JSON Lines history always, other viewers on request.

    watcher = make_watcher(("tensorboard",), run_dir, "quickstart")
    watcher.start({"node_0001/seed_7": {"batch_size": 4}})
    watcher.log(250, "node_0001/seed_7", {"loss": 3.2, "connectivity_R2": 0.61})
    watcher.close()

What is watched decides nothing: with or without it a training gives the same bits. A training that was
killed goes on from its checkpoint and tells the steps since then once more; the last word counts.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flyjax.utils.errors import UserError, nearest
from flyjax.utils.jsonl import open_lines, write_line

HISTORY = "history.jsonl"


class Watcher(Protocol):
    """What is told of trainings while they run."""

    def start(self, lanes: Mapping[str, Mapping[str, Any]]) -> None:
        """Trainings that begin, by name, with their settings. May be called again with others."""

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        """Numbers of a training after so many steps."""

    def close(self) -> None:
        """Write what is waiting."""


class History:
    """One JSON object per line: {"lane", "step", and the numbers by name}. Nothing that is not finite."""

    def __init__(self, path: Path):
        self.path, self._file = Path(path), None

    def start(self, lanes) -> None:
        if self._file is None:
            self._file = open_lines(self.path)

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        known = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        write_line(self._file, {"lane": lane, "step": step, **known})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_history(path: Path) -> dict[str, list[dict[str, float]]]:
    """By lane, its lines in the order of steps; of a step told twice, the last. Torn lines are passed over."""
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
        self._writer = _package("tensorboard", "tensorboardX").SummaryWriter
        self._folder, self._writers = Path(folder), {}

    def start(self, lanes) -> None:
        for lane in lanes:
            if lane not in self._writers:
                self._writers[lane] = self._writer(logdir=str(self._folder / lane), flush_secs=30)

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writers[lane].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class Tracker:
    """Weights & Biases or trackio, which share these calls: one run, every training's curves and settings in it by name.

    Each training has a step of its own, logged beside its numbers.
    """

    def __init__(self, module: str, project: str):
        self._tracker, self._project, self._running = _package(module, module), project, False
        self._run, self._known = None, set()

    def start(self, lanes) -> None:
        settings = {lane: dict(config) for lane, config in lanes.items() if lane not in self._known}
        self._known |= set(settings)
        if not self._running:
            self._run = self._tracker.init(project=self._project, config=settings)
            self._running = True
        elif settings:
            self._run.config.update(settings)
            if isinstance(self._run.config, dict):  # trackio's goes out with the first numbers and not again
                for lane, config in settings.items():
                    self._tracker.log({f"{lane}/{k}": v for k, v in config.items() if isinstance(v, (int, float))})
        for lane in settings:
            if hasattr(self._tracker, "define_metric"):
                self._tracker.define_metric(f"{lane}/*", step_metric=f"{lane}/step")

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        known = {f"{lane}/{k}": float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        self._tracker.log({**known, f"{lane}/step": step})

    def close(self) -> None:
        if self._running:
            self._tracker.finish()
            self._running = False


class Several:
    """Watchers as one."""

    def __init__(self, watchers: Iterable[Watcher]):
        self._watchers = tuple(watchers)

    def start(self, lanes) -> None:
        for watcher in self._watchers:
            watcher.start(lanes)

    def log(self, step: int, lane: str, values: Mapping[str, float]) -> None:
        for watcher in self._watchers:
            watcher.log(step, lane, values)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.close()


VIEWERS = ("tensorboard", "wandb", "trackio")


def make_watcher(viewers: Sequence[str], run_dir: Path, project: str) -> Several:
    """The history of a run, and the viewers asked for.

    **Raises:** `UserError` for an unknown viewer, or one whose package is not installed (with the remedy).
    """
    watchers: list[Watcher] = [History(Path(run_dir) / HISTORY)]
    for name in dict.fromkeys(viewers or ()):
        if name not in VIEWERS:
            raise UserError(f"--log {name}: unknown.{nearest(name, VIEWERS)} Known: {', '.join(VIEWERS)}.")
        watchers.append(TensorBoard(Path(run_dir) / "tensorboard") if name == "tensorboard" else Tracker(name, project))
    return Several(watchers)
