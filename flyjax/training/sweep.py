"""Many trainings at once: candidates x seeds as lanes of a few compiled programs.

Candidates are grouped by static signature and by what fits into memory (`planning`); inside a group
everything that differs is a traced number, so a group is one vmapped, scanned program, sharded over the
local devices (`programs`). The host looks in between chunks: progress, checkpoints, and which lanes go on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flyjax.config import Training, content_hash
from flyjax.data.recording import Recording
from flyjax.models import Learner
from flyjax.training import planning
from flyjax.training.halving import Halving, check_comparable, lost, relative_error, rungs, target_spread
from flyjax.training.lanes import Data, Piece, Run, compiled, unpacked
from flyjax.training.planning import CHUNK, Group, Lane, Memory, plan
from flyjax.training.progress import Progress, Reporter
from flyjax.training.train import check_field, check_rollouts, computes_target, numbers_of, selected, units_of
from flyjax.utils.errors import as_user_errors

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


@as_user_errors()
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
    - `checkpoint_dir`: where to keep checkpoints; the same call finds them there and goes on, with the programs
      that it began with even where less memory is free (it then says so).
    - `watch`: reads numbers off a lane's parameters at some chunk borders (about ten in a training, fewer
      where that would take more than 5 % of the time); they are in `Progress.lanes`.
    - `halving`: stop candidates that are behind; by default none is stopped.
    - `memory`: what programs and their recordings must fit into; by default what is free.
    - `n_devices`: how many local devices share the lanes; by default all.

    **Returns:** `results[k][s]`, a `Trained`. A diverging lane stops alone and says where. Memory and devices
    change how lanes share programs, and by that nothing but the rounding of sums; long trainings amplify it, so that
    a lane's result depends on its neighbours as on another seed of rounding (`planning`).

    **Raises:** `UserError` if not even one training fits into memory, memory or disk run out, or a candidate cannot be trained with an
    unknown stimulus.
    """
    levels = sorted({c.noise_model_level for c in candidates})
    if not callable(recordings):
        missing = [level for level in levels if level not in recordings]
        if missing:
            raise ValueError(f"no recording for noise_model_level {missing}")
        recordings = recordings.__getitem__
    n_frames = len(recordings(levels[0]).voltage)
    if halving is not None:
        check_comparable(candidates)
    check_rollouts(candidates, recordings(levels[0]))
    check_field(learner, candidates, n_frames)
    field = learner.learns_stimulus
    memory, config = memory or planning.device_memory(), learner.config
    sizes = planning.sizes_of(learner, n_frames, field or not computes_target(recordings(levels[0])))
    n_devices = n_devices or jax.local_device_count()

    # Recordings of other levels are not asked for here: reading them only to name the work would take minutes.
    work = content_hash(
        [c.model_dump() for c in candidates],
        [list(own) for own in seeds],
        recordings(levels[0]).fingerprint,
        config.model_dump(),
    )
    planned = planning.kept_memory(checkpoint_dir, work, memory)

    def limits_of(static, n_lanes, n_levels):
        return planning.limits(sizes, config, static.batch_size, n_lanes, n_levels, planned, n_devices)

    groups = plan(candidates, seeds, n_frames, limits_of)
    if planned is not memory:
        planning.warn_if_too_large(groups, sizes, config, planned, memory, checkpoint_dir)
    worth = WORTH.get(jax.local_devices()[0].platform, WORTH_ELSEWHERE)
    runs = {lane: Run(lane, n) for group in groups for lane, n in zip(group.lanes, group.n_steps, strict=True)}
    data = Data(recordings, field)
    units = functools.cache(lambda level: units_of(recordings(level)) if config.units == "data" else (1.0, 1.0))
    reporter = Reporter(on_progress, watch, sum(run.n_steps for run in runs.values()))
    begin, ends = 0, rungs(max(group.n_chunks for group in groups), halving)
    for end in ends:
        reporter.n_groups = len(groups)
        for reporter.group, group in enumerate(groups):
            static = group.static
            gflop = static.batch_size * planning.gflop_per_frame(
                sizes.n_neurons, config, static.batch_size, n_edges=sizes.n_edges, bends=static.bends
            )
            for part, first, last in planning.narrowed(group, begin, end, gflop, worth):
                own = [runs[lane] for lane in part.lanes]
                reporter.before = sum(run.step for run in runs.values()) - sum(run.step for run in own)
                numbers = []
                for lane in part.lanes:
                    training = candidates[lane.candidate]
                    level = training.noise_model_level
                    numbers.append(numbers_of(training, n_frames, part.levels.index(level), units(level), field))
                folder = None
                if checkpoint_dir is not None:
                    identity = content_hash(
                        [candidates[lane.candidate].model_dump() | {"seed": lane.seed} for lane in part.lanes],
                        [recordings(level).fingerprint for level in part.levels],
                        learner.config.model_dump(),
                        [first, last, part.width],
                    )
                    folder = Path(checkpoint_dir) / identity
                everywhere = compiled(learner, part.static, part.n_devices)[3]
                held = functools.partial(data.at, part.levels, part.width, everywhere)
                Piece(learner, part, own, numbers, held, folder).train(first, last, checkpoint_every, reporter)
        if halving is not None and end != ends[-1]:
            for lane in _stopped(candidates, runs, recordings, halving):
                runs[lane].stopped_at = runs[lane].step
            reporter.total = sum(run.step if run.done else run.n_steps for run in runs.values())
            groups = [g for g in (_going_on(group, runs) for group in groups) if g is not None]
        begin = end
    return [[_result(learner, runs[Lane(k, s, seed)]) for s, seed in enumerate(own)] for k, own in enumerate(seeds)]


