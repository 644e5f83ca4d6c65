"""Lanes of one compiled program: their start, their data on the devices, their chunks and checkpoints.

A lane is one training. Lanes of a program are stacked along a leading axis and sharded over the local
devices; between programs each is a `Run` of its own, so that the next program may hold other lanes.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flyjax.data.recording import Recording
from flyjax.models import Learner
from flyjax.training import checkpoint
from flyjax.training.planning import CHUNK, Group, Lane
from flyjax.training.train import RATES, Static, TrainState, init_state, stack_recordings, train_lanes, unpack

#: Unused recordings are added until there are as many as lanes while they are smaller than this together:
#: then the number of noise levels does not shape the program.
SPARE_BYTES = 256e6


@dataclass
class Run:
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
def unpacked(learner: Learner):
    return jax.jit(functools.partial(unpack, learner))


@functools.lru_cache(maxsize=32)
def compiled(learner: Learner, static: Static, n_devices: int):
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
        return stack_states(lanes, NamedSharding(mesh, lane))

    return init, jax.jit(chunk, donate_argnums=2), NamedSharding(mesh, lane), NamedSharding(mesh, everywhere)


def stack_numbers(items):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def stack_states(states: Sequence[TrainState], sharding) -> TrainState:
    """States of lanes as one, on its devices."""
    one = jax.local_devices()[0]
    return jax.device_put(jax.tree.map(lambda *x: jnp.stack(x), *jax.device_put(list(states), one)), sharding)


def keys_of(seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


class Data:
    """The recordings of one program on the devices, without luminance where a `field` is learned for it; those of
    the one before make room first."""

    def __init__(self, recording_of: Callable[[float], Recording], field: bool = False):
        self._recording_of, self._field, self._key, self._data = recording_of, field, None, None

    def at(self, levels: tuple[float, ...], width: int, sharding):
        """Trees of `stack_recordings`, one index per level."""
        key = levels, width, sharding
        if self._key == key:
            return self._data
        self._key = self._data = None
        for slot, level in enumerate(levels):
            recording = self._recording_of(level)
            had_derivative = recording.derivative_in_memory is not None
            one = jax.device_put(stack_recordings([recording], self._field), sharding)
            if not had_derivative:
                recording.release_derivative()  # as large as the voltages, and now on the device
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


class Piece:
    """A program over some chunks: start or go on, chunk by chunk, and hand the lanes back."""

    def __init__(self, learner, group: Group, runs: list[Run], numbers, data: Callable[[], Any], folder: Path | None):
        n_lanes, filling = len(runs), group.width - len(runs)
        self.learner, self.group, self.runs, self.data, self.folder = learner, group, runs, data, folder
        init, self.chunk, by_lane, _ = compiled(learner, group.static, group.n_devices)
        # Lanes that only fill up a device take no step and touch nobody.
        self.own_numbers = numbers
        numbers = [*numbers, *[numbers[-1] | {"n_steps": np.int32(0)}] * filling]
        self.numbers = jax.device_put(stack_numbers(numbers), by_lane)
        if runs[0].state is None:
            self.state = init(self.numbers, keys_of([run.lane.seed for run in runs] + [0] * filling))
        else:
            states = [run.state for run in runs]
            self.state = stack_states([*states, *[states[-1]] * filling], by_lane)
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
                report(self, done, newest[:, : self.n_lanes])
                if store is not None and (
                    done == end or done * CHUNK % max(CHUNK, checkpoint_every // CHUNK * CHUNK) == 0
                ):
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
        return unpacked(self.learner)({k: v[i] for k, v in self.state.params.items()})

    def rates(self, i: int, step: int) -> dict[str, float]:
        """The learning rates that a lane's step number `step` (from 1) was taken at, by parameter group."""
        numbers = self.own_numbers[i]
        share = 1.0 if self.group.static.schedule == "constant" else scheduled(numbers, step - 1)
        return {group: float(numbers[name]) * share for group, name in RATES.items() if name in numbers}


def scheduled(numbers, count: int) -> float:
    """`warmup_cosine` after so many steps, as a share of the rate: what `train.make_optimizer` traces."""
    progress = count / int(numbers["n_steps"])
    warm = min(1.0, (progress + 1e-6) / (float(numbers["warmup_fraction"]) + 1e-6))
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
