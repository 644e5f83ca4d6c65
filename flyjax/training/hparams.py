"""What a candidate's settings become: a static signature and traced numbers.

**Validation.** The last `validation_fraction` of the recording is not trained on, nor are up to
`GAP` frames before it: neighbouring frames are near copies. At the end of every chunk the
one-step error on `VALIDATION_FRAMES` frames spread evenly over the held-out ones is measured.

**Unknown stimulus.** A field over time cannot predict frames after the end of its movie, so the held-out frames
are then every k-th of the recording, k = 1 / `validation_fraction`: their voltages and targets enter no loss.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flyjax.config import Training, split_sizes, training_problem
from flyjax.data.recording import Recording
from flyjax.models import Learner
from flyjax.models.losses import CURVATURE_COEFFICIENTS, coefficient_names
from flyjax.utils.errors import UserError

log = logging.getLogger(__name__)

#: Steps of one scan; between scans the host reports progress and projects W.
CHUNK = 250
#: Shares of the steps after which W is projected for the last and the first time; once only: for the last.
PROJECTED = 0.6, 0.2
VALIDATION_FRAMES = 32  # held-out frames that are evaluated

#: The learning rate of each group of parameters.
RATES = {
    "W": "learning_rate_W_start",
    "networks": "learning_rate_start",
    "embedding": "learning_rate_embedding_start",
    "field": "learning_rate_field_start",  # only where the stimulus is unknown
}


class Static(NamedTuple):
    """What shapes the compiled program: one compilation per distinct value."""

    batch_size: int
    schedule: str
    select: str = "last"
    validates: bool = False
    rollout_steps: int = 1
    with_curvature: bool = False


def static_of(training: Training) -> Static:
    """The static signature of a candidate."""
    return Static(
        training.batch_size,
        training.schedule,
        training.select,
        training.validation_fraction > 0,
        training.rollout_steps,
        any(getattr(training, name) > 0 for name in CURVATURE_COEFFICIENTS),
    )


def n_steps(training: Training, n_frames: int) -> int:
    """Optimiser steps: n_frames * data_augmentation_loop / batch_size * 0.2, as in flyvis-gnn."""
    return max(1, round(n_frames * training.data_augmentation_loop / training.batch_size * 0.2))


def projection_chunks(training: Training, n_frames: int) -> tuple[int, ...]:
    """The numbers of chunks after which W is projected (`projection`)."""
    last, first = PROJECTED
    steps = n_steps(training, n_frames)
    if steps <= CHUNK:  # it would end with a projection that nothing has learned around
        return ()
    chunks = steps * np.linspace(last, first, training.n_projections) // CHUNK
    return tuple(sorted({max(1, int(chunk)) for chunk in chunks}))


def held_out_of_field(training: Training, n_frames: int) -> np.ndarray:
    """The frames on which a field was not trained: every k-th."""
    stride = round(1 / training.validation_fraction)
    return np.arange(stride - 1, n_frames, stride)


def traced_hparams(
    training: Training, n_frames: int, level: int, units: tuple[float, float] = (1.0, 1.0), field: bool = False
) -> dict[str, Any]:
    """The numbers of a candidate that a compiled program takes as arguments.

    **Arguments:**

    - `level`: index of its recording in `stack_recordings`.
    - `units`: `units_of` that recording.
    - `field`: whether the stimulus is unknown.
    """
    rates = [name for group, name in RATES.items() if field or group != "field"]
    names = (*rates, "warmup_fraction", "average_decay")
    hparams: dict[str, Any] = {name: np.float32(getattr(training, name)) for name in names}
    hparams |= {name: np.float32(getattr(training, name, 0.0)) for name in coefficient_names(field)}
    n_training, n_held_out = split_sizes(training, n_frames)
    if field:
        held_out = held_out_of_field(training, n_frames)
        n_training, n_held_out = n_frames - len(held_out), len(held_out)
        hparams["holdout_stride"] = np.int32(held_out[0] + 1)
    steps = n_steps(training, n_frames)
    first_projection = min(projection_chunks(training, n_frames), default=None)
    return hparams | {
        "n_starts": np.int32(n_training - training.rollout_steps + 1),
        "n_held_out": np.int32(n_held_out),
        "n_steps": np.int32(steps),
        "n_steps_W": np.int32(steps if first_projection is None else first_projection * CHUNK),
        "units": np.asarray(units, np.float32),
        "level": np.int32(level),
    }


def units_of(recording: Recording, n_frames: int = 1000) -> tuple[float, float]:
    """Standard deviation of all voltages and of all derivatives (1/s), over frames spread evenly."""
    frames = np.unique(np.linspace(0, len(recording.voltage) - 1, n_frames).round().astype(int))
    voltage, _, derivative = recording.pairs(frames)
    volt, rate = (max(float(np.std(x, dtype=np.float64)), 1e-6) for x in (voltage, derivative))
    return volt, rate


def check_trainable(learner: Learner, candidates: Sequence[Training], recording: Recording) -> None:
    """**Raises:** `UserError` where a candidate cannot be trained on the recording: it, or a part of it, is too short,
    or the stimulus is unknown and the settings do not allow for it."""
    n_frames = len(recording.voltage)
    shortest = min(s.stop - s.start for s in getattr(recording, "spans", (slice(0, n_frames),)))
    for training in candidates:
        if training.n_projections and not projection_chunks(training, n_frames):
            log.warning(
                "training.n_projections=%d has no effect on a training of %d steps: it needs more than %d",
                training.n_projections, n_steps(training, n_frames), CHUNK,
            )  # fmt: skip
        if problem := training_problem(learner.config, training, n_frames, shortest):
            raise UserError(problem)