def _stopped(candidates, runs: Mapping[Lane, Run], recordings, halving: Halving) -> list[Lane]:
    """Lanes to stop at a rung."""
    racing: dict[int, list[Run]] = {}
    for run in runs.values():
        if run.stopped_at is None:
            racing.setdefault(run.lane.candidate, []).append(run)
    scores = {}
    spreads: dict[float, float] = {}
    for k, own in racing.items():
        candidate, level = candidates[k], candidates[k].noise_model_level
        recording = recordings(level)
        if level not in spreads:
            spreads[level] = target_spread(recording)
        errors = [
            _newest_error(run, candidate, recording.voltage.shape[1], spreads[level]) if run.alive else np.inf
            for run in own
        ]
        scores[k] = float(np.mean(errors))
    gone = lost(scores, {k for k, own in racing.items() if all(run.done for run in own)}, halving.factor)
    return [run.lane for k in gone for run in racing[k] if not run.done]


def _newest_error(run: Run, candidate: Training, n_neurons: int, spread: float) -> float:
    """Relative error of a lane as it is: on held-out frames, else of its last chunk of steps."""
    losses = np.concatenate(run.losses)[-CHUNK:]
    held_out = losses[np.isfinite(losses[:, 2]), 2]
    if len(held_out):
        return float(held_out[-1]) / spread
    return relative_error(float(np.mean(losses[:, 0], dtype=np.float64)), candidate, n_neurons, spread)


def _going_on(group: Group, runs: Mapping[Lane, Run]) -> Group | None:
    """What is left of a program after a rung."""
    left = [(lane, n) for lane, n in zip(group.lanes, group.n_steps, strict=True) if not runs[lane].done]
    if not left:
        return None
    lanes, steps = zip(*left)
    return replace(group, lanes=lanes, n_steps=steps, n_devices=min(group.n_devices, len(lanes)))


def _result(learner, run: Run) -> Trained:
    losses = np.concatenate([np.zeros((0, 3), np.float32), *run.losses])
    validated = np.flatnonzero(np.isfinite(losses[:, 2]))
    return Trained(
        seed=run.lane.seed,
        params=jax.tree.map(np.asarray, unpacked(learner)(selected(run.state))),
        losses=losses[:, :2].copy(),
        n_steps=run.step,
        diverged_at=None if run.alive else run.step,
        wall_s=run.wall_s,
        frames_per_s=run.frames / run.wall_s,
        stopped_at=run.stopped_at,
        validation=np.stack([validated + 1, losses[validated, 2]], axis=1).astype(np.float64),
    )
