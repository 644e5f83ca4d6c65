"""How trainings stand, told after every chunk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from flyjax.training.lanes import Piece
from flyjax.training.planning import CHUNK, Lane

#: Of the training time, what readings along the way may take.
WATCH_SHARE = 0.05


@dataclass(frozen=True)
class LaneProgress:
    """How one training stands."""

    lane: Lane
    step: int
    n_steps: int
    values: dict[
        str, float
    ]  #: loss and total over the chunk, rate_* of its last step, validation if there is one, and what `watch` read
    status: str  #: training, finished, diverged or stopped


@dataclass(frozen=True)
class Progress:
    """Told after every chunk."""

    group: int
    n_groups: int
    lane_steps: int  # done, over all lanes of all groups
    total_lane_steps: int
    loss: float | None  # mean data term of the living lanes over the chunk
    n_diverged: int
    lanes: tuple[LaneProgress, ...] = ()  # of this group


class Reporter:
    """Turns chunks into `Progress`, and asks `watch` now and then: over all programs, for `WATCH_SHARE` of the time."""

    def __init__(self, on_progress, watch, total: int, clock=time.perf_counter):
        self.on_progress, self.watch, self.total, self.before = on_progress, watch, total, 0
        self.clock, self.began, self.watched_s = clock, clock(), 0.0
        self.group = self.n_groups = 0

    def __call__(self, piece: Piece, done: int, newest: np.ndarray) -> None:
        if self.on_progress is None:
            return
        state = piece.state
        alive, steps = np.asarray(state.alive), np.asarray(state.step)
        with np.errstate(invalid="ignore"):
            counts = np.isfinite(newest[..., :2]).all(axis=2).sum(axis=0)
            means = np.nansum(newest, axis=0, dtype=np.float64) / np.maximum(counts, 1)[:, None]
            validation = np.nansum(newest[..., 2], axis=0)  # one value in a chunk
        every = max(1, piece.group.n_chunks // 10)
        due = self.watch is not None and (done % every == 0 or done == piece.group.n_chunks)
        due = due and self.watched_s <= WATCH_SHARE * (self.clock() - self.began)
        lanes = []
        for i, run in enumerate(piece.runs):
            values = {"loss": float(means[i, 0]), "total": float(means[i, 1])} if counts[i] else {}
            if counts[i]:
                values |= {f"rate_{group}": rate for group, rate in piece.rates(i, int(steps[i])).items()}
            if np.isfinite(newest[:, i, 2]).any():
                values["validation"] = float(validation[i])
            if due and counts[i]:
                start = self.clock()
                values |= self.watch(run.lane, piece.params(i))
                self.watched_s += self.clock() - start
            status = "diverged" if not alive[i] else "finished" if steps[i] >= run.n_steps else "training"
            lanes.append(LaneProgress(run.lane, int(steps[i]), run.n_steps, values, status))
        known = [lane.values["loss"] for lane in lanes if "loss" in lane.values]
        self.on_progress(
            Progress(
                group=self.group,
                n_groups=self.n_groups,
                lane_steps=self.before + sum(min(done * CHUNK, run.n_steps) for run in piece.runs),
                total_lane_steps=self.total,
                loss=float(np.mean(known)) if known else None,
                n_diverged=int((~alive[: piece.n_lanes]).sum()),
                lanes=tuple(lanes),
            )
        )
