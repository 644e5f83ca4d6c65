"""Many trainings at once: candidates x seeds as lanes of a few compiled programs.

Candidates are grouped by static signature (batch size, schedule); inside a group everything that
differs is a traced number, so a group is one vmapped, scanned program, sharded over the local devices.
The host looks in between chunks: progress, checkpoints, nothing else.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flyjax.config import Training, content_hash
from flyjax.model import Learner
from flyjax.recording import Recording
from flyjax.training import checkpoint
from flyjax.training.train import (
    Static,
    TrainState,
    init_state,
    n_steps,
    numbers_of,
    stack_recordings,
    static_of,
    train_chunk,
    unpack,
)

#: Steps of one scan: the host is asked in between, often enough for a progress bar.
CHUNK = 250


@dataclass(frozen=True)
class Lane:
    """One training: candidate number, seed number and the seed itself."""

    candidate: int
    replicate: int
    seed: int


@dataclass(frozen=True)
class Group:
    """The lanes of one compiled program."""

    static: Static
    lanes: tuple[Lane, ...]
    n_steps: tuple[int, ...]  # per lane

    @property
    def n_chunks(self) -> int:
        return -(-max(self.n_steps) // CHUNK)


@dataclass(frozen=True)
class Trained:
    """What one lane came to.

    Attributes:
        params: the last finite parameters, NumPy arrays.
        losses: (steps, 2) data term and total of every step taken.
        diverged_at: the step whose loss or gradient was not finite, or None.
        wall_s: seconds of the whole program this lane ran in, compilation included.
        frames_per_s: training frames of all its lanes over that time.
    """

    seed: int
    params: Any
    losses: np.ndarray
    n_steps: int
    diverged_at: int | None
    wall_s: float
    frames_per_s: float

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
class Progress:
    """Told after every chunk."""

    group: int
    n_groups: int
    lane_steps: int  # done, over all lanes of all groups
    total_lane_steps: int
    loss: float | None  # mean data term of the living lanes over the chunk
    n_diverged: int


def plan(candidates: Sequence[Training], seeds: Sequence[Sequence[int]], n_frames: int) -> list[Group]:
    """Deal candidates x seeds into groups of equal static signature, in a fixed order."""
    lanes: dict[Static, list[tuple[Lane, int]]] = {}
    for k, (candidate, own_seeds) in enumerate(zip(candidates, seeds, strict=True)):
        for s, seed in enumerate(own_seeds):
            lanes.setdefault(static_of(candidate), []).append((Lane(k, s, seed), n_steps(candidate, n_frames)))
    return [Group(static, *map(tuple, zip(*lanes[static]))) for static in sorted(lanes)]


@functools.lru_cache(maxsize=32)
def _programs(learner: Learner, static: Static, n_devices: int):
    """(init, chunk) over stacked lanes, compiled once per static signature and lane count."""
    mesh = jax.make_mesh((n_devices,), ("lane",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:n_devices])
    lane, everywhere = PartitionSpec("lane"), PartitionSpec()

    def shard(function, in_specs):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=lane, check_vma=False)

    init = jax.vmap(functools.partial(init_state, learner, static))
    chunk = jax.vmap(functools.partial(train_chunk, learner, static, CHUNK), in_axes=(0, None, 0))
    return (
        jax.jit(shard(init, (lane, lane))),
        jax.jit(shard(chunk, (lane, everywhere, lane)), donate_argnums=2),
        NamedSharding(mesh, lane),
        NamedSharding(mesh, everywhere),
    )


def _stack(items):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def _keys(seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def _run_group(learner, group: Group, numbers, data, folder, checkpoint_every, report, n_devices):
    """Train one group; returns (params, step, alive) stacked and padded, losses (steps, lanes, 2), seconds."""
    n_lanes = len(group.lanes)
    n_devices = min(n_devices or jax.local_device_count(), n_lanes)
    padded = -(-n_lanes // n_devices) * n_devices
    # Lanes that only fill up a device take no step and touch nobody.
    numbers = [*numbers, *[numbers[-1] | {"n_steps": np.int32(0)}] * (padded - n_lanes)]
    seeds = [lane.seed for lane in group.lanes] + [0] * (padded - n_lanes)

    init, run_chunk, by_lane, everywhere = _programs(learner, group.static, n_devices)
    numbers = jax.device_put(_stack(numbers), by_lane)
    data = jax.device_put(data, everywhere)
    start = time.perf_counter()
    state: TrainState = init(numbers, jax.device_put(_keys(seeds), by_lane))
    losses = np.full((group.n_chunks * CHUNK, padded, 2), np.nan, np.float32)
    done, spent = 0, 0.0

    store = checkpoint.Store(folder) if folder is not None else None
    if store is not None:
        found = store.restore_latest({"state": state, "losses": losses, "spent": np.float64(0.0)})
        if found is not None:
            done, tree = found
            state, losses, spent = tree["state"], np.array(tree["losses"]), float(tree["spent"])
    try:
        while done < group.n_chunks:
            state, chunk_losses = run_chunk(numbers, data, state)
            # (lanes, chunk, 2) off the device: the one wait of a chunk.
            losses[done * CHUNK : (done + 1) * CHUNK] = np.asarray(chunk_losses).swapaxes(0, 1)
            done += 1
            report(done, losses[:, :n_lanes], np.asarray(state.alive)[:n_lanes])
            due = (done * CHUNK) % max(CHUNK, checkpoint_every // CHUNK * CHUNK) == 0
            if store is not None and due and done < group.n_chunks:
                total = spent + time.perf_counter() - start
                store.save(done, {"state": state, "losses": losses, "spent": np.float64(total)})
    finally:
        if store is not None:
            store.close()
    return jax.device_get((state.params, state.step, state.alive)), losses, spent + time.perf_counter() - start


def train_sweep(
    learner: Learner,
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    recordings: dict[float, Recording],
    *,
    checkpoint_dir: Path | None = None,
    checkpoint_every: int = 2_000,
    on_progress: Callable[[Progress], None] | None = None,
    n_devices: int | None = None,
) -> list[list[Trained]]:
    """Train every candidate with every one of its seeds.

    **Arguments:**

    - `candidates`: K settings; `seeds`: for each of them its seeds (any number).
    - `recordings`: a training recording for each distinct `noise_model_level`; all of one length.
    - `checkpoint_dir`: where to keep checkpoints; the same call finds them there and goes on.
    - `n_devices`: how many local devices share the lanes; by default all. Results do not depend on it.

    **Returns:** `results[k][s]`, a `Trained`. A diverging lane stops alone and says where.
    """
    levels = sorted({c.noise_model_level for c in candidates})
    missing = [level for level in levels if level not in recordings]
    if missing:
        raise ValueError(f"no recording for noise_model_level {missing}")
    used = [recordings[level] for level in levels]
    n_frames = used[0].voltage.shape[0]
    data = stack_recordings(used)
    groups = plan(candidates, seeds, n_frames)
    total = sum(sum(g.n_steps) for g in groups)
    finished = 0
    results: list[list[Trained | None]] = [[None] * len(own) for own in seeds]

    for g, group in enumerate(groups):

        def report(done, losses, alive, g=g, group=group, before=finished):
            if on_progress is None:
                return
            recent = losses[(done - 1) * CHUNK : done * CHUNK, :, 0]
            loss = float(np.nanmean(recent)) if np.isfinite(recent).any() else None
            steps = sum(min(done * CHUNK, n) for n in group.n_steps)
            on_progress(Progress(g, len(groups), before + steps, total, loss, int((~alive).sum())))

        numbers = [
            numbers_of(candidates[lane.candidate], n_frames, levels.index(candidates[lane.candidate].noise_model_level))
            for lane in group.lanes
        ]
        folder = None
        if checkpoint_dir is not None:
            identity = content_hash(
                [candidates[lane.candidate].model_dump() | {"seed": lane.seed} for lane in group.lanes],
                [recording.fingerprint for recording in used],
                learner.config.model_dump(),
            )
            folder = Path(checkpoint_dir) / identity
        (params, steps, alive), losses, wall = _run_group(
            learner, group, numbers, data, folder, checkpoint_every, report, n_devices
        )
        finished += sum(group.n_steps)
        frames = sum(int(s) for s in steps[: len(group.lanes)]) * group.static.batch_size
        for i, lane in enumerate(group.lanes):
            taken = int(steps[i])
            results[lane.candidate][lane.replicate] = Trained(
                seed=lane.seed,
                params=jax.tree.map(np.asarray, unpack(learner, {k: v[i] for k, v in params.items()})),
                losses=losses[:taken, i].copy(),
                n_steps=taken,
                diverged_at=None if alive[i] else taken,
                wall_s=wall,
                frames_per_s=frames / wall,
            )
    return results
