"""Many trainings at once: candidates x seeds as lanes of a few compiled programs.

Candidates are grouped by static signature and by what fits into memory (`planning`); inside a group
everything that differs is a traced number, so a group is one vmapped, scanned program, sharded over the
local devices. The host looks in between chunks: progress, checkpoints, and which lanes go on.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flyjax.config import Training, content_hash
from flyjax.model import Learner
from flyjax.recording import Recording
from flyjax.training import checkpoint, planning
from flyjax.training.halving import Halving, lost, rungs, spread
from flyjax.training.planning import CHUNK, Group, Lane, Memory, plan
from flyjax.training.train import (
    Static,
    TrainState,
    check_rollouts,
    computes_target,
    init_state,
    numbers_of,
    units_of,
    selected,
    stack_recordings,
    train_lanes,
    unpack,
)

#: Unused recordings are added until there are as many as lanes while they are smaller than this together:
#: then the number of noise levels does not shape the program.
SPARE_BYTES = 256e6
#: Of the training time, what readings along the way may take.
WATCH_SHARE = 0.05
#: GFLOP that a narrower program must save to be compiled: about ten seconds.
WORTH = {"cpu": 300.0}
WORTH_ELSEWHERE = 1e5


@dataclass(frozen=True)
class Trained:
    """What one lane came to.

    Attributes:
        params: the parameters selected (`Training.select`), by default the last finite ones; NumPy arrays.
        losses: (steps, 2) data term and total of every step taken.
        diverged_at: the step whose loss or gradient was not finite, or None.
        wall_s: seconds of the programs this lane ran in, compilation included.
        frames_per_s: training frames of all their lanes over that time.
        stopped_at: the step at which successive halving stopped it, or None.
        validation: (n, 2) step and root mean square error (1/s) on held-out frames, once per chunk; empty
            without `validation_fraction`.
    """

    seed: int
    params: Any
    losses: np.ndarray
    n_steps: int
    diverged_at: int | None
    wall_s: float
    frames_per_s: float
    stopped_at: int | None = None
    validation: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def tail(self, column: int) -> float | None:
        """Mean of the last 5 % of the steps: column 0 the data term, 1 with the regularisers."""
        if self.diverged_at is not None or not len(self.losses):
            return None
        return float(np.mean(self.losses[-max(1, len(self.losses) // 20) :, column], dtype=np.float64))

    @property
    def final_loss(self) -> float | None:
        return self.tail(0)

    @property
    def final_loss_total(self) -> float | None:
        return self.tail(1)


@dataclass(frozen=True)
class LaneProgress:
    """How one training stands."""

    lane: Lane
    step: int
    n_steps: int
    values: dict[str, float]  #: loss and total over the chunk, validation if there is one, and what `watch` read, if it did
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


@dataclass
class _Run:
    """A lane between programs."""

    lane: Lane
    n_steps: int
    state: TrainState | None = None
    losses: list[np.ndarray] = field(default_factory=list)  # (steps of a piece, 3)
    wall_s: float = 0.0
    frames: int = 0  # of all lanes of its programs
    stopped_at: int | None = None

    @property
    def step(self) -> int:
        return 0 if self.state is None else int(self.state.step)

    @property
    def alive(self) -> bool:
        return self.state is None or bool(self.state.alive)

    @property
    def done(self) -> bool:
        return self.stopped_at is not None or not self.alive or self.step >= self.n_steps


@functools.lru_cache(maxsize=32)
def _init(learner: Learner, static: Static):
    """One lane's start, compiled once whatever the number of lanes."""
    return jax.jit(functools.partial(init_state, learner, static))


@functools.lru_cache(maxsize=32)
def _unpack(learner: Learner):
    return jax.jit(functools.partial(unpack, learner))


@functools.lru_cache(maxsize=32)
def _programs(learner: Learner, static: Static, n_devices: int):
    """(init, chunk) over stacked lanes, the chunk compiled once per static signature and lane count."""
    mesh = jax.make_mesh((n_devices,), ("lane",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:n_devices])
    lane, everywhere = PartitionSpec("lane"), PartitionSpec()
    chunk = functools.partial(train_lanes, learner, static, CHUNK)
    chunk = jax.shard_map(chunk, mesh=mesh, in_specs=(lane, everywhere, lane), out_specs=lane, check_vma=False)
    # Where the frames of a step are drawn is no part of the start: one program for all batch sizes.
    start = _init(learner, static._replace(batch_size=1))

    def init(numbers, keys) -> TrainState:
        numbers = jax.device_get(numbers)
        lanes = [start({k: v[i] for k, v in numbers.items()}, keys[i]) for i in range(len(keys))]
        return _stacked(lanes, NamedSharding(mesh, lane))

    return init, jax.jit(chunk, donate_argnums=2), NamedSharding(mesh, lane), NamedSharding(mesh, everywhere)


