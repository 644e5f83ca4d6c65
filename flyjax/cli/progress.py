"""Progress of a training: a bar and a table at a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flyjax.report.tables import format_cell
from flyjax.training import Progress as TrainingProgress
from flyjax.utils.format import duration
from flyjax.utils.signals import interruptible

LINE_INTERVAL_S = 60  # between lines of progress without a terminal


class Pace:
    """Seconds left at the pace since the first update, which includes the compilation and does not count."""

    def __init__(self, now: float, step: int):
        self._began, self._first = now, step

    def seconds_left(self, now: float, step: int, n_steps: int) -> float | None:
        done = step - self._first
        return (n_steps - step) * (now - self._began) / done if done > 0 else None


@dataclass
class _Lane:
    pace: Pace
    step: int = 0
    n_steps: int = 0
    status: str = ""
    seconds_left: float | None = None
    loss: float | None = None
    r2: float | None = None


class LaneTable:
    """The trainings of a batch in progress: step, loss, connectivity R2, time left.

    **Arguments:** `ids` are the nodes by candidate number, `max_rows` limits the table.
    """

    def __init__(self, ids: Sequence[int] = (), max_rows: int = 16, clock: Callable[[], float] = time.monotonic):
        self._ids, self._max_rows, self._clock = ids, max_rows, clock
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def update(self, progress: TrainingProgress) -> None:
        """Take over the state after a segment of training."""
        now = self._clock()
        for one in progress.lanes:
            lane = self._lanes.setdefault((one.lane.candidate, one.lane.replicate), _Lane(Pace(now, one.step)))
            lane.step, lane.n_steps, lane.status = one.step, one.n_steps, one.status
            lane.seconds_left = lane.pace.seconds_left(now, one.step, one.n_steps)
            lane.loss = one.values.get("loss", lane.loss)
            lane.r2 = one.values.get("connectivity_R2", lane.r2)

    @property
    def best_r2(self) -> float | None:
        """The highest connectivity R2 among the newest of each training."""
        return max((lane.r2 for lane in self._lanes.values() if lane.r2 is not None), default=None)

    def rows(self) -> list[dict[str, str]]:
        """Rows of text: trainings in progress first, then by decreasing R2."""
        order = sorted(
            self._lanes.items(), key=lambda item: (item[1].status != "training", -(item[1].r2 or 0), item[0])
        )
        out = []
        for (candidate, replicate), lane in order[: self._max_rows]:
            time_left = lane.status
            if time_left == "training":
                time_left = "" if lane.seconds_left is None else duration(lane.seconds_left)
            out.append(
                {
                    "node": str(self._ids[candidate] if candidate < len(self._ids) else candidate + 1),
                    "seed": str(replicate + 1),
                    "step": f"{lane.step}/{lane.n_steps}",
                    "loss": format_cell("final_loss", lane.loss),
                    "R2": format_cell("connectivity_R2", lane.r2),
                    "to go": time_left,
                }
            )
        return out

    def __rich__(self) -> Table:
        table, rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), self.rows()
        for name in rows[0] if rows else ():
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row.values())
        if len(self._lanes) > self._max_rows:
            table.caption = f"and {len(self._lanes) - self._max_rows} more"
        return table


class ProgressLines:
    """Progress without a terminal: at most one plain line per `interval` seconds, for a log file."""

    def __init__(
        self, log: Callable[[str], None], title: str, interval: float, clock: Callable[[], float] = time.monotonic
    ):
        self._log, self._title, self._interval, self._clock = log, title, interval, clock
        self._pace: Pace | None = None
        self._last = clock()  # nothing is printed about what takes less than the interval

    def stage(self, text: str) -> None:
        """Print a line if it is time."""
        if self._clock() - self._last >= self._interval:
            self._last = self._clock()
            self._log(f"  {self._title}: {text}")

    def update(self, progress: TrainingProgress, note: str) -> None:
        """Print the state after a segment of training if it is time."""
        now, step, n_steps = self._clock(), progress.lane_steps, progress.total_lane_steps
        self._pace = self._pace or Pace(now, step)
        seconds = self._pace.seconds_left(now, step, n_steps)
        remaining = "" if seconds is None or step >= n_steps else f", about {duration(seconds)} left"
        self.stage(f"{step:,} of {n_steps:,} {note}{remaining}")


def _note(progress: TrainingProgress, best_r2: float | None) -> str:
    parts = ["steps"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3g}")
    if best_r2 is not None:
        parts.append(f"best R2 {best_r2:.3f}")
    if progress.n_diverged:
        parts.append(f"{progress.n_diverged} diverged")
    if progress.n_groups > 1:
        parts.append(f"program {progress.group + 1}/{progress.n_groups}")
    return ", ".join(parts)


@contextmanager
def training_progress(
    console: RichConsole, log: Callable[[str], None], title: str, ids: Sequence[int] = ()
) -> Iterator[tuple[Callable[[TrainingProgress], None], Callable[[str], None]]]:
    """Show a bar over all steps and a table of the trainings; both stop at Ctrl-C.

    **Returns:** (on_progress, on_stage) for `flyjax.experiments.train_nodes.train_nodes`.
    """
    lanes = LaneTable(ids)
    display: AbstractContextManager
    if console.is_terminal or console.is_jupyter:
        lines = None
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        task = bar.add_task(title, total=None, note="")
        display = Live(Group(bar, lanes), console=console, transient=True, refresh_per_second=4)
    else:
        lines, display = ProgressLines(log, title, LINE_INTERVAL_S), nullcontext()
    with interruptible() as check, display:

        def on_progress(progress: TrainingProgress) -> None:
            check()
            lanes.update(progress)
            note = _note(progress, lanes.best_r2)
            if lines is not None:
                lines.update(progress, note)
            else:
                bar.update(task, completed=progress.lane_steps, total=progress.total_lane_steps, note=note)

        def on_stage(stage: str) -> None:
            check()
            if lines is not None:
                lines.stage(stage)
            else:
                bar.update(task, note=stage)

        yield on_progress, on_stage
