"""Lanes of one compiled program: their start, their chunks and their checkpoints.

A lane is one training. Lanes of a program are stacked along a leading axis and sharded over the devices of
all processes; between programs each is a `LaneState` of its own, so that the next program may hold other lanes.
"""

import functools
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flyjax.models import Learner
from flyjax.training import checkpoint
from flyjax.training.grouping import CHUNK, Group, Lane
from flyjax.training.hparams import RATES, Static
from flyjax.training.optimizer import learning_rate, unpack
from flyjax.training.step import TrainState, init_state, result_params, train_lanes
from flyjax.utils import distributed
from flyjax.utils.ahead import ready
from flyjax.utils.errors import UserError
from flyjax.utils.signals import deferred

#: What a process tells the others instead of the number of a signal.
STOPPED = 1000


@dataclass(eq=False)
class LaneState:
    """A lane between programs."""

    lane: Lane
    state: Any = None  # TrainState, once it has started
    step: int = 0
    is_finite: bool = True
    losses: list[np.ndarray] = field(default_factory=list)  # (steps of a segment, 3)
    wall_s: float = 0.0
    frames: int = 0  # of all lanes of its programs
    stopped_at: int | None = None

    @property
    def done(self) -> bool:
        return self.stopped_at is not None or not self.is_finite or self.step >= self.lane.n_steps


class Program(NamedTuple):
    """A function over stacked lanes, and where its arguments lie."""

    chunk: Any  #: (hparams, data, states) -> states, losses; compiled once per number of lanes
    by_lane: NamedSharding
    replicated: NamedSharding


#: One lane's state before its first step, of (learner, signature, hparams, key).
start = jax.jit(init_state, static_argnums=(0, 1))


def start_static(static: Static) -> Static:
    """The signature of a start, which does not depend on the batch."""
    return static._replace(batch_size=1)


# Programs are found by the value of learner and signature. The cache is bounded: each entry holds a circuit.
@functools.lru_cache(maxsize=16)
def compiled(learner: Learner, static: Static, n_devices: int) -> Program:
    """The program of a static signature."""
    mesh = jax.make_mesh((n_devices,), ("lane",), axis_types=(AxisType.Auto,), devices=distributed.devices(n_devices))
    lane, everywhere = PartitionSpec("lane"), PartitionSpec()
    chunk = jax.shard_map(
        functools.partial(train_lanes, learner, static, CHUNK),
        mesh=mesh, in_specs=(lane, everywhere, lane), out_specs=lane, check_vma=False,
    )  # fmt: skip
    return Program(jax.jit(chunk, donate_argnums=2), NamedSharding(mesh, lane), NamedSharding(mesh, everywhere))


def stack_hparams(items):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """States of lanes as one, of NumPy arrays: on a device every shape would be another small program to compile."""
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(list(states)))


def _rows(state: TrainState, rows) -> TrainState:
    return jax.tree.map(lambda x: x[rows], state)


