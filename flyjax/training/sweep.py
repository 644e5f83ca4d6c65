"""Many trainings at once: candidates x seeds as lanes of a few compiled programs.

Candidates are grouped by static signature and by what fits into memory (`grouping`); inside a group
everything that differs is a traced number, so a group is one vmapped, scanned program, sharded over the devices of
all processes (`lanes`). Between chunks process 0 reports progress, all write checkpoints and stop the same lanes.

**Successive halving**, off by default: at each rung, a number of steps that all lanes have taken or finished at, the
candidates are ranked and only the best 1/factor of them continue (Jamieson & Talwalkar, 2016; rungs as in Hyperband).
The ranking needs no ground truth: it is the mean over a candidate's seeds of the root mean square error, on held-out
frames where there are some, else in the last training steps, in units of the targets' spread, so that batch
sizes and noise levels compare (`relative_error`).
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flyjax.config import Training, content_hash, split_sizes
from flyjax.data.recording import Recording
from flyjax.models import Learner
from flyjax.training import grouping
from flyjax.training.data import DeviceRecordings, computes_target
from flyjax.training.grouping import CHUNK, Budget, Group, Lane, Memory
from flyjax.training.hparams import check_trainable, traced_hparams, units_of
from flyjax.training.lanes import LaneState, Progress, Reporter, Segment
from flyjax.training.optimizer import unpack
from flyjax.training.projection import projected_weights
from flyjax.training.step import result_params
from flyjax.utils import distributed
from flyjax.utils.errors import UserError, as_user_errors
from flyjax.utils.format import format_bytes
from flyjax.utils.run_directory import own

#: Frames, spread evenly, that the spread of a recording's targets is measured on.
SPREAD_FRAMES = 256


class Halving(NamedTuple):
    """Keep 1/factor of the candidates at each of `rungs` rungs, at n/factor, n/factor^2 … of the longest n steps."""

    factor: float
    rungs: int


def rungs(n_chunks: int, halving: Halving | None) -> list[int]:
    """The rungs in chunks, the end included: strictly rising."""
    if halving is None:
        return [n_chunks]
    early = {round(n_chunks / halving.factor**k) for k in range(1, halving.rungs + 1)}
    return [*sorted(c for c in early if 1 <= c < n_chunks), n_chunks]


def target_spread(recording) -> float:
    """Root mean square error of the best constant prediction of a recording's targets per neuron, 1/s."""
    frames = np.linspace(0, len(recording.voltage) - 1, SPREAD_FRAMES).round().astype(int)
    target = recording.pairs(frames)[2]
    return float(np.sqrt(np.mean(np.square(target - target.mean(axis=0), dtype=np.float64))))


def relative_error(loss: float, training: Training, n_neurons: int, spread: float) -> float:
    """Root mean square error of a data term of the loss, over the spread of the targets; below 1 something was learned.

    The data term is a norm over batch, steps of the rollout and neurons, in 1/s: it grows with each of them, and with
    the noise level of the recording. The relative error compares between trainings of one simulation with equal
    `rollout_steps`.
    """
    return loss / math.sqrt(training.batch_size * training.rollout_steps * n_neurons) / spread


def check_comparable(candidates: Sequence[Training]) -> None:
    """**Raises:** `UserError` for candidates whose losses are of rollouts of different lengths: they do not compare."""
    if len({c.rollout_steps for c in candidates}) > 1 and not all(c.validation_fraction for c in candidates):
        raise UserError(
            "successive halving compares one-step errors, which losses of different rollout_steps are not: "
            "set validation_fraction (for example 0.1) for all candidates, or one rollout_steps"
        )


def candidates_to_stop(scores: Mapping[int, float], finished: set[int], factor: float) -> set[int]:
    """All but the best ceil(n / factor), ties to the lower number.

    A score that is not finite is the worst. A finished candidate is ranked but cannot be stopped.
    """
    order = sorted(scores, key=lambda k: (scores[k] if math.isfinite(scores[k]) else math.inf, k))
    return set(order[math.ceil(len(order) / factor) :]) - finished


log = logging.getLogger(__name__)

#: GFLOP that a narrower program must save to be compiled, by platform: about ten seconds.
MIN_SAVING = {"cpu": 300.0}
MIN_SAVING_ELSEWHERE = 1e5


