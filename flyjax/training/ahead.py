"""Programs of a training that are compiled while its recordings are made, and while earlier programs run."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import jax

from flyjax.config import Training
from flyjax.models import Learner
from flyjax.training import grouping, lanes
from flyjax.training.data import expected
from flyjax.training.grouping import Budget, Group
from flyjax.training.hparams import traced_hparams
from flyjax.training.step import init_state
from flyjax.utils import distributed
from flyjax.utils.ahead import compile_ahead
from flyjax.utils.errors import UserError


def compile_trainings_ahead(
    learner: Learner, candidates: Sequence[Training], seeds: Sequence[Sequence[int]], n_frames: int
) -> None:
    """Begin to compile, in the background, what `train_sweep` of these candidates will run.

    That is a guess: where memory or checkpoints make it run other programs, it compiles those itself. Nothing is done
    where several processes train, or where targets are computed in the step.

    **Arguments:** `n_frames`: of the recordings to come.
    """
    sizes, n_devices = grouping.sizes_of(learner, n_frames), distributed.n_devices()
    if distributed.count() > 1 or grouping.is_large(sizes):
        return
    budget = Budget(sizes, learner.config, grouping.device_memory(), n_devices)
    with suppress(UserError):  # of memory: `train_sweep` raises it
        for group in grouping.plan(candidates, seeds, n_frames, budget.limits):
            group = budget.on_devices(group, n_devices)
            _compile_group(learner, group, candidates[group.lanes[0].candidate], n_frames)


def _compile_group(learner: Learner, group: Group, candidate: Training, n_frames: int) -> None:
    """The program of a group of lanes, and the start of its lanes."""
    program = lanes.compiled(learner, group.static, group.n_devices)

    def start_arguments() -> tuple:
        hparams = traced_hparams(candidate, n_frames, 0, field=learner.learns_stimulus)
        return learner, lanes.start_static(group.static), hparams, jax.random.key(0)

    def chunk_arguments() -> tuple:
        *fixed, hparams, key = start_arguments()
        state = jax.eval_shape(partial(init_state, *fixed), hparams, key)

        def stacked(x):
            return jax.ShapeDtypeStruct((group.width, *x.shape), x.dtype, sharding=program.by_lane)

        data = expected(learner, n_frames, len(group.levels), group.width, program.replicated)
        return jax.tree.map(stacked, hparams), data, jax.tree.map(stacked, state)

    compile_ahead(program.chunk, lambda: program.chunk.lower(*chunk_arguments()))
    compile_ahead(lanes.start, lambda: lanes.start.lower(*start_arguments()))