class Segment:
    """A program over some chunks: starts or continues lanes, chunk by chunk, and hands them back."""

    def __init__(
        self,
        learner: Learner,
        group: Group,
        lanes: list[LaneState],
        hparams,
        data_at,
        project: Callable,
        folder: Path | None,
    ):
        """**Arguments:** `hparams`: `traced_hparams` of each lane; `data_at`: `DeviceRecordings.at`; `project`: W of a
        lane by variable projection, from the lane and its parameters; `folder`: of checkpoints, if any."""
        padding = group.width - len(lanes)
        self.learner, self.group, self.lanes, self.hparams = learner, group, lanes, hparams
        self._data_at, self._project, self.folder = data_at, project, folder
        self._whole: Any = None  # the compiled program of `_all_states`, where there are several processes
        self.program = compiled(learner, group.static, group.n_devices)
        # Lanes that only pad a device take no step and affect no other.
        padded = [*hparams, *[hparams[-1] | {"n_steps": np.int32(0)}] * padding]
        self.stacked_hparams = distributed.place(stack_hparams(padded), self.program.by_lane)
        begin = ready(start)
        states = [
            begin(learner, start_static(group.static), own, jax.random.key(np.uint32(lane.lane.seed)))
            if lane.state is None
            else lane.state
            for lane, own in zip(lanes, hparams, strict=True)
        ]
        self._take_up(stack_states(states))

    def _take_up(self, state: TrainState) -> None:
        """Continue from stacked states of the lanes."""
        rows = np.minimum(np.arange(self.group.width), len(self.lanes) - 1)
        self.state = distributed.place(_rows(state, rows), self.program.by_lane)

    def _all_states(self) -> TrainState:
        """The stacked states of the lanes, without padding: NumPy arrays, or a copy on each device of all processes.

        Orbax has all processes write such a copy, each a part of it.
        """
        n_lanes = len(self.lanes)
        if distributed.count() == 1:
            return _rows(jax.device_get(self.state), slice(n_lanes))
        if self._whole is None:
            slices = functools.partial(jax.tree.map, lambda x: x[:n_lanes])
            self._whole = jax.jit(slices, out_shardings=self.program.replicated).lower(self.state).compile()
        distributed.barrier()  # Gloo waits half a minute, less than a process may take longer to compile
        return self._whole(self.state)

    def _project_weights(self, done: int, is_finite: np.ndarray) -> None:
        """Replace W of the lanes that are due after so many chunks; each process that of its own lanes."""
        due = [i for i, lane in enumerate(self.lanes) if is_finite[i] and done in lane.lane.projections]
        if not due:
            return
        state = jax.device_get(distributed.local(self._all_states()))
        weight = np.array(state.params["W"])
        for i in filter(lambda i: distributed.is_here(i, self.group.width), due):
            params = unpack(self.learner, {group: x[i] for group, x in state.params.items()})
            weight[i] = self._project(self.lanes[i].lane, params)
        selected = state.selected_params
        if self.group.static.select == "average":
            average = np.array(selected["W"])
            average[due] = weight[due]
            selected = selected | {"W": average}
        self._take_up(state._replace(params=state.params | {"W": weight}, selected_params=selected))

    def train(self, first: int, last: int, checkpoint_every: int, report: Callable) -> None:
        """Chunks `first` to `last`; those that a checkpoint holds are not trained again.

        **Arguments:** `report(segment, chunks done, losses (chunk, lanes, 3), steps, is_finite)` after every chunk.
        """
        began, n_lanes, done = time.perf_counter(), len(self.lanes), first
        losses = np.full(((last - first) * CHUNK, n_lanes, 3), np.nan, np.float32)
        every = max(1, checkpoint_every // CHUNK)
        with nullcontext() if self.folder is None else closing(checkpoint.Store(self.folder)) as store:
            if store is not None:
                # Of the lanes alone: how they are padded depends on the number of devices.
                like = {"state": self._all_states(), "losses": losses, "spent": np.float64(0.0)}
                if (found := store.restore_latest(like)) is not None:
                    done, tree = found
                    self._take_up(jax.device_get(distributed.local(tree["state"])))
                    losses, began = np.array(tree["losses"]), began - float(tree["spent"])
            data = self._data_at(self.group.levels, self.group.width, self.program.replicated) if done < last else None
            chunk = ready(self.program.chunk)
            while done < last:
                with deferred() as interrupted_by:
                    self.state, chunk_losses = chunk(self.stacked_hparams, data, self.state)
                    # The one wait of a chunk.
                    newest, steps, is_finite = distributed.fetch((chunk_losses, self.state.step, self.state.is_finite))
                    newest = newest[:n_lanes].swapaxes(0, 1)
                    losses[(done - first) * CHUNK : (done - first + 1) * CHUNK] = newest
                    done, error = done + 1, None
                    self._project_weights(done, is_finite)
                    try:
                        report(self, done, newest, steps[:n_lanes], is_finite[:n_lanes])
                    except (KeyboardInterrupt, UserError) as stop:  # from which the training goes on
                        error = stop
                    stopped = distributed.largest(STOPPED if error is not None else interrupted_by())
                    if store is not None and (stopped or done == last or done % every == 0):
                        spent = np.float64(time.perf_counter() - began)
                        store.save(done, {"state": self._all_states(), "losses": losses, "spent": spent})
                    if error is not None:
                        raise error
                    if stopped == STOPPED:
                        raise distributed.Stopped
                    if stopped and not interrupted_by():  # it was another process
                        signal.raise_signal(stopped)
        self._hand_back(losses, time.perf_counter() - began)

    def _hand_back(self, losses: np.ndarray, wall_s: float) -> None:
        state = jax.device_get(distributed.local(self._all_states()))
        taken = [int(step) - lane.step for step, lane in zip(state.step, self.lanes)]
        for i, lane in enumerate(self.lanes):
            lane.state = _rows(state, i)
            lane.step, lane.is_finite = int(state.step[i]), bool(state.is_finite[i])
            lane.losses.append(losses[: taken[i], i].copy())
            lane.wall_s += wall_s
            lane.frames += sum(taken) * self.group.static.batch_size

    def params(self, i: int, is_trained: bool = False):
        """Current parameters of a lane, or those that its training results in; NumPy arrays."""
        params = result_params(self.state) if is_trained else self.state.params
        return unpack(self.learner, {k: distributed.row(v, i) for k, v in params.items()})

    def rates(self, i: int, step: int) -> dict[str, float]:
        """The learning rates of a lane's step number `step` (from 1), by parameter group."""
        hparams, schedule = self.hparams[i], self.group.static.schedule
        groups = [group for group, name in RATES.items() if name in hparams]
        return {group: float(learning_rate(group, schedule, hparams, step - 1, np)) for group in groups}


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
            if self.monitor is not None and distributed.has_row(i, segment.group.width) and (last or due and counts[i]):
                start = self.clock()
                values |= self.monitor(lane.lane, segment.params(i, last), last)
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
