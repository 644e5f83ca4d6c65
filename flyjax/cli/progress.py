"""Progress of a training or a search: bars and a table at a terminal, occasional lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from flyjax.report.tables import format_cell
from flyjax.training import LaneProgress
from flyjax.training import Progress as TrainingProgress
from flyjax.utils.format import duration
from flyjax.utils.signals import interruptible

LINE_INTERVAL_S = 60  # between lines of progress without a terminal
MAX_ROWS = 16  # of the table of trainings


class Pace:
    """The time left at the pace since the first update.

    What was done before it, in an earlier session or while the program was compiled, does not count.
    """

    def __init__(self):
        self._updates: list[tuple[float, int, int]] = []  # time, step and number of steps of the first and the newest

    def update(self, now: float, step: int, n_steps: int) -> None:
        self._updates[1:] = [(now, step, n_steps)]

    def seconds(self, now: float) -> float | None:
        """The time left; None before a second update that has moved on."""
        if len(self._updates) < 2 or self._updates[1][1] <= self._updates[0][1]:
            return None
        (began, first, _), (newest, step, n_steps) = self._updates
        return max(0.0, (n_steps - step) * (newest - began) / (step - first) - (now - newest))

    def left(self, now: float, form: str = "{}") -> str:
        """The time left in words; empty where it is not known."""
        seconds = self.seconds(now)
        return "" if seconds is None else form.format(duration(seconds))


@dataclass
class _Lane:
    newest: LaneProgress
    pace: Pace
    loss: float | None = None
    r2: float | None = None
    r2_step: int = 0

    def r2_text(self) -> str:
        """The newest connectivity R2, with its step unless it is that of the trained network."""
        final = self.newest.status != "training" and self.r2_step == self.newest.step
        at = "" if self.r2 is None or final else f" at step {self.r2_step:,}"
        return format_cell("connectivity_R2", self.r2) + at


class LaneTable:
    """The trainings of a batch in progress: step, loss, connectivity R2, time left.

    **Arguments:** `ids` are the nodes by candidate number.
    """

    def __init__(self, ids: Sequence[int] = (), clock: Callable[[], float] = time.monotonic):
        self._ids, self._clock = ids, clock
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def update(self, progress: TrainingProgress) -> None:
        """Take over the state after a segment of training."""
        for one in progress.lanes:
            lane = self._lanes.setdefault((one.lane.candidate, one.lane.replicate), _Lane(one, Pace()))
            lane.newest, lane.loss = one, one.values.get("loss", lane.loss)
            lane.pace.update(self._clock(), one.step, one.lane.n_steps)
            if "connectivity_R2" in one.values:
                lane.r2, lane.r2_step = one.values["connectivity_R2"], one.step

    def best_r2(self) -> str:
        """The highest connectivity R2 among the newest of each training; empty before the first."""
        known = [lane for lane in self._lanes.values() if lane.r2 is not None]
        return f"best R2 {max(known, key=lambda lane: lane.r2 or 0).r2_text()}" if known else ""

    def rows(self) -> list[dict[str, str]]:
        """Rows of text: trainings in progress first, then by decreasing R2."""
        lanes = sorted(
            self._lanes.items(), key=lambda item: (item[1].newest.status != "training", -(item[1].r2 or 0), item[0])
        )
        now = self._clock()
        return [
            {
                "node": str(self._ids[key[0]] if key[0] < len(self._ids) else key[0] + 1),
                "seed": str(key[1] + 1),
                "step": f"{lane.newest.step:,}/{lane.newest.lane.n_steps:,}",
                "loss": format_cell("final_loss", lane.loss),
                "R2 of W": lane.r2_text(),
                "to go": lane.newest.status if lane.newest.status != "training" else lane.pace.left(now),
            }
            for key, lane in lanes[:MAX_ROWS]
        ]

    def __rich__(self) -> Table:
        table, rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), self.rows()
        for name in rows[0] if rows else ():
            table.add_column(name, justify="left" if name == "R2 of W" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row.values())
        if len(self._lanes) > MAX_ROWS:
            table.caption = f"and {len(self._lanes) - MAX_ROWS} more"
        return table


class _Text(ProgressColumn):
    """A cell that stays whole in a narrow terminal; the first column, the description, is cut instead."""

    def __init__(self, text: Callable[[Task], str], whole: bool = True):
        self._text = text
        super().__init__(Column(no_wrap=whole, justify="right" if whole else "left"))

    def render(self, task: Task) -> Text:
        return Text(self._text(task) or " ", no_wrap=True, overflow="ellipsis")


def _count(task: Task) -> str:
    return "" if task.total is None else f"{int(task.completed):,}/{int(task.total):,} {task.fields['unit']}"


class RunProgress:
    """What a call is doing: a bar over the iterations of the run and one over the current stage.

    Without a terminal it prints at most one plain line per `LINE_INTERVAL_S`, for a log file.

    **Arguments:** `log` prints a line, `clock` gives seconds.
    """

    def __init__(self, console: RichConsole, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.is_live = console.is_terminal or console.is_jupyter
        self._log, self._clock, self._last_line = log, clock, clock()  # what takes less than the interval has no line
        self._title, self._stage, self._note = "", "", ""
        self._due: float | None = None  # when the first result of a run is expected
        self._lanes, self._run_pace, self._pace = LaneTable(clock=clock), Pace(), Pace()

        def left(task: Task) -> str:
            pace = self._run_pace if task.fields["unit"] == "iterations" else self._pace
            return "" if task.finished else pace.left(clock(), "{} left")

        self._bar = Progress(
            SpinnerColumn(finished_text=" "),
            _Text(lambda task: task.description, whole=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1, width=6)),
            _Text(_count),
            TimeElapsedColumn(Column(no_wrap=True)),
            _Text(left),
            console=console,
            get_time=clock,
            expand=True,
        )
        self._run_task = self._bar.add_task("run", total=None, visible=False, unit="iterations")
        self._task = self._bar.add_task("", total=None, visible=False, unit="steps")
        self._live = Live(get_renderable=self.renderable, console=console, transient=True, refresh_per_second=4)

    def renderable(self) -> Group:
        """The bars, the state of the training in a line, and the table of trainings."""
        note = ", ".join(filter(None, (self.first_result(), self._note)))
        return Group(self._bar, Text(f"  {note}", "dim", no_wrap=True, overflow="ellipsis"), self._lanes)

    def first_result(self) -> str:
        """When the first result of a run is due; empty once it is there."""
        left = None if self._due is None else self._due - self._clock()
        return "" if left is None else f"first result in about {duration(left)}" if left > 1 else "first result due"

    def __enter__(self) -> "RunProgress":
        if self.is_live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Leave the terminal to a question."""
        self._live.stop()
        try:
            yield
        finally:
            self.__enter__()

    @contextmanager
    def iteration(
        self, title: str, ids: Sequence[int] = (), done: int = 0, total: int = 1, first_result_s: float | None = None
    ) -> Iterator[tuple[Callable[[TrainingProgress], None], Callable[[str], None]]]:
        """Show one batch of trainings, which stops at Ctrl-C.

        **Arguments:**

        - `ids` are its nodes; `done` of `total` iterations of the run were finished before it.
        - `first_result_s`: seconds until the first result of the run, as forecast; the pace of training corrects it.

        **Returns:** (on_progress, on_stage) for `flyjax.experiments.train_nodes.train_nodes`.
        """
        self._title, self._lanes = title, LaneTable(ids, self._clock)
        self._run_pace.update(self._clock(), done, total)
        self._due = None if first_result_s is None else self._clock() + first_result_s
        self._bar.update(self._run_task, completed=done, total=total, visible=total > 1)
        with interruptible() as check:

            def on_progress(progress: TrainingProgress) -> None:
                check()
                self._train(progress)

            def on_stage(stage: str) -> None:
                check()
                self._begin(stage)
                self._line(stage)

            yield on_progress, on_stage
        self._due = None
        self._bar.update(self._run_task, completed=done + 1)
        self._lanes = LaneTable()
        self._begin("choosing")

    def _begin(self, stage: str) -> None:
        """Show a stage with a moving bar and its own clock."""
        self._stage, self._note, self._pace = stage, "", Pace()
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"{stage}, {self._title}", total=None, unit="steps")

    def _train(self, progress: TrainingProgress) -> None:
        now, step, n_steps = self._clock(), progress.lane_steps, progress.total_lane_steps
        if self._stage != "training":
            self._begin("training")
        self._pace.update(now, step, n_steps)
        if self._due is not None and (seconds := self._pace.seconds(now)) is not None:
            self._due = now + seconds
        self._lanes.update(progress)
        self._bar.update(self._task, completed=step, total=n_steps)
        parts = [
            "" if progress.loss is None else f"loss {progress.loss:.3g}",
            self._lanes.best_r2(),
            f"{progress.n_diverged} diverged" if progress.n_diverged else "",
            f"program {progress.group + 1}/{progress.n_groups}" if progress.n_groups > 1 else "",
        ]
        self._note = ", ".join(filter(None, parts))
        remaining = self._pace.left(now, "about {} left") if step < n_steps else ""
        self._line(", ".join(filter(None, (f"{step:,} of {n_steps:,} steps", self._note, remaining))))

    def _line(self, text: str) -> None:
        if not self.is_live and self._clock() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = self._clock()
            self._log(f"  {self._title}: {text}")