def _stack(items):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def _stacked(states: Sequence[TrainState], sharding) -> TrainState:
    """States of lanes as one, on its devices."""
    one = jax.local_devices()[0]
    return jax.device_put(jax.tree.map(lambda *x: jnp.stack(x), *jax.device_put(list(states), one)), sharding)


def _keys(seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


class _Data:
    """The recordings of one program on the devices; those of the one before make room first."""

    def __init__(self, recording_of: Callable[[float], Recording]):
        self._recording_of, self._key, self._data = recording_of, None, None

    def at(self, levels: tuple[float, ...], width: int, sharding):
        """Trees of `stack_recordings`, one index per level."""
        key = levels, width, sharding
        if self._key == key:
            return self._data
        self._key = self._data = None
        for slot, level in enumerate(levels):
            recording = self._recording_of(level)
            had = "derivative" in vars(recording)
            one = jax.device_put(stack_recordings([recording]), sharding)
            if not had:
                vars(recording).pop("derivative", None)  # as large as the voltages, and now on the device
            n = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
            slots = max(width, len(levels)) if width * n <= SPARE_BYTES else len(levels)
            if slots == 1:
                self._data = one
                break
            if slot == 0:
                self._data = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype, device=sharding), one)
            self._data = _fill(self._data, one, slot)
        self._key = key
        return self._data


@functools.partial(jax.jit, donate_argnums=0)
def _fill(data, one, slot):
    return jax.tree.map(lambda all_, x: jax.lax.dynamic_update_slice_in_dim(all_, x, slot, axis=0), data, one)


