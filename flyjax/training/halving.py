"""Successive halving: the worse candidates stop early. Off by default.

At each rung, a number of steps that all lanes have taken or finished at, the candidates are ranked and
only the best 1/factor of them continue (Jamieson & Talwalkar, 2016; rungs as in Hyperband). The ranking
needs no ground truth: it is the mean over a candidate's seeds of the root mean square error, on held-out
frames where there are some, else in the last training steps, in units of the targets' spread, so that batch
sizes and noise levels compare (`relative_error`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flyjax.config import Training
from flyjax.utils.errors import UserError

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