@dataclass(frozen=True)
class Trained:
    """The result of one lane.

    **Attributes:**

    - `params`: the parameters selected (`Training.select`), by default the last finite ones; NumPy arrays.
    - `losses`: (steps, 2) data term and total of every step taken.
    - `diverged_at`: the step whose loss or gradient was not finite, or None.
    - `wall_s`: seconds of the programs this lane ran in, compilation included.
    - `frames_per_s`: training frames of all their lanes over that time.
    - `stopped_at`: the step at which successive halving stopped it, or None.
    - `validation`: (n, 2) step and root mean square error (1/s) on held-out frames, once per chunk; empty
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

    def _tail(self, column: int) -> float | None:
        if self.diverged_at is not None or not len(self.losses):
            return None
        return float(np.mean(self.losses[-max(1, len(self.losses) // 20) :, column], dtype=np.float64))

    @property
    def final_loss(self) -> float | None:
        """Mean data term of the last 5 % of the steps."""
        return self._tail(0)

    @property
    def final_loss_total(self) -> float | None:
        """The same with the regularisers."""
        return self._tail(1)


@dataclass
class _Sweep:
    """What the segments of a sweep share."""

    learner: Learner
    candidates: Sequence[Training]
    recording_of: Callable[[float], Recording]
    lanes: dict[Lane, LaneState]
    checkpoint_dir: Path | None
    budget: Budget
    n_devices: int

    def __post_init__(self):
        self.data = DeviceRecordings(self.recording_of, self.learner.learns_stimulus)
        scaled = self.learner.config.units == "data"
        self.units = functools.cache(lambda level: units_of(self.recording_of(level)) if scaled else (1.0, 1.0))
        self.spread = functools.cache(lambda level: target_spread(self.recording_of(level)))

    def segment(self, group: Group, first: int, last: int) -> Segment:
        """A program from chunk `first` to `last`."""
        candidates = [self.candidates[lane.candidate] for lane in group.lanes]
        hparams = [
            traced_hparams(
                training,
                self.budget.sizes.n_frames,
                group.levels.index(lane.level),
                self.units(lane.level),
                self.learner.learns_stimulus,
            )
            for training, lane in zip(candidates, group.lanes, strict=True)
        ]
        folder = None
        if self.checkpoint_dir is not None:
            key = content_hash(
                [c.model_dump() | {"seed": lane.seed} for c, lane in zip(candidates, group.lanes, strict=True)],
                [self.recording_of(level).fingerprint for level in group.levels],
                self.learner.config.model_dump(),
                [first, last],
            )
            folder = own(Path(self.checkpoint_dir) / key)
        states = [self.lanes[lane] for lane in group.lanes]
        group = self.budget.on_devices(group, self.n_devices)
        group = replace(group, n_devices=distributed.even(group.n_devices))
        return Segment(self.learner, group, states, hparams, self.data.at, self.project, folder)

    def project(self, lane: Lane, params) -> np.ndarray:
        """W of a lane by least squares on its messages, on the frames that it is trained on."""
        recording = self.recording_of(lane.level)
        n_training = split_sizes(self.candidates[lane.candidate], len(recording.voltage))[0]
        return projected_weights(self.learner, params, recording, n_training)

    def stop_behind(self, halving: Halving) -> None:
        """Stop lanes at a rung."""
        racing: dict[int, list[LaneState]] = {}
        for state in self.lanes.values():
            if state.stopped_at is None:
                racing.setdefault(state.lane.candidate, []).append(state)
        scores = {k: float(np.mean([self._newest_error(state) for state in own])) for k, own in racing.items()}
        finished = {k for k, own in racing.items() if all(state.done for state in own)}
        for k in candidates_to_stop(scores, finished, halving.factor):
            for state in racing[k]:
                if not state.done:
                    state.stopped_at = state.step

    def _newest_error(self, state: LaneState) -> float:
        """Relative error of a lane's current parameters: on held-out frames, else of its last chunk of steps."""
        if not state.is_finite:
            return np.inf
        candidate = self.candidates[state.lane.candidate]
        spread = self.spread(candidate.noise_model_level)
        losses = np.concatenate(state.losses)[-CHUNK:]
        held_out = losses[np.isfinite(losses[:, 2]), 2]
        if len(held_out):
            return float(held_out[-1]) / spread
        loss = float(np.mean(losses[:, 0], dtype=np.float64))
        return relative_error(loss, candidate, self.learner.connectome.n_neurons, spread)


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
    monitor: Callable[[Lane, Any, bool], dict[str, float]] | None = None,
    halving: Halving | None = None,
    memory: Memory | None = None,
    n_devices: int | None = None,
) -> list[list[Trained]]:
    """Train every candidate with every one of its seeds.

    **Arguments:**

    - `candidates`: K settings; `seeds`: for each of them its seeds (any number).
    - `recordings`: a training recording for each distinct `noise_model_level`, or a function that returns
      it, called for the levels of one program at a time; all of one length.
    - `checkpoint_dir`: folder of checkpoints; the same call resumes from them, with the programs
      that it began with even where less memory is free (with a warning) or the number of devices is another.
    - `monitor`: computes values of a lane, its parameters and whether it is trained: at some chunk borders (about ten
      in a training, fewer where that would take more than 5 % of the time) and when it is trained; they are in
      `Progress.lanes`.
    - `halving`: stop the worse candidates early; by default none is stopped.
    - `memory`: what programs and their recordings must fit into; by default what is free.
    - `n_devices`: how many devices share the lanes; by default all, those of other processes (`distributed`) too.

    **Returns:** `results[k][s]`, a `Trained`. A diverging lane stops alone and reports the step. Memory and devices
    change how lanes share programs, and by that nothing but the rounding of sums (`grouping`).

    **Raises:** `UserError` if not even one training fits into memory, memory or disk run out, or a candidate cannot be
    trained with an unknown stimulus.
    """
    first_level = min(c.noise_model_level for c in candidates)
    recording_of = recordings if callable(recordings) else recordings.__getitem__
    first_recording, config = recording_of(first_level), learner.config
    if halving is not None:
        check_comparable(candidates)
    check_trainable(learner, candidates, first_recording)
    memory, n_devices = memory or grouping.device_memory(), n_devices or distributed.n_devices()
    stores_target = learner.learns_stimulus or not computes_target(first_recording)
    sizes = grouping.sizes_of(learner, len(first_recording.voltage), stores_target)

    # Recordings of other levels are not read here: reading them only to name the work would take minutes.
    work = content_hash(
        [c.model_dump() for c in candidates],
        [list(own) for own in seeds],
        first_recording.fingerprint,
        config.model_dump(),
    )
    planned, planned_devices = distributed.from_leader(
        lambda: grouping.planned_for(checkpoint_dir, work, memory, n_devices)
    )
    budget = Budget(sizes, config, Memory(*planned), planned_devices)
    groups = grouping.plan(candidates, seeds, sizes.n_frames, budget.limits)
    needed = max(budget.group_bytes(budget.on_devices(group, n_devices)) for group in groups)
    if needed > memory.free:
        log.warning(
            "resuming the programs of %s takes about %s, but %s are %s: "
            "free memory, or remove that folder to start again with smaller programs",
            checkpoint_dir, format_bytes(needed), format_bytes(memory.free), memory.source,
        )  # fmt: skip
    lanes = {lane: LaneState(lane) for group in groups for lane in group.lanes}
    sweep = _Sweep(learner, candidates, recording_of, lanes, checkpoint_dir, budget, n_devices)
    min_saving = MIN_SAVING.get(jax.local_devices()[0].platform, MIN_SAVING_ELSEWHERE)
    reporter = Reporter(on_progress, monitor, lanes.values())
    begin, ends = 0, rungs(max(group.n_chunks for group in groups), halving)
    for end in ends:
        reporter.n_groups = len(groups)
        for reporter.group, group in enumerate(groups):
            for part, first, last in grouping.split_at_finished(
                group, begin, end, budget.gflop(group.static), min_saving
            ):
                sweep.segment(part, first, last).train(first, last, checkpoint_every, reporter)
        if halving is not None and end != ends[-1]:
            sweep.stop_behind(halving)
            groups = list(filter(None, (group.only(lambda lane: not lanes[lane].done) for group in groups)))
        begin = end
    results = {(lane.candidate, lane.replicate): _result(learner, state) for lane, state in lanes.items()}
    return [[results[k, s] for s in range(len(own))] for k, own in enumerate(seeds)]


def _result(learner: Learner, state: LaneState) -> Trained:
    losses = np.concatenate([np.zeros((0, 3), np.float32), *state.losses])
    validated = np.flatnonzero(np.isfinite(losses[:, 2]))
    return Trained(
        seed=state.lane.seed,
        params=jax.tree.map(np.array, unpack(learner, result_params(state.state))),
        losses=losses[:, :2].copy(),
        n_steps=state.step,
        diverged_at=None if state.is_finite else state.step,
        wall_s=state.wall_s,
        frames_per_s=state.frames / state.wall_s,
        stopped_at=state.stopped_at,
        validation=np.stack([validated + 1, losses[validated, 2]], axis=1).astype(np.float64),
    )