class _Piece:
    """A program over some chunks: start or go on, chunk by chunk, and hand the lanes back."""

    def __init__(self, learner, group: Group, runs: list[_Run], numbers, data: Callable[[], Any], folder: Path | None):
        n_lanes, filling = len(runs), group.width - len(runs)
        self.learner, self.group, self.runs, self.data, self.folder = learner, group, runs, data, folder
        init, self.chunk, by_lane, _ = _programs(learner, group.static, group.n_devices)
        # Lanes that only fill up a device take no step and touch nobody.
        numbers = [*numbers, *[numbers[-1] | {"n_steps": np.int32(0)}] * filling]
        self.numbers = jax.device_put(_stack(numbers), by_lane)
        if runs[0].state is None:
            self.state = init(self.numbers, _keys([run.lane.seed for run in runs] + [0] * filling))
        else:
            states = [run.state for run in runs]
            self.state = _stacked([*states, *[states[-1]] * filling], by_lane)
        self.n_lanes = n_lanes

    def train(self, begin: int, end: int, checkpoint_every: int, report) -> None:
        """Chunks `begin` to `end`; what a checkpoint has of them is not trained again."""
        start = time.perf_counter()
        losses = np.full(((end - begin) * CHUNK, self.group.width, 3), np.nan, np.float32)
        first_steps = [run.step for run in self.runs]
        done, spent = begin, 0.0
        store = checkpoint.Store(self.folder) if self.folder is not None else None
        try:
            if store is not None:
                found = store.restore_latest({"state": self.state, "losses": losses, "spent": np.float64(0.0)})
                if found is not None:
                    done, tree = found
                    self.state, losses, spent = tree["state"], np.array(tree["losses"]), float(tree["spent"])
            data = self.data() if done < end else None
            while done < end:
                self.state, chunk_losses = self.chunk(self.numbers, data, self.state)
                # (lanes, chunk, 3) off the device: the one wait of a chunk.
                newest = np.asarray(chunk_losses).swapaxes(0, 1)
                losses[(done - begin) * CHUNK : (done - begin + 1) * CHUNK] = newest
                done += 1
                report(self, done, newest[:, : self.n_lanes], time.perf_counter() - start)
                if store is not None and (done == end or done * CHUNK % max(CHUNK, checkpoint_every // CHUNK * CHUNK) == 0):
                    total = spent + time.perf_counter() - start
                    # A copy: it is written while the next chunk fills the original.
                    store.save(done, {"state": self.state, "losses": losses.copy(), "spent": np.float64(total)})
        finally:
            if store is not None:
                store.close()
        wall, host = spent + time.perf_counter() - start, jax.device_put(self.state, jax.local_devices()[0])
        frames = 0
        for i, run in enumerate(self.runs):
            run.state = jax.tree.map(lambda x: x[i], host)
            taken = run.step - first_steps[i]
            run.losses.append(losses[:taken, i].copy())
            frames += taken * self.group.static.batch_size
        for run in self.runs:
            run.wall_s, run.frames = run.wall_s + wall, run.frames + frames

    def params(self, i: int):
        """Parameters of a lane as they are now."""
        return _unpack(self.learner)({k: v[i] for k, v in self.state.params.items()})


class _Reporter:
    """Turns chunks into `Progress`, and asks `watch` now and then."""

    def __init__(self, on_progress, watch, total: int):
        self.on_progress, self.watch, self.total, self.before = on_progress, watch, total, 0
        self.watched_s = 0.0
        self.group = self.n_groups = 0

    def __call__(self, piece: _Piece, done: int, newest: np.ndarray, elapsed: float) -> None:
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
        due = due and self.watched_s <= WATCH_SHARE * elapsed
        lanes = []
        for i, run in enumerate(piece.runs):
            values = {"loss": float(means[i, 0]), "total": float(means[i, 1])} if counts[i] else {}
            if np.isfinite(newest[:, i, 2]).any():
                values["validation"] = float(validation[i])
            if due and counts[i]:
                start = time.perf_counter()
                values |= self.watch(run.lane, piece.params(i))
                self.watched_s += time.perf_counter() - start
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


def train_sweep(
    learner: Learner,
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    recordings: Mapping[float, Recording] | Callable[[float], Recording],
    *,
    checkpoint_dir: Path | None = None,
    checkpoint_every: int = 2_000,
    on_progress: Callable[[Progress], None] | None = None,
    watch: Callable[[Lane, Any], dict[str, float]] | None = None,
    halving: Halving | None = None,
    memory: Memory | None = None,
    n_devices: int | None = None,
) -> list[list[Trained]]:
    """Train every candidate with every one of its seeds.

    **Arguments:**

    - `candidates`: K settings; `seeds`: for each of them its seeds (any number).
    - `recordings`: a training recording for each distinct `noise_model_level`, or a function that gets
      them, asked for the levels of one program at a time; all of one length.
    - `checkpoint_dir`: where to keep checkpoints; the same call finds them there and goes on.
    - `watch`: reads numbers off a lane's parameters at some chunk borders (about ten in a training, fewer
      where that would take more than 5 % of the time); they are in `Progress.lanes`.
    - `halving`: stop candidates that are behind; by default none is stopped.
    - `memory`: what programs and their recordings must fit into; by default what is free.
    - `n_devices`: how many local devices share the lanes; by default all.

    **Returns:** `results[k][s]`, a `Trained`. A diverging lane stops alone and says where. Results depend
    neither on memory nor on devices (but for the last bits, which sums of other widths round otherwise).

    **Raises:** `UserError` if not even one training fits into memory.
    """
    levels = sorted({c.noise_model_level for c in candidates})
    if not callable(recordings):
        missing = [level for level in levels if level not in recordings]
        if missing:
            raise ValueError(f"no recording for noise_model_level {missing}")
        recordings = recordings.__getitem__
    n_frames = len(recordings(levels[0]).voltage)
    check_rollouts(candidates, recordings(levels[0]))
    memory, config = memory or planning.device_memory(), learner.config
    sizes = planning.sizes_of(learner, n_frames, not computes_target(recordings(levels[0])))
    n_devices = n_devices or jax.local_device_count()

    def limits_of(static, n_lanes, n_levels):
        return planning.limits(sizes, config, static.batch_size, n_lanes, n_levels, memory, n_devices)

    groups = plan(candidates, seeds, n_frames, limits_of)
    worth = WORTH.get(jax.local_devices()[0].platform, WORTH_ELSEWHERE)
    runs = {lane: _Run(lane, n) for group in groups for lane, n in zip(group.lanes, group.n_steps, strict=True)}
    data = _Data(recordings)
    units = functools.cache(lambda level: units_of(recordings(level)) if config.units == "data" else (1.0, 1.0))
    reporter = _Reporter(on_progress, watch, sum(run.n_steps for run in runs.values()))
    begin, ends = 0, rungs(max(group.n_chunks for group in groups), halving)
    for end in ends:
        reporter.n_groups = len(groups)
        for reporter.group, group in enumerate(groups):
            gflop = planning.gflop_per_frame(sizes.n_neurons, config, group.static.batch_size) * group.static.batch_size
            for part, first, last in planning.narrowed(group, begin, end, gflop, worth):
                own = [runs[lane] for lane in part.lanes]
                reporter.before = sum(run.step for run in runs.values()) - sum(run.step for run in own)
                numbers = []
                for lane in part.lanes:
                    training = candidates[lane.candidate]
                    level = training.noise_model_level
                    numbers.append(numbers_of(training, n_frames, part.levels.index(level), units(level)))
                folder = None
                if checkpoint_dir is not None:
                    identity = content_hash(
                        [candidates[lane.candidate].model_dump() | {"seed": lane.seed} for lane in part.lanes],
                        [recordings(level).fingerprint for level in part.levels],
                        learner.config.model_dump(),
                        [first, last, part.width],
                    )
                    folder = Path(checkpoint_dir) / identity
                everywhere = _programs(learner, part.static, part.n_devices)[3]
                held = functools.partial(data.at, part.levels, part.width, everywhere)
                _Piece(learner, part, own, numbers, held, folder).train(first, last, checkpoint_every, reporter)
        if halving is not None and end != ends[-1]:
            for lane in _stopped(candidates, runs, recordings, halving):
                runs[lane].stopped_at = runs[lane].step
            reporter.total = sum(run.step if run.done else run.n_steps for run in runs.values())
            groups = [g for g in (_going_on(group, runs) for group in groups) if g is not None]
        begin = end
    return [[_result(learner, runs[Lane(k, s, seed)]) for s, seed in enumerate(own)] for k, own in enumerate(seeds)]


def _stopped(candidates, runs: Mapping[Lane, _Run], recordings, halving: Halving) -> list[Lane]:
    """Lanes to stop at a rung."""
    racing: dict[int, list[_Run]] = {}
    for run in runs.values():
        if run.stopped_at is None:
            racing.setdefault(run.lane.candidate, []).append(run)
    scores = {}
    targets: dict[float, np.ndarray] = {}
    for k, own in racing.items():
        candidate, level = candidates[k], candidates[k].noise_model_level
        if level not in targets:
            recording = recordings(level)
            frames = np.linspace(0, len(recording.voltage) - 1, 256).round().astype(int)
            targets[level] = recording.pairs(frames)[2]
        errors = [_newest_error(run, candidate.batch_size, targets[level].shape[1]) if run.alive else np.inf for run in own]
        scores[k] = float(np.mean(errors)) / spread(targets[level])
    gone = lost(scores, {k for k, own in racing.items() if all(run.done for run in own)}, halving.factor)
    return [run.lane for k in gone for run in racing[k] if not run.done]


def _newest_error(run: _Run, batch_size: int, n_neurons: int) -> float:
    """Root mean square error (1/s) of a lane as it is: on held-out frames, else of its last chunk of steps."""
    losses = np.concatenate(run.losses)[-CHUNK:]
    held_out = losses[np.isfinite(losses[:, 2]), 2]
    if len(held_out):
        return float(held_out[-1])
    return float(np.mean(losses[:, 0], dtype=np.float64)) / math.sqrt(batch_size * n_neurons)


def _going_on(group: Group, runs: Mapping[Lane, _Run]) -> Group | None:
    """What is left of a program after a rung."""
    left = [(lane, n) for lane, n in zip(group.lanes, group.n_steps, strict=True) if not runs[lane].done]
    if not left:
        return None
    lanes, steps = zip(*left)
    return replace(group, lanes=lanes, n_steps=steps, n_devices=min(group.n_devices, len(lanes)))


def _result(learner, run: _Run) -> Trained:
    losses = np.concatenate([np.zeros((0, 3), np.float32), *run.losses])
    validated = np.flatnonzero(np.isfinite(losses[:, 2]))
    return Trained(
        seed=run.lane.seed,
        params=jax.tree.map(np.asarray, _unpack(learner)(selected(run.state))),
        losses=losses[:, :2].copy(),
        n_steps=run.step,
        diverged_at=None if run.alive else run.step,
        wall_s=run.wall_s,
        frames_per_s=run.frames / run.wall_s,
        stopped_at=run.stopped_at,
        validation=np.stack([validated + 1, losses[validated, 2]], axis=1).astype(np.float64),
    )
