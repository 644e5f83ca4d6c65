"""The state of the trainings, reported after every chunk."""

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from flyjax.training.grouping import CHUNK, Lane
from flyjax.training.hparams import Static
from flyjax.training.lanes import LaneState, Segment

#: Of the training time, what `monitor` may take.
MONITOR_SHARE = 0.05


@dataclass(frozen=True)
class LaneProgress:
    """The state of one training.

    **Attributes:**

    - `values`: loss and total over the chunk, rate_* of its last step, validation if there is one, and the
      values of `monitor`.
    - `status`: training, finished, diverged or stopped.
    """

    lane: Lane
    step: int
    values: dict[str, float]
    status: str


@dataclass(frozen=True)
class Progress:
    """Reported after every chunk."""

    group: int
    n_groups: int
    lane_steps: int  # done, over all lanes of all groups
    total_lane_steps: int
    loss: float | None  # mean data term over the chunk of the lanes that took steps
    n_diverged: int
    lanes: tuple[LaneProgress, ...] = ()  # of this group


class Reporter:
    """Turns chunks into `Progress` and calls `monitor` for each lane now and then, and when the lane is trained.

    Over all programs `monitor` takes `MONITOR_SHARE` of the time; the first call of a program, which compiles it, and
    the last of a lane do not count.
    """

    def __init__(self, on_progress, monitor, lanes: Collection[LaneState], clock=time.perf_counter):
        self.on_progress, self.monitor, self.lanes, self.clock = on_progress, monitor, lanes, clock
        self.started_at, self.monitored_s = clock(), 0.0
        self.group = self.n_groups = 0
        self.compiled: set[Static] = set()  # programs whose parameters were read before
        self.trained: set[Lane] = set()  # lanes that were read when trained

    def __call__(
        self, segment: Segment, done: int, newest: np.ndarray, steps: np.ndarray, is_finite: np.ndarray
    ) -> None:
        """**Arguments:** as `Segment.train` reports them; `newest` (chunk, lanes, 3) losses."""
        if self.on_progress is None:
            return
        finite = np.isfinite(newest)
        counts = finite[..., :2].all(axis=2).sum(axis=0)
        means = np.nansum(newest, axis=0, dtype=np.float64) / np.maximum(counts, 1)[:, None]
        n_chunks = segment.group.n_chunks
        is_in_budget = self.monitored_s <= MONITOR_SHARE * (self.clock() - self.started_at)
        due = is_in_budget and done % max(1, n_chunks // 10) == 0
        lanes = []
        for i, lane in enumerate(segment.lanes):
            values = {}
            if counts[i]:
                values = {"loss": float(means[i, 0]), "total": float(means[i, 1])}
                values |= {f"rate_{group}": rate for group, rate in segment.rates(i, int(steps[i])).items()}
            if finite[:, i, 2].any():  # one value in a chunk
                values["validation"] = float(np.nansum(newest[:, i, 2]))
            status = "diverged" if not is_finite[i] else "finished" if steps[i] >= lane.lane.n_steps else "training"
            last = status == "finished" and lane.lane not in self.trained
            if self.monitor is not None and (last or due and counts[i]):
                start = self.clock()
                values |= self.monitor(lane.lane, segment.params(i, last))
                if last:
                    self.trained.add(lane.lane)
                elif segment.group.static in self.compiled:
                    self.monitored_s += self.clock() - start
                self.compiled.add(segment.group.static)
            lanes.append(LaneProgress(lane.lane, int(steps[i]), values, status))
        losses = [lane.values["loss"] for lane in lanes if "loss" in lane.values]
        self.on_progress(
            Progress(
                group=self.group,
                n_groups=self.n_groups,
                lane_steps=sum(each.step for each in self.lanes if each not in segment.lanes)
                + sum(min(done * CHUNK, lane.n_steps) for lane in segment.group.lanes),
                total_lane_steps=sum(each.step if each.done else each.lane.n_steps for each in self.lanes),
                loss=float(np.mean(losses)) if losses else None,
                n_diverged=int((~is_finite).sum()),
                lanes=tuple(lanes),
            )
        )
